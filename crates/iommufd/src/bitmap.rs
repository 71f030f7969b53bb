// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty bitmaps in a program's memory, as iommufd and device feature
//! DMA_LOGGING_REPORT fill them.
//!
//! Bits are or-ed into memory that is another program's, so what is there is
//! read, changed and written back; only where every bit is set it need not be
//! read. What that costs is mostly the kernel's looking up of pages, once each
//! way: 512 KiB, copied by 4 KiB, are 290 µs, by 64 KiB 137, by 128 KiB 126, and
//! reading and writing alone 112. Gathering bits first and merging them with
//! what was read takes 20 µs more than setting them where it has been read to.
//! The memory for that is kept, since fresh pages cost as much as both copies.

use std::cell::Cell;
use std::ops::RangeInclusive;

use caller::Caller;

/// Words that are read and written at once: few enough to stay in a cache.
const GATHER: usize = 16 << 10;
/// Words that are read at first, and most that are changed at once. Where more is
/// dirty behind them, [`GATHER`] are read: each look costs 5 µs of its own.
const FIRST: usize = 512;

thread_local! {
    /// What the thread's last bitmap was worked on in: nothing, or [`GATHER`] words.
    static SPARE: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// A program's bitmap, of which bits are set but never cleared (9.4). A part
/// that cannot be written is left out (9.7).
pub struct DirtyBitmap<'a> {
    caller: &'a dyn Caller,
    /// Where it begins, any byte.
    address: u64,
    /// Bytes of it.
    len: u64,
    iova: u64,
    last: u64,
    /// Bytes that a bit stands for, as a power of two.
    shift: u32,
    /// Bytes of a granule of the log, as a power of two.
    granule: u32,
    /// The program's words from word `at` on, new bits set.
    words: Vec<u64>,
    at: u64,
    /// So many of them are to be written.
    used: usize,
    /// So many are known.
    known: usize,
    /// Some could not be read.
    unread: bool,
    /// Words to read next time.
    ahead: usize,
}

impl std::fmt::Debug for DirtyBitmap<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirtyBitmap").field("address", &self.address).field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'a> DirtyBitmap<'a> {
    /// The bitmap at `address`, any byte, whose bit 0 is the page of
    /// 2^`shift` bytes at the first of `range`; told of granules of
    /// 2^`granule` bytes.
    #[must_use]
    pub fn new(
        caller: &'a dyn Caller,
        address: u64,
        range: RangeInclusive<u64>,
        shift: u32,
        granule: u32,
    ) -> DirtyBitmap<'a> {
        let (iova, last) = range.into_inner();
        let bits = ((last - iova) >> shift).saturating_add(1);
        let (len, words) = (bits.div_ceil(8), SPARE.take());
        let (at, used, known, unread, ahead) = (0, 0, 0, false, FIRST);
        DirtyBitmap { caller, address, len, iova, last, shift, granule, words, at, used, known, unread, ahead }
    }

    /// Granules from the one at `first` on, a multiple of 64 of them, are dirty.
    /// Calls come in ascending order.
    pub fn add(&mut self, first: u64, dirty: &[u64]) {
        for (n, part) in dirty.chunks(FIRST).enumerate() {
            let first = first + ((n * FIRST) as u64) * (64 << self.granule);
            if self.shift == self.granule {
                self.add_same(first, part);
                continue;
            }
            for (n, word) in part.iter().enumerate().filter(|(_, word)| **word != 0) {
                self.add_ranges(first + ((n as u64) << (6 + self.granule)), *word);
            }
        }
    }

    /// A bit stands for a granule: words are shifted.
    fn add_same(&mut self, first: u64, dirty: &[u64]) {
        // Granules before `iova` in the first word are not dirty.
        let bit = (first >> self.granule).wrapping_sub(self.iova >> self.granule).cast_signed();
        let (mut index, by) = (bit.div_euclid(64), bit.rem_euclid(64));
        let mut dirty = dirty;
        if index < 0
            && let Some((word, rest)) = dirty.split_first()
        {
            let high = if by == 0 { 0 } else { word >> (64 - by) };
            if high != 0 {
                self.set(0, high);
            }
            (index, dirty) = (0, rest);
        }
        let Some(start) = dirty.iter().position(|word| *word != 0) else { return };
        let end = dirty.iter().rposition(|word| *word != 0).map_or(start, |last| last + 1);
        let dirty = dirty.get(start..end).unwrap_or_default();
        let (first, count) = (index.cast_unsigned() + start as u64, dirty.len());
        let full = dirty.iter().all(|word| *word == u64::MAX);
        if by == 0 && full {
            return self.fill(first, count);
        }
        if by == 0 {
            return self.words_at(first, count).iter_mut().zip(dirty).for_each(|(word, new)| *word |= new);
        }
        let over = dirty.last().map_or(0, |last| last >> (64 - by));
        if full {
            self.set(first, u64::MAX << by);
            self.fill(first + 1, count - 1);
        } else {
            let words = self.words_at(first, count);
            words.iter_mut().zip(dirty).for_each(|(word, new)| *word |= new << by);
            words.iter_mut().skip(1).zip(dirty).for_each(|(word, new)| *word |= new >> (64 - by));
        }
        if over != 0 {
            self.set(first + count as u64, over);
        }
    }

    /// A bit stands for more or less than a granule: 9.5.
    fn add_ranges(&mut self, first: u64, word: u64) {
        let mut rest = word;
        while rest != 0 {
            let from = rest.trailing_zeros();
            let run = (rest >> from).trailing_ones();
            let start = first + (u64::from(from) << self.granule);
            let end = start + (((u64::from(run)) << self.granule) - 1);
            self.set_range(
                (start.max(self.iova) - self.iova) >> self.shift,
                (end.min(self.last) - self.iova) >> self.shift,
            );
            rest = if from + run == 64 { 0 } else { rest & (u64::MAX << (from + run)) };
        }
    }

    fn set_range(&mut self, first: u64, last: u64) {
        for word in first / 64..=last / 64 {
            let mut bits = u64::MAX;
            if word == first / 64 {
                bits &= u64::MAX << (first % 64);
            }
            if word == last / 64 {
                bits &= u64::MAX >> (63 - last % 64);
            }
            self.set(word, bits);
        }
    }

    fn set(&mut self, word: u64, bits: u64) {
        if bits == u64::MAX {
            self.fill(word, 1);
        } else if let Some(slot) = self.words_at(word, 1).first_mut() {
            *slot |= bits;
        }
    }

    /// Sets all bits of so many words: nothing of what is there stays.
    fn fill(&mut self, first: u64, count: usize) {
        let index = self.seek(first, count);
        self.know(index);
        self.known = self.known.max(index + count);
        self.used = self.used.max(index + count);
        self.words.get_mut(index..index + count).unwrap_or_default().fill(u64::MAX);
    }

    /// So many words of the bitmap from `first` on, [`FIRST`] at most. They come
    /// in ascending order; the last may come again.
    fn words_at(&mut self, first: u64, count: usize) -> &mut [u64] {
        let index = self.seek(first, count);
        self.know(index + count);
        self.used = self.used.max(index + count);
        self.words.get_mut(index..index + count).unwrap_or_default()
    }

    /// Makes sure that so many words from `first` on have a place: its index.
    fn seek(&mut self, first: u64, count: usize) -> usize {
        // Far from the others: rather touch the bitmap twice than all between.
        const NEAR: u64 = 64;
        let next = self.at + self.used as u64;
        let far = first > next + NEAR;
        if self.used == 0 || far || first + count as u64 - self.at > GATHER as u64 {
            self.flush();
            self.at = first;
            self.ahead = if far { FIRST } else { self.ahead };
        }
        if self.words.is_empty() {
            self.words = vec![0; GATHER];
        }
        (first - self.at) as usize
    }

    /// Reads until the first `end` words are known.
    fn know(&mut self, end: usize) {
        if end <= self.known {
            return;
        }
        let end = (self.known + self.ahead).min(GATHER).max(end);
        let start = (self.at + self.known as u64) * 8;
        let words = self.words.get_mut(self.known..end).unwrap_or_default();
        let len = (words.len() as u64 * 8).min(self.len.saturating_sub(start)) as usize;
        // A last word that is not all the program's.
        if let Some(last) = words.get_mut(len / 8) {
            *last = 0;
        }
        let bytes = zerocopy::IntoBytes::as_mut_bytes(words).get_mut(..len).unwrap_or_default();
        let read = self.address.checked_add(start).is_some_and(|address| self.caller.read(address, bytes).is_ok());
        if !read {
            words.fill(0);
            self.unread = true;
        }
        self.known = end;
        self.ahead = GATHER;
    }

    /// Writes what is to be written.
    pub fn flush(&mut self) {
        let start = self.at * 8;
        let len = (self.used as u64 * 8).min(self.len.saturating_sub(start)) as usize;
        if let Some(address) = self.address.checked_add(start).filter(|_| len != 0) {
            let bytes = zerocopy::IntoBytes::as_bytes(self.words.as_slice()).get(..len).unwrap_or_default();
            if self.unread || self.caller.write(address, bytes).is_err() {
                self.merge_pages(address, bytes);
            }
        }
        (self.used, self.known, self.unread) = (0, 0, false);
    }

    /// Page by page, since one of them is not there.
    fn merge_pages(&self, address: u64, bytes: &[u8]) {
        const PAGE: u64 = 4096;
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let (new, after) = rest.split_at(((PAGE - at % PAGE) as usize).min(rest.len()));
            let mut old = vec![0; new.len()];
            if self.caller.read(at, &mut old).is_ok() {
                old.iter_mut().zip(new).for_each(|(old, new)| *old |= new);
                let _ = self.caller.write(at, &old);
            }
            (at, rest) = (at + new.len() as u64, after);
        }
    }
}

impl Drop for DirtyBitmap<'_> {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.words));
    }
}
