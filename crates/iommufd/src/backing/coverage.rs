// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of a pages object are pinned, by how many, and what they are.
//!
//! A page is pinned once however many areas and accesses need it (Linux: the
//! two interval trees of `struct iopt_pages`).

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::Pinned;
use iommu::Memory;
use uapi::Errno;

use super::memory::Patchwork;
use crate::PAGE;

/// A run of bytes of one memory.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) memory: Arc<dyn Memory>,
    /// Offset in it of the first byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl Piece {
    /// Whether `next` goes on where this one ends.
    fn goes_on(&self, next: &Piece) -> bool {
        same(&self.memory, &next.memory) && self.offset.wrapping_add(self.length) == next.offset
    }
}

fn same(one: &Arc<dyn Memory>, other: &Arc<dyn Memory>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

/// Pages with as many users, whose memory is one run.
#[derive(Debug)]
struct Run {
    last: u64,
    users: u64,
    memory: Arc<dyn Memory>,
    /// Offset in it of the run's first byte.
    offset: u64,
}

/// Pinned pages, by index.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// By first index. Pages that nobody uses are in none.
    runs: BTreeMap<u64, Run>,
    pages: u64,
}

impl Coverage {
    /// Number of pinned pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What lies between the pinned pages in a range.
    pub(crate) fn holes(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut at = first;
        for (start, run) in self.touching(first, last) {
            if start > at {
                holes.push((at, start - 1));
            }
            at = at.max(run.last + 1);
        }
        if at <= last {
            holes.push((at, last));
        }
        holes
    }

    /// One more user of the pages in a range; `pins` are its holes and what was
    /// pinned for them.
    pub(crate) fn add(&mut self, first: u64, last: u64, pins: Vec<(u64, u64, Pinned)>) {
        self.split(first);
        self.split(last + 1);
        for (_, run) in self.runs.range_mut(first..=last) {
            run.users += 1;
        }
        for (first, last, Pinned { memory, offset }) in pins {
            self.pages += last - first + 1;
            self.runs.insert(first, Run { last, users: 1, memory, offset });
        }
        self.join(first, last);
    }

    /// One user fewer; returns how many pages nobody uses any more.
    pub(crate) fn remove(&mut self, first: u64, last: u64) -> u64 {
        self.split(first);
        self.split(last + 1);
        let mut unused = Vec::new();
        for (start, run) in self.runs.range_mut(first..=last) {
            run.users -= 1;
            if run.users == 0 {
                unused.push((*start, run.last));
            }
        }
        let pages = unused.iter().map(|(first, last)| last - first + 1).sum();
        for (first, _) in unused {
            self.runs.remove(&first);
        }
        self.pages -= pages;
        self.join(first, last);
        pages
    }

    /// The memory of `length` bytes from byte `start` on, as far as it is pinned.
    pub(crate) fn pieces(&self, start: u64, length: u64) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let end = start + length;
        for (first, run) in self.touching(start / PAGE, (end - 1) / PAGE) {
            let from = start.max(first * PAGE);
            let to = end.min((run.last + 1) * PAGE);
            let piece = Piece {
                memory: Arc::clone(&run.memory),
                offset: run.offset.wrapping_add(from - first * PAGE),
                length: to - from,
            };
            match pieces.last_mut() {
                Some(before) if before.goes_on(&piece) => before.length += piece.length,
                _ => pieces.push(piece),
            }
        }
        pieces
    }

    /// The same as one memory; all of it is pinned.
    pub(crate) fn memory(&self, start: u64, length: u64) -> Result<Pinned, Errno> {
        let mut pieces = self.pieces(start, length);
        if pieces.iter().map(|piece| piece.length).sum::<u64>() != length {
            return Err(Errno::EFAULT);
        }
        match pieces.pop() {
            Some(only) if pieces.is_empty() => Ok(Pinned { memory: only.memory, offset: only.offset }),
            Some(last) => {
                pieces.push(last);
                Ok(Pinned { memory: Arc::new(Patchwork::new(pieces)), offset: 0 })
            }
            None => Err(Errno::EFAULT),
        }
    }

    fn touching(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Run)> {
        let before = self.runs.range(..first).next_back().filter(|(_, run)| run.last >= first);
        before.into_iter().chain(self.runs.range(first..=last)).map(|(start, run)| (*start, run))
    }

    /// Makes two of the run around an index, which is not its first.
    fn split(&mut self, at: u64) {
        let Some((first, run)) = self.runs.range_mut(..at).next_back() else { return };
        if run.last < at {
            return;
        }
        let upper = Run {
            last: run.last,
            users: run.users,
            memory: Arc::clone(&run.memory),
            offset: run.offset.wrapping_add((at - first) * PAGE),
        };
        run.last = at - 1;
        self.runs.insert(at, upper);
    }

    /// Makes one of neighbours that are alike, in and beside a range.
    fn join(&mut self, first: u64, last: u64) {
        let start = self.runs.range(..first).next_back().map_or(first, |(start, _)| *start);
        let mut at = start;
        while let Some((next, upper)) = self.runs.range(at + 1..).next().filter(|(next, _)| **next <= last + 1) {
            let (next, end) = (*next, upper.last);
            let alike = self.runs.get(&at).is_some_and(|lower| {
                lower.last + 1 == next
                    && lower.users == upper.users
                    && same(&lower.memory, &upper.memory)
                    && lower.offset.wrapping_add((next - at) * PAGE) == upper.offset
            });
            if !alike {
                at = next;
                continue;
            }
            self.runs.remove(&next);
            if let Some(lower) = self.runs.get_mut(&at) {
                lower.last = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Nowhere;
    use super::*;

    /// IOMMUFD-7.3: what runs and counts come to, beside a count for each page.
    fn check(steps: Vec<(bool, u64, u64)>) -> Result<(), TestCaseError> {
        let memory: Arc<dyn Memory> = Arc::new(Nowhere);
        let mut coverage = Coverage::default();
        let mut model = [0_u64; 32];
        let mut held = Vec::new();
        for (add, a, b) in steps {
            let (first, last) = (a.min(b), a.max(b));
            if add {
                let pins = coverage.holes(first, last).into_iter();
                let pin = |(first, last)| (first, last, Pinned { memory: Arc::clone(&memory), offset: first * PAGE });
                let pins: Vec<_> = pins.map(pin).collect();
                let new: u64 = pins.iter().map(|(first, last, _)| last - first + 1).sum();
                let free = (first..=last).filter(|page| model[*page as usize] == 0).count();
                prop_assert_eq!(new, free as u64);
                coverage.add(first, last, pins);
                (first..=last).for_each(|page| model[page as usize] += 1);
                held.push((first, last));
            } else if !held.is_empty() {
                let (first, last) = held.swap_remove(a as usize % held.len());
                (first..=last).for_each(|page| model[page as usize] -= 1);
                let freed = (first..=last).filter(|page| model[*page as usize] == 0).count();
                prop_assert_eq!(coverage.remove(first, last), freed as u64);
            }
            prop_assert_eq!(coverage.pages(), model.iter().filter(|users| **users > 0).count() as u64);
            // No two neighbours could be one.
            let runs: Vec<_> = coverage.runs.iter().map(|(first, run)| (*first, run.last, run.users)).collect();
            prop_assert!(runs.windows(2).all(|two| two[0].1 + 1 < two[1].0 || two[0].2 != two[1].2));
            for (first, last, users) in runs {
                prop_assert!((first..=last).all(|page| model[page as usize] == users));
                let pinned = coverage.memory(first * PAGE + 7, 9).unwrap();
                prop_assert_eq!(pinned.offset, first * PAGE + 7);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn is_a_count_for_each_page(steps in prop::collection::vec((any::<bool>(), 0_u64..32, 0_u64..32), 0..60)) {
            check(steps)?;
        }
    }
}
