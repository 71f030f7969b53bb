// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse run` with everyday programs: they notice nothing, and nothing stays.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use programs::{Vfuse, Way, in_each_way};
use rustix::process::Signal;

in_each_way! {
    /// The program's own exit status, and 126 and 127 as a shell has them.
    fn exit_status_is_the_programs(way) {
        let vfuse = Vfuse::new(way);
        vfuse.run(["true"]).succeeded();
        vfuse.shell("exit 77").exited(77);
        vfuse.run(["no-such-program"]).exited(127).said("no-such-program");
        let plain = vfuse.place.write("plain", b"not a program");
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("it is ours");
        vfuse.run([&plain]).exited(126);
    }

    /// A signal that kills the program kills vfuse alike.
    fn signals_are_the_programs(way) {
        let vfuse = Vfuse::new(way);
        vfuse.shell("kill -TERM $$").killed_by(Signal::TERM);
        vfuse.shell("kill -SEGV $$").killed_by(Signal::SEGV);
    }

    /// The lab's devices are what sysfs shows; the rest of the system is there.
    fn sees_the_lab(way) {
        let outcome = Vfuse::new(way).shell(
            "cat /sys/bus/pci/devices/0000:01:00.0/class
             basename $(readlink /sys/bus/pci/devices/0000:01:00.0/driver)
             group=$(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/iommu_group))
             ls /sys/kernel/iommu_groups/$group/devices
             test -c /dev/vfio/vfio
             test -c /dev/vfio/$group
             test -d /sys/module/vfio_pci
             test -r /etc/passwd
             cat /proc/self/status > /dev/null",
        );
        outcome.succeeded().said("0x010802").said("vfio-pci").said("0000:01:00.0");
    }

    /// API-076: what a program has mapped for a device is locked memory of its,
    /// and Linux shows it.
    fn statuses_show_locked_memory(way) {
        const LAB: &str = "[iommu]\nprocess_figures = true\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\n";
        let outcome = Vfuse::new(way).lab(LAB).shell(
            "qemu-io -f raw -c 'sleep 1000' nvme://0000:01:00.0/1 & user=$!
             while ps -o pid= -p $user > /dev/null; do
                 locked=$(sed -n 's/^VmLck:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$user/status)
                 test \"${locked:-0}\" = 0 || break
             done
             echo locked=${locked:-0}
             wait $user
             sed -n 's/^VmLck:[^0-9]*/own=/p' /proc/self/status",
        );
        let locked = outcome.succeeded().text.lines().find_map(|line| line.strip_prefix("locked="));
        assert!(locked.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib > 0), "{}", outcome.text);
        outcome.said("own=0 kB");
    }

    /// ERR-059, ERR-060, ERR-064: a record written by somebody else's program
    /// is an error; sysfs counts it. Who is not root may not.
    fn injects_errors(way) {
        const LAB: &str = "[aer]\ninject = true\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\n";
        let mut record = [0u8; 32];
        (record[0], record[6]) = (1, 1); // bus 1, unexpected completion
        let vfuse = Vfuse::new(way).lab(LAB);
        let _ = vfuse.place.write("record", &record);
        let outcome = vfuse.shell(
            "test -c /dev/aer_inject
             for bytes in 32 28 27; do dd if=record of=/dev/aer_inject bs=$bytes count=1 || :; done
             dd if=record of=/dev/aer_inject bs=2 count=1 || :
             grep UnxCmplt /sys/bus/pci/devices/0000:01:00.0/aer_dev_nonfatal",
        );
        if way.is_root() {
            outcome.succeeded().said("32 bytes copied").said("28 bytes copied").said("UnxCmplt 2");
            assert_eq!(outcome.text.matches("Invalid argument").count(), 2, "{}", outcome.text);
        } else {
            outcome.succeeded().said("UnxCmplt 0");
            assert_eq!(outcome.text.matches("Operation not permitted").count(), 4, "{}", outcome.text);
        }
    }

    /// Pipes, children of children, and a child that outlives its parent.
    fn a_tree_of_processes(way) {
        let outcome = Vfuse::new(way).shell(
            "echo one two three | wc -w
             (sh -c '(sleep 0.2; echo late) &')
             sh -c 'sh -c \"exit 3\"' || echo status $?
             sleep 0.5",
        );
        outcome.succeeded().said("3\n").said("status 3").said("late");
    }

    /// Nothing is left mounted, running or on disk when the program ends.
    fn nothing_is_left(way) {
        let (vfuse, before) = watched(way);
        vfuse.shell("ls /dev/vfio > /dev/null").succeeded();
        assert_eq!(traces(&vfuse), before);
    }

    /// Nor when vfuse itself is killed.
    fn nothing_is_left_of_a_killed_run(way) {
        let (vfuse, before) = watched(way);
        let mut child = vfuse.command(["sh", "-c", "touch files/started; exec sleep 1000"]).spawn().expect("vfuse starts");
        wait_until(|| vfuse.place.path("files/started").exists(), &vfuse);
        fs::remove_file(vfuse.place.path("files/started")).expect("it is there");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        wait_until(|| traces(&vfuse) == before, &vfuse);
    }
}

/// A command line that cannot be used, in one sentence.
#[test]
fn usage_errors() {
    for options in [
        &["--device", "toaster"][..],
        &["--device", "nvme,addr=01:00.0,colour=red"],
        &["--device", "nvme,addr=01:00.0", "--device", "nvme,addr=01:00.0"],
        &["--lab", "/no/such/lab.toml"],
        &["--device", "nvme,file=/no/such/disk.img"],
        &["--control"],
    ] {
        let outcome = Vfuse::new(Way::NobodyUserns).options(options).run(["true"]);
        outcome.exited(2);
        let last = options.last().and_then(|text| text.split(['=', ',', '/']).next_back()).unwrap_or_default();
        outcome.said(last);
    }
}

/// A run whose temporary files lie in its own place, and what there is before
/// it.
fn watched(way: Way) -> (Vfuse, Vec<String>) {
    let vfuse = Vfuse::new(way);
    let files = vfuse.place.directory("files");
    let files = files.to_string_lossy();
    let vfuse = vfuse.env("XDG_RUNTIME_DIR", &files).env("TMPDIR", &files);
    let _ = vfuse.command(["true"]); // the program's copy is there
    let before = traces(&vfuse);
    (vfuse, before)
}

/// Mounts, files and processes that a run could leave.
fn traces(vfuse: &Vfuse) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mut traces: Vec<String> = mounts.lines().map(str::to_owned).collect();
    let files = fs::read_dir(vfuse.place.path("files")).expect("our own directory");
    traces.extend(files.flatten().map(|entry| entry.path().display().to_string()));
    // Who runs in the run's directory, or whose environment names it.
    let place = vfuse.place.path("files").to_string_lossy().into_owned();
    for process in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(&place) {
            traces.push(process.path().display().to_string());
        }
    }
    traces
}

fn wait_until(mut true_now: impl FnMut() -> bool, vfuse: &Vfuse) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !true_now() {
        assert!(Instant::now() < deadline, "it did not happen within 20 s: {:?}", traces(vfuse));
        std::thread::yield_now();
    }
}
