// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one place has written, for the log of its domain.
//!
//! An open session has its place to itself, so a mark is a plain `or` into
//! memory that nobody else looks at: no locked operation, no shared cache
//! line. The log comes round like a fence when somebody wants to know.
//!
//! What the profile taught (`vfuse-bench dirty`; ns a page, what is added to a
//! translation): a table of chunks by number, 2.1 in order and 3.8 at random; the
//! window below with its granule in a variable, 1.9 and 2.7; with the granule a
//! constant, 1.0 and about what the cache miss costs. A plain `or` is 1.1. What
//! counts is the number of instructions: they keep misses from overlapping.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use crate::chunk::{Budget, CHUNK, Chunk, Chunks, WORD, WORDS, is_clean, words};
use crate::sync::WINDOW;

/// The granule for which marking is fast: pages.
const PAGE: u32 = 12;
/// Chunks that a window has at most: 1 TiB of pages.
const MOST: u64 = 1 << 13;
/// Chunks that it may have whatever lies between them: 128 GiB of pages.
const NEAR: u64 = 1 << 10;
/// Beyond that it becomes no more than so many times as long at once: a page
/// far away is no reason to look through all between.
const GROWTH: u64 = 4;

/// A place's bitmap.
///
/// Bits lie side by side in a window that grows to where they are needed, so
/// that a mark finds its word without looking for it; pages of the window that
/// nobody wrote to take no memory. What lies too far away, or has granules of
/// another size, is found in a tree. Where there comes to be more in the tree
/// than in the window, the window goes there.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Number of the window's first word.
    base: u64,
    window: Chunks,
    shift: u32,
    others: BTreeMap<u64, Box<Chunk>>,
    unrecorded: Hull,
    /// The chunks of the window that was taken last.
    before: Range<u64>,
    budget: Arc<Budget>,
}

/// What a log takes from a place: whole windows, with the number of the first
/// chunk; chunks with their number; and what could not be recorded.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) windows: Vec<(u64, Chunks)>,
    pub(crate) chunks: Vec<(u64, Box<Chunk>)>,
    pub(crate) unrecorded: Hull,
}

impl Marks {
    pub(crate) fn new(shift: u32, budget: Arc<Budget>) -> Marks {
        let (window, others) = (Chunks::default(), BTreeMap::new());
        Marks { base: 0, window, shift, others, unrecorded: Hull::default(), before: 0..0, budget }
    }

    /// Bytes of a granule, less one.
    #[inline]
    pub(crate) fn within(&self) -> u64 {
        (1 << self.shift) - 1
    }

    /// The granules of `first..=last` are dirty.
    #[inline]
    pub(crate) fn mark(&mut self, first: u64, last: u64) {
        // A part of one page, and the page is in the window.
        let word = (first >> (PAGE + WORD)).wrapping_sub(self.base) as usize;
        if first ^ last < 1 << PAGE
            && let Some(word) = self.window.as_flattened_mut().get_mut(word)
        {
            *word |= 1 << (first >> PAGE & 63);
        } else {
            self.mark_all(&(first >> self.shift..=last >> self.shift));
        }
    }

    #[inline(never)]
    fn mark_all(&mut self, granules: &RangeInclusive<u64>) {
        for number in granules.start() >> CHUNK..=granules.end() >> CHUNK {
            let chunk = match self.index(number) {
                Some(index) => self.window.get_mut(index),
                None => self.other(number),
            };
            match chunk {
                Some(chunk) => words(number, granules, |word, bits| chunk[word] |= bits),
                // What is not recorded is dirty.
                None => self.unrecorded.add(granules),
            }
        }
    }

    /// A chunk that is not in the window.
    fn other(&mut self, number: u64) -> Option<&mut Chunk> {
        use std::collections::btree_map::Entry;

        if self.is_elsewhere() && !self.others.contains_key(&number) {
            self.abandon_window();
            if let Some(index) = self.index(number) {
                return self.window.get_mut(index);
            }
        }
        match self.others.entry(number) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => Some(entry.insert(self.budget.take()?)),
        }
    }

    /// Whether there is more in the tree than in the window; asked the more
    /// seldom the more there is.
    fn is_elsewhere(&self) -> bool {
        let count = self.others.len();
        self.shift == PAGE && count.is_power_of_two() && count as u64 >= WINDOW && count >= self.window.len()
    }

    /// Puts what is in the window into the tree.
    #[cold]
    fn abandon_window(&mut self) {
        let first = self.numbers().start;
        let window = std::mem::take(&mut self.window);
        for (number, chunk) in (first..).zip(&window).filter(|(_, chunk)| !is_clean(chunk)) {
            self.others.insert(number, self.budget.copy(chunk));
        }
        self.budget.give_many(window, false);
    }

    /// The numbers of the window's chunks.
    pub(crate) fn numbers(&self) -> Range<u64> {
        let first = self.base / WORDS as u64;
        first..first + self.window.len() as u64
    }

    /// Where in the window a chunk lies, which may grow for it.
    fn index(&mut self, number: u64) -> Option<usize> {
        if !self.numbers().contains(&number) && !self.grow(number) {
            return None;
        }
        Some((number - self.numbers().start) as usize)
    }

    /// Makes the window larger, so that it has a chunk.
    #[cold]
    fn grow(&mut self, number: u64) -> bool {
        if self.shift != PAGE {
            return false;
        }
        let old = self.numbers();
        let new = if !old.is_empty() {
            let (first, end) = (old.start.min(number), old.end.max(number + 1));
            if end - first > NEAR.max(GROWTH * (old.end - old.start)) {
                return false;
            }
            // At least twice as many, so that it does not happen often.
            let more = (end - first).max(2 * (old.end - old.start)).min(MOST) - (end - first).min(MOST);
            if number < old.start { first.saturating_sub(more)..end } else { first..end + more }
        } else if self.before.contains(&number) {
            self.before.clone()
        } else {
            number / WINDOW * WINDOW..number / WINDOW * WINDOW + WINDOW
        };
        if new.end - new.start > MOST {
            return false;
        }
        let Some(mut chunks) = self.budget.take_many((new.end - new.start) as usize) else { return false };
        let start = old.start.saturating_sub(new.start) as usize;
        for (to, from) in chunks.iter_mut().skip(start).zip(&self.window) {
            to.copy_from_slice(from);
        }
        self.budget.give_many(std::mem::replace(&mut self.window, chunks), false);
        self.base = new.start * WORDS as u64;
        for (number, other) in split(&mut self.others, &(new.start..=new.end - 1)) {
            let chunk = self.window.get_mut((number - new.start) as usize).into_iter().flatten();
            chunk.zip(other.iter()).for_each(|(into, word)| *into |= word);
            self.budget.give(other);
        }
        true
    }

    /// Moves the bits of `granules` to `taken`, and others with them as is easiest.
    ///
    /// Taking the window whole costs nothing, and copying a part of it as much
    /// again as reporting it: so the window goes if nothing else is in it.
    pub(crate) fn take(&mut self, granules: &RangeInclusive<u64>, taken: &mut Taken) {
        let numbers = granules.start() >> CHUNK..=granules.end() >> CHUNK;
        let window = self.numbers();
        let (start, end) = (window.start.max(*numbers.start()), window.end.min(numbers.end() + 1));
        if start < end {
            let (start, end) = ((start - window.start) as usize, (end - window.start) as usize);
            let mostly = 2 * (end - start) >= self.window.len();
            if mostly && self.window[..start].iter().chain(&self.window[end..]).all(is_clean) {
                taken.windows.push((window.start, std::mem::take(&mut self.window)));
                self.before = window;
            } else {
                for (number, chunk) in (window.start..).zip(&mut self.window).take(end).skip(start) {
                    if !is_clean(chunk) {
                        taken.chunks.push((number, self.budget.copy(chunk)));
                        chunk.fill(0);
                    }
                }
            }
        }
        taken.chunks.extend(split(&mut self.others, &numbers));
        taken.unrecorded.merge(std::mem::take(&mut self.unrecorded));
    }

    /// The granules are clean.
    pub(crate) fn clear(&mut self, granules: &RangeInclusive<u64>) {
        let numbers = granules.start() >> CHUNK..=granules.end() >> CHUNK;
        let window = self.numbers();
        for number in window.start.max(*numbers.start())..window.end.min(numbers.end() + 1) {
            if let Some(chunk) = self.window.get_mut((number - window.start) as usize) {
                words(number, granules, |word, bits| chunk[word] &= !bits);
            }
        }
        for (number, chunk) in self.others.range_mut(numbers) {
            words(*number, granules, |word, bits| chunk[word] &= !bits);
        }
        self.unrecorded.remove(granules);
    }
}

/// Takes the entries with these numbers out of a map.
fn split(map: &mut BTreeMap<u64, Box<Chunk>>, numbers: &RangeInclusive<u64>) -> BTreeMap<u64, Box<Chunk>> {
    if map.is_empty() {
        return BTreeMap::new();
    }
    let mut inside = map.split_off(numbers.start());
    map.append(&mut inside.split_off(&(numbers.end() + 1)));
    inside
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.budget.give_many(std::mem::take(&mut self.window), false);
        std::mem::take(&mut self.others).into_values().for_each(|chunk| self.budget.give(chunk));
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
