// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Areas go (IOMMUFD-5.17 to 5.23).

use iommu::Mapping;
use uapi::Errno;

use super::Ioas;
use super::area::{Special, tag};
use crate::PAGE;
use crate::backing::{AREA, Backing, SHARED, pages_of};

/// How far an unmap came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmapped {
    /// Bytes removed.
    pub(crate) bytes: u64,
    /// Why it stopped.
    pub(crate) then: Then,
}

/// Why an unmap stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// There is no more.
    Done,
    /// At an area that cannot be removed.
    Failed(Errno),
    /// At an area of which accesses have pages pinned, from its first IOVA to
    /// its last. They are to let go of them; then it can go on there.
    Pinned(u64, u64),
}

impl Ioas {
    /// Removes the areas in a range, in ascending order, up to the first that
    /// cannot be: `EBUSY` if it is locked, `ENOENT` if it lies only partly in
    /// the range.
    pub(crate) fn unmap(&mut self, first: u64, last: u64, backing: &mut Backing) -> Unmapped {
        let mut bytes = 0;
        let mut at = first;
        let then = loop {
            // Ordinary areas up to the next special one go together.
            let special = self.special_from(at, last).map(|(from, special)| (from, special.accesses, special.locks));
            let end = special.map_or(Some(last), |(from, ..)| from.checked_sub(1));
            if let Some(end) = end.filter(|end| *end >= at) {
                let (removed, whole) = self.remove_ordinary(at, end, backing);
                bytes += removed;
                if !whole {
                    break Then::Failed(Errno::ENOENT);
                }
            }
            let Some((from, accesses, locks)) = special else { break Then::Done };
            if locks > 0 {
                break Then::Failed(Errno::EBUSY);
            }
            let Some(mapping) = self.space.at_or_after(from) else { break Then::Done };
            if from < first || mapping.last > last {
                break Then::Failed(Errno::ENOENT);
            }
            if accesses > 0 {
                break Then::Pinned(from, mapping.last);
            }
            bytes += self.remove(from, mapping.last, backing);
            match mapping.last.checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => break Then::Done,
            }
        };
        Unmapped { bytes, then }
    }

    /// Removes everything; nothing is pinned by an access.
    pub(super) fn unmap_all(&mut self, backing: &mut Backing) {
        self.remove(0, u64::MAX, backing);
    }

    /// The first special area that touches a range.
    fn special_from(&self, first: u64, last: u64) -> Option<(u64, &Special)> {
        if self.special.is_empty() {
            return None;
        }
        let around = self.space.at_or_after(first)?.first;
        if around > last {
            return None;
        }
        self.special.range(around..=last).next().map(|(first, special)| (*first, special))
    }

    /// Removes the areas wholly in a range, of which none is special. Returns
    /// the bytes, and whether there was none at an end that is only partly in
    /// it. If that is the first, nothing is removed.
    fn remove_ordinary(&mut self, first: u64, last: u64, backing: &mut Backing) -> (u64, bool) {
        let Some(at_first) = self.space.at_or_after(first).filter(|mapping| mapping.first <= last) else {
            return (0, true);
        };
        if at_first.first < first || at_first.last > last {
            return (0, false);
        }
        let bytes = self.remove(first, last, backing);
        // Most ranges are exactly one area: no second look then.
        let whole = at_first.last == last || !self.is_mapped(last, last);
        (bytes, whole)
    }

    /// Removes the areas that lie wholly in a range, of which no access has
    /// anything pinned. Returns the bytes. Devices are done with them then.
    pub(super) fn remove(&mut self, first: u64, last: u64, backing: &mut Backing) -> u64 {
        let (mut bytes, mut areas) = (0, 0);
        let mut removed: Option<(u64, u64)> = None;
        let filled = !self.domains.is_empty();
        let special = &mut self.special;
        // Neighbours mostly have one source: settle with it once for a run.
        let mut run = Run::default();
        self.space.unmap(first, last, &mut |mapping| {
            bytes += mapping.last - mapping.first + 1;
            areas += 1;
            removed = Some((removed.map_or(mapping.first, |(lowest, _)| lowest), mapping.last));
            if mapping.tag & tag::SPECIAL == 0 {
                run.add(mapping, filled, backing);
            } else if let Some(special) = special.remove(&mapping.first) {
                release(&special, mapping, filled, backing);
            }
        });
        run.settle(backing);
        backing.budget.give(areas * AREA);
        if let Some((lowest, highest)) = removed {
            self.frontier = self.frontier.min(lowest.max(PAGE));
            self.forget_dirty(lowest, highest);
        }
        bytes
    }
}

/// A special area is gone.
fn release(special: &Special, mapping: &Mapping, filled: bool, backing: &mut Backing) {
    if filled {
        let last = special.start + (mapping.last - mapping.first);
        backing.uncover(special.pages, special.start / PAGE, last / PAGE);
    }
    backing.put_pages(special.pages);
    backing.budget.give(SHARED);
}

/// Ordinary areas of one source that are gone.
#[derive(Debug, Default)]
struct Run {
    source: u32,
    areas: u64,
    pages: u64,
}

impl Run {
    fn add(&mut self, mapping: &Mapping, filled: bool, backing: &mut Backing) {
        let index = mapping.tag >> tag::SOURCE_SHIFT;
        if self.areas > 0 && self.source != index {
            std::mem::take(self).settle(backing);
        }
        self.source = index;
        self.areas += 1;
        if filled {
            let distance = backing.sources.get(index).map_or(0, |source| source.distance);
            let address = mapping.offset.wrapping_add(distance);
            self.pages += pages_of(address, mapping.last - mapping.first + 1);
        }
    }

    fn settle(self, backing: &mut Backing) {
        if self.areas == 0 {
            return;
        }
        if let Some(source) = backing.sources.get_mut(self.source)
            && self.pages > 0
        {
            source.pinned -= self.pages;
            source.payer.uncharge(&backing.accounts, self.pages);
        }
        backing.sources.give(self.source, self.areas);
    }
}
