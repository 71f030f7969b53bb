// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Data Streaming Accelerator: any configuration, any commands, any
//! descriptors through any portal.

use arbitrary::Unstructured;
use device::{Turn, Window as _};
use models::dsa::spec::{
    CMD, CMDSTS, DESCRIPTOR_BYTES, Descriptor, GENSTS, GRPCFG, MSIX_PERM, PORTAL_BAR, REGISTER_BAR, WQCFG, command,
    flag, opcode, wqcfg,
};
use models::dsa::{Accelerator, Config};
use models::testing::Bench;
use zerocopy::IntoBytes as _;

use crate::bench::{Common, Program, READ_ONLY, rig};
use crate::wire::{Number, Wire, operations, seed, wire};

wire! {
    /// What a program may do.
    enum Op {
        Device { op: Common },
        /// A descriptor in memory: the first pages hold them.
        Describe { slot: u8, what: What },
        Submit { queue: u8, portal: u8, place: u8, what: What },
        /// The same without a word that belongs together.
        Scribble { queue: u8, word: u16, value: u64 },
        Command { number: u8, operand: u32 },
        Queue { queue: u8, word: u8, value: u32 },
        Group { group: u8, word: u8, value: u32 },
        Permission { vector: u8, value: u32 },
        /// A device that works, whatever was before.
        Start { queue: u8, mode: u8 },
    }
}

wire! {
    /// A descriptor.
    enum What {
        Sound { operation: u8, flags: u8, source: Place, destination: Place, size: Number },
        Batch { flags: u8, slot: u8, count: Number },
        Any { pasid: u32, operation: u32, completion: Place, source: Place, destination: Place, size: Number, interrupt: u16, a: u64, b: u64, c: u64 },
    }
}

wire! {
    /// An IOVA.
    enum Place {
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
            Place::Slot { slot } => u64::from(*slot) * 64,
            Place::Page { page } => u64::from(*page) << 12,
            Place::Inside { page, offset } => (u64::from(*page) << 12) + u64::from(*offset),
            Place::ReadOnly { offset } => READ_ONLY + u64::from(*offset),
            Place::Wild { at } => at.value(),
        }
    }
}

/// Where sound descriptors have their completion record.
const RECORD: u64 = 0x8000;

impl What {
    fn descriptor(&self) -> Descriptor {
        match self {
            What::Sound { operation, flags, source, destination, size } => {
                let operation = opcode::ALL[usize::from(*operation) % opcode::ALL.len()];
                let base = Descriptor::new(operation, u32::from(*flags) & 0x1d | flag::RECORD);
                let descriptor = Descriptor {
                    completion: RECORD,
                    source: source.value(),
                    destination: destination.value(),
                    size: size.value() as u32,
                    interrupt: 1,
                    ..base
                };
                match operation {
                    opcode::DUAL_CAST => descriptor.with(0, &(destination.value() ^ 0x4_0000).to_le_bytes()),
                    opcode::CREATE_DELTA => {
                        descriptor.with(0, &0x9000_u64.to_le_bytes()).with(8, &800_u32.to_le_bytes())
                    }
                    opcode::APPLY_DELTA => descriptor.with(0, &80_u32.to_le_bytes()),
                    _ => descriptor,
                }
            }
            What::Batch { flags, slot, count } => Descriptor {
                completion: RECORD + 32,
                source: u64::from(*slot) * 64,
                size: count.value() as u32,
                ..Descriptor::new(opcode::BATCH, u32::from(*flags) & 0x1c | flag::RECORD)
            },
            What::Any { pasid, operation, completion, source, destination, size, interrupt, a, b, c } => Descriptor {
                pasid: *pasid,
                operation: *operation,
                completion: completion.value(),
                source: source.value(),
                destination: destination.value(),
                size: size.value() as u32,
                interrupt: *interrupt,
                ..Descriptor::default()
            }
            .with(0, &a.to_le_bytes())
            .with(8, &b.to_le_bytes())
            .with(16, &c.to_le_bytes()),
        }
    }
}

struct Card {
    bench: Bench,
    config: Config,
}

impl Program for Card {
    fn bench(&mut self) -> &mut Bench {
        &mut self.bench
    }
}

impl Card {
    fn store(&self, offset: u64, value: u32) {
        self.bench.store_bar(REGISTER_BAR, offset, value);
    }

    fn queue(&self, queue: u8, word: usize) -> u64 {
        let bytes = if self.config.operations { 64 } else { 32 };
        WQCFG + u64::from(queue % self.config.queues) * bytes + 4 * word as u64 % bytes
    }

    /// 64 bits to the portals: to the page or trapped.
    fn store_portal(&self, offset: u64, word: &[u8]) {
        match self.bench.file.as_ref().and_then(|file| file.bar(PORTAL_BAR)) {
            Some(window) => {
                let slice = window.slice();
                let part = slice.subslice(offset as usize, word.len()).unwrap_or_else(|e| panic!("{e}"));
                part.copy_from(word);
            }
            None => self.bench.endpoint.write(PORTAL_BAR, offset, word, self.bench.now),
        }
    }

    fn submit(&self, queue: u8, portal: u8, place: u8, descriptor: &Descriptor) {
        let page = u64::from(queue % self.config.queues) * 4 + u64::from(portal % 4);
        let at = (page << 12) + u64::from(place % 64) * DESCRIPTOR_BYTES as u64;
        let mut words: Vec<_> = (at..).step_by(8).zip(descriptor.as_bytes().chunks(8)).collect();
        if self.bench.file.is_some() {
            words.rotate_left(1);
        }
        words.iter().for_each(|(at, word)| self.store_portal(*at, word));
    }

    fn command(&self, number: u32, operand: u32) {
        self.store(CMD, number << 20 | operand & 0xf_ffff);
        self.bench.turn();
    }

    /// Configures and enables a queue, if nothing stands in the way.
    fn start(&self, queue: u8, mode: u32) {
        let queue = queue % self.config.queues;
        for (word, value) in
            [(wqcfg::SIZE, 2), (wqcfg::THRESHOLD, 1), (wqcfg::MODE, mode), (wqcfg::LIMITS, 31 | 10 << 5)]
        {
            self.store(self.queue(queue, word), value);
        }
        self.store(GRPCFG, 1 << queue);
        self.store(GRPCFG + 32, 1);
        self.command(command::ENABLE_DEVICE, 0);
        self.command(command::ENABLE_QUEUE, queue.into());
    }
}

/// The body of the target `dsa`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let config = Config { operations: settings & 4 != 0, handles: settings & 8 != 0, queues: 2, ..Config::default() };
    let (rig, bench) = rig(Box::new(Accelerator::new(config)), settings);
    let mut card = Card { bench, config };
    card.start(0, wqcfg::DEDICATED | 1 << 4);
    for op in operations(&mut u, 200) {
        match &op {
            Op::Device { op } => rig.step(&mut card, op),
            Op::Describe { slot, what } => card.bench.memory.set(u64::from(*slot) * 64, what.descriptor().as_bytes()),
            Op::Submit { queue, portal, place, what } => card.submit(*queue, *portal, *place, &what.descriptor()),
            Op::Scribble { queue, word, value } => {
                let page = u64::from(queue % config.queues) << 14;
                card.store_portal(page + ((u64::from(*word) * 8) & 0x3ff8), &value.to_le_bytes());
            }
            Op::Command { number, operand } => card.command(u32::from(*number), *operand),
            Op::Queue { queue, word, value } => card.store(card.queue(*queue, (*word).into()), *value),
            Op::Group { group, word, value } => {
                card.store(GRPCFG + u64::from(group % 4) * 64 + u64::from(word % 12) * 4, *value);
            }
            Op::Permission { vector, value } => card.store(MSIX_PERM + u64::from(vector % 3) * 8, *value),
            Op::Start { queue, mode } => card.start(*queue, u32::from(*mode) | 1 << 4),
        }
    }
    rig.finish(&mut card);
    works(&card);
}

/// A driver that means well finds a device that works.
fn works(card: &Card) {
    assert_eq!(card.bench.load_bar(REGISTER_BAR, GENSTS) & 3, 0, "after a reset");
    card.start(1, wqcfg::DEDICATED | 1 << 4);
    assert_eq!(card.bench.load_bar(REGISTER_BAR, CMDSTS), 0, "after a reset");
    let (source, destination) = (8 << 12, 9 << 12);
    card.bench.memory.set(source, b"copied");
    card.bench.memory.set(destination, &[0; 6]);
    let copy = Descriptor { source, destination, size: 6, ..Descriptor::new(opcode::MOVE, 0) };
    card.submit(1, 0, 0, &copy);
    // How long one may keep the device busy is bounded.
    (0..100).take_while(|_| card.bench.turn() == Turn::Busy).for_each(drop);
    let mut bytes = [0; 6];
    card.bench.memory.get(destination, &mut bytes);
    assert_eq!(&bytes, b"copied", "after a reset");
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    let turn = || Op::Device { op: Common::Turn { times: 5 } };
    let page = |page| Place::Page { page };
    let sound = |operation: u8, source: Place, destination: Place, size: u64| {
        let operation = opcode::ALL.iter().position(|op| *op == operation).unwrap_or_default() as u8;
        What::Sound { operation, flags: 0x1c, source, destination, size: Number::of(size) }
    };
    let submit = |what: What| Op::Submit { queue: 0, portal: 0, place: 0, what };
    let once = |what: What| [submit(what), turn()];
    let copy = || sound(opcode::MOVE, page(32), page(33), 4096);
    let each: Vec<Op> = opcode::ALL
        .iter()
        .filter(|operation| **operation != opcode::BATCH)
        .flat_map(|operation| once(sound(*operation, page(32), page(64), 8192)))
        .collect();
    let batch = |count: u64| {
        vec![
            Op::Describe { slot: 0, what: copy() },
            Op::Describe { slot: 1, what: sound(opcode::COMPARE, page(32), page(33), 4096) },
            Op::Describe { slot: 2, what: What::Batch { flags: 8, slot: 0, count: Number::of(2) } },
            Op::Describe { slot: 3, what: sound(opcode::FILL, Place::ReadOnly { offset: 0 }, page(200), 1 << 20) },
            submit(What::Batch { flags: 0x18, slot: 0, count: Number::of(count) }),
            turn(),
        ]
    };
    let command = |number: u32, operand: u32| Op::Command { number: number as u8, operand };
    let any = |operation: u32, completion: Place| What::Any {
        pasid: 5,
        operation,
        completion,
        source: page(32),
        destination: page(33),
        size: Number::of(64),
        interrupt: 9,
        a: u64::MAX,
        b: 7,
        c: 1,
    };
    let with = |mut first: Vec<Op>, rest: &[Op]| {
        first.extend_from_slice(rest);
        first
    };
    vec![
        ("copy", s(0, &once(copy()))),
        ("copy-trapped", s(1, &once(copy()))),
        ("copy-by-copying", s(2, &once(copy()))),
        ("each-operation", s(0, &each)),
        ("each-operation-by-copying", s(3, &each)),
        ("batch", s(0, &batch(4))),
        ("batch-too-long", s(1, &batch(5000))),
        ("batch-over-itself", s(0, &with(batch(2), &once(sound(opcode::FILL, page(0), page(0), 4096))))),
        ("overlap", s(0, &once(sound(opcode::MOVE, page(32), Place::Inside { page: 32, offset: 7 }, 65_536)))),
        ("to-the-end", s(0, &once(sound(opcode::MOVE, page(32), page(255), 8192)))),
        (
            "downwards-over-a-hole",
            s(
                0,
                &with(
                    vec![Op::Device { op: Common::Unmap { page: 33, pages: 0 } }],
                    &once(sound(opcode::MOVE, page(32), Place::Inside { page: 32, offset: 99 }, 20_000)),
                ),
            ),
        ),
        (
            "wrapping",
            s(0, &once(sound(opcode::MOVE, Place::Wild { at: Number::Edge { edge: 15, delta: -8 } }, page(33), 64))),
        ),
        ("read-only", s(0, &once(sound(opcode::FILL, page(32), Place::ReadOnly { offset: 0 }, 64)))),
        ("record-nowhere", s(0, &once(any(0x0300_001c, Place::ReadOnly { offset: 0 })))),
        ("record-misaligned", s(0, &once(any(0x0300_000c, Place::Inside { page: 1, offset: 5 })))),
        ("wrong-flags", s(0, &once(any(u32::MAX, page(1))))),
        (
            "shared",
            s(
                1,
                &[
                    Op::Start { queue: 1, mode: 0 },
                    command(command::RESET_DEVICE, 0),
                    Op::Queue { queue: 1, word: 2, value: 1 << 28 | 1 << 4 },
                    Op::Queue { queue: 1, word: 0, value: 1 },
                    Op::Group { group: 1, word: 0, value: 2 },
                    Op::Group { group: 1, word: 8, value: 2 },
                    command(command::ENABLE_DEVICE, 0),
                    command(command::ENABLE_QUEUE, 1),
                    Op::Submit { queue: 1, portal: 1, place: 3, what: copy() },
                    Op::Submit { queue: 1, portal: 0, place: 4, what: copy() },
                    turn(),
                ],
            ),
        ),
        (
            "commands",
            s(
                8,
                &[
                    submit(copy()),
                    command(command::DRAIN_ALL, 0),
                    command(command::DISABLE_QUEUE, 1),
                    command(command::ENABLE_QUEUE, 0),
                    submit(copy()),
                    command(command::ABORT_QUEUE, 1),
                    command(command::DRAIN_PASID, 0),
                    command(command::REQUEST_HANDLE, 1),
                    command(command::RESET_QUEUE, 3),
                    command(command::DISABLE_DEVICE, 0),
                ],
            ),
        ),
        (
            "operations",
            s(
                4,
                &[
                    command(command::RESET_DEVICE, 0),
                    Op::Queue { queue: 0, word: 8, value: 0 },
                    Op::Start { queue: 0, mode: 1 },
                    submit(copy()),
                    turn(),
                ],
            ),
        ),
        (
            "permissions",
            s(
                0,
                &[
                    command(command::RESET_DEVICE, 0),
                    Op::Permission { vector: 1, value: 8 | 5 << 12 },
                    Op::Start { queue: 0, mode: 1 },
                    submit(copy()),
                    turn(),
                ],
            ),
        ),
        ("one-place", s(0, &[submit(copy()), submit(copy()), submit(copy()), turn()])),
        (
            "scribble",
            s(
                1,
                &[
                    Op::Scribble { queue: 0, word: 7, value: 1 },
                    Op::Scribble { queue: 0, word: 0, value: u64::MAX },
                    Op::Scribble { queue: 0, word: 7, value: u64::MAX },
                    turn(),
                ],
            ),
        ),
        (
            "bus-master-off",
            s(
                0,
                &[
                    submit(copy()),
                    Op::Device { op: Common::BusMaster { on: false } },
                    turn(),
                    Op::Device { op: Common::BusMaster { on: true } },
                    turn(),
                ],
            ),
        ),
        (
            "memory-off",
            s(
                0,
                &[
                    submit(copy()),
                    Op::Device { op: Common::Memory { on: false } },
                    turn(),
                    Op::Device { op: Common::Memory { on: true } },
                    turn(),
                ],
            ),
        ),
        (
            "reset-in-between",
            s(
                0,
                &[
                    submit(sound(opcode::MOVE, page(32), page(64), 100_000)),
                    Op::Device { op: Common::Reset { kind: 1 } },
                    turn(),
                    Op::Start { queue: 0, mode: 1 },
                    submit(copy()),
                    turn(),
                ],
            ),
        ),
    ]
}
