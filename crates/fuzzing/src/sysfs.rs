// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stores to sysfs attributes, with programs that have devices open.

use std::sync::OnceLock;

use arbitrary::Unstructured;
use caller::Reply;
use device::Driver;
use host::Host;
use host::tree::{Entry, Tree};

use crate::wire::{Blob, Number, Wire, operations, seed, wire};
use crate::world::World;

/// A controller with virtual functions below a switch, an engine with another
/// driver, one with none.
const LAB: &str = r#"
[[port]]
addr = "00:01.0"
bus = 1
[[port]]
addr = "01:00.0"
kind = "upstream"
bus = 2
[[port]]
addr = "02:00.0"
kind = "downstream"
bus = 3
[[device]]
model = "nvme"
addr = "03:00.0"
size = "64K"
queues = 1
total_vfs = 3
[[device]]
model = "ioat"
addr = "08:00.0"
driver = "ioatdma"
[[device]]
model = "ioat"
addr = "09:00.0"
driver = "none"
[[device]]
model = "nvme"
addr = "0a:00.0"
size = "64K"
driver = "nvme"
"#;

wire! {
    /// What a program may do.
    enum Op {
        Bind { driver: u8, device: u8 },
        Unbind { driver: u8, device: u8 },
        Override { device: u8, driver: u8 },
        Probe { device: u8 },
        NewId { add: bool, ids: [u16; 2] },
        Vfs { device: u8, number: Number },
        Autoprobe { device: u8, on: bool },
        Reset { device: u8 },
        ResetBelow { device: u8 },
        Any { attribute: u16, data: Blob },
        Path { path: Blob, data: Blob },
        Open { device: u8 },
        Close { fd: u8 },
        Turn { device: u8 },
    }
}

const DRIVERS: [&str; 6] = ["vfio-pci", "nvme", "ioatdma", "pcieport", "", "no-such"];

/// The body of the target `sysfs`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let vfio = format!("[vfio]\nenable_sriov = {}\ndisable_idle_d3 = {}\n", settings & 1 == 0, settings & 2 != 0);
    let mut world = World::new(&(vfio + LAB));
    // To show a lab takes longer than all the rest: what can be written is found
    // out once, and at the end it is looked at.
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| writable(&world.host.tree()));
    for op in operations(&mut u, 60) {
        step(&mut world, &op, paths);
        world.devices = functions(&world.host);
    }
    shown(&world.host);
    world.finish();
}

fn functions(host: &Host) -> Vec<pci::Address> {
    host.board().fabric.functions().map(|(address, _)| address).collect()
}

fn step(world: &mut World, op: &Op, paths: &[String]) {
    let driver = |n: &u8| DRIVERS[usize::from(*n) % DRIVERS.len()];
    let device = |world: &World, n: &u8| {
        let all = functions(&world.host);
        all[usize::from(*n) % all.len()]
    };
    let of = |address: pci::Address, attribute: &str| format!("/sys/bus/pci/devices/{address}/{attribute}");
    match op {
        Op::Bind { driver: n, device: d } => {
            let text = device(world, d).to_string();
            store(&mut world.host, &format!("/sys/bus/pci/drivers/{}/bind", driver(n)), text.as_bytes());
        }
        Op::Unbind { driver: n, device: d } => {
            let text = device(world, d).to_string();
            store(&mut world.host, &format!("/sys/bus/pci/drivers/{}/unbind", driver(n)), text.as_bytes());
        }
        Op::Override { device: d, driver: n } => {
            let path = of(device(world, d), "driver_override");
            store(&mut world.host, &path, format!("{}\n", driver(n)).as_bytes());
        }
        Op::Probe { device: d } => {
            let text = device(world, d).to_string();
            store(&mut world.host, "/sys/bus/pci/drivers_probe", text.as_bytes());
        }
        Op::NewId { add, ids: [vendor, product] } => {
            let attribute = if *add { "new_id" } else { "remove_id" };
            let text = format!("{vendor:04x} {product:04x}\n");
            store(&mut world.host, &format!("/sys/bus/pci/drivers/vfio-pci/{attribute}"), text.as_bytes());
        }
        Op::Vfs { device: d, number } => {
            let path = of(device(world, d), "sriov_numvfs");
            store(&mut world.host, &path, format!("{}\n", number.value()).as_bytes());
        }
        Op::Autoprobe { device: d, on } => {
            let path = of(device(world, d), "sriov_drivers_autoprobe");
            store(&mut world.host, &path, if *on { b"1" } else { b"0" });
        }
        Op::Reset { device: d } => {
            let path = of(device(world, d), "reset");
            store(&mut world.host, &path, b"1\n");
        }
        Op::ResetBelow { device: d } => {
            let path = of(device(world, d), "reset_subordinate");
            store(&mut world.host, &path, b"1\n");
        }
        Op::Any { attribute, data } => {
            if let Some(path) = paths.get(usize::from(*attribute) % paths.len().max(1)) {
                store(&mut world.host, path, &data.0);
            }
        }
        Op::Path { path, data } => {
            store(&mut world.host, &String::from_utf8_lossy(&path.0), &data.0);
        }
        Op::Open { device } => {
            let _ = world.open_device(*device, 3);
        }
        Op::Close { fd } => world.close(world.fd(*fd)),
        Op::Turn { device } => world.turn(*device),
    }
}

fn writable(tree: &Tree) -> Vec<String> {
    let is = |entry: &Entry| matches!(entry, Entry::File { writable: true, .. });
    tree.iter().filter(|(_, entry)| is(entry)).map(|(path, _)| path.to_owned()).collect()
}

/// A store takes all or nothing, and a device that is open keeps its driver.
fn store(host: &mut Host, path: &str, data: &[u8]) {
    match host.store(path, data) {
        Ok(Reply::Value(taken)) => assert_eq!(taken, data.len() as u64, "{path}"),
        Ok(Reply::Parked(ticket)) => assert!(host.wait(ticket).is_some(), "{path}"),
        Ok(other) => panic!("{path}: {other:?}"),
        Err(_) => {}
    }
}

/// The tree agrees with the board.
fn shown(host: &Host) {
    let tree = host.tree();
    for address in functions(host) {
        let path = format!("/sys/bus/pci/devices/{address}");
        let Some(Entry::Link(to)) = tree.get(&path) else { panic!("{path} is missing") };
        let real = format!("/sys/{}", to.trim_start_matches("../"));
        let driver = tree.get(&format!("{real}/driver"));
        let shows = host.board().driver(address).is_some() && !host.board().is_leaving(address);
        assert_eq!(driver.is_some(), shows, "{real}/driver");
        if host.is_open(address) {
            assert_eq!(host.board().driver(address), Some(&Driver::VfioPci), "{address} is open");
        }
    }
    let open = functions(host).into_iter().any(|address| host.is_open(address));
    assert!(open || host.waiting() == 0, "a store waits, but nothing is open");
    for address in host.board().slots.keys() {
        assert!(host.board().fabric.function(*address).is_some(), "{address} has a slot but no function");
    }
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    // Functions in address order: three ports, a root port each of the others, devices.
    let each = |op: fn(u8) -> Op| -> Vec<Op> { (0..12).map(op).collect() };
    let every = |data: &[u8]| -> Vec<Op> {
        (0..60).map(|attribute| Op::Any { attribute, data: Blob(data.to_vec()) }).collect()
    };
    let vfs = |number| move |device| Op::Vfs { device, number: Number::of(number) };
    let mut vfs_open: Vec<Op> = (0..12).map(vfs(2)).collect();
    vfs_open.extend(each(|device| Op::Open { device }));
    vfs_open.extend((0..12).map(vfs(0)));
    vfs_open.extend([Op::Close { fd: 0 }, Op::Close { fd: 0 }, Op::Close { fd: 0 }]);
    vfs_open.extend((0..12).map(vfs(0)));
    let mut rebind: Vec<Op> = Vec::new();
    for device in 0..12 {
        rebind.push(Op::Override { device, driver: 0 });
        rebind.extend((0..4).map(|driver| Op::Unbind { driver, device }));
        rebind.push(Op::Probe { device });
    }
    let mut while_open = each(|device| Op::Open { device });
    while_open.extend(each(|device| Op::Unbind { driver: 0, device }));
    while_open.extend(each(|device| Op::Reset { device }));
    while_open.extend(each(|device| Op::Bind { driver: 1, device }));
    vec![
        ("bind-all", s(0, &each(|device| Op::Bind { driver: 0, device }))),
        ("unbind-all", s(0, &each(|device| Op::Unbind { driver: device, device }))),
        ("rebind", s(0, &rebind)),
        (
            "override",
            s(
                0,
                &[
                    Op::Override { device: 5, driver: 5 },
                    Op::Override { device: 5, driver: 4 },
                    Op::Probe { device: 5 },
                ],
            ),
        ),
        (
            "new-id",
            s(
                0,
                &[
                    Op::Unbind { driver: 2, device: 9 },
                    Op::NewId { add: true, ids: [0x8086, 0x2021] },
                    Op::NewId { add: true, ids: [0x8086, 0x2021] },
                    Op::NewId { add: false, ids: [0x8086, 0x2021] },
                    Op::NewId { add: false, ids: [1, 2] },
                ],
            ),
        ),
        ("vfs", s(0, &(0..12).map(vfs(3)).collect::<Vec<_>>())),
        ("vfs-open", s(0, &vfs_open)),
        ("vfs-too-many", s(0, &(0..12).map(vfs(4)).collect::<Vec<_>>())),
        ("vfs-not-enabled", s(1, &(0..12).map(vfs(1)).collect::<Vec<_>>())),
        (
            "no-autoprobe",
            s(0, &[each(|device| Op::Autoprobe { device, on: false }), (0..12).map(vfs(1)).collect()].concat()),
        ),
        ("reset", s(0, &each(|device| Op::Reset { device }))),
        ("reset-below", s(2, &each(|device| Op::ResetBelow { device }))),
        ("while-open", s(0, &while_open)),
        ("ones", s(0, &every(b"1\n"))),
        ("empty", s(0, &every(b""))),
        ("noise", s(0, &every(&[0xff, 0, b'\n']))),
        ("numbers", s(0, &every(b"-1"))),
        ("addresses", s(0, &every(b"0000:03:00.0"))),
        (
            "paths",
            s(
                0,
                &[
                    Op::Path { path: Blob(b"/".to_vec()), data: Blob(b"1".to_vec()) },
                    Op::Path { path: Blob(Vec::new()), data: Blob(Vec::new()) },
                    Op::Path {
                        path: Blob(b"/sys/bus/pci/drivers/vfio-pci/../nvme/bind".to_vec()),
                        data: Blob(b"0000:03:00.0".to_vec()),
                    },
                    Op::Path {
                        path: Blob(b"/sys/devices/pci0000:00/0000:03:00.0/reset".to_vec()),
                        data: Blob(b"1".to_vec()),
                    },
                    Op::Path {
                        path: Blob(b"/sys/bus/pci/drivers//bind".to_vec()),
                        data: Blob(b"0000:03:00.0".to_vec()),
                    },
                ],
            ),
        ),
    ]
}
