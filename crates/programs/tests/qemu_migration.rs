// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU moves a Linux guest with assigned devices to another QEMU, each under
//! a `vfuse run` of its own, while the guest writes to disks that both reach.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use programs::{Guest, Machine, Vfuse, Way};
use serde_json::json;

/// Bytes of a block that a guest writes.
const BLOCK: u64 = 4096;
/// A lab's control socket.
const CONTROL: &str = "lab.sock";
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
        for file in $disks; do
            dd if=/tmp/block of=$file bs=4k seek=$((n % 900)) conv=fsync 2>/dev/null || echo failed=$n
        done
        dd if=/tmp/block of=/tmp/all bs=4k seek=$((n % 900)) conv=notrunc 2>/dev/null
        echo n=$n taken=$(awk '/nvme.q1/ { sum += $2 } END { print sum }' /proc/interrupts)
        n=$((n + 1))
    done
    echo 3 > /proc/sys/vm/drop_caches
    bad=0
    for disk in $disks; do
        dd if=$disk of=/tmp/read bs=4k count=$((n > 900 ? 900 : n)) 2>/dev/null
        cmp /tmp/all /tmp/read || bad=$((bad + 1))
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

/// What a machine is moved by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Unix,
    Tcp,
    /// The source is gone before the target begins.
    File,
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
            // Of a mapped BAR QEMU asks what is dirty between an MSI-X table that
            // ends within a page and the end, which is EINVAL, on Linux too.
            let trapped = if self.devices.iter().any(|keys| keys.contains(UNLOGGED)) { ",x-no-mmap=on" } else { "" };
            let device = format!("vfio-pci,host=0000:0{}:00.0,enable-migration=on{iommufd}{trapped}", n + 1);
            qemu.extend(["-device".into(), device]);
        }
        qemu.extend(options.iter().map(|option| (*option).to_owned()));
        let control = vfuse.place.path(CONTROL);
        let vfuse = vfuse.lab(&lab).traced().options([OsStr::new("--control"), control.as_os_str()]);
        let guest = Guest::quiet(&vfuse.place, SCRIPT);
        Machine::start(vfuse, guest, qemu)
    }

    fn source(&self) -> Machine {
        let mut source = self.side(None, "", &[]);
        source.await_serial("n=3 ");
        source
    }

    /// The guest writes, is moved, writes on, and all is as it should be. Both
    /// sides, with what they have said and traced.
    fn through(&self, over: Over) -> (Machine, Machine) {
        let mut source = self.source();
        let at = source.vfuse.place.path("move").display().to_string();
        let uri = match over {
            Over::Unix => format!("unix:{at}"),
            Over::Tcp => {
                let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
                format!("tcp:{free}")
            }
            Over::File => format!("file:{at}"),
        };
        let incoming = |source: &Machine| self.side(Some(source), "", &["-incoming", &uri]);
        let before = (over != Over::File).then(|| incoming(&source));
        source.migrate(&uri);
        let end = source.await_migration(&["completed", "failed"]);
        let said = [Some(&source), before.as_ref()].map(|side| side.map(Machine::output).unwrap_or_default());
        assert_eq!(end, "completed", "{}", said.concat());
        let mut target = before.unwrap_or_else(|| incoming(&source));
        writes_on(&mut target);
        verify(vec![&mut source, &mut target], self.devices.len());
        (source, target)
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

/// Every device has got to one state before the first gets to the other.
fn in_two_passes(machine: &Machine, first: &str, second: &str) {
    let arcs = machine.arcs();
    let times = |state: &str| -> Vec<u64> { arcs.iter().filter(|arc| arc.3 == state).map(|arc| arc.0).collect() };
    let (before, after) = (times(first), times(second));
    assert!(before.len() >= 2 && after.len() >= 2, "{arcs:?}");
    assert!(before.iter().max() < after.iter().min(), "{first} before {second}: {arcs:?}");
}

fn states(machine: &Machine) -> Vec<String> {
    machine.arcs().into_iter().filter(|(_, device, ..)| device == "0000:01:00.0").map(|(.., to)| to).collect()
}

const FULL: &str = "migration = \"pre-copy-p2p\"\nstate_size = \"8M\"\nstate_dirty_rate = \"256K\"\n";
/// So little that it all goes before the other side has taken any.
const SMALL: &str = "migration = \"pre-copy-p2p\"\nstate_size = \"64K\"\n";
/// The IOMMU tells what is dirty.
const UNLOGGED: &str = "dma_logging = \"off\"\n";
/// Each write waits, in milliseconds.
const SLOW: &str = "migration_fails = \"stream-slow:15000\"\n";

/// MIG-037, MIG-040, MIG-086, MIG-087, MIG-088, MIG-089, MIG-091: over a Unix
/// socket, one device with PRE_COPY. QEMU reads while the guest runs: what is
/// left of the device's initial data falls to nothing in QEMU's trace, what has
/// gone rises in `query-migrate`, and only then (`switchover-ack`) the machine
/// stops.
#[test]
fn one_device_over_a_unix_socket() {
    let setup = Move { way: Way::RootNamespaces, devices: &[FULL], iommufd: false };
    let mut source = setup.side(None, "", &["-trace", "vfio_save_iterate"]);
    source.await_serial("n=3 ");
    let uri = format!("unix:{}", source.vfuse.place.path("move").display());
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    for side in [&mut source, &mut target] {
        side.capabilities(&["return-path", "switchover-ack"], true);
    }
    source.migrate(&uri);
    let mut given = Vec::new();
    source.wait("end of the migration", |source| {
        let migration = source.migration();
        if migration["status"] == json!("active") {
            given.extend(migration["vfio"]["transferred"].as_u64());
        }
        assert_ne!(migration["status"], json!("failed"), "{migration}");
        migration["status"] == json!("completed")
    });
    assert!(given.is_sorted() && given.first() < given.last(), "it goes while the guest runs: {given:?}");
    assert!(source.migration()["vfio"]["transferred"].as_u64() > Some(8 << 20));
    let said = source.output();
    let left: Vec<u64> = said
        .lines()
        .filter_map(|line| line.split_once("vfio_save_iterate ")?.1.split_once("initial size ")?.1.split(' ').next())
        .map(|bytes| bytes.parse().unwrap())
        .collect();
    assert!(left.is_sorted_by(|a, b| a >= b) && left.last() == Some(&0), "{left:?}");
    let steps: BTreeSet<&u64> = left.iter().collect();
    assert!(steps.len() > 4 && left.first() > Some(&(6 << 20)), "{left:?}");
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 1);
    let moved = states(&source);
    assert!(moved.join(">").ends_with("PRE_COPY>PRE_COPY_P2P>STOP_COPY>STOP"), "{moved:?}");
    let arrived = states(&target).join(">");
    assert!(arrived.contains("RESUMING>STOP>RUNNING_P2P>RUNNING"), "{arrived}");
}

/// MIG-048, MIG-086, MIG-088, MIG-091: over TCP, two devices with iommufd. Both
/// have stopped P2P before the first stops, and none runs before both take P2P
/// again.
#[test]
fn two_devices_of_an_iommufd() {
    let setup = Move { way: Way::NobodyUserns, devices: &[FULL, FULL], iommufd: true };
    let (source, target) = setup.through(Over::Tcp);
    in_two_passes(&source, "PRE_COPY_P2P", "STOP_COPY");
    // A machine that waits for its state has stopped them once before.
    let arcs = target.arcs();
    let last =
        |state: &str| -> Vec<u64> { arcs.iter().rev().filter(|arc| arc.3 == state).map(|arc| arc.0).take(2).collect() };
    assert!(last("RUNNING_P2P").iter().max() < last("RUNNING").iter().min(), "{arcs:?}");
}

/// MIG-048, MIG-086, MIG-088: two devices of one container, over a Unix socket,
/// one with PRE_COPY and one without, nor with a log of its own: what is dirty
/// type1 tells.
#[test]
fn two_devices_of_a_container() {
    let devices = &[FULL, "migration = \"p2p\"\ndma_logging = \"off\"\n"];
    let setup = Move { way: Way::RootNamespaces, devices, iommufd: false };
    let (source, _) = setup.through(Over::Unix);
    let arcs = source.arcs();
    let at = |device: &str, state: &str| {
        let arcs = arcs.iter().filter(|arc| arc.1.contains(device) && arc.3 == state);
        arcs.map(|arc| arc.0).max().unwrap_or_else(|| panic!("{device} {state}: {arcs:?}", arcs = source.arcs()))
    };
    let quiet = at("01:00.0", "PRE_COPY_P2P").max(at("02:00.0", "RUNNING_P2P"));
    assert!(quiet < at("01:00.0", "STOP_COPY").min(at("02:00.0", "STOP_COPY")), "{arcs:?}");
}

/// To a file, and from it when the source is gone: a device that has nothing
/// but STOP_COPY.
#[test]
fn by_a_file() {
    let devices = &["migration = \"stop-copy\"\n"];
    Move { way: Way::RootNamespaces, devices, iommufd: false }.through(Over::File);
}

/// MIG-024, MIG-030: the same with PRE_COPY, and with iommufd.
#[test]
fn by_a_file_with_pre_copy() {
    let (source, _) = Move { way: Way::NobodyUserns, devices: &[FULL], iommufd: true }.through(Over::File);
    let moved = states(&source);
    assert!(moved.join(">").ends_with("PRE_COPY>PRE_COPY_P2P>STOP_COPY>STOP"), "{moved:?}");
}

/// MIG-048, MIG-086: two devices by a file, of an iommufd that tells what is
/// dirty.
#[test]
fn two_devices_by_a_file() {
    let devices = &[FULL, "migration = \"pre-copy-p2p\"\nstate_size = \"1M\"\ndma_logging = \"off\"\n"];
    let (source, _) = Move { way: Way::RootNamespaces, devices, iommufd: true }.through(Over::File);
    in_two_passes(&source, "PRE_COPY_P2P", "STOP_COPY");
}

/// A port where connecting takes for ever: nobody accepts, and the queue of
/// those who wait is full.
struct Full {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Full {
    fn new() -> Full {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let waiting = std::iter::from_fn(connect).collect();
        Full { address, _listener: listener, _waiting: waiting }
    }
}

/// MIG-090: cancelled in each phase: while QEMU still connects, while the guest
/// runs and its device is in PRE_COPY, when it stands before the switch, and
/// when all has been sent and the other side still takes it. The guest goes on
/// each time, with its device in RUNNING, and is moved at last.
#[test]
fn cancelled_in_each_phase_and_then_moved() {
    let setup = Move { way: Way::RootNamespaces, devices: &[SMALL], iommufd: false };
    let mut source = setup.source();
    let place = source.vfuse.place.path("");
    let unix = |name: &str| format!("unix:{}", place.join(name).display());
    let mut full = Some(Full::new());
    for phase in ["setup", "active", "pre-switchover", "device"] {
        source.capabilities(&["pause-before-switchover"], phase == "pre-switchover");
        source.capabilities(&["return-path"], phase == "device");
        let mut slow = None;
        let uri = match phase {
            "setup" => format!("tcp:{}", full.as_ref().unwrap().address),
            "device" => {
                let uri = unix("slow");
                // It takes its time for the state, and would not start the guest.
                let mut side = setup.side(Some(&source), SLOW, &["-S", "-incoming", &uri]);
                side.capabilities(&["return-path"], true);
                slow = Some(side);
                uri
            }
            _ => format!("file:{}", place.join(format!("lost-{phase}")).display()),
        };
        source.migrate(&uri);
        if phase == "active" {
            source.tell("migrate-set-parameters", &json!({ "max-bandwidth": 1 << 20 }));
        }
        if phase == "device" {
            // QEMU calls it so until the other side says that it has all.
            source.wait("a state that was sent", |source| {
                states(source).last().is_some_and(|state| state == "STOP_COPY")
            });
        }
        assert_eq!(source.await_migration(&[phase, "completed", "failed"]), phase);
        source.tell("migrate_cancel", &json!({}));
        assert_eq!(source.await_migration(&["cancelled", "completed", "failed"]), "cancelled", "{phase}");
        drop(slow);
        // QEMU's thread connects on; now it is refused.
        full = None;
        source.wait("running guest", Machine::is_running);
        let went = states(&source);
        assert_eq!(went.last().map(String::as_str), Some("RUNNING"), "{phase}: {went:?}");
        assert_ne!(went.iter().any(|state| state == "PRE_COPY"), phase == "setup", "{went:?}");
        writes_on(&mut source);
    }
    let uri = unix("move");
    let mut target = setup.side(Some(&source), "", &["-incoming", &uri]);
    source.capabilities(&["return-path"], false);
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "completed");
    writes_on(&mut target);
    verify(vec![&mut source, &mut target], 1);
}

/// MIG-031, MIG-092: a destination that refuses the state, or cannot
/// take it to its end, and a source that cannot read it: the guest stays, its
/// device is in RUNNING, and it comes to its end where it is.
#[test]
fn a_failing_move_leaves_the_guest() {
    let setup = Move { way: Way::RootNamespaces, devices: &[FULL], iommufd: true };
    let mut source = setup.source();
    let uri = format!("unix:{}", source.vfuse.place.path("move").display());
    for (side, what) in [("target", "refuses"), ("target", "stream-breaks:3M"), ("source", "stream-breaks:3M")] {
        let keys = if side == "target" { format!("migration_fails = \"{what}\"\n") } else { String::new() };
        let target = setup.side(Some(&source), &keys, &["-incoming", &uri]);
        let socket = source.vfuse.place.path(CONTROL).display().to_string();
        let plan = |words: &[&str]| {
            let words = ["migration"].iter().chain(words);
            source.vfuse.also(words.chain(&["--control", &socket])).succeeded();
        };
        if side == "source" {
            plan(&["fail", "01:00.0", what]);
        }
        source.migrate(&uri);
        let end = source.await_migration(&["completed", "failed"]);
        assert_eq!(end, "failed", "{side} {what}: {}", target.output());
        source.wait("running guest", Machine::is_running);
        writes_on(&mut source);
        assert_eq!(states(&source).last().map(String::as_str), Some("RUNNING"), "{side} {what}");
    }
    verify(vec![&mut source], 1);
}
