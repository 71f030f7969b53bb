// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one place has written, for the log of its domain.
//!
//! An open session has its place to itself, so a mark is a plain `or` into
//! memory that nobody else looks at: no locked operation, no shared cache
//! line. The log comes round like a fence when somebody wants to know.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::chunk::{Budget, CHUNK, Chunk, WORD, WORDS, words};

/// Chunks found at once at first. As many as 16 GiB of pages have, twice.
const SLOTS: usize = 256;
/// No chunk's number.
const NONE: u64 = u64::MAX;

/// A place's bitmap.
#[derive(Debug)]
pub(crate) struct Marks {
    shift: u32,
    /// The chunks in use, each at its number modulo the length.
    slots: Vec<Slot>,
    /// Those that had to make room for another there.
    others: BTreeMap<u64, Box<Chunk>>,
    unrecorded: Hull,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    chunk: Option<Box<Chunk>>,
}

const EMPTY: Slot = Slot { number: NONE, chunk: None };

impl Marks {
    pub(crate) fn new(shift: u32, budget: Arc<Budget>) -> Marks {
        let slots = std::iter::repeat_with(|| EMPTY).take(SLOTS).collect();
        Marks { shift, slots, others: BTreeMap::new(), unrecorded: Hull::default(), budget }
    }

    /// Bytes of a granule, less one.
    #[inline]
    pub(crate) fn within(&self) -> u64 {
        (1 << self.shift) - 1
    }

    /// The granules of `first..=last` are dirty.
    #[inline]
    pub(crate) fn mark(&mut self, first: u64, last: u64) {
        let (granule, end) = (first >> self.shift, last >> self.shift);
        let number = granule >> CHUNK;
        let index = number as usize & (self.slots.len() - 1);
        if granule == end
            && let Some(slot) = self.slots.get_mut(index)
            && slot.number == number
            && let Some(chunk) = &mut slot.chunk
        {
            chunk[(granule >> WORD) as usize % WORDS] |= 1 << (granule % 64);
            return;
        }
        self.mark_all(&(granule..=end));
    }

    #[cold]
    fn mark_all(&mut self, granules: &RangeInclusive<u64>) {
        for number in granules.start() >> CHUNK..=granules.end() >> CHUNK {
            match self.chunk(number) {
                Some(chunk) => words(number, granules, |word, bits| chunk[word] |= bits),
                // What is not recorded is dirty.
                None => self.unrecorded.add(granules),
            }
        }
    }

    fn chunk(&mut self, number: u64) -> Option<&mut Chunk> {
        if self.others.len() > self.slots.len() {
            self.grow();
        }
        let index = number as usize & (self.slots.len() - 1);
        let slot = self.slots.get_mut(index)?;
        if slot.number != number {
            let chunk = match self.others.remove(&number) {
                Some(chunk) => chunk,
                None => self.budget.take()?,
            };
            let old = std::mem::replace(slot, Slot { number, chunk: Some(chunk) });
            if let Some(chunk) = old.chunk {
                self.others.insert(old.number, chunk);
            }
        }
        slot.chunk.as_deref_mut()
    }

    /// Four times as many slots.
    fn grow(&mut self) {
        let length = self.slots.len() * 4;
        let old = std::mem::take(&mut self.slots);
        self.slots.resize_with(length, || EMPTY);
        let slots = old.into_iter().filter_map(|slot| Some((slot.number, slot.chunk?)));
        for (number, chunk) in slots.chain(std::mem::take(&mut self.others)) {
            match self.slots.get_mut(number as usize & (length - 1)) {
                Some(slot) if slot.chunk.is_none() => *slot = Slot { number, chunk: Some(chunk) },
                _ => {
                    self.others.insert(number, chunk);
                }
            }
        }
    }

    /// Moves the chunks in which `granules` lie to `to`, and what was not
    /// recorded to `unrecorded`.
    pub(crate) fn take(
        &mut self,
        granules: &RangeInclusive<u64>,
        to: &mut Vec<(u64, Box<Chunk>)>,
        unrecorded: &mut Hull,
    ) {
        let numbers = granules.start() >> CHUNK..=granules.end() >> CHUNK;
        let mask = self.slots.len() as u64 - 1;
        let mut empty = |slot: &mut Slot| {
            if numbers.contains(&slot.number)
                && let Some(chunk) = slot.chunk.take()
            {
                to.push((slot.number, chunk));
                slot.number = NONE;
            }
        };
        if numbers.end() - numbers.start() >= mask {
            self.slots.iter_mut().for_each(&mut empty);
        } else {
            for number in numbers.clone() {
                self.slots.get_mut((number & mask) as usize).map(&mut empty);
            }
        }
        if !self.others.is_empty() {
            let mut inside = self.others.split_off(numbers.start());
            self.others.append(&mut inside.split_off(&(numbers.end() + 1)));
            to.extend(inside);
        }
        unrecorded.merge(std::mem::take(&mut self.unrecorded));
    }

    /// The granules are clean.
    pub(crate) fn clear(&mut self, granules: &RangeInclusive<u64>) {
        let numbers = granules.start() >> CHUNK..=granules.end() >> CHUNK;
        for Slot { number, chunk } in &mut self.slots {
            if numbers.contains(number)
                && let Some(chunk) = chunk
            {
                words(*number, granules, |word, bits| chunk[word] &= !bits);
            }
        }
        for (number, chunk) in self.others.range_mut(numbers) {
            words(*number, granules, |word, bits| chunk[word] &= !bits);
        }
        self.unrecorded.remove(granules);
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.budget.give(self.slots.iter().filter(|slot| slot.chunk.is_some()).count() + self.others.len());
    }
}

/// All granules between two, where it is not known which are dirty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hull(Option<RangeInclusive<u64>>);

impl Hull {
    pub(crate) fn add(&mut self, granules: &RangeInclusive<u64>) {
        self.0 = Some(match &self.0 {
            Some(old) => *old.start().min(granules.start())..=*old.end().max(granules.end()),
            None => granules.clone(),
        });
    }

    pub(crate) fn merge(&mut self, other: Hull) {
        if let Some(granules) = &other.0 {
            self.add(granules);
        }
    }

    /// They are clean. Those in the middle cannot be told apart, and stay.
    pub(crate) fn remove(&mut self, granules: &RangeInclusive<u64>) {
        let Some(old) = &self.0 else { return };
        let (mut first, mut last) = (*old.start(), *old.end());
        let all = *granules.start() <= first && last <= *granules.end();
        if granules.contains(&first) {
            first = granules.end().saturating_add(1);
        } else if granules.contains(&last) {
            last = granules.start().saturating_sub(1);
        }
        self.0 = (!all && first <= last).then_some(first..=last);
    }

    pub(crate) fn get(&self) -> Option<&RangeInclusive<u64>> {
        self.0.as_ref()
    }
}
