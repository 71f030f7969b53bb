// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The I/OAT engine: any stores to its registers, any chain of descriptors.

use arbitrary::Unstructured;
use models::ioat::Engine;
use models::ioat::spec::{
    CHAINADDR, CHANCMD, CHANCMP, CHANCTRL, CHANERR, CHANSTS, CMD_RESET, CMD_SUSPEND, DMACOUNT, Descriptor, State, ctl,
};
use models::testing::Bench;
use zerocopy::IntoBytes;

use crate::bench::{Common, Program, READ_ONLY, rig};
use crate::wire::{Number, Wire, operations, seed, wire};

wire! {
    /// What a program may do.
    enum Op {
        Device { op: Common },
        Descriptor { slot: u8, size: Number, control: u32, source: Place, destination: Place, next: Place },
        Chain { at: Place },
        CompletionTo { at: Place },
        Count { count: u16 },
        Command { bits: u8 },
        Errors { bits: u32 },
        Control { bits: u16 },
    }
}

wire! {
    /// An IOVA.
    enum Place {
        Null {},
        /// A descriptor: the first pages hold them.
        Slot { slot: u8 },
        Page { page: u8 },
        Inside { page: u8, offset: u16 },
        ReadOnly { offset: u16 },
        Wild { at: Number },
    }
}

impl Place {
    fn value(&self) -> u64 {
        match self {
            Place::Null {} => 0,
            Place::Slot { slot } => u64::from(*slot) * 64,
            Place::Page { page } => u64::from(*page) << 12,
            Place::Inside { page, offset } => (u64::from(*page) << 12) + u64::from(*offset),
            Place::ReadOnly { offset } => READ_ONLY + u64::from(*offset),
            Place::Wild { at } => at.value(),
        }
    }
}

struct Channel(Bench);

impl Program for Channel {
    fn bench(&mut self) -> &mut Bench {
        &mut self.0
    }
}

impl Channel {
    /// A store of any width, as a program makes it: to the page or trapped.
    fn store(&self, offset: usize, bytes: &[u8]) {
        match self.0.file.as_ref().and_then(|file| file.bar(0)) {
            Some(window) => {
                use device::Window as _;
                let slice = window.slice();
                let part = slice.subslice(offset, bytes.len()).unwrap_or_else(|e| panic!("{e}"));
                part.copy_from(bytes);
            }
            None => self.0.endpoint.write(0, offset as u64, bytes, self.0.now),
        }
    }

    fn describe(&self, slot: u8, descriptor: &Descriptor) {
        self.0.memory.set(u64::from(slot) * 64, descriptor.as_bytes());
    }
}

/// The body of the target `ioat`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let (rig, bench) = rig(Box::new(Engine::new()), settings);
    let mut channel = Channel(bench);
    for op in operations(&mut u, 300) {
        match &op {
            Op::Device { op } => rig.step(&mut channel, op),
            Op::Descriptor { slot, size, control, source, destination, next } => {
                let descriptor = Descriptor {
                    size: size.value() as u32,
                    control: *control,
                    source: source.value(),
                    destination: destination.value(),
                    next: next.value(),
                    ..Descriptor::default()
                };
                channel.describe(*slot, &descriptor);
            }
            Op::Chain { at } => channel.store(CHAINADDR, &at.value().to_le_bytes()),
            Op::CompletionTo { at } => channel.store(CHANCMP, &at.value().to_le_bytes()),
            Op::Count { count } => channel.store(DMACOUNT, &count.to_le_bytes()),
            Op::Command { bits } => channel.store(CHANCMD, &[*bits]),
            Op::Errors { bits } => channel.store(CHANERR, &bits.to_le_bytes()),
            Op::Control { bits } => channel.store(CHANCTRL, &bits.to_le_bytes()),
        }
    }
    rig.finish(&mut channel);
    works(&channel);
}

/// A driver that means well finds an engine that works.
fn works(channel: &Channel) {
    let (source, destination) = (8 << 12, 9 << 12);
    channel.0.memory.set(source, b"copied");
    channel.0.memory.set(destination, &[0; 6]);
    channel.describe(64, &Descriptor { size: 6, source, destination, ..Descriptor::default() });
    channel.store(CHAINADDR, &(64_u64 * 64).to_le_bytes());
    channel.store(DMACOUNT, &1_u16.to_le_bytes());
    for _ in 0..4 {
        channel.0.turn();
    }
    let mut bytes = [0; 6];
    channel.0.memory.get(destination, &mut bytes);
    let (state, errors) = (channel.0.load_bar(0, CHANSTS as u64) & 7, channel.0.load_bar(0, CHANERR as u64));
    assert_eq!((&bytes, errors), (b"copied", 0), "after a reset");
    assert!(![State::Active as u32, State::Halted as u32].contains(&state), "state {state} after a copy");
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    let turn = || Op::Device { op: Common::Turn { times: 3 } };
    let go = |first: u8, count: u16, mut ops: Vec<Op>| {
        ops.extend([Op::Chain { at: Place::Slot { slot: first } }, Op::Count { count }, turn()]);
        ops
    };
    let copy = |slot: u8, size: u64, from: Place, to: Place, next: u8| Op::Descriptor {
        slot,
        size: Number::of(size),
        control: ctl::INTERRUPT | ctl::COMPLETION,
        source: from,
        destination: to,
        next: Place::Slot { slot: next },
    };
    let page = |page| Place::Page { page };
    let mut suspended = go(0, 1, vec![copy(0, 64, page(32), page(33), 1), copy(1, 64, page(33), page(34), 0)]);
    suspended.extend([
        Op::Command { bits: CMD_SUSPEND },
        turn(),
        Op::Count { count: 2 },
        turn(),
        Op::Command { bits: CMD_RESET },
        turn(),
    ]);
    vec![
        ("copy", s(0, &go(0, 1, vec![Op::CompletionTo { at: page(16) }, copy(0, 4096, page(32), page(33), 0)]))),
        (
            "copy-trapped",
            s(1, &go(0, 1, vec![Op::CompletionTo { at: page(16) }, copy(0, 4096, page(32), page(33), 0)])),
        ),
        (
            "copy-by-copying",
            s(2, &go(0, 1, vec![Op::CompletionTo { at: page(16) }, copy(0, 4096, page(32), page(33), 0)])),
        ),
        (
            "chain",
            s(
                0,
                &go(
                    0,
                    3,
                    vec![
                        copy(0, 64, page(32), page(33), 1),
                        copy(1, 0x1_0001, page(33), page(64), 2),
                        copy(2, 1, page(64), page(32), 0),
                    ],
                ),
            ),
        ),
        ("loop", s(0, &go(0, 0xffff, vec![copy(0, 64, page(32), page(33), 0), turn(), turn()]))),
        (
            "fill",
            s(
                0,
                &go(
                    0,
                    1,
                    vec![Op::Descriptor {
                        slot: 0,
                        size: Number::of(100),
                        control: ctl::FILL << 24,
                        source: Place::Wild { at: Number::Any { value: 0x0102_0304_0506_0708 } },
                        destination: page(40),
                        next: Place::Null {},
                    }],
                ),
            ),
        ),
        (
            "overlap",
            s(
                0,
                &go(
                    0,
                    2,
                    vec![
                        copy(0, 8192, page(32), Place::Inside { page: 32, offset: 7 }, 1),
                        copy(1, 8192, Place::Inside { page: 32, offset: 7 }, page(32), 0),
                    ],
                ),
            ),
        ),
        ("over-itself", s(0, &go(0, 4, vec![copy(0, 256, page(32), Place::Slot { slot: 0 }, 1)]))),
        ("zero-length", s(0, &go(0, 1, vec![copy(0, 0, page(32), page(33), 0)]))),
        (
            "too-long",
            s(
                0,
                &go(
                    0,
                    1,
                    vec![Op::Descriptor {
                        slot: 0,
                        size: Number::Any { value: (1 << 20) + 1 },
                        control: 0,
                        source: page(0),
                        destination: page(0),
                        next: Place::Null {},
                    }],
                ),
            ),
        ),
        ("read-only", s(0, &go(0, 1, vec![copy(0, 64, page(32), Place::ReadOnly { offset: 0 }, 0)]))),
        ("to-the-end", s(0, &go(0, 1, vec![copy(0, 8192, page(32), page(255), 0)]))),
        (
            "wrapping",
            s(0, &go(0, 1, vec![copy(0, 64, Place::Wild { at: Number::Edge { edge: 15, delta: -8 } }, page(33), 0)])),
        ),
        (
            "completion-nowhere",
            s(
                0,
                &go(
                    0,
                    1,
                    vec![Op::CompletionTo { at: Place::ReadOnly { offset: 8 } }, copy(0, 64, page(32), page(33), 0)],
                ),
            ),
        ),
        (
            "unknown-operation",
            s(
                0,
                &go(
                    0,
                    1,
                    vec![Op::Descriptor {
                        slot: 0,
                        size: Number::of(8),
                        control: u32::MAX,
                        source: page(0),
                        destination: page(0),
                        next: Place::Null {},
                    }],
                ),
            ),
        ),
        ("suspend-and-reset", s(0, &suspended)),
        (
            "self-arming",
            s(
                0,
                &[
                    Op::Command { bits: CMD_RESET },
                    turn(),
                    Op::Device { op: Common::Time { now: 600_000 } },
                    turn(),
                    Op::Count { count: 1 },
                    turn(),
                ],
            ),
        ),
        (
            "time-backwards",
            s(
                0,
                &[
                    Op::Device { op: Common::Time { now: u64::MAX } },
                    Op::Command { bits: CMD_RESET },
                    turn(),
                    Op::Device { op: Common::Time { now: 0 } },
                    turn(),
                ],
            ),
        ),
        (
            "bus-master-off",
            s(
                0,
                &go(
                    0,
                    0x100,
                    vec![
                        copy(0, 64, page(32), page(33), 0),
                        Op::Device { op: Common::BusMaster { on: false } },
                        turn(),
                        Op::Device { op: Common::BusMaster { on: true } },
                    ],
                ),
            ),
        ),
        (
            "memory-off",
            s(
                0,
                &[
                    Op::Device { op: Common::Memory { on: false } },
                    turn(),
                    Op::Errors { bits: u32::MAX },
                    Op::Control { bits: 0xffff },
                    Op::Device { op: Common::Memory { on: true } },
                    turn(),
                ],
            ),
        ),
    ]
}
