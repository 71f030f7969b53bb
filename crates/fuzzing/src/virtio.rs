// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio devices: any rings, any set-up, in any order.

use std::sync::Arc;

use arbitrary::Unstructured;
use device::virtio::{QueueState, VirtioDevice, feature, status};
use iommu::{Mapping, Prot};
use models::testing::{MemoryDisk, TestMemory, VirtioBench};
use models::virtio::ring::Part;
use models::virtio::spec::blk::{Header, request};
use models::virtio::{blk, net};
use zerocopy::IntoBytes;

use crate::wire::{Blob, Number, Wire, operations, seed, wire};

/// Bytes of the memory at IOVA 0.
const MEMORY: u64 = 1 << 20;
/// IOVA of a page that devices may only read.
const READ_ONLY: u64 = 1 << 40;
const PAGE: usize = 4096;
/// Most turns that what a program has set up may keep a device busy for
/// without anything new: a ring of 32768, in the smallest batches.
const TURNS: usize = 40_000;

wire! {
    /// What a driver, or its memory, may do.
    enum Op {
        Fill { at: u32, bytes: Blob },
        /// A descriptor of the table at `table`, in pages.
        Desc { table: u8, slot: u8, addr: Number, len: Number, flags: u16, next: u16 },
        /// An available ring at `table`: an entry, and the index after it.
        Avail { table: u8, head: u16, index: u16 },
        Features { bits: u64 },
        Size { queue: u8, size: u16 },
        /// Tables and rings, in pages.
        Place { queue: u8, desc: u8, driver: u8, device: u8 },
        Anywhere { queue: u8, desc: Number, driver: Number, device: Number },
        State { queue: u8, word: u32 },
        Ready { queue: u8, on: bool },
        Status { bits: u8 },
        Reset {},
        Suspend { on: bool },
        Kick { queue: u8 },
        Turn { times: u8 },
        Time { now: u64 },
        ReadConfig { offset: Number, len: u8 },
        WriteConfig { offset: Number, bytes: Blob },
        Unmap { page: u8, pages: u8 },
        Map { page: u8, pages: u8, write: bool },
    }
}

fn device(settings: u8) -> Box<dyn VirtioDevice> {
    match settings & 1 {
        0 => {
            let disk = MemoryDisk::new(64 << 10);
            Box::new(blk::Blk::new(blk::Config { queues: 2, packed: true, queue_size: 1024, ..blk::Config::new(disk) }))
        }
        _ => {
            let port = net::Wire::looped(2);
            let config = net::Config { pairs: 2, packed: true, ..net::Config::new(port, [2, 0, 0, 0, 0, 1]) };
            Box::new(net::Net::new(config))
        }
    }
}

/// The body of the target `virtio`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let memory = TestMemory::new(MEMORY as usize, settings & 2 != 0);
    let mut bench = VirtioBench::new(device(settings), memory, u64::MAX);
    let read_only = TestMemory::new(PAGE, false);
    read_only.set(0, &[0x5a; PAGE]);
    map(&bench, READ_ONLY, PAGE as u64, Prot::READ, &read_only, 0);
    for op in operations(&mut u, 400) {
        step(&mut bench, &op);
    }
    for _ in 0..TURNS {
        if bench.turn() != device::Turn::Busy {
            break;
        }
    }
    assert_ne!(bench.turn(), device::Turn::Busy, "busy with nothing");
    // A queue that has stopped stays where it is, and touches nothing.
    bench.endpoint.suspend(bench.now);
    let (states, before) = (states(&bench), contents(&bench));
    for _ in 0..3 {
        bench.turn();
    }
    assert_eq!(states, self::states(&bench));
    assert!(before == contents(&bench), "memory changed after a suspension");
    let mut bytes = [0; PAGE];
    read_only.get(0, &mut bytes);
    assert!(bytes == [0x5a; PAGE], "memory that may only be read was written");
    works(bench, settings);
}

fn states(bench: &VirtioBench) -> Vec<QueueState> {
    (0..bench.events.len() as u16).map(|queue| bench.endpoint.queue_state(queue)).collect()
}

fn contents(bench: &VirtioBench) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    bench.memory.get(0, &mut bytes);
    bytes
}

fn map(bench: &VirtioBench, first: u64, len: u64, prot: Prot, memory: &Arc<TestMemory>, offset: u64) {
    let last = first + len - 1;
    // What is mapped already stays as it is.
    let _ = bench.space.map(Mapping { first, last, prot, memory: memory.clone(), offset, tag: 0 });
}

fn step(bench: &mut VirtioBench, op: &Op) {
    let endpoint = &bench.endpoint;
    let queue = |queue: &u8| u16::from(*queue) % (bench.events.len() as u16 + 1);
    let page = |page: &u8| u64::from(*page) << 12;
    match op {
        Op::Fill { at, bytes } => bench.memory.set(u64::from(*at) % (MEMORY - 256), &bytes.0),
        Op::Desc { table, slot, addr, len, flags, next } => {
            let at = page(table) + u64::from(*slot) * 16;
            let bytes = [&addr.value().to_le_bytes()[..], &len.value().to_le_bytes()[..4]].concat();
            bench.memory.set(at, &bytes);
            bench.memory.set(at + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
        }
        Op::Avail { table, head, index } => {
            bench.memory.set(page(table) + 4 + u64::from(index.wrapping_sub(1) % 64) * 2, &head.to_le_bytes());
            bench.memory.set(page(table) + 2, &index.to_le_bytes());
        }
        Op::Features { bits } => endpoint.set_features(*bits),
        Op::Size { queue: number, size } => {
            // The host takes powers of two up to the maximum.
            let most = endpoint.spec().queues.first().map_or(1, |queue| queue.max_size);
            let size = (*size).clamp(1, most);
            endpoint.set_queue_size(queue(number), 1 << size.ilog2());
        }
        Op::Place { queue: number, desc, driver, device } => {
            endpoint.set_queue_addresses(queue(number), page(desc), page(driver), page(device));
        }
        Op::Anywhere { queue: number, desc, driver, device } => {
            endpoint.set_queue_addresses(queue(number), desc.value(), driver.value(), device.value());
        }
        Op::State { queue: number, word } => {
            let packed = endpoint.features() & feature::RING_PACKED != 0;
            endpoint.set_queue_state(queue(number), QueueState::from_word(*word, packed));
        }
        Op::Ready { queue: number, on } => endpoint.set_ready(queue(number), *on, bench.now),
        // The host lets no bit go but by a reset.
        Op::Status { bits } => endpoint.set_status(endpoint.status() | bits, bench.now),
        Op::Reset {} => endpoint.reset(bench.now),
        Op::Suspend { on: true } => endpoint.suspend(bench.now),
        Op::Suspend { on: false } => endpoint.resume(bench.now),
        Op::Kick { queue: number } => endpoint.kick(queue(number)),
        Op::Turn { times } => (0..=*times % 16).for_each(|_| {
            bench.turn();
        }),
        Op::Time { now } => bench.now = *now,
        Op::ReadConfig { offset, len } => endpoint.read_config(offset.value() as u32, &mut vec![0; usize::from(*len)]),
        Op::WriteConfig { offset, bytes } => endpoint.write_config(offset.value() as u32, &bytes.0),
        Op::Unmap { page: first, pages } => {
            let (first, len) = (page(first), (u64::from(*pages) + 1) << 12);
            bench.space.unmap(first, first + len - 1, &mut |_| {});
        }
        Op::Map { page: first, pages, write } => {
            let first = page(first);
            let len = ((u64::from(*pages) + 1) << 12).min(MEMORY - first);
            let prot = if *write { Prot::READ | Prot::WRITE } else { Prot::READ };
            map(bench, first, len, prot, &bench.memory, first);
        }
    }
}

/// After a reset a driver that means well finds a device that works.
fn works(mut bench: VirtioBench, settings: u8) {
    bench.now = 0;
    bench.endpoint.reset(0);
    bench.space.unmap(0, MEMORY - 1, &mut |_| {});
    map(&bench, 0, MEMORY, Prot::READ | Prot::WRITE, &bench.memory, 0);
    bench.features &= !feature::RING_PACKED;
    bench.negotiate();
    if settings & 1 != 0 {
        let (mut to, mut from) = (bench.queue(0, 16), bench.queue(1, 16));
        bench.start();
        let data = bench.free();
        let Some(_) = to.add(&[], &[Part { iova: data, len: 2048 }], None) else { panic!("no room") };
        to.publish();
        bench.memory.set(data + 4096, &[0; 72]);
        let Some(_) = from.add(&[Part { iova: data + 4096, len: 72 }], &[], None) else { panic!("no room") };
        bench.finish(&mut from);
        assert_eq!(to.used().map(|used| used.1), Some(72), "after a reset");
        return;
    }
    let mut ring = bench.queue(0, 16);
    bench.start();
    let data = bench.free();
    let header = Header { kind: request::IN.into(), reserved: 0.into(), sector: 1.into() };
    bench.memory.set(data, header.as_bytes());
    let parts = [Part { iova: data + 512, len: 512 }, Part { iova: data + 16, len: 1 }];
    let Some(_) = ring.add(&[Part { iova: data, len: 16 }], &parts, None) else { panic!("no room") };
    assert_eq!(bench.finish(&mut ring).1, 513, "after a reset");
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    let number = Number::of;
    let desc = |slot: u8, addr: u64, len: u64, flags: u16, next: u16| Op::Desc {
        table: 16,
        slot,
        addr: number(addr),
        len: number(len),
        flags,
        next,
    };
    let running = |bits: u64, queue: u8, mut ops: Vec<Op>, head: u16| {
        let mut all = vec![
            Op::Features { bits },
            Op::Size { queue, size: 64 },
            Op::Place { queue, desc: 16, driver: 17, device: 18 },
            Op::Ready { queue, on: true },
            Op::Status { bits: status::DRIVER_OK },
        ];
        all.append(&mut ops);
        all.extend([Op::Avail { table: 17, head, index: 1 }, Op::Kick { queue }, Op::Turn { times: 3 }]);
        all
    };
    let split = feature::VERSION_1 | feature::INDIRECT_DESC;
    let packed = split | feature::RING_PACKED;
    let read = || {
        vec![
            Op::Fill { at: 0x2_0000, bytes: Blob(vec![0; 16]) },
            desc(0, 0x2_0000, 16, 1, 1),
            desc(1, 0x2_1000, 512, 3, 2),
            desc(2, 0x2_2000, 1, 2, 0),
        ]
    };
    vec![
        ("blk-read", s(0, &running(split, 0, read(), 0))),
        ("blk-read-by-copying", s(2, &running(split, 0, read(), 0))),
        ("blk-loop", s(0, &running(split, 0, vec![desc(0, 0x2_0000, 16, 1, 0)], 0))),
        ("blk-head-outside", s(0, &running(split, 0, Vec::new(), 64))),
        ("blk-table", s(0, &running(split, 0, vec![desc(0, 0x1_0000, 48, 4, 0)], 0))),
        (
            "blk-read-only",
            s(0, &running(split, 0, vec![desc(0, 0x2_0000, 16, 1, 1), desc(1, READ_ONLY, 513, 2, 0)], 0)),
        ),
        (
            "blk-index-jumps",
            s(
                0,
                &[
                    Op::Features { bits: split },
                    Op::Place { queue: 0, desc: 16, driver: 17, device: 18 },
                    Op::Ready { queue: 0, on: true },
                    Op::Status { bits: status::DRIVER_OK },
                    Op::Avail { table: 17, head: 0, index: 0x8000 },
                    Op::Turn { times: 3 },
                    Op::Reset {},
                ],
            ),
        ),
        (
            "blk-packed",
            s(0, &running(packed, 0, vec![desc(0, 0x2_0000, 16, 0, 0x81), desc(1, 0x2_1000, 1, 0, 0x82)], 0)),
        ),
        ("net-send", s(1, &running(split, 1, vec![desc(0, 0x2_0000, 100, 0, 0)], 0))),
        ("net-receive", s(1, &running(split, 0, vec![desc(0, 0x2_0000, 100, 2, 0)], 0))),
        (
            "net-control",
            s(
                1,
                &running(
                    split | 1 << 17 | 1 << 18,
                    2,
                    vec![
                        Op::Fill { at: 0x2_0000, bytes: Blob(vec![0, 0, 1]) },
                        desc(0, 0x2_0000, 3, 1, 1),
                        desc(1, 0x2_1000, 1, 2, 0),
                    ],
                    0,
                ),
            ),
        ),
        (
            "net-packed-suspended",
            s(1, &running(packed, 1, vec![desc(0, 0x2_0000, 100, 7, 0x80), Op::Suspend { on: true }], 0)),
        ),
        (
            "rings-anywhere",
            s(
                0,
                &[
                    Op::Anywhere {
                        queue: 0,
                        desc: number(u64::MAX - 8),
                        driver: number(u64::MAX),
                        device: number(1 << 63),
                    },
                    Op::State { queue: 0, word: 0xffff_ffff },
                    Op::Ready { queue: 0, on: true },
                    Op::Status { bits: status::DRIVER_OK },
                    Op::Turn { times: 3 },
                    Op::ReadConfig { offset: number(59), len: 4 },
                    Op::WriteConfig { offset: number(u64::from(u32::MAX)), bytes: Blob(vec![1; 8]) },
                    Op::Unmap { page: 0, pages: 255 },
                    Op::Map { page: 0, pages: 3, write: false },
                    Op::Time { now: u64::MAX },
                    Op::Turn { times: 3 },
                ],
            ),
        ),
    ]
}
