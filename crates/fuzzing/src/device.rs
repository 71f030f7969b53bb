// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups and devices: any sequence of their ioctls.

use arbitrary::Unstructured;
use host::FileKind;
use host::tree::Node;
use uapi::vfio::device::{
    DmaBuf, FEATURE, Feature, GET_INFO, GET_IRQ_INFO, GET_PCI_HOT_RESET_INFO, GET_REGION_INFO, IOEVENTFD, Info,
    Ioeventfd, IrqInfo, IrqSet, PCI_HOT_RESET, RESET, RegionInfo, SET_IRQS, feature,
};
use uapi::vfio::{group, request};
use zerocopy::IntoBytes;

use crate::wire::{Blob, Number, Wire, operations, seed, wire};
use crate::world::{ARGUMENT, BUFFER, Pointer, World};

/// A controller with virtual functions, and two engines that share a group.
pub(crate) const LAB: &str = r#"
[vfio]
enable_sriov = true
[[device]]
model = "nvme"
addr = "01:00.0"
size = "64K"
queues = 4
total_vfs = 2
vfs = 1
[[device]]
model = "ioat"
addr = "02:00.0"
[[device]]
model = "ioat"
addr = "02:00.1"
[[device]]
model = "dsa"
addr = "03:00.0"
queues = 1
engines = 1
entries = 16
migration = "pre-copy-p2p"
state_size = "8K"
migration_fails = "STOP>RUNNING_P2P:after:2;PRE_COPY>RUNNING:middle"
"#;

wire! {
    /// What a program may do.
    enum Op {
        Switch { who: u8 },
        OpenDevice { device: u8 },
        OpenContainer {},
        OpenGroup { device: u8 },
        Event {},
        Close { fd: u8 },
        Pass { fd: u8 },
        DeviceFd { group: u8, name: Name, pointer: Pointer },
        Status { group: u8, argsz: u32, pointer: Pointer },
        Info { fd: u8, argsz: u32, pointer: Pointer },
        RegionInfo { fd: u8, argsz: u32, index: u32, pointer: Pointer },
        IrqInfo { fd: u8, argsz: u32, index: u32, pointer: Pointer },
        SetIrqs { fd: u8, argsz: u32, flags: u32, index: u8, start: u32, count: u32, data: Data, pointer: Pointer },
        Reset { fd: u8 },
        HotResetInfo { fd: u8, argsz: u32, pointer: Pointer },
        HotReset { fd: u8, argsz: u32, flags: u32, count: u32, data: Data, pointer: Pointer },
        Ioeventfd { fd: u8, argsz: u32, flags: u8, region: u8, offset: Number, data: u64, event: u8, pointer: Pointer },
        Feature { fd: u8, argsz: u32, flags: u32, data: Blob, pointer: Pointer },
        DmaBuf { fd: u8, argsz: u32, region: u32, open_flags: u32, count: u32, ranges: [Number; 4] },
        Raw { fd: u8, request: u8, argsz: u32, words: [u32; 8], pointer: Pointer },
        Fire { event: u8 },
        Interrupt { device: u8, vector: u16, level: bool },
        Command { fd: u8, value: u16 },
        Mmap { fd: u8, region: u8, offset: Number, len: Number, shared: bool },
        Turn { device: u8 },
        Advance { us: u16 },
    }
}

wire! {
    /// A device's name, as `GET_DEVICE_FD` takes it.
    enum Name {
        Device { device: u8 },
        Token { device: u8, token: [u64; 2] },
        Bytes { bytes: Blob },
    }
}

wire! {
    /// What follows a structure.
    enum Data {
        None {},
        Descriptors { fds: [u8; 4] },
        Bytes { bytes: Blob },
    }
}

impl Data {
    fn bytes(&self, world: &World) -> Vec<u8> {
        match self {
            Data::None {} => Vec::new(),
            Data::Descriptors { fds } => fds.iter().flat_map(|fd| world.fd(*fd).to_le_bytes()).collect(),
            Data::Bytes { bytes } => bytes.0.clone(),
        }
    }
}

/// The body of the target `device`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let device = u8::decode(&mut u).unwrap_or_default();
    let mut world = World::new(LAB);
    world.open_device(device, 3);
    for _ in 0..3 {
        world.event();
    }
    for op in operations(&mut u, 200) {
        step(&mut world, &op);
    }
    world.finish();
}

fn step(world: &mut World, op: &Op) {
    match op {
        Op::Switch { who } => world.switch(*who),
        Op::OpenDevice { device } => {
            let _ = world.open_device(*device, 3);
        }
        Op::OpenContainer {} => {
            let _ = world.open(Node::VfioContainer);
        }
        Op::OpenGroup { device } => {
            let _ = world.open_group(*device);
        }
        Op::Event {} => {
            let _ = world.event();
        }
        Op::Close { fd } => world.close(world.fd(*fd)),
        Op::Pass { fd } => world.pass(world.fd(*fd)),
        Op::Status { group, argsz, pointer } => {
            let status = group::Status { argsz: *argsz, flags: 0 };
            call(world, FileKind::VfioGroup, *group, group::GET_STATUS, pointer, status.as_bytes());
        }
        Op::DeviceFd { group, name, pointer } => {
            let name = match name {
                Name::Device { device } => format!("{}\0", world.device(*device)).into_bytes(),
                Name::Token { device, token: [high, low] } => {
                    let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
                    let token = format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff);
                    format!("{} vf_token={token}\0", world.device(*device)).into_bytes()
                }
                Name::Bytes { bytes } => bytes.0.clone(),
            };
            call(world, FileKind::VfioGroup, *group, group::GET_DEVICE_FD, pointer, &name);
        }
        Op::Fire { event } => world.fire(*event),
        Op::Interrupt { device, vector, level } => world.interrupt(*device, *vector, *level),
        Op::Turn { device } => world.turn(*device),
        Op::Advance { us } => world.advance(*us),
        _ => on_device(world, op),
    }
}

fn call(world: &mut World, kind: FileKind, n: u8, request: u32, pointer: &Pointer, bytes: &[u8]) {
    let fd = world.of_kind(kind, n).unwrap_or(-1);
    let _ = world.call(fd, request, pointer, bytes);
}

fn on_device(world: &mut World, op: &Op) {
    let mut device = |fd: &u8, request, pointer: &Pointer, bytes: &[u8]| {
        call(world, FileKind::VfioDevice, *fd, request, pointer, bytes)
    };
    match op {
        Op::Info { fd, argsz, pointer } => {
            device(fd, GET_INFO, pointer, Info { argsz: *argsz, ..Info::default() }.as_bytes());
        }
        Op::RegionInfo { fd, argsz, index, pointer } => {
            let info = RegionInfo { argsz: *argsz, index: *index, ..RegionInfo::default() };
            device(fd, GET_REGION_INFO, pointer, info.as_bytes());
        }
        Op::IrqInfo { fd, argsz, index, pointer } => {
            let info = IrqInfo { argsz: *argsz, index: *index, ..IrqInfo::default() };
            device(fd, GET_IRQ_INFO, pointer, info.as_bytes());
        }
        Op::SetIrqs { fd, argsz, flags, index, start, count, data, pointer } => {
            let set = IrqSet { argsz: *argsz, flags: *flags, index: (*index).into(), start: *start, count: *count };
            let bytes = [set.as_bytes(), &data.bytes(world)].concat();
            call(world, FileKind::VfioDevice, *fd, SET_IRQS, pointer, &bytes);
        }
        Op::Reset { fd } => device(fd, RESET, &Pointer::Good {}, &[]),
        Op::HotResetInfo { fd, argsz, pointer } => {
            device(fd, GET_PCI_HOT_RESET_INFO, pointer, [*argsz, 0, 0].as_bytes());
        }
        Op::HotReset { fd, argsz, flags, count, data, pointer } => {
            let bytes = [[*argsz, *flags, *count].as_bytes(), &data.bytes(world)].concat();
            call(world, FileKind::VfioDevice, *fd, PCI_HOT_RESET, pointer, &bytes);
        }
        Op::Ioeventfd { fd, argsz, flags, region, offset, data, event, pointer } => {
            let Some(number) = world.of_kind(FileKind::VfioDevice, *fd) else { return };
            let base = world.region(number, (*region).into()).unwrap_or_default();
            let offset = base.wrapping_add(offset.value());
            let (argsz, flags, event) = (*argsz, u32::from(*flags), world.fd(*event));
            let ioeventfd = Ioeventfd { argsz, flags, offset, data: *data, fd: event, reserved: 0 };
            call(world, FileKind::VfioDevice, *fd, IOEVENTFD, pointer, ioeventfd.as_bytes());
        }
        Op::Feature { fd, argsz, flags, data, pointer } => {
            let bytes = [Feature { argsz: *argsz, flags: *flags }.as_bytes(), &data.0].concat();
            device(fd, FEATURE, pointer, &bytes);
        }
        Op::DmaBuf { fd, argsz, region, open_flags, count, ranges } => {
            let header = Feature { argsz: *argsz, flags: 1 << 16 | feature::DMA_BUF };
            let buf = DmaBuf { region_index: *region, open_flags: *open_flags, flags: 0, nr_ranges: *count };
            let ranges = ranges.each_ref().map(Number::value);
            let bytes = [header.as_bytes(), buf.as_bytes(), ranges.as_bytes()].concat();
            device(fd, FEATURE, &Pointer::Good {}, &bytes);
        }
        Op::Raw { fd, request: n, argsz, words, pointer } => {
            let bytes = [argsz.as_bytes(), words.as_bytes()].concat();
            device(fd, request(*n % 32), pointer, &bytes);
        }
        Op::Command { fd, value } => {
            let Some(fd) = world.of_kind(FileKind::VfioDevice, *fd) else { return };
            let Some(config) = world.region(fd, 7) else { return };
            world.put(BUFFER, &value.to_le_bytes());
            let _ = world.write(fd, config + 4, BUFFER, 2);
        }
        Op::Mmap { fd, region, offset, len, shared } => {
            let Some(fd) = world.of_kind(FileKind::VfioDevice, *fd) else { return };
            let base = world.region(fd, (*region).into()).unwrap_or_default();
            world.mmap(fd, base.wrapping_add(offset.value()), len.value(), *shared);
        }
        _ => {}
    }
    // A call never takes the place of the argument of another.
    debug_assert_ne!(ARGUMENT, BUFFER);
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let good = || Pointer::Good {};
    let s = |device: u8, ops: &[Op]| seed(&device, ops);
    // Descriptors are in the order group, container, device, three eventfds.
    let irqs = |flags: u32, index: u8, start: u32, count: u32, data: Data| Op::SetIrqs {
        fd: 0,
        argsz: 20 + 4 * count,
        flags,
        index,
        start,
        count,
        data,
        pointer: good(),
    };
    let fds = |a, b, c, d| Data::Descriptors { fds: [a, b, c, d] };
    let fire = |vector| Op::Interrupt { device: 0, vector, level: true };
    let infos = |argsz: u32, pointer: fn() -> Pointer| {
        let mut ops = vec![Op::Info { fd: 0, argsz, pointer: pointer() }];
        ops.extend((0..11).map(|index| Op::RegionInfo { fd: 0, argsz: argsz.max(32), index, pointer: pointer() }));
        ops.extend((0..7).map(|index| Op::IrqInfo { fd: 0, argsz, index, pointer: pointer() }));
        ops
    };
    let features = |flags: u32, data: &[u8]| -> Vec<Op> {
        let feature =
            |index| Op::Feature { fd: 0, argsz: 64, flags: flags | index, data: Blob(data.to_vec()), pointer: good() };
        (0..14).map(feature).collect()
    };
    // The last device migrates.
    let last = 4;
    let words = |flags: u32, words: &[u32]| Op::Feature {
        fd: 0,
        argsz: 8 + 4 * words.len() as u32,
        flags,
        data: Blob(words.as_bytes().to_vec()),
        pointer: good(),
    };
    let state = |state: u32| words(1 << 17 | 2, &[state, u32::MAX]);
    let ioeventfd = |offset: u16, flags: u8, event: u8| Op::Ioeventfd {
        fd: 0,
        argsz: 32,
        flags,
        region: 0,
        offset: Number::of(offset.into()),
        data: 1,
        event,
        pointer: good(),
    };
    vec![
        ("infos", s(0, &infos(16, || Pointer::Good {}))),
        ("infos-with-capabilities", s(0, &infos(96, || Pointer::Good {}))),
        ("infos-at-the-end", s(1, &infos(48, || Pointer::End { bytes: 24 }))),
        (
            "msix",
            s(
                0,
                &[
                    irqs(4 | 32, 2, 0, 3, fds(3, 4, 5, 0)),
                    fire(1),
                    irqs(1 | 32, 2, 0, 2, Data::None {}),
                    irqs(1 | 32, 2, 0, 0, Data::None {}),
                ],
            ),
        ),
        (
            "msix-more",
            s(
                0,
                &[
                    irqs(4 | 32, 2, 0, 1, fds(3, 0, 0, 0)),
                    irqs(4 | 32, 2, 2, 2, fds(4, 5, 0, 0)),
                    irqs(4 | 32, 2, 0, 4, fds(255, 254, 255, 3)),
                ],
            ),
        ),
        (
            "msix-bool",
            s(
                0,
                &[
                    irqs(4 | 32, 2, 0, 2, fds(3, 4, 0, 0)),
                    irqs(2 | 32, 2, 0, 2, Data::Bytes { bytes: Blob(vec![1, 0]) }),
                ],
            ),
        ),
        (
            "intx",
            s(
                0,
                &[
                    irqs(4 | 32, 0, 0, 1, fds(3, 0, 0, 0)),
                    fire(0),
                    irqs(1 | 16, 0, 0, 1, Data::None {}),
                    irqs(4 | 16, 0, 0, 1, fds(4, 0, 0, 0)),
                    Op::Fire { event: 0 },
                    irqs(1 | 8, 0, 0, 1, Data::None {}),
                    irqs(2 | 16, 0, 0, 1, Data::Bytes { bytes: Blob(vec![1]) }),
                ],
            ),
        ),
        (
            "intx-to-msix",
            s(
                0,
                &[
                    irqs(4 | 32, 0, 0, 1, fds(3, 0, 0, 0)),
                    irqs(4 | 32, 2, 0, 1, fds(4, 0, 0, 0)),
                    irqs(1 | 32, 0, 0, 0, Data::None {}),
                    irqs(4 | 32, 2, 0, 1, fds(4, 0, 0, 0)),
                ],
            ),
        ),
        (
            "err-and-req",
            s(
                0,
                &[
                    irqs(4 | 32, 3, 0, 1, fds(3, 0, 0, 0)),
                    irqs(4 | 32, 4, 0, 1, fds(4, 0, 0, 0)),
                    irqs(1 | 32, 3, 0, 1, Data::None {}),
                    irqs(1 | 32, 4, 0, 0, Data::None {}),
                    Op::Close { fd: 3 },
                ],
            ),
        ),
        (
            "irqs-overflow",
            s(
                0,
                &[
                    Op::SetIrqs {
                        fd: 0,
                        argsz: 20,
                        flags: 4 | 32,
                        index: 2,
                        start: u32::MAX,
                        count: 2,
                        data: fds(3, 3, 3, 3),
                        pointer: good(),
                    },
                    Op::SetIrqs {
                        fd: 0,
                        argsz: u32::MAX,
                        flags: 4 | 32,
                        index: 2,
                        start: 1,
                        count: u32::MAX,
                        data: fds(3, 3, 3, 3),
                        pointer: good(),
                    },
                    Op::SetIrqs {
                        fd: 0,
                        argsz: 36,
                        flags: 4 | 32,
                        index: 2,
                        start: 0,
                        count: 4,
                        data: fds(3, 3, 3, 3),
                        pointer: Pointer::End { bytes: 30 },
                    },
                ],
            ),
        ),
        ("states", s(last, &[6, 7, 3, 5, 2, 6, 2, 8, u32::MAX, 4, 1, 2, 3].map(state))),
        (
            "draining",
            s(
                last,
                &[
                    Op::Command { fd: 0, value: 6 },
                    words(1 << 17 | 0xff03, &[1, 0]),
                    state(1),
                    state(5),
                    words(1 << 16 | 0xff03, &[0, 1, 0, 0, 0, 0]),
                    Op::Turn { device: last },
                    state(3),
                    Op::Close { fd: 4 },
                    state(2),
                    state(6),
                    state(7),
                    words(1 << 17 | 0xff03, &[0, 0]),
                ],
            ),
        ),
        (
            "dma-logging",
            s(
                last,
                &[
                    words(1 << 17 | 6, &[4096, 1, 0, 0, 0, 0]),
                    words(1 << 17 | 6, &[3, u32::MAX, 0, 0, 0, 0]),
                    words(1 << 16 | 8, &[0, 0, 4096, 0, 4096, 0, 0, 0]),
                    words(1 << 17 | 7, &[]),
                ],
            ),
        ),
        ("features-probe", s(0, &features(1 << 18 | 1 << 16, &[]))),
        ("features-get", s(0, &features(1 << 16, &[0; 32]))),
        ("features-set", s(0, &features(1 << 17, &[1, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]))),
        (
            "low-power",
            s(
                0,
                &[
                    Op::Feature {
                        fd: 0,
                        argsz: 16,
                        flags: 1 << 17 | 4,
                        data: Blob(vec![6, 0, 0, 0, 0, 0, 0, 0]),
                        pointer: good(),
                    },
                    fire(0),
                    Op::RegionInfo { fd: 0, argsz: 32, index: 0, pointer: good() },
                    Op::Feature { fd: 0, argsz: 8, flags: 1 << 17 | 3, data: Blob(vec![]), pointer: good() },
                    Op::Feature { fd: 0, argsz: 8, flags: 1 << 17 | 5, data: Blob(vec![]), pointer: good() },
                ],
            ),
        ),
        (
            "bus-master",
            s(
                0,
                &[
                    Op::Command { fd: 0, value: 6 },
                    Op::Feature {
                        fd: 0,
                        argsz: 12,
                        flags: 1 << 17 | 10,
                        data: Blob(vec![1, 0, 0, 0]),
                        pointer: good(),
                    },
                    Op::Command { fd: 0, value: 0 },
                ],
            ),
        ),
        (
            "dma-buf",
            s(
                0,
                &[
                    Op::DmaBuf {
                        fd: 0,
                        argsz: 56,
                        region: 0,
                        open_flags: 2,
                        count: 2,
                        ranges: [
                            Number::Page { page: 0 },
                            Number::Page { page: 1 },
                            Number::Page { page: 1 },
                            Number::Page { page: 1 },
                        ],
                    },
                    Op::DmaBuf {
                        fd: 0,
                        argsz: 56,
                        region: 0,
                        open_flags: 2,
                        count: u32::MAX,
                        ranges: [
                            Number::Edge { edge: 15, delta: 0 },
                            Number::Page { page: 1 },
                            Number::of(0),
                            Number::of(1),
                        ],
                    },
                ],
            ),
        ),
        (
            "ioeventfd",
            s(
                0,
                &[
                    Op::Command { fd: 0, value: 2 },
                    ioeventfd(0x1000, 4, 3),
                    ioeventfd(0x1000, 4, 3),
                    Op::Fire { event: 0 },
                    ioeventfd(0x1000, 4, 255),
                    ioeventfd(0x1ffc, 8, 4),
                    ioeventfd(0x2000, 4, 4),
                    Op::Close { fd: 3 },
                ],
            ),
        ),
        (
            "ioeventfd-closed",
            s(
                0,
                &[
                    ioeventfd(0x1008, 2, 3),
                    ioeventfd(0x1008, 1, 4),
                    Op::Close { fd: 3 },
                    Op::Fire { event: 0 },
                    Op::Close { fd: 2 },
                    Op::Fire { event: 1 },
                ],
            ),
        ),
        (
            "reset",
            s(
                0,
                &[
                    irqs(4 | 32, 2, 0, 1, fds(3, 0, 0, 0)),
                    Op::Command { fd: 0, value: 6 },
                    Op::Reset { fd: 0 },
                    fire(0),
                    Op::Turn { device: 0 },
                ],
            ),
        ),
        (
            "hot-reset",
            s(
                2,
                &[
                    Op::OpenDevice { device: 3 },
                    Op::HotResetInfo { fd: 0, argsz: 12, pointer: good() },
                    Op::HotResetInfo { fd: 0, argsz: 64, pointer: good() },
                    Op::HotReset { fd: 0, argsz: 16, flags: 0, count: 1, data: fds(0, 0, 0, 0), pointer: good() },
                    Op::HotReset { fd: 0, argsz: 24, flags: 0, count: 3, data: fds(0, 1, 2, 0), pointer: good() },
                    Op::HotReset { fd: 0, argsz: 12, flags: 0, count: 0, data: Data::None {}, pointer: good() },
                ],
            ),
        ),
        (
            "two-opens",
            s(
                0,
                &[
                    Op::DeviceFd { group: 0, name: Name::Device { device: 0 }, pointer: good() },
                    irqs(4 | 32, 2, 0, 1, fds(4, 0, 0, 0)),
                    Op::Close { fd: 2 },
                    fire(0),
                    Op::Reset { fd: 0 },
                ],
            ),
        ),
        (
            "names",
            s(
                0,
                &[
                    Op::DeviceFd { group: 0, name: Name::Device { device: 2 }, pointer: good() },
                    Op::DeviceFd { group: 0, name: Name::Token { device: 0, token: [1, 2] }, pointer: good() },
                    Op::DeviceFd {
                        group: 0,
                        name: Name::Bytes { bytes: Blob(vec![0xff; 200]) },
                        pointer: Pointer::End { bytes: 100 },
                    },
                    Op::DeviceFd { group: 0, name: Name::Bytes { bytes: Blob(vec![0]) }, pointer: good() },
                ],
            ),
        ),
        (
            "vf-token",
            s(
                0,
                &[
                    Op::Feature { fd: 0, argsz: 24, flags: 1 << 17, data: Blob((1..17).collect()), pointer: good() },
                    Op::OpenGroup { device: 1 },
                    Op::DeviceFd {
                        group: 1,
                        name: Name::Token { device: 1, token: [0x0102_0304_0506_0708, 0x090a_0b0c_0d0e_0f10] },
                        pointer: good(),
                    },
                ],
            ),
        ),
        (
            "mmap",
            s(
                0,
                &[
                    Op::Mmap { fd: 0, region: 0, offset: Number::of(0), len: Number::Page { page: 2 }, shared: true },
                    Op::Mmap {
                        fd: 0,
                        region: 0,
                        offset: Number::Page { page: 3 },
                        len: Number::Page { page: 2 },
                        shared: true,
                    },
                    Op::Mmap { fd: 0, region: 7, offset: Number::of(0), len: Number::Page { page: 1 }, shared: true },
                    Op::Mmap {
                        fd: 0,
                        region: 0,
                        offset: Number::of(0),
                        len: Number::Edge { edge: 15, delta: 0 },
                        shared: false,
                    },
                ],
            ),
        ),
        (
            "passed",
            s(
                0,
                &[
                    Op::Pass { fd: 2 },
                    Op::Close { fd: 2 },
                    Op::Switch { who: 1 },
                    Op::Event {},
                    irqs(4 | 32, 2, 0, 1, fds(1, 0, 0, 0)),
                    Op::Reset { fd: 0 },
                    fire(0),
                ],
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds of migration reach the device that migrates.
    #[test]
    fn seeds_reach_what_they_are_about() {
        let after = |name: &str, ops: usize| {
            let seeds = seeds();
            let (_, bytes) = seeds.iter().find(|seed| seed.0 == name).unwrap_or_else(|| panic!("{name}"));
            let mut u = Unstructured::new(bytes);
            let device = u8::decode(&mut u).unwrap_or_default();
            let mut world = World::new(LAB);
            world.open_device(device, 3);
            for _ in 0..3 {
                world.event();
            }
            operations(&mut u, ops).iter().for_each(|op| step(&mut world, op));
            let state = world.host.migrations().into_iter().find_map(|info| info.state);
            world.finish();
            state
        };
        for (name, ops, state) in [
            ("states", 1, "PRE_COPY"),
            ("states", 3, "STOP_COPY"),
            ("draining", 3, "RUNNING"),
            ("draining", 4, "RUNNING_P2P"),
        ] {
            assert_eq!(after(name, ops).as_deref(), Some(state), "{name} {ops}");
        }
    }
}
