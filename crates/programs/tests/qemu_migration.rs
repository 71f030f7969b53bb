// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU moves a Linux guest with assigned devices to another QEMU, each under
//! a `vfuse run` of its own, while the guest writes to disks that both reach.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use programs::{Guest, Machine, Vfuse, Way};
use serde_json::{Value, json};

/// Bytes of a block that a guest writes.
const BLOCK: u64 = 4096;
/// The block by which the guest is told to come to its end.
const TOLD: u64 = 1000;

/// Every block holds its own number, until the host says in the disks that it
/// is enough; then all are read back, from wherever the guest is.
const SCRIPT: &str = "
    disks=$(ls /dev/nvme?n1)
    first=$(echo $disks | cut -d ' ' -f 1)
    told() {
        echo 1 > /proc/sys/vm/drop_caches
        dd if=$first bs=4k skip=1000 count=1 2>/dev/null | grep -q enough
    }
    n=0
    until told; do
        yes block-$n | head -c 4096 > /tmp/block
        for disk in $disks; do
            dd if=/tmp/block of=$disk bs=4k seek=$((n % 900)) conv=fsync 2>/dev/null || echo failed=$n
        done
        echo n=$n taken=$(awk '/nvme.q1/ { sum += $2 } END { print sum }' /proc/interrupts)
        n=$((n + 1))
    done
    echo 3 > /proc/sys/vm/drop_caches
    bad=0
    i=$((n > 900 ? n - 900 : 0))
    while [ $i -lt $n ]; do
        yes block-$i | head -c 4096 > /tmp/block
        for disk in $disks; do
            dd if=$disk of=/tmp/read bs=4k skip=$((i % 900)) count=1 2>/dev/null
            cmp -s /tmp/block /tmp/read || bad=$((bad + 1))
        done
        i=$((i + 1))
    done
    echo written=$n bad=$bad disks=$(echo $disks | wc -w)
    echo all=done
";

/// What is moved, and how.
struct Move {
    way: Way,
    /// Keys of each device's `migration`.
    devices: &'static [&'static str],
    iommufd: bool,
}

impl Move {
    /// One side; all share the disks in the place of `first`.
    fn side(&self, first: Option<&Machine>, keys: &str, options: &[&str]) -> Machine {
        let vfuse = Vfuse::new(self.way);
        let place = first.map_or(&vfuse.place, |machine| &machine.vfuse.place);
        let mut lab = String::from("[vfio]\nunlimited_memlock = true\n");
        let mut qemu: Vec<String> = Vec::new();
        if self.iommufd {
            qemu.extend(["-object".into(), "iommufd,id=i0".into()]);
        }
        for (n, device) in self.devices.iter().enumerate() {
            let disk = place.path(format!("disk{n}"));
            if first.is_none() {
                let _ = place.write(&format!("disk{n}"), &vec![0; 4 << 20]);
            }
            lab += &format!(
                "[[device]]\nmodel = \"nvme\"\naddr = \"0{}:00.0\"\nfile = \"{}\"\nshared = true\n{device}{keys}",
                n + 1,
                disk.display()
            );
            let iommufd = if self.iommufd { ",iommufd=i0" } else { "" };
            let device = format!("vfio-pci,host=0000:0{}:00.0,enable-migration=on{iommufd}", n + 1);
            qemu.extend(["-device".into(), device]);
        }
        qemu.extend(options.iter().map(|option| (*option).to_owned()));
        let vfuse = vfuse.lab(&lab).traced();
        let guest = Guest::quiet(&vfuse.place, SCRIPT);
        Machine::start(vfuse, guest, qemu)
    }

    fn source(&self) -> Machine {
        let mut source = self.side(None, "", &[]);
        source.await_serial("n=3 ");
        source
    }
}

/// Lets the guest, which is on the last side, come to its end. It has come
/// through: each number once over all serial lines, every block as it was
/// written, interrupts taken on the last side.
fn verify(mut sides: Vec<&mut Machine>, disks: usize) {
    // Linux probes NVMe asynchronously: which of the disks is its first is open.
    for n in 0..disks {
        let disk = OpenOptions::new().write(true).open(sides[0].vfuse.place.path(format!("disk{n}"))).unwrap();
        disk.write_all_at(b"enough\n", TOLD * BLOCK).unwrap();
    }
    sides.last_mut().unwrap().await_serial("all=done");
    let text: String = sides.iter().map(|side| side.serial()).collect();
    assert!(!text.contains("failed="), "{text}");
    let end = text.lines().find_map(|line| line.strip_prefix("written=")).unwrap_or_else(|| panic!("{text}"));
    let (written, rest) = end.split_once(' ').unwrap();
    assert_eq!(rest, format!("bad=0 disks={disks}"));
    let line = |line: &str| -> Option<(usize, u64)> {
        let (n, taken) = line.strip_prefix("n=")?.split_once(" taken=")?;
        Some((n.parse().ok()?, taken.parse().ok()?))
    };
    let lines: Vec<(usize, u64)> = text.lines().filter_map(line).collect();
    // One line may have been cut in two by the move.
    let numbers: Vec<usize> = lines.iter().map(|(n, _)| *n).collect();
    let written: usize = written.parse().unwrap();
    assert!(numbers.len() + 1 >= written && numbers.is_sorted_by(|a, b| a < b), "{numbers:?} of {written}");
    assert!(lines.iter().map(|(_, taken)| *taken).is_sorted(), "interrupts are counted on");
    let after: Vec<u64> = sides.last().unwrap().serial().lines().filter_map(line).map(|(_, taken)| taken).collect();
    assert!(after.last() > after.first(), "the last side takes interrupts: {after:?}");
}

/// The guest has written some more.
fn writes_on(machine: &mut Machine) {
    let before = machine.serial().lines().count();
    machine.wait("blocks written", |machine| machine.serial().lines().count() > before + 3);
}

fn states(machine: &Machine) -> Vec<String> {
    machine.arcs().into_iter().filter(|(_, device, ..)| device == "0000:01:00.0").map(|(.., to)| to).collect()
}

const FULL: &str = "migration = \"pre-copy-p2p\"\nstate_size = \"8M\"\nstate_dirty_rate = \"256K\"\n";

/// MIG-086, MIG-087, MIG-088, MIG-089, MIG-091: over a Unix socket, one device
/// with PRE_COPY; its bytes left fall as QEMU reads them while the guest runs.
#[test]
fn one_device_over_a_unix_socket() {
    let setup = Move { way: Way::RootNamespaces, devices: &[FULL], iommufd: false };
    let mut source = setup.source();
    let uri = format!("unix:{}", source.vfuse.place.path("move").display());
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    source.migrate(&uri);
    let mut given = BTreeSet::new();
    source.wait("end of the migration", |source| {
        let migration = source.migration();
        if migration["status"] == json!("active") {
            given.extend(migration["vfio"]["transferred"].as_u64());
        }
        assert_ne!(migration["status"], json!("failed"), "{migration}");
        migration["status"] == json!("completed")
    });
    assert!(given.len() > 1, "the device's state goes while the guest runs: {given:?}");
    assert!(source.migration()["vfio"]["transferred"].as_u64() > Some(8 << 20));
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 1);
    let moved = states(&source);
    assert!(moved.join(">").ends_with("PRE_COPY>PRE_COPY_P2P>STOP_COPY>STOP"), "{moved:?}");
    let arrived = states(&target).join(">");
    assert!(arrived.contains("RESUMING>STOP>RUNNING_P2P>RUNNING"), "{arrived}");
}

/// MIG-048, MIG-086: over TCP, two devices with iommufd. Both have stopped
/// P2P before the first stops, and none runs before both take P2P again.
#[test]
fn two_devices_over_tcp() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap().port();
    let setup = Move { way: Way::NobodyUserns, devices: &[FULL, FULL], iommufd: true };
    let mut source = setup.source();
    let uri = format!("tcp:127.0.0.1:{port}");
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "completed", "{}", target.output());
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 2);
    let arcs = source.arcs();
    let last = |state: &str| arcs.iter().filter(|arc| arc.3 == state).map(|arc| arc.0).max().unwrap();
    let first = |state: &str| arcs.iter().filter(|arc| arc.3 == state).map(|arc| arc.0).min().unwrap();
    assert!(last("PRE_COPY_P2P") < first("STOP_COPY"), "{arcs:?}");
}

/// To a file, and from it when the source is gone: a device that has nothing
/// but STOP_COPY.
#[test]
fn by_a_file() {
    let setup = Move { way: Way::RootNamespaces, devices: &["migration = \"stop-copy\"\n"], iommufd: false };
    let mut source = setup.source();
    let uri = format!("file:{}", source.vfuse.place.path("state").display());
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "completed");
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 1);
}

/// MIG-090: cancelled while the device is in PRE_COPY, and before the switch;
/// the guest goes on each time, and is moved at last.
#[test]
fn cancelled_and_then_moved() {
    let setup = Move { way: Way::RootNamespaces, devices: &[FULL], iommufd: false };
    let mut source = setup.source();
    let place = source.vfuse.place.path("");
    let pause =
        |on: bool| -> Value { json!({ "capabilities": [{ "capability": "pause-before-switchover", "state": on }] }) };
    source.tell("migrate-set-capabilities", &pause(true));
    for (n, phase) in ["active", "pre-switchover"].into_iter().enumerate() {
        source.migrate(&format!("file:{}", place.join(format!("lost{n}")).display()));
        if phase == "active" {
            source.tell("migrate-set-parameters", &json!({ "max-bandwidth": 1 << 20 }));
        }
        assert_eq!(source.await_migration(&[phase, "failed"]), phase);
        source.tell("migrate_cancel", &json!({}));
        source.await_migration(&["cancelled"]);
        source.wait("running guest", Machine::is_running);
        assert_eq!(states(&source).last().map(String::as_str), Some("RUNNING"), "{phase}");
    }
    source.tell("migrate-set-capabilities", &pause(false));
    let uri = format!("unix:{}", place.join("move").display());
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "completed");
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 1);
}

/// MIG-092: a destination that refuses the state; the guest stays and comes to
/// its end where it is.
#[test]
fn a_failing_destination_leaves_the_guest() {
    let setup = Move { way: Way::RootNamespaces, devices: &[FULL], iommufd: false };
    let mut source = setup.source();
    let uri = format!("unix:{}", source.vfuse.place.path("move").display());
    let target = setup.side(Some(&source), "migration_fails = \"refuses\"\n", &["-incoming", &uri]);
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "failed", "{}", target.output());
    source.wait("running guest", Machine::is_running);
    writes_on(&mut source);
    verify(vec![&mut source], 1);
    assert_eq!(states(&source).last().map(String::as_str), Some("RUNNING"));
}
