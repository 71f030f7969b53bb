// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The internal memory that a lab gives a device besides its registers: so much
//! of it, of which so much changes in a second while the device runs.

use ::device::Nanos;

/// Bytes of which one knows together whether they have changed.
pub(super) const GRANULE: usize = 64 << 10;
/// A change touches each page.
const PAGE: usize = 4096;

/// Internal memory, and what of it has changed since it was saved.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    size: u64,
    /// Bytes that change in a second.
    rate: u64,
    /// Empty until it is needed.
    bytes: Vec<u8>,
    /// A bit a granule.
    dirty: Vec<u64>,
    dirty_count: usize,
    /// The granule that changes next.
    cursor: usize,
    /// What has changed was made so up to this time.
    since: Nanos,
    /// How often a granule has changed.
    changes: u64,
}

impl DeviceMemory {
    pub(super) fn new(size: u64, rate: u64) -> DeviceMemory {
        DeviceMemory {
            size,
            rate,
            bytes: Vec::new(),
            dirty: Vec::new(),
            dirty_count: 0,
            cursor: 0,
            since: 0,
            changes: 0,
        }
    }

    /// Bytes of it.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn granules(&self) -> usize {
        (self.size as usize).div_ceil(GRANULE)
    }

    /// Makes it be there, as after a reset if it was not.
    pub(super) fn ensure(&mut self, now: Nanos) {
        if self.bytes.is_empty() && self.size > 0 {
            self.bytes = vec![0; self.size as usize];
            self.bytes.iter_mut().step_by(PAGE).zip(1_u64..).for_each(|(byte, n)| *byte = n as u8);
            self.since = now;
        }
    }

    /// As after a reset.
    pub(super) fn reset(&mut self) {
        *self = DeviceMemory::new(self.size, self.rate);
    }

    /// Everything is to be saved.
    pub(super) fn all_dirty(&mut self) {
        self.dirty_count = self.granules();
        self.dirty = vec![u64::MAX; self.dirty_count.div_ceil(64)];
        let over = self.dirty_count % 64;
        if let Some(last) = self.dirty.last_mut().filter(|_| over > 0) {
            *last = (1 << over) - 1;
        }
    }

    /// Time has passed; `runs`: the device ran meanwhile.
    pub(super) fn advance(&mut self, now: Nanos, runs: bool) {
        let elapsed = now.saturating_sub(self.since);
        let granules = self.granules();
        if !runs || self.rate == 0 || granules == 0 || self.bytes.is_empty() {
            self.since = now;
            return;
        }
        const SECOND: u128 = 1_000_000_000;
        let due = u128::from(elapsed) * u128::from(self.rate) / (SECOND * GRANULE as u128);
        if due == 0 {
            return; // What is left of a granule's time goes on counting.
        }
        self.since = now;
        for _ in 0..due.min(granules as u128) {
            let granule = self.cursor % granules;
            self.cursor = granule + 1;
            self.changes += 1;
            let changes = self.changes.to_le_bytes();
            for page in self.range_mut(granule, 1).chunks_mut(PAGE) {
                let len = changes.len().min(page.len());
                page[..len].copy_from_slice(&changes[..len]);
            }
            self.mark(granule);
        }
    }

    fn mark(&mut self, granule: usize) {
        if let Some(word) = self.dirty.get_mut(granule / 64) {
            self.dirty_count += usize::from(*word >> (granule % 64) & 1 == 0);
            *word |= 1 << (granule % 64);
        }
    }

    fn range_mut(&mut self, granule: usize, count: usize) -> &mut [u8] {
        let start = granule * GRANULE;
        let end = (start + count * GRANULE).min(self.bytes.len());
        self.bytes.get_mut(start..end).unwrap_or_default()
    }

    /// Bytes that have changed and are not saved.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.dirty_count as u64 * GRANULE as u64
    }

    /// Takes the next run of changed granules from number `from` on, going round
    /// if `around`: its offset and bytes, at most `most` granules.
    pub(super) fn take_dirty(&mut self, from: usize, around: bool, most: usize) -> Option<(u64, &[u8])> {
        if self.dirty_count == 0 {
            return None;
        }
        let is = |dirty: &[u64], n: usize| dirty.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0);
        let granules = self.granules();
        let find = |range: std::ops::Range<usize>| {
            let mut n = range.start;
            while n < range.end {
                let word = self.dirty.get(n / 64).copied().unwrap_or(0) >> (n % 64);
                if word != 0 {
                    return Some(n + word.trailing_zeros() as usize).filter(|n| *n < range.end);
                }
                n = (n / 64 + 1) * 64;
            }
            None
        };
        let first = find(from..granules).or_else(|| if around { find(0..from.min(granules)) } else { None })?;
        let count = (first..granules).take(most).take_while(|n| is(&self.dirty, *n)).count();
        for n in first..first + count {
            if let Some(word) = self.dirty.get_mut(n / 64) {
                *word &= !(1 << (n % 64));
            }
        }
        self.dirty_count -= count;
        let start = first * GRANULE;
        let end = (start + count * GRANULE).min(self.bytes.len());
        Some((start as u64, self.bytes.get(start..end).unwrap_or_default()))
    }

    /// Takes bytes over; whether they lie in it.
    pub(super) fn store(&mut self, at: u64, bytes: &[u8]) -> bool {
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(bytes.len())?));
        match range.and_then(|range| self.bytes.get_mut(range)) {
            Some(to) => {
                to.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn so_much_changes_in_a_second() {
        let mut memory = DeviceMemory::new(10 * GRANULE as u64 + 5, 3 * GRANULE as u64);
        memory.ensure(0);
        memory.all_dirty();
        assert_eq!(memory.dirty_bytes(), 11 * GRANULE as u64);
        let mut total = 0;
        while let Some((_, bytes)) = memory.take_dirty(0, false, 4) {
            total += bytes.len() as u64;
        }
        assert_eq!(total, memory.size());
        memory.advance(SECOND, true);
        assert_eq!(memory.dirty_bytes(), 3 * GRANULE as u64);
        memory.advance(2 * SECOND, false);
        memory.advance(2 * SECOND + SECOND / 3 + 1, true);
        assert_eq!(memory.dirty_bytes(), 4 * GRANULE as u64, "nothing changes while it stands");
        assert_eq!(memory.take_dirty(2, true, 8).map(|(at, bytes)| (at, bytes.len())), Some((2 << 16, 2 << 16)));
        assert_eq!(memory.take_dirty(4, true, 8).map(|(at, bytes)| (at, bytes.len())), Some((0, 2 << 16)));
        memory.advance(100 * SECOND, true);
        assert_eq!(memory.dirty_bytes(), 11 * GRANULE as u64, "never more than there is");
    }
}
