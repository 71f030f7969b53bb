// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Real programs, in every way that works here: as root with a mount
//! namespace, and as an unprivileged user with a user namespace or with paths
//! intercepted. What a client checks is in `examples/client.rs`.

#![allow(clippy::unwrap_used)] // helpers are not functions of their own test

mod harness;

use harness::{Ran, Way, run, runner};

/// Runs a client everywhere; it must succeed, and every file it opened must be
/// released, once.
fn client(args: &[&str]) -> Vec<Ran> {
    Way::all()
        .into_iter()
        .map(|way| {
            let ran = run(way, &[&[harness::client().as_str()], args].concat());
            assert_eq!(ran.code, Some(0), "{way:?}: {}", ran.text());
            assert_eq!(ran.seen("opened"), ran.seen("released"), "{way:?}: {}", ran.text());
            ran
        })
        .collect()
}

// API-008, API-018, API-035, API-042, API-052, API-056, API-228
#[test]
fn calls_reach_the_kernel_and_answers_the_program() {
    client(&["basic"]);
}

// API-002, API-053
#[test]
fn descriptors_mean_what_they_mean_to_linux() {
    client(&["fds"]);
}

#[test]
fn the_limit_on_descriptors_holds() {
    client(&["limits"]);
}

#[test]
fn files_close_with_the_last_of_their_processes() {
    for ran in client(&["fork"]) {
        assert_eq!(ran.seen("maps"), 1001);
        assert_eq!(ran.seen("spaces"), 22, "each process has an address space of its own");
    }
}

#[test]
fn exec_makes_an_address_space_and_closes_what_it_should() {
    for ran in client(&["exec"]) {
        assert_eq!(ran.seen("spaces"), 2);
    }
}

#[test]
fn many_threads_at_once() {
    for ran in client(&["threads"]) {
        assert_eq!(ran.seen("maps"), 9600);
    }
}

#[test]
fn a_close_before_a_call_is_never_missed() {
    for ran in client(&["reuse"]) {
        assert_eq!(ran.seen("opened"), 1600);
    }
}

// API-076
#[test]
fn limits_and_rights_are_those_of_the_moment() {
    client(&["rights"]);
}

#[test]
fn descriptors_sent_to_another_process() {
    client(&["scm"]);
}

#[test]
fn no_call_runs_twice_under_signals() {
    for ran in client(&["signals"]) {
        assert!(ran.stdout.contains(&format!("maps={}\n", ran.seen("maps"))), "{}", ran.text());
    }
}

#[test]
fn a_program_that_may_not_be_looked_into() {
    client(&["undumpable"]);
}

#[test]
fn vectored_access() {
    client(&["vectored"]);
}

#[test]
fn eventfds_of_the_program() {
    client(&["eventfd"]);
}

// IOMMUFD-2.12, API-018
#[test]
fn requests_give_descriptors_in_their_structures() {
    client(&["handles"]);
}

// IOMMUFD-11.10
#[test]
fn queues_are_read_written_and_polled() {
    client(&["queues"]);
}

// GRP-072
#[test]
fn a_cdev_is_one_file_wherever_it_goes() {
    client(&["passing"]);
}

// IOMMUFD-5.8, IOMMUFD-5.10
#[test]
fn memory_and_files_outlive_their_call() {
    client(&["outlives"]);
}

// GRP-059
#[test]
fn a_cdev_is_a_character_device_until_it_is_used() {
    client(&["cdev"]);
}

#[test]
fn nothing_a_program_passes_harms_the_supervisor() {
    client(&["hostile"]);
}

#[test]
fn thousands_of_files() {
    for ran in client(&["many", "3000"]) {
        assert_eq!(ran.seen("opened"), 3001);
    }
}

#[test]
fn a_daemon_is_served_until_it_ends() {
    for way in Way::all() {
        let ran = run(way, &[&harness::client(), "daemon"]);
        assert_eq!(ran.code, Some(3), "that of the main program: {}", ran.text());
        assert!(ran.stdout.contains("daemon done"), "{}", ran.text());
        assert_eq!((ran.seen("opened"), ran.seen("released")), (3, 3));
    }
}

#[test]
fn ordinary_programs_see_the_tree() {
    let script = "
        set -e
        cd /sys/bus/pci/devices/0000:01:00.0
        cat vendor
        readlink -f iommu_group
        test -c /dev/vfio/7
        cd ..
        pwd -P
        cat 0000:01:00.0/vendor
        ls /sys/bus/pci/devices /sys/kernel/iommu_groups/7/devices
        test ! -e /sys/bus/pci/slots
        test -d /sys/module/vfio_pci
        test -c /dev/null
        test -r /sys/devices/system/cpu/online
        ls /dev | grep -x -e vfio -e null -e iommu
        (cd /tmp && pwd)
    ";
    let expected = "0x1b36\n/sys/kernel/iommu_groups/7\n/sys/bus/pci/devices\n0x1b36\n\
        /sys/bus/pci/devices:\n0000:01:00.0\n\n/sys/kernel/iommu_groups/7/devices:\n0000:01:00.0\n\
        iommu\nnull\nvfio\n/tmp\n";
    for way in Way::all() {
        let ran = run(way, &["/bin/sh", "-c", script]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), expected), "{way:?}: {}", ran.text());
    }
}

#[test]
fn the_machine_shows_through() {
    // The same names but for ours, in composed directories and others.
    let list = "ls -1 /sys /sys/module /sys/class /dev /sys/bus | grep -v -e vfio -e '^iommu$'";
    let outside = std::process::Command::new("/bin/sh").args(["-c", list]).output().unwrap();
    for way in Way::all() {
        let ran = run(way, &["/bin/sh", "-c", list]);
        assert_eq!(ran.stdout, String::from_utf8_lossy(&outside.stdout), "{way:?}");
    }
}

#[test]
fn calls_that_wait() {
    for ran in client(&["waits"]) {
        assert_eq!((ran.seen("abandoned"), ran.seen("interrupted")), (16 + 1, 2));
    }
}

#[test]
fn stores_that_wait() {
    for way in Way::all() {
        let ran = runner(way, &["--sysfs-writable"], &[&harness::client(), "store-waits"]);
        assert_eq!(ran.code, Some(0), "{way:?}: {}", ran.text());
        assert_eq!((ran.seen("abandoned"), ran.seen("stores")), (1, 1), "{way:?}");
    }
}

// GRP-050
#[test]
fn attributes_take_stores_when_they_are_to() {
    let attribute = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";
    let script = format!(
        "set -e
        echo 2 > {attribute}
        cat {attribute}
        ls /sys/bus/pci/devices | wc -l
        test -c /dev/vfio/9
        ! echo 9 > {attribute}
        echo 0 > {attribute}
        ls /sys/bus/pci/devices | wc -l
        test ! -e /dev/vfio/9
        echo ordinary > /dev/null"
    );
    for way in Way::all() {
        let ran = runner(way, &["--sysfs-writable"], &["/bin/sh", "-c", &script]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "2\n3\n1\n"), "{way:?}: {}", ran.text());
        assert_eq!(ran.seen("stores"), 3);

        let refused = run(way, &["/bin/sh", "-c", &format!("echo 2 > {attribute}")]);
        assert_ne!(refused.code, Some(0), "{way:?}");
        assert_eq!(refused.seen("stores"), 0);
        let read_only = format!("echo 2 > {}", attribute.replace("sriov_numvfs", "vendor"));
        assert_ne!(runner(way, &["--sysfs-writable"], &["/bin/sh", "-c", &read_only]).code, Some(0));
    }
}

// IOMMUFD-7.2: what the pretend kernel has pinned shows where Linux shows it.
#[test]
fn statuses_show_the_kernels_figures_when_asked_for() {
    let script = "for name in self thread-self $$; do grep -E '^Vm(Lck|Pin):' /proc/$name/status; done
        cd /proc/$$ && grep -c . status && grep ^Name: /proc/1/status > /dev/null";
    let lines = |ran: &Ran, want: &str| ran.stdout.lines().filter(|line| *line == want).count();
    for way in Way::all() {
        let shown = runner(way, &["--process-figures"], &["/bin/sh", "-c", script]);
        assert_eq!(shown.code, Some(0), "{way:?}: {}", shown.text());
        assert_eq!(lines(&shown, "VmLck:\t       8 kB"), 3, "{way:?}: {}", shown.text());
        assert_eq!(lines(&shown, "VmPin:\t      12 kB"), 3, "{way:?}: {}", shown.text());
        let plain = run(way, &["/bin/sh", "-c", script]);
        assert_eq!(lines(&plain, "VmPin:\t       0 kB"), 3, "{way:?}: {}", plain.text());
    }
}
