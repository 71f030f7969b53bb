// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work of the Data Streaming Accelerator, from the store to its portal to the
//! completion record, beside the same copies without it. Both sides do all of
//! it on one thread: what a wake or a cache line between two cores costs, it
//! costs both.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use device::Window as _;
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use models::dsa::{Accelerator, Config};
use models::testing::{Access, Bench, TestMemory};
use vm_memory::Bytes as _;
use zerocopy::IntoBytes as _;

use crate::table::{Figures, Goal, Table};
use crate::timing::{each, in_turn};

const ROUNDS: usize = 101;
const MEMORY: usize = 16 << 20;
const RECORD: u64 = 0x1000;
const LIST: u64 = 0x2000;
const SOURCE: u64 = 4 << 20;
const DESTINATION: u64 = 10 << 20;
/// The copies go through so much memory, which both sides find in the same cache.
const WINDOW: u64 = 4 << 20;
const MOVE: usize = 1 << 20;
const SMALL: usize = 64;
const BATCH: u64 = 32;

/// Rows of the accelerator.
pub(crate) fn rows(table: &mut Table) {
    table.row("DSA: 1 MiB moves through the portal / memcpy", Goal::AtLeast(0.9, ""), moves);
    table.row("DSA: batches of 32 64-byte moves / a bare ring doing the same", Goal::AtLeast(0.5, ""), batches);
}

/// An accelerator with an enabled queue, its portal mapped.
struct Card {
    bench: Bench,
    memory: Arc<TestMemory>,
    place: usize,
}

impl Card {
    fn new() -> Result<Card> {
        let memory = TestMemory::new(MEMORY, false);
        // The program's pages are there.
        memory.set(0, &vec![1; MEMORY]);
        let bench = Bench::new(Box::new(Accelerator::new(Config::default())), Access::Mapped, memory.clone());
        let card = Card { bench, memory, place: 0 };
        for (word, value) in
            [(wqcfg::SIZE, 16), (wqcfg::MODE, wqcfg::DEDICATED | 1 << 4), (wqcfg::LIMITS, 31 | 10 << 5)]
        {
            card.bench.store_bar(spec::REGISTER_BAR, spec::WQCFG + 4 * word as u64, value);
        }
        card.bench.store_bar(spec::REGISTER_BAR, spec::GRPCFG, 1);
        card.bench.store_bar(spec::REGISTER_BAR, spec::GRPCFG + spec::GROUP_ENGINES, 1);
        for number in [command::ENABLE_DEVICE, command::ENABLE_QUEUE] {
            card.bench.store_bar(spec::REGISTER_BAR, spec::CMD, number << 20);
            card.bench.turn();
            ensure!(card.bench.load_bar(spec::REGISTER_BAR, spec::CMDSTS) == 0, "command {number} failed");
        }
        Ok(card)
    }

    /// Submits a descriptor, as a driver does, and waits for its record.
    fn execute(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.memory.set(RECORD, &[0]);
        let window = self.bench.file.as_ref().and_then(|file| file.bar(spec::PORTAL_BAR)).context("portal")?;
        let at = self.place % 64 * spec::DESCRIPTOR_BYTES;
        let bytes = descriptor.as_bytes();
        window.slice().write_slice(&bytes[8..], at + 8)?;
        let first = bytes.iter().take(8).rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        window.slice().store(first, at, Ordering::Release)?;
        self.place += 1;
        let mut status = [0];
        while status == [0] {
            self.bench.turn();
            self.memory.get(RECORD, &mut status);
        }
        ensure!(status == [1], "status {status:?}");
        Ok(())
    }
}

fn requested(operation: u8) -> Descriptor {
    Descriptor { completion: RECORD, ..Descriptor::new(operation, flag::RECORD | flag::REQUEST_RECORD) }
}

fn moves() -> Result<Figures> {
    let mut card = Card::new()?;
    let place = |call: u64| (call * MOVE as u64) % WINDOW;
    let mut ours = |call: u64| {
        let (source, destination) = (SOURCE + place(call), DESTINATION + place(call));
        card.execute(&Descriptor { source, destination, size: MOVE as u32, ..requested(opcode::MOVE) })
    };
    let from = vec![1_u8; WINDOW as usize];
    let mut to = vec![0_u8; WINDOW as usize];
    let mut bare = |call: u64| {
        let at = place(call) as usize;
        black_box(&mut to)[at..at + MOVE].copy_from_slice(&black_box(&from)[at..at + MOVE]);
        Ok(())
    };
    each(8, &mut ours)?;
    each(8, &mut bare)?;
    let (ours, bare) = in_turn(ROUNDS, || each(20, &mut ours), || each(20, &mut bare))?;
    let rate = |ns: f64| format!("{:.1} GB/s", MOVE as f64 / ns);
    Ok(Figures { ours: rate(ours), other: rate(bare), figure: bare / ours })
}

/// An entry of the bare ring, as long as a descriptor.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Entry {
    from: usize,
    to: usize,
    len: usize,
}

fn batches() -> Result<Figures> {
    let mut card = Card::new()?;
    let span = SMALL as u64 * BATCH;
    let place = |call: u64| (call * span) % WINDOW;
    let mut list = vec![Descriptor::new(opcode::MOVE, 0); BATCH as usize];
    let mut ours = |call: u64| {
        // The driver writes its list each time, as it does for the bare ring.
        let (mut source, mut destination) = (SOURCE + place(call), DESTINATION + place(call));
        for copy in &mut list {
            (copy.source, copy.destination, copy.size) = (source, destination, SMALL as u32);
            (source, destination) = (source + SMALL as u64, destination + SMALL as u64);
        }
        card.memory.set(LIST, list.as_bytes());
        card.execute(&Descriptor { source: LIST, size: BATCH as u32, ..requested(opcode::BATCH) })
    };
    let from = vec![1_u8; WINDOW as usize];
    let mut to = vec![0_u8; WINDOW as usize];
    let mut ring: VecDeque<Entry> = VecDeque::with_capacity(BATCH as usize);
    let mut done = 0_u64;
    let mut bare = |call: u64| {
        let start = place(call) as usize;
        for n in 0..BATCH as usize {
            let at = start + n * SMALL;
            ring.push_back(Entry { from: at, to: at, len: SMALL });
        }
        while let Some(Entry { from: source, to: destination, len }) = black_box(&mut ring).pop_front() {
            to[destination..destination + len].copy_from_slice(&black_box(&from)[source..source + len]);
        }
        *black_box(&mut done) += 1;
        Ok(())
    };
    each(2000, &mut ours)?;
    each(2000, &mut bare)?;
    let (ours, bare) = in_turn(ROUNDS, || each(500, &mut ours), || each(500, &mut bare))?;
    let rate = |ns: f64| format!("{:.1} M/s", BATCH as f64 * 1000.0 / ns);
    Ok(Figures { ours: rate(ours), other: rate(bare), figure: bare / ours })
}
