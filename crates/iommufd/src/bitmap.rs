// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty bitmaps in a program's memory, as iommufd and device feature
//! DMA_LOGGING_REPORT fill them.

use std::ops::RangeInclusive;

use caller::Caller;

/// Words that are gathered before the program's bitmap is touched: what fits a
/// cache, and is no new memory each time.
const GATHER: usize = 8 << 10;

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
    /// Words not yet written, from word `at` of the bitmap on.
    words: Vec<u64>,
    at: u64,
    /// What was there where they go.
    old: Vec<u64>,
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
        let (len, words, old) = (bits.div_ceil(8), Vec::new(), Vec::new());
        DirtyBitmap { caller, address, len, iova, last, shift, granule, words, at: 0, old }
    }

    /// Granules from the one at `first` on, a multiple of 64 of them, are dirty.
    /// Calls come in ascending order.
    pub fn add(&mut self, first: u64, dirty: &[u64]) {
        if self.shift == self.granule {
            self.add_same(first, dirty);
        } else {
            for (n, word) in dirty.iter().enumerate().filter(|(_, word)| **word != 0) {
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
        let last = dirty.last().copied().unwrap_or(0);
        let over = by != 0 && last >> (64 - by) != 0;
        let words = self.words_at(index.cast_unsigned() + start as u64, dirty.len() + usize::from(over));
        if by == 0 {
            words.iter_mut().zip(dirty).for_each(|(word, new)| *word |= new);
            return;
        }
        words.iter_mut().zip(dirty).for_each(|(word, new)| *word |= new << by);
        words.iter_mut().skip(1).zip(dirty).for_each(|(word, new)| *word |= new >> (64 - by));
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
        if let Some(slot) = self.words_at(word, 1).first_mut() {
            *slot |= bits;
        }
    }

    /// So many words of the bitmap from `first` on. They come in ascending
    /// order; the last may come again.
    fn words_at(&mut self, first: u64, count: usize) -> &mut [u64] {
        // Far from the others: rather touch the bitmap twice than all between.
        const NEAR: u64 = 64;
        let next = self.at + self.words.len() as u64;
        let far = first > next + NEAR || first + count as u64 - self.at > GATHER as u64;
        if self.words.is_empty() || far {
            self.flush();
            self.at = first;
        }
        let index = (first - self.at) as usize;
        if index + count > self.words.len() {
            self.words.resize(index + count, 0);
        }
        self.words.get_mut(index..index + count).unwrap_or_default()
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) {
        let mut words = std::mem::take(&mut self.words);
        let start = self.at * 8;
        let len = (words.len() as u64 * 8).min(self.len.saturating_sub(start)) as usize;
        if let Some(address) = self.address.checked_add(start).filter(|_| len != 0) {
            self.merge(address, len, &mut words);
        }
        words.clear();
        self.words = words;
    }

    fn merge(&mut self, address: u64, len: usize, words: &mut [u64]) {
        // Where every bit is set nothing of what was there stays.
        if words.iter().any(|word| *word != u64::MAX) {
            self.old.resize(words.len(), 0);
            let bytes = zerocopy::IntoBytes::as_mut_bytes(self.old.as_mut_slice());
            if self.caller.read(address, &mut bytes[..len]).is_err() {
                return self.merge_pages(address, len, words);
            }
            words.iter_mut().zip(&self.old).for_each(|(word, old)| *word |= old);
        }
        let bytes = zerocopy::IntoBytes::as_bytes(&*words);
        if self.caller.write(address, &bytes[..len]).is_err() {
            self.merge_pages(address, len, words);
        }
    }

    /// Page by page, since one of them is not there.
    fn merge_pages(&self, address: u64, len: usize, words: &[u64]) {
        const PAGE: u64 = 4096;
        let bytes = &zerocopy::IntoBytes::as_bytes(words)[..len];
        let mut done = 0;
        while done < len {
            let at = address + done as u64;
            let part = ((PAGE - at % PAGE) as usize).min(len - done);
            let mut old = vec![0; part];
            if self.caller.read(at, &mut old).is_ok() {
                old.iter_mut().zip(&bytes[done..done + part]).for_each(|(old, new)| *old |= new);
                let _ = self.caller.write(at, &old);
            }
            done += part;
        }
    }
}
