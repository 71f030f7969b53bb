// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of a device that a Linux guest in QEMU has: QEMU alone stops the
//! machine; with `vfuse aer-bridge` the guest recovers and goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use programs::{Guest, GuestReport, Live, Monitor, Outcome, Vfuse, Way, in_each_way, tool};

const LIMIT: Duration = Duration::from_secs(300);
const PORT: &str = "pcie-root-port,id=rp0,x-speed=5,x-width=1";
const NONFATAL: &str = "AER UNCOR_STATUS COMP_ABORT";
const FATAL: &str = "AER UNCOR_STATUS MALF_TLP";

/// A run with sockets for the lab and for QEMU's monitor.
struct Machine {
    vfuse: Vfuse,
    live: Live,
}

impl Machine {
    /// A guest that has begun to run this.
    fn start(vfuse: Vfuse, script: &str, options: &[&str]) -> Machine {
        let guest = Guest::new(&vfuse.place, script);
        let mut machine = Machine::of(vfuse, guest, options);
        machine.live.says("guest: begin");
        machine
    }

    /// A machine that is never started.
    fn standing(vfuse: Vfuse, options: &[&str]) -> Machine {
        let mut machine = Machine::of(vfuse, Guest::from_disk().with(["-S"]), options);
        let qmp = machine.vfuse.place.path("test.sock");
        machine.live.wait_for("a monitor", |_| Monitor::connect(&qmp).is_some());
        machine
    }

    fn of(vfuse: Vfuse, guest: Guest, options: &[&str]) -> Machine {
        let vfuse = vfuse.limit(LIMIT).traced();
        let (lab, qmp) = (socket(&vfuse, "lab.sock"), socket(&vfuse, "qmp.sock"));
        let vfuse = vfuse.options(["--control", &lab]);
        // QEMU serves one client at a monitor.
        let ours = socket(&vfuse, "test.sock");
        let guest = [qmp, ours]
            .iter()
            .fold(guest, |guest, path| guest.with(["-qmp", &format!("unix:{path},server=on,wait=off")]))
            .with(["-device", PORT])
            .with(options);
        let live = vfuse.start(guest.program());
        Machine { vfuse, live }
    }

    fn monitor(&self) -> Monitor {
        Monitor::connect(&self.vfuse.place.path("test.sock")).expect("QEMU listens before the guest begins")
    }

    /// Injects an error at a device.
    fn inject(&self, device: &str, text: &str) {
        let file = self.vfuse.place.write("errors", text.as_bytes());
        let lab = socket(&self.vfuse, "lab.sock");
        let arguments = ["aer", "inject", &file.display().to_string(), "-s", device, "--control", &lab];
        self.vfuse.also(arguments).succeeded();
    }

    fn bridge_arguments(&self, more: &[&str]) -> Vec<String> {
        let (lab, qmp) = (socket(&self.vfuse, "lab.sock"), socket(&self.vfuse, "qmp.sock"));
        let arguments = [&["aer-bridge", "--control", &lab, "--qmp", &qmp], more].concat();
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// Starts a bridge and waits until it works.
    fn bridge(&self, more: &[&str]) -> Live {
        let command = self.vfuse.other(self.bridge_arguments(more));
        let mut bridge = Live::start(command, self.vfuse.place.path("bridge.txt"), LIMIT);
        bridge.says("ready\n");
        bridge
    }

    fn ended(self) -> (Vfuse, GuestReport) {
        let (status, text) = self.live.end();
        let report = GuestReport::of(&Outcome::new(status, text));
        (self.vfuse, report)
    }
}

fn socket(vfuse: &Vfuse, name: &str) -> String {
    vfuse.place.path(name).display().to_string()
}

/// An empty disk in the run's place.
fn disk(vfuse: &Vfuse, name: &str) -> PathBuf {
    vfuse.place.write(name, &vec![0; 64 << 20])
}

fn one_disk(way: Way) -> (Vfuse, PathBuf) {
    let vfuse = Vfuse::new(way).locks_memory();
    let path = disk(&vfuse, "disk");
    (vfuse.disk("01:00.0", &path), path)
}

const DEVICE: &str = "vfio-pci,host=0000:01:00.0,bus=rp0";

/// ERR-005, ERR-092: an unmodified QEMU hears of both kinds of error by the ERR
/// eventfd, and stops the machine.
#[test]
fn without_a_bridge_qemu_stops_the_machine() {
    for error in [NONFATAL, FATAL] {
        let (vfuse, _) = one_disk(Way::NobodyUserns);
        let mut machine = Machine::start(vfuse, "sleep 600", &["-device", DEVICE]);
        let mut monitor = machine.monitor();
        assert_eq!(monitor.run("query-status")["status"], "running");
        machine.inject("01:00.0", error);
        monitor.event("STOP");
        let status = monitor.run("query-status");
        assert_eq!((status["status"].as_str(), status["running"].as_bool()), (Some("internal-error"), Some(false)));
        machine.live.says("(0000:01:00.0) Unrecoverable error detected");
        monitor.run("quit");
        machine.live.end();
        assert_eq!(machine.vfuse.events("aer.notice"), 1);
    }
}

/// Writes a file until the kernel has recovered so many times from errors, and
/// a bit more.
fn writes_until_recovered(times: usize) -> String {
    writes_until("device recovery successful", times)
}

/// The same until the kernel has said something so many times.
fn writes_until(words: &str, times: usize) -> String {
    format!(
        "
        dmesg -n 7
        disk=/dev/$(basename /sys/bus/pci/devices/0000:01:00.0/nvme/nvme*/nvme*n1)
        mke2fs $disk > /dev/null 2>&1
        mkdir /disk
        mount -t ext4 $disk /disk
        n=0
        more=20
        while [ $more -gt 0 ]; do
            [ $n -lt 3000 ] || exit 1
            [ $(dmesg | grep -c '{words}') -lt {times} ] || more=$((more - 1))
            dd if=/dev/urandom of=/tmp/chunk bs=8k count=1 2> /dev/null
            dd if=/tmp/chunk of=/disk/file bs=8k oflag=append conv=notrunc,fsync 2> /dev/null || exit 2
            cat /tmp/chunk >> /tmp/whole
            n=$((n + 1))
            echo wrote $n
            usleep 20000
        done
        echo 3 > /proc/sys/vm/drop_caches
        echo written=$(sha256sum < /tmp/whole)
        echo file=$(sha256sum < /disk/file)
        echo chunks=$n
        echo resets=$(dmesg | grep -c 'restart after slot reset')
        umount /disk
        "
    )
}

/// The guest's file is whole: in the guest, and on the disk as the host sees it.
#[track_caller]
fn file_is_whole(vfuse: &Vfuse, report: &GuestReport, disk: &Path) {
    let sum = |name| report.value(name).split(' ').next().unwrap_or_default().to_owned();
    assert_eq!(sum("file"), sum("written"));
    tool("e2fsck", ["-fn".as_ref(), disk.as_os_str()]);
    let copy = vfuse.place.path("copy");
    let dump = format!("dump /file {}", copy.display());
    tool("debugfs", ["-R".as_ref(), dump.as_ref(), disk.as_os_str()]);
    assert!(tool("sha256sum", [&copy]).text.starts_with(&sum("written")), "on the disk");
}

/// The guest recovers from a non-fatal error, then from a fatal one.
#[track_caller]
fn recovers_twice(machine: &mut Machine, bridge: &mut Live) {
    machine.live.says("wrote 5\n");
    machine.inject("01:00.0", NONFATAL);
    bridge.says("port rp0 reports a non-fatal error to the guest");
    machine.live.says("AER: device recovery successful");
    machine.inject("01:00.0", FATAL);
    bridge.says("port rp0 reports a fatal error to the guest");
    machine.live.says("restart after slot reset");
    machine.live.says_often("AER: device recovery successful", 2);
}

in_each_way! {
    /// ERR-085, ERR-087, ERR-089: a non-fatal and a fatal error while the guest
    /// writes a file. Its kernel runs recovery twice, the driver of the disk
    /// starts again after the fatal one, and the file is whole.
    fn the_guest_recovers_while_it_writes(way) {
        let (vfuse, disk) = one_disk(way);
        let mut machine = Machine::start(vfuse, &writes_until_recovered(2), &["-device", DEVICE]);
        let mut bridge = machine.bridge(&["--fatal"]);
        recovers_twice(&mut machine, &mut bridge);
        let (vfuse, report) = machine.ended();
        assert_eq!(report.value("resets"), "1");
        file_is_whole(&vfuse, &report, &disk);
        assert!(bridge.end().1.ends_with("QEMU has ended\n"));
    }
}

/// ERR-079, ERR-084: the same with a device that is blocked while the host
/// recovers, and that takes its time after each reset: a guest processor that
/// uses it waits, and nothing that the guest writes is lost, also not when
/// errors come close together.
///
/// A fatal error waits for the guest to be through with what came before: the
/// host would reset the device under a driver that is just starting it again,
/// and Linux's gives up then (docs/extensions.md).
#[test]
fn the_guest_recovers_from_errors_of_a_blocked_disk() {
    const CLOSE_TOGETHER: usize = 5;
    for way in [Way::RootNamespaces, Way::NobodyUserns] {
        let vfuse = Vfuse::new(way);
        let disk = disk(&vfuse, "disk");
        let vfuse = vfuse.lab(&format!(
            "[vfio]\nunlimited_memlock = true\nerror_recovery = \"block\"\n\
             [[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nready_ms = 300\nfile = \"{}\"\n",
            disk.display()
        ));
        let script = writes_until("restart after slot reset", 1);
        let mut machine = Machine::start(vfuse, &script, &["-device", DEVICE]);
        let mut bridge = machine.bridge(&["--fatal"]);
        machine.live.says("wrote 5\n");
        for _ in 0..CLOSE_TOGETHER {
            machine.inject("01:00.0", NONFATAL);
        }
        bridge.says_often("port rp0 reports a non-fatal error to the guest", CLOSE_TOGETHER);
        machine.live.says("AER: device recovery successful");
        machine.inject("01:00.0", FATAL);
        bridge.says("port rp0 reports a fatal error to the guest");
        let (vfuse, report) = machine.ended();
        assert_eq!(report.value("resets"), "1");
        assert_eq!(vfuse.events("vfio.blocked"), CLOSE_TOGETHER + 1);
        file_is_whole(&vfuse, &report, &disk);
        bridge.end();
    }
}

/// ERR-006, ERR-016: an error of one function concerns both. One error reaches
/// the guest when the host has recovered, and both drivers start again.
#[test]
fn both_functions_of_a_card_recover() {
    let vfuse = Vfuse::new(Way::RootNamespaces).locks_memory();
    let (one, two) = (disk(&vfuse, "one"), disk(&vfuse, "two"));
    let device = |n, file: &Path| format!("nvme,addr=01:00.{n},resets=none,file={}", file.display());
    let vfuse = vfuse.device(device(0, &one)).device(device(1, &two));
    let first = format!("{DEVICE},addr=0.0,multifunction=on");
    let options = ["-device", &first, "-device", "vfio-pci,host=0000:01:00.1,bus=rp0,addr=0.1"];
    let mut machine = Machine::start(vfuse, &writes_until_recovered(1), &options);
    let mut bridge = machine.bridge(&["--fatal", "--device", "01:00.0,01:00.1"]);
    machine.live.says("wrote 5\n");
    machine.inject("01:00.1", FATAL);
    bridge.says("0000:01:00.0,0000:01:00.1: the host has recovered; port rp0 reports a fatal error");
    machine.live.says("AER: device recovery successful");
    let (vfuse, report) = machine.ended();
    assert_eq!(report.value("resets"), "2", "of both functions");
    assert_eq!((vfuse.events("aer.notice"), vfuse.events("aer.recovery")), (2, 1));
    file_is_whole(&vfuse, &report, &one);
}

/// A bridge that is killed with an error in its hands leaves the machine to
/// QEMU: no error is lost.
#[test]
fn a_bridge_that_dies_leaves_errors_to_qemu() {
    let port = "[[port]]\naddr = \"00:01.0\"\nbus = 1\nlink_ms = 20000\n";
    let device = "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n";
    let vfuse = Vfuse::new(Way::RootNamespaces).lab(&[port, device].concat());
    let machine = Machine::start(vfuse, "sleep 600", &["-device", DEVICE]);
    let mut monitor = machine.monitor();
    let bridge = machine.bridge(&["--fatal"]);
    // The host's recovery takes as long as the link.
    machine.inject("01:00.0", FATAL);
    assert_eq!(monitor.run("query-status")["status"], "running");
    drop(bridge);
    monitor.event("STOP");
    assert_eq!(monitor.run("query-status")["status"], "internal-error");
    monitor.run("quit");
    machine.live.end();
}

/// What the guest cannot express is refused with the reason, and QEMU keeps its
/// errors.
#[test]
fn other_topologies_are_refused() {
    let refused = |lab: &str, options: &[&str], more: &[&str], why: &[&str]| {
        let vfuse = Vfuse::new(Way::NobodyUserns).lab(&format!("[vfio]\nunlimited_memlock = true\n{lab}"));
        let machine = Machine::standing(vfuse, options);
        let outcome = machine.vfuse.also(machine.bridge_arguments(more));
        outcome.exited(2);
        for words in why {
            outcome.said(words);
        }
        machine.monitor().run("quit");
        machine.live.end();
    };
    let device = |n: u8, more: &str| {
        format!("[[device]]\nmodel = \"nvme\"\nsize = \"1M\"\naddr = \"01:00.{n}\"\nacs = true\n{more}\n")
    };
    let (one, two) = (device(0, ""), format!("{}{}", device(0, ""), device(1, "")));
    let rp1 = "pcie-root-port,id=rp1,x-speed=5,x-width=1,chassis=1";
    let second = "vfio-pci,host=0000:01:00.1,bus=rp1";
    refused(&one, &["-device", "vfio-pci,host=01:00.0"], &[], &["not below a port that reports errors"]);
    refused(&one, &[], &[], &["the guest has no device of a lab"]);
    refused(&one, &["-device", DEVICE], &["--device", "2:0.0"], &["the lab has no function at 0000:02:00.0"]);
    refused(&two, &["-device", DEVICE], &[], &["concerns 0000:01:00.1 too (vfio-pci)", "the guest does not have"]);
    let foreign = format!("{}{}", device(0, ""), device(1, "driver = \"nic\""));
    refused(&foreign, &["-device", DEVICE], &[], &["concerns 0000:01:00.1 too (nic)"]);
    refused(
        &two,
        &["-device", DEVICE, "-device", rp1, "-device", second],
        &[],
        &["below another port", "put both below"],
    );
    let fast = "pcie-root-port,id=rp1,chassis=1";
    refused(&one, &["-device", fast, "-device", "vfio-pci,host=01:00.0,bus=rp1"], &[], &["x-speed=", "use x-speed=5"]);
    let stranger = "nvme,serial=1,bus=rp0,addr=0.1";
    let first = format!("{DEVICE},addr=0.0,multifunction=on");
    refused(&one, &["-device", &first, "-device", stranger], &[], &["the guest's port rp0 has", "does not concern"]);
}
