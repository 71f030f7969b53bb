// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_DIRTY_PAGES`: which mapped pages devices may have written.
//!
//! Devices here pin nothing through the external interface, so every mapped
//! page is reported dirty each time (API-095) and no bitmap is kept.

use caller::{Caller, is_user_range};
use uapi::Errno;
use uapi::vfio::type1::{BITMAP_SIZE_MAX, Bitmap, DirtyBitmap, DirtyBitmapGet, DirtyFlags};
use zerocopy::IntoBytes;

use super::{PAGE, Type1};
use crate::args;

/// Words of a program's bitmap that are written at once.
const CHUNK: usize = 8192;
const WORD: u64 = 8;

/// The program's bitmap could not be written as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unwritten {
    /// Bits of mappings that end below this IOVA are out.
    pub(super) before: u64,
}

impl Type1 {
    pub(super) fn dirty_pages(&mut self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if !self.v2 {
            return Err(Errno::EACCES);
        }
        let minsz = size_of::<DirtyBitmap>();
        let dirty: DirtyBitmap = args::read(caller, arg, minsz)?;
        match DirtyFlags::from_bits(dirty.flags) {
            Some(DirtyFlags::START) => {
                if !self.tracking && self.untrackable > 0 {
                    return Err(Errno::EINVAL); // API-093
                }
                self.tracking = true;
                Ok(())
            }
            Some(DirtyFlags::STOP) => {
                self.tracking = false;
                Ok(())
            }
            Some(DirtyFlags::GET_BITMAP) => {
                if (dirty.argsz as usize) < minsz + size_of::<DirtyBitmapGet>() {
                    return Err(Errno::EINVAL);
                }
                let at = arg.checked_add(minsz as u64).ok_or(Errno::EFAULT)?;
                self.get_bitmap(&args::read_plain(caller, at)?, caller)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// API-094
    fn get_bitmap(&self, get: &DirtyBitmapGet, caller: &dyn Caller) -> Result<(), Errno> {
        if get.size == 0 {
            return Err(Errno::EINVAL);
        }
        let last = get.iova.checked_add(get.size - 1).ok_or(Errno::EOVERFLOW)?;
        if !is_user_range(get.bitmap.data, get.bitmap.size) {
            return Err(Errno::EINVAL);
        }
        check_size(get.size, &get.bitmap)?;
        if get.bitmap.pgsize != PAGE || (get.iova | get.size) & (PAGE - 1) != 0 || !self.tracking {
            return Err(Errno::EINVAL);
        }
        if self.bisects(get.iova, last) {
            return Err(Errno::EINVAL);
        }
        self.report(get.iova, last, get.bitmap.data, caller).map_err(|_| Errno::EFAULT)
    }

    /// Writes the bits of the mappings in a range to the program's bitmap at
    /// `data`, bit 0 for `first`. Words are written whole. What the program has
    /// in a word that a mapping begins in the middle of is kept; other bits of
    /// a written word that no mapping has become 0; a word that no mapping has
    /// a bit in is not touched (API-096, API-097).
    pub(super) fn report(&self, first: u64, last: u64, data: u64, caller: &dyn Caller) -> Result<(), Unwritten> {
        let mut out = Words { caller, data, base: first, start: 0, words: Vec::new() };
        let mut at = first;
        while let Some(m) = self.overlap(at, last) {
            out.set((m.first - first) / PAGE, (m.last - first) / PAGE)?;
            match m.last.checked_add(1) {
                Some(next) => at = next,
                None => break,
            }
        }
        out.flush()
    }
}

/// A run of words of the program's bitmap that waits to be written.
struct Words<'a> {
    caller: &'a dyn Caller,
    data: u64,
    base: u64,
    start: u64,
    words: Vec<u64>,
}

impl Words<'_> {
    /// Sets bits `from..=to`, which are above all that were set before.
    fn set(&mut self, from: u64, to: u64) -> Result<(), Unwritten> {
        let shift = from % 64;
        self.seek(from / 64, shift != 0)?;
        let mut bit = from;
        while bit <= to {
            let (word, shift) = (bit / 64, bit % 64);
            if self.start + self.words.len() as u64 == word {
                if self.words.len() == CHUNK {
                    self.flush()?;
                    self.start = word;
                }
                self.words.push(0);
            }
            let end = to.min(word * 64 + 63);
            let ones = u64::MAX >> (63 - (end - bit)) << shift;
            if let Some(last) = self.words.last_mut() {
                *last |= ones;
            }
            bit = end + 1;
        }
        Ok(())
    }

    /// Makes `word` the next or the last word of the run. With `keep`, what
    /// the program has there stays.
    fn seek(&mut self, word: u64, keep: bool) -> Result<(), Unwritten> {
        let end = self.start + self.words.len() as u64;
        if !self.words.is_empty() && word + 1 == end {
            return Ok(());
        }
        if self.words.is_empty() || word != end || self.words.len() == CHUNK {
            self.flush()?;
            self.start = word;
        }
        if keep {
            let mut present = [0; WORD as usize];
            if self.caller.read(self.address(word), &mut present).is_err() {
                self.flush()?;
                return Err(self.unwritten(word));
            }
            self.words.push(u64::from_ne_bytes(present));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Unwritten> {
        let words = std::mem::take(&mut self.words);
        if words.is_empty() || self.caller.write(self.address(self.start), words.as_bytes()).is_ok() {
            return Ok(());
        }
        // Which word was the first that could not be written?
        for (n, word) in (self.start..).zip(&words) {
            if self.caller.write(self.address(n), word.as_bytes()).is_err() {
                return Err(self.unwritten(n));
            }
        }
        Ok(())
    }

    fn address(&self, word: u64) -> u64 {
        self.data.wrapping_add(word * WORD)
    }

    fn unwritten(&self, word: u64) -> Unwritten {
        Unwritten { before: self.base.saturating_add(word * 64 * PAGE) }
    }
}

/// Whether a bitmap is large enough for `size` bytes and not too large
/// (API-099).
pub(super) fn check_size(size: u64, bitmap: &Bitmap) -> Result<(), Errno> {
    // Linux takes the lowest bit of pgsize here and compares it later.
    let pages = size.checked_shr(bitmap.pgsize.trailing_zeros()).unwrap_or(0);
    if pages == 0 || bitmap.size == 0 || bitmap.size > BITMAP_SIZE_MAX || bitmap.size < pages.div_ceil(64) * WORD {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
