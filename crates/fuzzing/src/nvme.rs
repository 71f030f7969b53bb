// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NVMe controller: any stores to its registers, any queue entries, with
//! any memory.

use std::sync::Arc;

use arbitrary::Unstructured;
use device::Disk;
use models::nvme::spec::{AdminOpcode, Cns, Command, Completion, NvmOpcode, Register};
use models::nvme::{Config, Controller, LbaSize};
use models::testing::nvme::{Driver, Machine, blocks_command};
use models::testing::{Bench, MemoryDisk};
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use crate::bench::{Common, MEMORY, Program, READ_ONLY, rig};
use crate::wire::{Number, Wire, operations, seed, wire};

wire! {
    /// What a program may do.
    enum Op {
        Device { op: Common },
        Register { word: u8, value: Number },
        Doorbell { index: u8, value: u16 },
        Enable { entries: u8 },
        Queue { id: u8, entries: u8, vector: u8 },
        Submit { queue: u8, opcode: u8, nsid: u8, prp1: Pointer, prp2: Pointer, dwords: [Number; 4] },
        SubmitBytes { queue: u8, words: [u32; 16] },
        List { page: u8, entries: [Pointer; 4] },
        Reap { queue: u8 },
    }
}

wire! {
    /// An IOVA in a command.
    enum Pointer {
        Null {},
        Page { page: u8 },
        Inside { page: u8, offset: u16 },
        ReadOnly { offset: u16 },
        Wild { at: Number },
    }
}

impl Pointer {
    fn value(&self) -> u64 {
        match self {
            Pointer::Null {} => 0,
            Pointer::Page { page } => u64::from(*page) << 12,
            Pointer::Inside { page, offset } => (u64::from(*page) << 12) + u64::from(*offset % 4096),
            Pointer::ReadOnly { offset } => READ_ONLY + u64::from(*offset % 8192),
            Pointer::Wild { at } => at.value(),
        }
    }
}

impl Program for Driver<Bench> {
    fn bench(&mut self) -> &mut Bench {
        &mut self.machine
    }
}

/// Bytes of the disk.
const DISK: usize = 64 << 10;

/// The body of the target `nvme`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let disk = if settings & 4 == 0 { MemoryDisk::new(DISK) } else { MemoryDisk::read_only(DISK) };
    let config = Config {
        lba_size: if settings & 8 == 0 { LbaSize::B512 } else { LbaSize::B4096 },
        max_queue_pairs: 4,
        namespaces: vec![disk as Arc<dyn Disk>],
        ..Config::default()
    };
    let (rig, bench) = rig(Box::new(Controller::new(config)), settings);
    let mut driver = Driver::new(bench);
    driver.patience = 10;
    for op in operations(&mut u, 300) {
        match &op {
            Op::Device { op } => rig.step(&mut driver, op),
            other => step(&mut driver, other),
        }
    }
    rig.finish(&mut driver);
    // A driver that means well finds a controller that works.
    driver.patience = 1000;
    let mut up = || {
        driver.enable(16)?;
        driver.create_queue_pair(1, 16, Some(1))?;
        driver.identify::<[u8; 4096]>(Cns::Controller, 0)?;
        let iova = driver.alloc(4096)?;
        driver.succeed(1, Command { prp1: iova.into(), ..blocks_command(NvmOpcode::Read, 1, 0, 1) })
    };
    up().unwrap_or_else(|error| panic!("after a reset: {error}"));
}

fn step(driver: &mut Driver<Bench>, op: &Op) {
    match op {
        Op::Device { .. } => {}
        Op::Register { word, value } => driver.machine.store(u64::from(*word % 16) * 4, value.value() as u32),
        Op::Doorbell { index, value } => driver.machine.store(0x1000 + u64::from(*index % 12) * 4, (*value).into()),
        Op::Enable { entries } => {
            let _ = driver.enable(u16::from(*entries).max(2));
        }
        Op::Queue { id, entries, vector } => {
            let vector = (vector & 0x80 == 0).then_some(u16::from(*vector));
            let _ = driver.create_queue_pair((*id % 6).into(), u16::from(*entries).max(2), vector);
        }
        Op::Submit { queue, opcode, nsid, prp1, prp2, dwords } => {
            let [cdw10, cdw11, cdw12, cdw13] = dwords.each_ref().map(|n| (n.value() as u32).into());
            let (prp1, prp2) = (prp1.value().into(), prp2.value().into());
            let nsid = u32::from(*nsid).into();
            let command =
                Command { opcode: *opcode, nsid, prp1, prp2, cdw10, cdw11, cdw12, cdw13, ..Command::default() };
            let _ = driver.submit((*queue % 6).into(), command);
        }
        Op::SubmitBytes { queue, words } => {
            let command = Command::read_from_bytes(words.as_bytes()).unwrap_or_default();
            let _ = driver.submit((*queue % 6).into(), command);
        }
        Op::List { page, entries } => {
            for (n, entry) in (0..).zip(entries) {
                driver.machine.memory.set((u64::from(*page) << 12) + n * 8, &entry.value().to_le_bytes());
            }
        }
        Op::Reap { queue } => {
            let queue = u16::from(*queue % 6);
            if let Some(pair) = driver.queue(queue) {
                assert!(pair.cq + u64::from(pair.entries) * size_of::<Completion>() as u64 <= MEMORY);
                driver.reap(queue);
            }
        }
    }
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    let turn = || Op::Device { op: Common::Turn { times: 3 } };
    let none = || Number::of(0);
    let dwords = |a: u64, b: u64, c: u64| [Number::of(a), Number::of(b), Number::of(c), none()];
    let admin = |opcode: AdminOpcode, a: u64, b: u64| Op::Submit {
        queue: 0,
        opcode: opcode.raw(),
        nsid: 0,
        prp1: Pointer::Page { page: 200 },
        prp2: Pointer::Null {},
        dwords: dwords(a, b, 0),
    };
    let io = |opcode: NvmOpcode, prp1: Pointer, prp2: Pointer, slba: u64, blocks: u64| Op::Submit {
        queue: 1,
        opcode: opcode.raw(),
        nsid: 1,
        prp1,
        prp2,
        dwords: dwords(slba, 0, blocks - 1),
    };
    let page = |page| Pointer::Page { page };
    let up = |more: Vec<Op>| {
        let mut ops = vec![Op::Enable { entries: 16 }, Op::Queue { id: 1, entries: 8, vector: 1 }];
        ops.extend(more);
        ops.push(turn());
        ops.push(Op::Reap { queue: 0 });
        ops.push(Op::Reap { queue: 1 });
        ops
    };
    let identify: Vec<Op> = (0..4).map(|cns| admin(AdminOpcode::Identify, cns, 0)).collect();
    let logs: Vec<Op> = (0..6).map(|log| admin(AdminOpcode::GetLogPage, log | 0x3ff << 16, 0)).collect();
    let features: Vec<Op> = (0..14)
        .flat_map(|f| [admin(AdminOpcode::GetFeatures, f, 0), admin(AdminOpcode::SetFeatures, f, 0x3_0003)])
        .collect();
    let every_opcode = |queue: u8, from: u8| -> Vec<Op> {
        let submit =
            |opcode| Op::Submit { queue, opcode, nsid: 1, prp1: page(200), prp2: page(201), dwords: dwords(0, 0, 0) };
        (from..from + 14).map(submit).collect()
    };
    let common = |op| Op::Device { op };
    vec![
        ("up", s(0, &up(vec![]))),
        ("up-trapped", s(1, &up(identify.clone()))),
        ("up-by-copying", s(2, &up(vec![io(NvmOpcode::Write, page(200), Pointer::Null {}, 0, 8)]))),
        ("identify", s(0, &up(identify))),
        ("logs", s(0, &up(logs))),
        ("features", s(0, &up(features))),
        ("admin-opcodes", s(0, &up(every_opcode(0, 0)))),
        ("nvm-opcodes", s(0, &up(every_opcode(1, 0)))),
        (
            "write-read",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Write, page(200), page(201), 0, 16),
                    io(NvmOpcode::Read, page(202), page(203), 0, 16),
                ]),
            ),
        ),
        (
            "block-4096",
            s(
                8,
                &up(vec![
                    io(NvmOpcode::Write, page(200), page(201), 0, 2),
                    io(NvmOpcode::Read, page(202), page(203), 15, 2),
                ]),
            ),
        ),
        (
            "read-only-disk",
            s(
                4,
                &up(vec![
                    io(NvmOpcode::Write, page(200), page(201), 0, 16),
                    io(NvmOpcode::WriteZeroes, page(0), page(0), 0, 4),
                ]),
            ),
        ),
        (
            "prp-list",
            s(
                0,
                &up(vec![
                    Op::List { page: 210, entries: [page(201), page(202), page(203), page(204)] },
                    io(NvmOpcode::Write, page(200), page(210), 0, 40),
                ]),
            ),
        ),
        (
            "prp-list-hostile",
            s(
                0,
                &up(vec![
                    Op::List {
                        page: 210,
                        entries: [
                            page(210),
                            Pointer::Inside { page: 3, offset: 3 },
                            Pointer::Wild { at: Number::Edge { edge: 15, delta: 0 } },
                            Pointer::ReadOnly { offset: 0 },
                        ],
                    },
                    io(NvmOpcode::Read, Pointer::Inside { page: 200, offset: 8 }, page(210), 0, 40),
                    io(NvmOpcode::Read, page(200), Pointer::Inside { page: 210, offset: 4088 }, 0, 40),
                ]),
            ),
        ),
        (
            "read-only-memory",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Read, Pointer::ReadOnly { offset: 0 }, Pointer::Null {}, 0, 8),
                    io(NvmOpcode::Write, Pointer::ReadOnly { offset: 0 }, Pointer::Null {}, 0, 8),
                ]),
            ),
        ),
        (
            "beyond-the-disk",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Read, page(200), page(201), 127, 2),
                    io(NvmOpcode::Read, page(200), page(201), 0xffff, 1),
                    Op::SubmitBytes {
                        queue: 1,
                        words: [2, 1, 0, 0, 0, 0, 0xc8000, 0, 0, 0, u32::MAX, u32::MAX, 0, 0, 0, 0],
                    },
                ]),
            ),
        ),
        (
            "queues",
            s(
                0,
                &up(vec![
                    Op::Queue { id: 2, entries: 4, vector: 0x80 },
                    Op::Queue { id: 5, entries: 4, vector: 1 },
                    Op::Queue { id: 1, entries: 4, vector: 1 },
                    admin(AdminOpcode::DeleteCompletionQueue, 1, 0),
                    admin(AdminOpcode::DeleteSubmissionQueue, 1, 0),
                    admin(AdminOpcode::DeleteCompletionQueue, 1, 0),
                ]),
            ),
        ),
        (
            "events",
            s(
                0,
                &up(vec![
                    admin(AdminOpcode::AsyncEventRequest, 0, 0),
                    admin(AdminOpcode::AsyncEventRequest, 0, 0),
                    Op::Doorbell { index: 11, value: 3 },
                    turn(),
                    admin(AdminOpcode::Abort, 1 << 16, 0),
                ]),
            ),
        ),
        (
            "doorbells",
            s(
                0,
                &up(vec![
                    Op::Doorbell { index: 0, value: 0xffff },
                    turn(),
                    Op::Doorbell { index: 1, value: 17 },
                    turn(),
                    Op::Doorbell { index: 2, value: 8 },
                    turn(),
                    Op::Doorbell { index: 3, value: 7 },
                ]),
            ),
        ),
        (
            "registers",
            s(
                0,
                &[
                    Op::Register { word: 9, value: Number::Any { value: 0x0fff_0fff } },
                    Op::Register { word: 10, value: Number::Page { page: 250 } },
                    Op::Register { word: 12, value: Number::Page { page: 16 } },
                    Op::Register { word: 5, value: Number::Any { value: 0x46_0001 } },
                    turn(),
                    Op::Register { word: 5, value: Number::Any { value: 0x46_4001 } },
                    turn(),
                    Op::Register { word: 8, value: Number::Any { value: 0x4e56_4d65 } },
                    Op::Register { word: 5, value: Number::Any { value: u64::MAX } },
                    turn(),
                ],
            ),
        ),
        (
            "bus-master-off",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Read, page(200), Pointer::Null {}, 0, 8),
                    common(Common::BusMaster { on: false }),
                    turn(),
                    common(Common::BusMaster { on: true }),
                    turn(),
                ]),
            ),
        ),
        (
            "unmapped-queues",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Read, page(200), Pointer::Null {}, 0, 8),
                    common(Common::Unmap { page: 0, pages: 100 }),
                    turn(),
                    common(Common::Map { page: 0, pages: 3, write: false }),
                    turn(),
                ]),
            ),
        ),
        (
            "reset-at-work",
            s(
                0,
                &up(vec![
                    io(NvmOpcode::Read, page(200), Pointer::Null {}, 0, 8),
                    common(Common::Reset { kind: 1 }),
                    turn(),
                    Op::Enable { entries: 4 },
                    common(Common::Memory { on: false }),
                    turn(),
                    common(Common::Memory { on: true }),
                    turn(),
                ]),
            ),
        ),
        (
            "overwritten-queues",
            s(
                0,
                &up(vec![
                    common(Common::Fill { at: 4096, bytes: crate::wire::Blob(vec![0xff; 255]) }),
                    Op::Doorbell { index: 0, value: 5 },
                    turn(),
                    Op::Doorbell { index: 2, value: 3 },
                ]),
            ),
        ),
    ]
}

const _: () = assert!(Register::Cc.raw() == 0x14);
