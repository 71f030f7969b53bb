// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work of the Data Streaming Accelerator, from the store to its portal to the
//! completion record, beside the same copies without it. Both sides do all of
//! it on one thread: what a wake or a cache line between two cores costs, it
//! costs both.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use device::Window as _;
use iommu::Memory as _;
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use models::dsa::{Accelerator, Config};
use models::testing::{Access, Bench, TestMemory};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes as _, FileOffset, VolatileMemory as _};
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
/// Bytes of an entry, in a batch's list and in the bare ring.
const ENTRY: usize = spec::DESCRIPTOR_BYTES;

/// Rows of the accelerator.
pub(crate) fn rows(table: &mut Table) {
    table.row("DSA: 1 MiB moves through the portal / memcpy", Goal::AtLeast(0.9, ""), moves);
    let same = "a bare ring doing the same";
    table.row(&format!("DSA: batches of 32 64-byte moves / {same}"), Goal::AtLeast(0.5, ""), || batches(32));
    table.row(&format!("DSA: batches of 256 64-byte moves / {same}"), Goal::None, || batches(256));
    table.row("DSA: a descriptor that moves nothing / the bare ring's 32 moves", Goal::None, nothing);
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
        let record = self.memory.slice(RECORD, spec::COMPLETION_BYTES).context("record")?;
        record.store(0_u8, 0, Ordering::Relaxed)?;
        let window = self.bench.file.as_ref().and_then(|file| file.bar(spec::PORTAL_BAR)).context("portal")?;
        let at = self.place % 64 * spec::DESCRIPTOR_BYTES;
        let bytes = descriptor.as_bytes();
        window.slice().subslice(at + 8, bytes.len() - 8)?.copy_from(&bytes[8..]);
        let first = bytes.iter().take(8).rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        window.slice().store(first, at, Ordering::Release)?;
        self.place += 1;
        let mut status = 0_u8;
        while status == 0 {
            self.bench.turn();
            status = record.load(0, Ordering::Acquire)?;
        }
        ensure!(status == 1, "status {status:#x}");
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

/// Entries of 64 bytes in a memfd that is mapped, as are the bytes that are
/// copied, an index behind the last entry that is published, and a word that
/// says how many are done.
struct Ring {
    shared: MmapRegion,
    size: u64,
    written: u64,
    taken: u64,
}

impl Ring {
    fn new(size: u64) -> Result<Ring> {
        let file = File::from(memfd_create("ring", MemfdFlags::CLOEXEC)?);
        file.set_len(MEMORY as u64)?;
        let shared = MmapRegion::from_file(FileOffset::new(file, 0), MEMORY)?;
        // The pages are there.
        shared.as_volatile_slice().copy_from(&vec![1; MEMORY]);
        shared.as_volatile_slice().copy_from(&[0; SOURCE as usize]);
        Ok(Ring { shared, size, written: 0, taken: 0 })
    }

    /// Copies a piece in each entry. The driver writes three numbers an entry,
    /// publishes the index and waits for the word. Who serves it reads the
    /// index and each entry, checks nothing but its bounds, and stores the word.
    fn copy_all(&mut self, source: u64, destination: u64) -> Result<()> {
        let index = self.shared.get_atomic_ref::<AtomicU64>(RECORD as usize)?;
        let done = self.shared.get_atomic_ref::<AtomicU64>(RECORD as usize + ENTRY)?;
        let entries = self.shared.get_array_ref::<u64>(LIST as usize, ENTRY / 8 * self.size as usize)?;
        let bytes = self.shared.as_volatile_slice();
        let mask = self.size - 1;
        let start = |number: u64| ENTRY / 8 * (number & mask) as usize;
        for n in 0..self.size {
            let (at, start) = (n * SMALL as u64, start(self.written));
            entries.store(start, source + at);
            entries.store(start + 1, destination + at);
            entries.store(start + 2, SMALL as u64);
            self.written += 1;
        }
        index.store(self.written, Ordering::Release);
        let published = index.load(Ordering::Acquire);
        while self.taken != published {
            let [from, to, len] = std::array::from_fn(|word| entries.load(start(self.taken) + word) as usize);
            bytes.subslice(from, len)?.copy_to_volatile_slice(bytes.subslice(to, len)?);
            self.taken += 1;
        }
        done.store(self.taken, Ordering::Release);
        while done.load(Ordering::Acquire) != self.written {}
        Ok(())
    }
}

/// Both sides write three numbers a move where the other side reads them:
/// source, destination and length. A batch's list is in the program's memory;
/// all else of its descriptors stays as it is from one batch to the next.
fn batches(count: u64) -> Result<Figures> {
    let mut card = Card::new()?;
    let span = SMALL as u64 * count;
    let place = |call: u64| (call * span) % WINDOW;
    card.memory.set(LIST, vec![Descriptor::new(opcode::MOVE, 0); count as usize].as_bytes());
    let memory = card.memory.clone();
    let list = memory.slice(LIST, ENTRY * count as usize).context("list")?;
    let list = list.get_array_ref::<u64>(0, ENTRY / 8 * count as usize)?;
    let mut ours = |call: u64| {
        let (source, destination) = (SOURCE + place(call), DESTINATION + place(call));
        for n in 0..count {
            let (at, start) = (n * SMALL as u64, ENTRY / 8 * n as usize);
            list.store(start + 2, source + at);
            list.store(start + 3, destination + at);
            list.store(start + 4, SMALL as u64);
        }
        card.execute(&Descriptor { source: LIST, size: count as u32, ..requested(opcode::BATCH) })
    };
    let mut ring = Ring::new(count)?;
    let mut bare = |call: u64| ring.copy_all(SOURCE + place(call), DESTINATION + place(call));
    let calls = 16_000 / count;
    each(4 * calls, &mut ours)?;
    each(4 * calls, &mut bare)?;
    let (ours, bare) = in_turn(ROUNDS, || each(calls, &mut ours), || each(calls, &mut bare))?;
    let rate = |ns: f64| format!("{:.1} M/s", count as f64 * 1000.0 / ns);
    Ok(Figures { ours: rate(ours), other: rate(bare), figure: bare / ours })
}

/// What a submission costs before anything is moved: the portal, a look at the
/// device, a session, the completion record. The ring has none of it.
fn nothing() -> Result<Figures> {
    const COUNT: u64 = 32;
    let mut card = Card::new()?;
    let mut ours = |_| card.execute(&requested(opcode::NO_OPERATION));
    let mut ring = Ring::new(COUNT)?;
    let place = |call: u64| call * SMALL as u64 * COUNT % WINDOW;
    let mut bare = |call: u64| ring.copy_all(SOURCE + place(call), DESTINATION + place(call));
    each(2000, &mut ours)?;
    each(2000, &mut bare)?;
    Ok(Figures::times(in_turn(ROUNDS, || each(500, &mut ours), || each(500, &mut bare))?))
}
