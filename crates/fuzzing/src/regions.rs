// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Regions of a device: any reads and writes of configuration space, BARs and
//! what lies between and behind them.

use std::sync::atomic::Ordering;

use arbitrary::Unstructured;
use uapi::vfio::device::RESET;
use vm_memory::Bytes;

use crate::device::LAB;
use crate::wire::{Number, Wire, operations, seed, wire};
use crate::world::{BUFFER, Pointer, World};

wire! {
    /// What a program may do to its device.
    enum Op {
        Config { offset: u16, len: u8, value: u32 },
        ReadConfig { offset: u16, len: u8 },
        Read { region: u8, offset: Number, len: Number, pointer: Pointer },
        Write { region: u8, offset: Number, len: Number, pointer: Pointer, value: u64 },
        At { offset: Number, len: Number, write: bool },
        Store { bar: u8, offset: u16, value: u32 },
        Interrupt { vector: u16, level: bool },
        Reset {},
        Reopen {},
        Turn {},
        Advance { us: u16 },
    }
}

/// The longest access: more is only more of the same.
const LONGEST: u64 = 0x6000;
/// What lies behind a buffer.
const GUARD: [u8; 64] = [0x5a; 64];

/// The body of the target `regions`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let device = u8::decode(&mut u).unwrap_or_default();
    let mut world = World::new(LAB);
    let Some((mut fd, _)) = world.open_device(device, 3) else { return world.finish() };
    let before = identity(&world, device);
    for op in operations(&mut u, 300) {
        if matches!(op, Op::Reopen {}) {
            for fd in world.client().open() {
                world.close(fd);
            }
            match world.open_device(device, 3) {
                Some((new, _)) => fd = new,
                None => panic!("what could be opened can be opened again"),
            }
        }
        step(&mut world, fd, device, &op);
        // API-234, API-241: who it is and where its BARs are in hardware is not
        // the program's to say.
        assert_eq!(identity(&world, device), before, "after {op:?}");
    }
    world.finish();
}

/// Identity and BARs as the hardware has them.
fn identity(world: &World, device: u8) -> Vec<u32> {
    let function = world.host.board().fabric.function(world.device(device));
    let words = [0, 8, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x2c, 0x30];
    words.iter().map(|at| function.map_or(0, |f| f.read(*at, 4))).collect()
}

fn step(world: &mut World, fd: i32, device: u8, op: &Op) {
    match op {
        Op::Config { offset, len, value } => {
            let Some(config) = world.region(fd, 7) else { return };
            world.put(BUFFER, &value.to_le_bytes());
            let _ = world.write(fd, config + u64::from(*offset), BUFFER, u64::from(*len % 5));
        }
        Op::ReadConfig { offset, len } => {
            let Some(config) = world.region(fd, 7) else { return };
            read(world, fd, config + u64::from(*offset), u64::from(*len));
        }
        Op::Read { region, offset, len, pointer } => {
            let base = world.region(fd, (*region).into()).unwrap_or_default();
            let offset = base.wrapping_add(offset.value());
            match pointer {
                Pointer::Good {} => read(world, fd, offset, len.value().min(LONGEST)),
                wild => {
                    let buffer = world.place(wild, &[]);
                    let _ = world.read(fd, offset, buffer, len.value().min(LONGEST));
                }
            }
        }
        Op::Write { region, offset, len, pointer, value } => {
            let base = world.region(fd, (*region).into()).unwrap_or_default();
            let buffer = world.place(pointer, &value.to_le_bytes());
            let _ = world.write(fd, base.wrapping_add(offset.value()), buffer, len.value().min(LONGEST));
        }
        Op::At { offset, len, write } => {
            let (offset, len) = (offset.value(), len.value().min(LONGEST));
            if *write {
                let _ = world.write(fd, offset, BUFFER, len);
            } else {
                read(world, fd, offset, len);
            }
        }
        Op::Store { bar, offset, value } => {
            let file = world.client().file_id(fd).and_then(|file| world.host.device_file(file));
            let window = file.and_then(|file| file.window(usize::from(*bar % 6)));
            if let Some(window) = window {
                // Past the end of the BAR there is nothing to store to.
                let _ = window.slice().store(*value, usize::from(*offset & !3), Ordering::SeqCst);
            }
        }
        Op::Interrupt { vector, level } => world.interrupt(device, *vector, *level),
        Op::Reset {} => {
            let _ = world.ioctl(fd, RESET, 0);
        }
        Op::Reopen {} => {}
        Op::Turn {} => world.turn(device),
        Op::Advance { us } => world.advance(*us),
    }
}

/// A read into a buffer behind which there is something else.
fn read(world: &mut World, fd: i32, offset: u64, len: u64) {
    world.put(BUFFER + len, &GUARD);
    let done = world.read(fd, offset, BUFFER, len);
    let mut behind = GUARD;
    world.client().get(BUFFER + len, &mut behind);
    assert_eq!(behind, GUARD, "a read of {len} bytes at {offset:#x} ({done:?}) wrote more");
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |device: u8, ops: &[Op]| seed(&device, ops);
    let config = |offset, len, value| Op::Config { offset, len, value };
    let read = |region, offset: u64, len: u64| Op::Read {
        region,
        offset: Number::of(offset),
        len: Number::of(len),
        pointer: Pointer::Good {},
    };
    let write = |region, offset: u64, len: u64, value| Op::Write {
        region,
        offset: Number::of(offset),
        len: Number::of(len),
        pointer: Pointer::Good {},
        value,
    };
    let sweep = |device| {
        let ops: Vec<Op> = (0..64).flat_map(|n| [config(n * 4, 4, u32::MAX), config(n * 4, 4, 0)]).collect();
        s(device, &ops)
    };
    let extended: Vec<Op> = (0x40..0x80).map(|n| config(n * 4, 4, u32::MAX)).collect();
    vec![
        (
            "read-all",
            s(
                0,
                &[
                    read(7, 0, 256),
                    read(7, 0, 4096),
                    read(7, 0x100, 8192),
                    read(0, 0, 16384),
                    read(6, 0, 512),
                    read(8, 0, 16),
                ],
            ),
        ),
        ("read-all-engine", s(2, &[read(7, 0, 4096), read(0, 0, 16384), read(2, 0, 8192), read(4, 0, 4)])),
        ("write-ones", sweep(0)),
        ("write-ones-vf", sweep(1)),
        ("write-ones-engine", sweep(2)),
        ("write-ones-extended", s(0, &extended)),
        (
            "bar-sizing",
            s(
                0,
                &[
                    config(0x10, 4, u32::MAX),
                    config(0x14, 4, u32::MAX),
                    Op::ReadConfig { offset: 0x10, len: 8 },
                    config(0x10, 4, 0xfe00_0000),
                    config(0x30, 4, u32::MAX),
                    Op::ReadConfig { offset: 0x30, len: 4 },
                ],
            ),
        ),
        (
            "memory-off",
            s(
                0,
                &[
                    read(0, 0, 8),
                    config(4, 2, 2),
                    read(0, 0, 8),
                    write(0, 0x14, 4, 1),
                    config(4, 1, 0),
                    read(0, 0, 8),
                    Op::Store { bar: 0, offset: 0x14, value: 1 },
                    Op::Turn {},
                ],
            ),
        ),
        (
            "power-states",
            s(
                0,
                &[
                    config(4, 2, 6),
                    config(0x44, 2, 3),
                    read(0, 0, 4),
                    Op::Turn {},
                    config(0x44, 2, 0),
                    read(0, 0, 4),
                    config(0x84, 2, 3),
                    config(0x84, 2, 0),
                ],
            ),
        ),
        (
            "msix-table",
            s(
                0,
                &[
                    config(4, 2, 2),
                    write(0, 0x2000, 8, u64::MAX),
                    write(0, 0x200c, 4, 1),
                    read(0, 0x2000, 32),
                    read(0, 0x3000, 16),
                    write(0, 0x1ffe, 8, 0),
                    Op::Interrupt { vector: 0, level: true },
                    read(0, 0x3000, 8),
                ],
            ),
        ),
        (
            "odd-lengths",
            s(
                0,
                &[
                    config(4, 2, 2),
                    read(0, 1, 7),
                    read(0, 3, 13),
                    write(0, 5, 3, 0xffff_ffff),
                    Op::ReadConfig { offset: 1, len: 3 },
                    config(1, 4, 5),
                    config(0xfe, 4, 5),
                    Op::ReadConfig { offset: 0xfff, len: 9 },
                ],
            ),
        ),
        (
            "ends",
            s(
                0,
                &[
                    Op::Read {
                        region: 0,
                        offset: Number::Page { page: 4 },
                        len: Number::of(4),
                        pointer: Pointer::Good {},
                    },
                    Op::Read { region: 0, offset: Number::of(0x3ffe), len: Number::of(8), pointer: Pointer::Good {} },
                    Op::Read {
                        region: 7,
                        offset: Number::Edge { edge: 10, delta: -2 },
                        len: Number::of(8),
                        pointer: Pointer::Good {},
                    },
                    Op::At { offset: Number::Any { value: u64::MAX }, len: Number::of(4), write: false },
                    Op::At { offset: Number::Edge { edge: 14, delta: -4 }, len: Number::of(8), write: true },
                    Op::At { offset: Number::Any { value: 7 << 40 }, len: Number::of(64), write: false },
                ],
            ),
        ),
        (
            "bad-buffers",
            s(
                0,
                &[
                    config(4, 2, 2),
                    Op::Read {
                        region: 7,
                        offset: Number::of(0),
                        len: Number::of(64),
                        pointer: Pointer::End { bytes: 3 },
                    },
                    Op::Read {
                        region: 0,
                        offset: Number::of(0),
                        len: Number::of(64),
                        pointer: Pointer::Below { bytes: 5 },
                    },
                    Op::Write {
                        region: 7,
                        offset: Number::of(4),
                        len: Number::of(2),
                        pointer: Pointer::Wild { at: Number::of(0) },
                        value: 6,
                    },
                    Op::Write {
                        region: 0,
                        offset: Number::of(0x14),
                        len: Number::of(4),
                        pointer: Pointer::End { bytes: 2 },
                        value: 1,
                    },
                ],
            ),
        ),
        (
            "flr",
            s(
                0,
                &[
                    config(4, 2, 6),
                    Op::Store { bar: 0, offset: 0x14, value: 0x46_0001 },
                    Op::Turn {},
                    config(0x78, 2, 0x8000),
                    config(0x88, 2, 0x8000),
                    Op::Reset {},
                    Op::Turn {},
                    read(0, 0x1c, 4),
                ],
            ),
        ),
        (
            "reopen",
            s(
                0,
                &[
                    config(4, 2, 6),
                    config(0x3c, 1, 9),
                    Op::Interrupt { vector: 0, level: true },
                    Op::Reopen {},
                    Op::ReadConfig { offset: 0, len: 64 },
                ],
            ),
        ),
        (
            "time",
            s(
                2,
                &[
                    config(4, 2, 6),
                    Op::Store { bar: 0, offset: 0x84, value: 0x20 },
                    Op::Turn {},
                    Op::Advance { us: 600 },
                    Op::Turn {},
                    Op::Reset {},
                ],
            ),
        ),
    ]
}
