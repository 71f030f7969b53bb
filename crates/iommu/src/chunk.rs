// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pieces of a bitmap: chunks of 32,768 granules (128 MiB of pages), which
//! exist only where something is dirty.

use std::ops::RangeInclusive;

use crate::sync::{AtomicU64, Blank, Mutex, Ordering, lock, try_lock};

/// Words of a chunk.
pub(crate) const WORDS: usize = 512;
/// Granules of a word, and of a chunk, as powers of two.
pub(crate) const WORD: u32 = 6;
pub(crate) const CHUNK: u32 = 15;

/// Bit `n % 64` of word `n / 64` is the chunk's granule `n`.
pub(crate) type Chunk = [u64; WORDS];

/// Chunks side by side.
pub(crate) type Chunks = Box<[Chunk]>;

/// The chunks of a log and its places: how many more there may be, and some
/// that have been used before.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Two's complement: less than none where bits had to be moved.
    left: AtomicU64,
    /// Held for moments only.
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    single: Vec<Box<Chunk>>,
    /// Of the budget.
    many: Vec<Chunks>,
}

/// Spare single chunks at most: a bitmap of 16 GiB of pages.
const SINGLE: usize = 128;
/// Spare chunks side by side at most, and of how many.
const MANY: usize = 4;
const LENGTH: usize = 1024;

impl Budget {
    pub(crate) fn new(chunks: u64) -> Budget {
        Budget { left: AtomicU64::new(chunks), spare: Mutex::default() }
    }

    /// A clean chunk, unless there are too many.
    pub(crate) fn take(&self) -> Option<Box<Chunk>> {
        self.reserve(1).then(|| {
            let mut chunk = self.single();
            chunk.fill(0);
            chunk
        })
    }

    /// A chunk with these bits. There is always one, since the bits have been
    /// in a window until now: at most twice as many chunks come of it.
    pub(crate) fn copy(&self, bits: &Chunk) -> Box<Chunk> {
        self.left.fetch_sub(1, Ordering::Relaxed);
        let mut chunk = self.single();
        chunk.copy_from_slice(bits);
        chunk
    }

    /// A chunk with whatever bits.
    fn single(&self) -> Box<Chunk> {
        let spare = try_lock(&self.spare).and_then(|mut spare| spare.single.pop());
        spare.unwrap_or_else(|| Box::new([0; WORDS]))
    }

    /// A chunk that nobody needs any more.
    pub(crate) fn give(&self, chunk: Box<Chunk>) {
        self.left.fetch_add(1, Ordering::Relaxed);
        let mut spare = lock(&self.spare);
        if spare.single.len() < SINGLE {
            spare.single.push(chunk);
        }
    }

    /// So many clean chunks, unless there are too many.
    pub(crate) fn take_many(&self, count: usize) -> Option<Chunks> {
        if let Some(mut spare) = try_lock(&self.spare)
            && let Some(at) = spare.many.iter().position(|chunks| chunks.len() == count)
        {
            return Some(spare.many.swap_remove(at));
        }
        if !self.reserve(count as u64) {
            return None;
        }
        let chunks = Chunk::blank(count);
        if chunks.is_none() {
            self.left.fetch_add(count as u64, Ordering::Relaxed);
        }
        chunks
    }

    /// Chunks that nobody needs any more, and whether they are clean.
    pub(crate) fn give_many(&self, chunks: Chunks, clean: bool) {
        let mut spare = lock(&self.spare);
        if clean && !chunks.is_empty() && chunks.len() <= LENGTH && spare.many.len() < MANY {
            spare.many.push(chunks);
        } else {
            self.left.fetch_add(chunks.len() as u64, Ordering::Relaxed);
        }
    }

    /// Frees the spare chunks.
    pub(crate) fn trim(&self) {
        let Spare { single: _, many } = std::mem::take(&mut *lock(&self.spare));
        self.left.fetch_add(many.iter().map(|chunks| chunks.len() as u64).sum(), Ordering::Relaxed);
    }

    fn reserve(&self, count: u64) -> bool {
        let mut left = self.left.load(Ordering::Relaxed);
        while left.cast_signed() >= count.cast_signed() {
            match self.left.compare_exchange_weak(left, left - count, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => left = now,
            }
        }
        false
    }
}

/// Whether nothing in a chunk is dirty. Without an early end it takes a fraction
/// of the time.
pub(crate) fn is_clean(chunk: &Chunk) -> bool {
    chunk.iter().fold(0, |all, word| all | word) == 0
}

/// Where a chunk's granules lie.
pub(crate) fn granules(chunk: u64) -> RangeInclusive<u64> {
    chunk << CHUNK..=(chunk << CHUNK | ((1 << CHUNK) - 1))
}

/// Whether every granule of the chunk is in `granules`.
pub(crate) fn covers(chunk: u64, granules: &RangeInclusive<u64>) -> bool {
    within(chunk, granules) == Some((0, (1 << CHUNK) - 1))
}

/// The part of `granules` in chunk `chunk`, by word: calls `each` with a word's
/// index and the bits meant.
pub(crate) fn words(chunk: u64, granules: &RangeInclusive<u64>, mut each: impl FnMut(usize, u64)) {
    let Some((first, last)) = within(chunk, granules) else { return };
    for word in first >> WORD..=last >> WORD {
        let mut bits = u64::MAX;
        if word == first >> WORD {
            bits &= u64::MAX << (first % 64);
        }
        if word == last >> WORD {
            bits &= u64::MAX >> (63 - last % 64);
        }
        each(word, bits);
    }
}

/// First and last granule, counted from the chunk's first, that are in `granules`.
fn within(chunk: u64, granules: &RangeInclusive<u64>) -> Option<(usize, usize)> {
    let (start, end) = self::granules(chunk).into_inner();
    let (first, last) = (start.max(*granules.start()), end.min(*granules.end()));
    (first <= last).then(|| ((first - start) as usize, (last - start) as usize))
}
