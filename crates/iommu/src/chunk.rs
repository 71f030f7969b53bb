// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pieces of a bitmap: chunks of 32,768 granules (128 MiB of pages), which
//! exist only where something is dirty.

use std::ops::RangeInclusive;

use crate::sync::{AtomicU64, Ordering};

/// Words of a chunk.
pub(crate) const WORDS: usize = 512;
/// Granules of a word, and of a chunk, as powers of two.
pub(crate) const WORD: u32 = 6;
pub(crate) const CHUNK: u32 = 15;

/// Bit `n % 64` of word `n / 64` is the chunk's granule `n`.
pub(crate) type Chunk = [u64; WORDS];

/// How many chunks there may be, those of all places of all logs of a budget
/// together.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(chunks: u64) -> Budget {
        Budget { left: AtomicU64::new(chunks) }
    }

    /// A clean chunk, unless there are too many.
    pub(crate) fn take(&self) -> Option<Box<Chunk>> {
        let mut left = self.left.load(Ordering::Relaxed);
        while left > 0 {
            match self.left.compare_exchange_weak(left, left - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Box::new([0; WORDS])),
                Err(now) => left = now,
            }
        }
        None
    }

    /// So many chunks are no more.
    pub(crate) fn give(&self, chunks: usize) {
        self.left.fetch_add(chunks as u64, Ordering::Relaxed);
    }
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
    let start = chunk << CHUNK;
    let end = start | ((1 << CHUNK) - 1);
    let (first, last) = (start.max(*granules.start()), end.min(*granules.end()));
    (first <= last).then(|| ((first - start) as usize, (last - start) as usize))
}

/// Whether every granule of the chunk is in `granules`.
pub(crate) fn covers(chunk: u64, granules: &RangeInclusive<u64>) -> bool {
    within(chunk, granules) == Some((0, (1 << CHUNK) - 1))
}
