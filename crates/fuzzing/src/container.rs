// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers, groups and type1: any sequence of their ioctls.

use arbitrary::Unstructured;
use host::FileKind;
use host::tree::Node;
use sim::BASE;
use uapi::Errno;
use uapi::vfio::{container, group, type1};
use zerocopy::IntoBytes;

use crate::wire::{Number, Wire, operations, seed, wire};
use crate::world::{ARGUMENT, BUFFER, Pointer, World};

/// Two devices of their own, two that share a group, two of which one has
/// another driver.
const DEVICES: &str = r#"
[[device]]
model = "ioat"
addr = "01:00.0"
[[device]]
model = "ioat"
addr = "02:00.0"
[[device]]
model = "ioat"
addr = "03:00.0"
[[device]]
model = "ioat"
addr = "03:00.1"
[[device]]
model = "ioat"
addr = "04:00.0"
[[device]]
model = "ioat"
addr = "04:00.1"
driver = "ioatdma"
"#;

wire! {
    /// What a program may do.
    enum Op {
        Switch { who: u8 },
        OpenContainer {},
        OpenGroup { device: u8 },
        OpenDevice { device: u8, v1: bool },
        Close { fd: u8 },
        Pass { fd: u8 },
        SetContainer { group: u8, fd: u8, pointer: Pointer },
        UnsetContainer { group: u8 },
        SetIommu { fd: u8, kind: u8 },
        CheckExtension { fd: u8, extension: Number },
        Info { fd: u8, argsz: u32, pointer: Pointer },
        Map { fd: u8, argsz: u8, flags: u8, vaddr: Number, iova: Number, size: Number, pointer: Pointer },
        Unmap { fd: u8, argsz: u8, flags: u8, iova: Number, size: Number, bitmap: Bitmap, pointer: Pointer },
        Dirty { fd: u8, argsz: u8, flags: u8, iova: Number, size: Number, bitmap: Bitmap, pointer: Pointer },
        Status { group: u8, argsz: u32, pointer: Pointer },
        Raw { fd: u8, request: u8, arg: Number },
        Wild { fd: u8, request: u32, argsz: u32, flags: u32, words: [u64; 4] },
        Turn { device: u8 },
    }
}

wire! {
    /// A `vfio_bitmap`.
    enum Bitmap {
        Usual {},
        Sized { pgsize: Number, size: Number },
        Wild { pgsize: Number, size: Number, data: Number },
    }
}

impl Bitmap {
    fn value(&self) -> type1::Bitmap {
        let (pgsize, size, data) = match self {
            Bitmap::Usual {} => (4096, 512, BUFFER),
            Bitmap::Sized { pgsize, size } => (pgsize.value(), size.value(), BUFFER),
            Bitmap::Wild { pgsize, size, data } => (pgsize.value(), size.value(), data.value()),
        };
        type1::Bitmap { pgsize, size, data }
    }
}

/// The body of the target `container`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let width = [48, 30, 39, 57][usize::from(settings & 3)];
    let lab = format!(
        "[iommu]\naddress_width = {width}\ninterrupt_remapping = {}\n[vfio]\ndma_entry_limit = {}\n\
         allow_unsafe_interrupts = {}\nunlimited_memlock = {}\n{DEVICES}",
        settings & 4 == 0,
        if settings & 8 == 0 { 65535 } else { 3 },
        settings & 16 != 0,
        settings & 32 != 0,
    );
    let mut world = World::new(&lab);
    for op in operations(&mut u, 200) {
        step(&mut world, &op);
    }
    world.finish();
}

fn step(world: &mut World, op: &Op) {
    let container = |world: &World, n: &u8| world.of_kind(FileKind::VfioContainer, *n).unwrap_or(-1);
    let group = |world: &World, n: &u8| world.of_kind(FileKind::VfioGroup, *n).unwrap_or(-1);
    match op {
        Op::Switch { who } => world.switch(*who),
        Op::OpenContainer {} => {
            let _ = world.open(Node::VfioContainer);
        }
        Op::OpenGroup { device } => {
            let _ = world.open_group(*device);
        }
        Op::OpenDevice { device, v1 } => {
            let _ = world.open_device(*device, if *v1 { 1 } else { 3 });
        }
        Op::Close { fd } => world.close(world.fd(*fd)),
        Op::Pass { fd } => world.pass(world.fd(*fd)),
        Op::SetContainer { group: n, fd, pointer } => {
            let fd = world.fd(*fd).to_le_bytes();
            let _ = world.call(group(world, n), group::SET_CONTAINER, pointer, &fd);
        }
        Op::UnsetContainer { group: n } => {
            let _ = world.ioctl(group(world, n), group::UNSET_CONTAINER, 0);
        }
        Op::SetIommu { fd, kind } => {
            let _ = world.ioctl(container(world, fd), container::SET_IOMMU, u64::from(*kind % 12));
        }
        Op::CheckExtension { fd, extension } => {
            let yes = world.ioctl(container(world, fd), container::CHECK_EXTENSION, extension.value());
            // API-010: always an answer.
            assert!(yes.is_ok_and(|yes| yes <= 1) || yes == Err(Errno::EBADF), "{yes:?}");
        }
        Op::Info { fd, argsz, pointer } => {
            let info = type1::Info { argsz: *argsz, ..type1::Info::default() };
            let _ = world.call(container(world, fd), type1::GET_INFO, pointer, info.as_bytes());
        }
        Op::Map { fd, argsz, flags, vaddr, iova, size, pointer } => {
            map(world, fd, *argsz, *flags, [vaddr, iova, size], pointer)
        }
        Op::Unmap { fd, argsz, flags, iova, size, bitmap, pointer } => {
            let unmap = type1::DmaUnmap {
                argsz: (*argsz).into(),
                flags: (*flags).into(),
                iova: iova.value(),
                size: size.value(),
            };
            let bytes = [unmap.as_bytes(), bitmap.value().as_bytes()].concat();
            let _ = world.call(container(world, fd), type1::UNMAP_DMA, pointer, &bytes);
        }
        Op::Dirty { fd, argsz, flags, iova, size, bitmap, pointer } => {
            let dirty = type1::DirtyBitmap { argsz: (*argsz).into(), flags: (*flags).into() };
            let get = type1::DirtyBitmapGet { iova: iova.value(), size: size.value(), bitmap: bitmap.value() };
            let bytes = [dirty.as_bytes(), get.as_bytes()].concat();
            let _ = world.call(container(world, fd), type1::DIRTY_PAGES, pointer, &bytes);
        }
        Op::Status { group: n, argsz, pointer } => {
            let status = group::Status { argsz: *argsz, flags: 0 };
            let _ = world.call(group(world, n), group::GET_STATUS, pointer, status.as_bytes());
        }
        Op::Raw { fd, request, arg } => {
            let _ = world.ioctl(world.fd(*fd), 0x3b00 | u32::from(*request), arg.value());
        }
        Op::Wild { fd, request, argsz, flags, words } => {
            let bytes = [argsz.as_bytes(), flags.as_bytes(), words.as_bytes()].concat();
            let _ = world.call(world.fd(*fd), *request, &Pointer::Good {}, &bytes);
        }
        Op::Turn { device } => world.turn(*device),
    }
}

/// `MAP_DMA`; what was refused was refused for a reason that can be seen from
/// here, and what was mapped is memory that the program has.
fn map(world: &mut World, fd: &u8, argsz: u8, flags: u8, [vaddr, iova, size]: [&Number; 3], pointer: &Pointer) {
    let fd = world.of_kind(FileKind::VfioContainer, *fd).unwrap_or(-1);
    let (vaddr, iova, size) = (vaddr.value(), iova.value(), size.value());
    let map = type1::DmaMap { argsz: argsz.into(), flags: flags.into(), vaddr, iova, size };
    let mapped = world.call(fd, type1::MAP_DMA, pointer, map.as_bytes()).is_ok();
    if mapped && matches!(pointer, Pointer::Good {}) {
        let aligned = (vaddr | iova | size) % 4096 == 0 && size != 0;
        let inside = vaddr >= BASE && vaddr.checked_add(size).is_some_and(|end| end <= BASE + sim::SIZE);
        assert!(aligned && iova.checked_add(size - 1).is_some() && argsz >= 32, "{map:x?} was accepted");
        // Only a change of address waits for the memory until it is used.
        assert!(inside || flags & 4 != 0, "{map:x?} was accepted");
        // The same once more is in the way of itself.
        if flags & 4 == 0 {
            world.put(ARGUMENT, map.as_bytes());
            assert_eq!(world.ioctl(fd, type1::MAP_DMA, ARGUMENT), Err(Errno::EEXIST), "{map:x?}");
        }
    }
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let good = || Pointer::Good {};
    let page = |page: u16| Number::Page { page };
    let open = || Op::OpenDevice { device: 0, v1: false };
    // Memory begins at page 256; iova pages 16 and on.
    let map = |vaddr: u16, iova: u16, pages: u16, flags: u8| Op::Map {
        fd: 0,
        argsz: 32,
        flags,
        vaddr: page(256 + vaddr),
        iova: page(iova),
        size: page(pages),
        pointer: good(),
    };
    let unmap = |flags: u8, iova: u16, pages: u16| Op::Unmap {
        fd: 0,
        argsz: 48,
        flags,
        iova: page(iova),
        size: page(pages),
        bitmap: Bitmap::Usual {},
        pointer: good(),
    };
    let dirty = |flags: u8, iova: u16, pages: u16| Op::Dirty {
        fd: 0,
        argsz: 48,
        flags,
        iova: page(iova),
        size: page(pages),
        bitmap: Bitmap::Usual {},
        pointer: good(),
    };
    let info = |argsz| Op::Info { fd: 0, argsz, pointer: good() };
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    vec![
        (
            "handshake",
            s(
                0,
                &[
                    Op::OpenContainer {},
                    Op::OpenGroup { device: 0 },
                    Op::Status { group: 0, argsz: 8, pointer: good() },
                    Op::CheckExtension { fd: 0, extension: Number::of(3) },
                    Op::SetContainer { group: 0, fd: 0, pointer: good() },
                    Op::SetIommu { fd: 0, kind: 3 },
                    info(16),
                    info(152),
                    Op::UnsetContainer { group: 0 },
                ],
            ),
        ),
        ("map-unmap", s(0, &[open(), map(0, 16, 4, 3), map(4, 20, 4, 1), unmap(0, 16, 8), map(0, 16, 1, 2)])),
        ("unmap-all", s(0, &[open(), map(0, 16, 4, 3), map(4, 32, 4, 1), unmap(2, 0, 0)])),
        ("unmap-part", s(0, &[open(), map(0, 16, 4, 3), unmap(0, 17, 1), unmap(0, 16, 2), unmap(0, 15, 6)])),
        (
            "unmap-part-v1",
            s(0, &[Op::OpenDevice { device: 0, v1: true }, map(0, 16, 4, 3), unmap(0, 17, 1), unmap(0, 16, 2)]),
        ),
        (
            "vaddr",
            s(0, &[open(), map(0, 16, 4, 3), unmap(4, 16, 4), map(8, 16, 4, 4), unmap(6, 0, 0), map(0, 16, 4, 4)]),
        ),
        ("dirty", s(0, &[open(), map(0, 16, 4, 3), dirty(1, 0, 0), dirty(4, 16, 4), unmap(1, 16, 4), dirty(2, 0, 0)])),
        (
            "bitmaps",
            s(
                0,
                &[
                    open(),
                    map(0, 16, 64, 3),
                    dirty(1, 0, 0),
                    Op::Dirty {
                        fd: 0,
                        argsz: 48,
                        flags: 4,
                        iova: page(16),
                        size: page(64),
                        bitmap: Bitmap::Sized { pgsize: page(1), size: Number::of(8) },
                        pointer: good(),
                    },
                    Op::Dirty {
                        fd: 0,
                        argsz: 48,
                        flags: 4,
                        iova: page(16),
                        size: page(64),
                        bitmap: Bitmap::Wild {
                            pgsize: page(1),
                            size: Number::of(1 << 28),
                            data: Number::Edge { edge: 2, delta: -4 },
                        },
                        pointer: Pointer::End { bytes: 48 },
                    },
                ],
            ),
        ),
        ("limit", s(8, &[open(), map(0, 16, 1, 3), map(1, 17, 1, 3), map(2, 18, 1, 3), map(3, 19, 1, 3), info(152)])),
        ("locked-memory", s(0, &[open(), map(0, 16, 256, 3), map(0, 512, 256, 3), map(0, 1024, 256, 3)])),
        (
            "aperture",
            s(
                1,
                &[
                    open(),
                    Op::Map {
                        fd: 0,
                        argsz: 32,
                        flags: 3,
                        vaddr: page(256),
                        iova: Number::EdgePages { edge: 7, pages: -1 },
                        size: page(2),
                        pointer: good(),
                    },
                    Op::Map {
                        fd: 0,
                        argsz: 32,
                        flags: 3,
                        vaddr: page(256),
                        iova: Number::EdgePages { edge: 15, pages: 0 },
                        size: page(1),
                        pointer: good(),
                    },
                    Op::Map {
                        fd: 0,
                        argsz: 32,
                        flags: 3,
                        vaddr: Number::EdgePages { edge: 13, pages: -1 },
                        iova: page(1),
                        size: page(2),
                        pointer: good(),
                    },
                ],
            ),
        ),
        (
            "two-groups",
            s(
                0,
                &[
                    open(),
                    map(0, 16, 4, 3),
                    Op::OpenGroup { device: 1 },
                    Op::SetContainer { group: 1, fd: 1, pointer: good() },
                    Op::Close { fd: 0 },
                    map(4, 32, 4, 3),
                    Op::Close { fd: 0 },
                    Op::Close { fd: 0 },
                ],
            ),
        ),
        (
            "shared-group",
            s(
                0,
                &[
                    Op::OpenDevice { device: 2, v1: false },
                    Op::OpenDevice { device: 3, v1: false },
                    Op::Turn { device: 2 },
                    Op::UnsetContainer { group: 0 },
                ],
            ),
        ),
        (
            "not-viable",
            s(
                0,
                &[
                    Op::OpenDevice { device: 4, v1: false },
                    Op::Status { group: 0, argsz: 8, pointer: good() },
                    Op::OpenGroup { device: 5 },
                ],
            ),
        ),
        ("no-remapping", s(4, &[open(), info(16), Op::OpenDevice { device: 1, v1: true }])),
        ("unsafe-interrupts", s(4 | 16, &[open(), map(0, 16, 4, 3), info(16)])),
        (
            "passed",
            s(
                0,
                &[
                    open(),
                    Op::Pass { fd: 0 },
                    Op::Pass { fd: 1 },
                    Op::Pass { fd: 2 },
                    map(0, 16, 4, 3),
                    Op::Switch { who: 1 },
                    map(0, 32, 4, 3),
                    unmap(0, 16, 4),
                    unmap(4, 32, 4),
                    Op::Switch { who: 0 },
                    map(0, 32, 4, 4),
                    Op::Close { fd: 0 },
                    Op::Close { fd: 1 },
                ],
            ),
        ),
        (
            "straddling",
            s(
                0,
                &[
                    open(),
                    Op::Map {
                        fd: 0,
                        argsz: 32,
                        flags: 3,
                        vaddr: page(256),
                        iova: page(1),
                        size: page(1),
                        pointer: Pointer::End { bytes: 31 },
                    },
                    Op::Map {
                        fd: 0,
                        argsz: 32,
                        flags: 3,
                        vaddr: page(511),
                        iova: page(1),
                        size: page(2),
                        pointer: good(),
                    },
                    Op::Info { fd: 0, argsz: 152, pointer: Pointer::End { bytes: 40 } },
                    Op::Status { group: 0, argsz: 8, pointer: Pointer::Below { bytes: 4 } },
                    Op::SetContainer {
                        group: 0,
                        fd: 0,
                        pointer: Pointer::Wild { at: Number::Any { value: u64::MAX } },
                    },
                ],
            ),
        ),
        (
            "foreign-requests",
            s(
                0,
                &[
                    open(),
                    Op::Raw { fd: 0, request: 0x74, arg: Number::of(0) },
                    Op::Raw { fd: 1, request: 0x73, arg: Number::of(0) },
                    Op::Wild { fd: 1, request: 0x3b75, argsz: 8, flags: 7, words: [0; 4] },
                    Op::Wild { fd: 2, request: 0x3b76, argsz: 32, flags: 0, words: [1, 2, 3, 4] },
                ],
            ),
        ),
    ]
}
