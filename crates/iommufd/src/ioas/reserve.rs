// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOVAs that must not be mapped, and those to which automatic ones are
//! confined (iommufd-api.md, section 4).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use uapi::Errno;

use super::Ioas;
use crate::PAGE;
use crate::backing::{Backing, RANGE};
use crate::ids::ObjectId;

/// Whose a reservation is. It goes with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A domain's: what lies outside of its aperture.
    Domain(ObjectId),
    /// A device's reserved regions.
    Device(ObjectId),
    /// Nobody's: stays as long as the IOAS.
    Nobody,
}

/// Reserved ranges, which may overlap. Many owners have the same ones: each
/// domain of an IOMMU has its aperture's.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    owners: BTreeMap<Owner, Vec<(u64, u64)>>,
    /// How often each range is reserved.
    ranges: BTreeMap<(u64, u64), usize>,
    /// What they come to together: disjoint ranges that do not touch.
    union: BTreeMap<u64, u64>,
}

impl Reserved {
    pub(super) fn len(&self) -> usize {
        self.ranges.values().sum()
    }

    fn add(&mut self, owner: Owner, first: u64, last: u64) {
        self.owners.entry(owner).or_default().push((first, last));
        *self.ranges.entry((first, last)).or_default() += 1;
        merge(&mut self.union, first, last);
    }

    /// Returns how many there were.
    fn remove(&mut self, owner: Owner) -> usize {
        let removed = self.owners.remove(&owner).unwrap_or_default();
        let mut gone = false;
        for range in &removed {
            if let Entry::Occupied(mut times) = self.ranges.entry(*range) {
                *times.get_mut() -= 1;
                if *times.get() == 0 {
                    times.remove();
                    gone = true;
                }
            }
        }
        if gone {
            self.union.clear();
            for (first, last) in self.ranges.keys() {
                merge(&mut self.union, *first, *last);
            }
        }
        removed.len()
    }

    /// The first reserved range that touches a range.
    pub(super) fn touching(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        touching(&self.union, first, last)
    }

    /// What is not reserved, in ascending order, ends inclusive (IOMMUFD-4.2).
    pub(super) fn holes(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut next = Some(0);
        let mut used = self.union.iter();
        std::iter::from_fn(move || {
            loop {
                let start = next?;
                let Some((first, last)) = used.next() else {
                    next = None;
                    return Some((start, u64::MAX));
                };
                next = last.checked_add(1);
                if *first > start {
                    return Some((start, first - 1));
                }
            }
        })
    }
}

/// IOVAs that automatic mappings are confined to; empty: no list. Ranges are
/// disjoint.
#[derive(Debug, Default)]
pub(crate) struct Allowed(BTreeMap<u64, u64>);

impl Allowed {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a range: `EINVAL` if it overlaps another.
    pub(crate) fn add(&mut self, first: u64, last: u64) -> Result<(), Errno> {
        if touching(&self.0, first, last).is_some() {
            return Err(Errno::EINVAL);
        }
        self.0.insert(first, last);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// Where automatic IOVAs are looked for: ranges that touch count as one.
    pub(super) fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        let (least, most) = (PAGE, u64::MAX - PAGE);
        let anywhere = self.0.is_empty().then_some((least, most));
        let mut ranges = self.iter().peekable();
        let listed = std::iter::from_fn(move || {
            let (first, mut last) = ranges.next()?;
            while let Some((_, end)) = ranges.next_if(|(next, _)| last.checked_add(1) == Some(*next)) {
                last = end;
            }
            Some((first.max(least), last.min(most)))
        });
        anywhere.into_iter().chain(listed).filter(|(first, last)| first <= last)
    }
}

fn touching(ranges: &BTreeMap<u64, u64>, first: u64, last: u64) -> Option<(u64, u64)> {
    let before = ranges.range(..=first).next_back().filter(|(_, end)| **end >= first);
    before.or_else(|| ranges.range(first..=last).next()).map(|(first, last)| (*first, *last))
}

/// Adds a range to disjoint ones that do not touch, so that they stay so.
fn merge(ranges: &mut BTreeMap<u64, u64>, first: u64, last: u64) {
    let (mut first, mut last) = (first, last);
    while let Some((start, end)) = touching(ranges, first.saturating_sub(1), last.saturating_add(1)) {
        ranges.remove(&start);
        first = first.min(start);
        last = last.max(end);
    }
    ranges.insert(first, last);
}

impl Ioas {
    /// Forbids to map a range: `EADDRINUSE` if an area or an allowed range
    /// touches it (IOMMUFD-4.9).
    pub(crate) fn reserve(&mut self, owner: Owner, first: u64, last: u64, backing: &Backing) -> Result<(), Errno> {
        if self.is_mapped(first, last) || touching(&self.allowed.0, first, last).is_some() {
            return Err(Errno::EADDRINUSE);
        }
        backing.budget.take(RANGE)?;
        self.reserved.add(owner, first, last);
        Ok(())
    }

    /// Takes an owner's reservations back.
    pub(crate) fn unreserve(&mut self, owner: Owner, backing: &Backing) {
        let removed = self.reserved.remove(owner);
        backing.budget.give(removed as u64 * RANGE);
        self.frontier = PAGE;
    }

    /// Exchanges the list of allowed ranges: `EADDRINUSE` if one touches a
    /// reserved range; the old list stays then (IOMMUFD-4.7).
    pub(crate) fn set_allowed(&mut self, allowed: &mut Allowed) -> Result<(), Errno> {
        if allowed.iter().any(|(first, last)| self.reserved.touching(first, last).is_some()) {
            return Err(Errno::EADDRINUSE);
        }
        std::mem::swap(&mut self.allowed, allowed);
        Ok(())
    }

    /// What is not reserved.
    pub(crate) fn holes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.reserved.holes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IOMMUFD-4.2
    #[test]
    fn holes_lie_between_reserved_ranges() {
        let mut reserved = Reserved::default();
        let holes = |reserved: &Reserved| reserved.holes().collect::<Vec<_>>();
        assert_eq!(holes(&reserved), [(0, u64::MAX)]);
        for (first, last) in [(10, 19), (20, 29), (15, 40), (100, u64::MAX)] {
            reserved.add(Owner::Nobody, first, last);
        }
        assert_eq!(holes(&reserved), [(0, 9), (41, 99)]);
        reserved.add(Owner::Device(ObjectId(1)), 0, 50);
        assert_eq!(holes(&reserved), [(51, 99)]);
        assert_eq!(reserved.remove(Owner::Device(ObjectId(1))), 1);
        assert_eq!(holes(&reserved), [(0, 9), (41, 99)]);
        reserved.add(Owner::Device(ObjectId(1)), 0, u64::MAX);
        assert_eq!(holes(&reserved), []);
    }

    /// IOMMUFD-4.6: a range that two have stays until both are gone.
    #[test]
    fn ranges_go_with_the_last_who_has_them() {
        let mut reserved = Reserved::default();
        let holes = |reserved: &Reserved| reserved.holes().collect::<Vec<_>>();
        for owner in [1, 2].map(|n| Owner::Domain(ObjectId(n))) {
            reserved.add(owner, 0, 9);
            reserved.add(owner, 100, u64::MAX);
        }
        assert_eq!((reserved.len(), holes(&reserved)), (4, vec![(10, 99)]));
        assert_eq!(reserved.remove(Owner::Domain(ObjectId(1))), 2);
        assert_eq!(reserved.remove(Owner::Domain(ObjectId(1))), 0);
        assert_eq!((reserved.len(), holes(&reserved)), (2, vec![(10, 99)]));
        assert_eq!(reserved.remove(Owner::Domain(ObjectId(2))), 2);
        assert_eq!((reserved.len(), holes(&reserved)), (0, vec![(0, u64::MAX)]));
    }

    /// IOMMUFD-5.4
    #[test]
    fn allowed_ranges_that_touch_are_one_span() {
        let mut allowed = Allowed::default();
        assert_eq!(allowed.spans().collect::<Vec<_>>(), [(PAGE, u64::MAX - PAGE)]);
        for (first, last) in [(0, 9), (0x2000, 0x2fff), (0x3000, 0x4fff), (0x6000, u64::MAX)] {
            allowed.add(first, last).unwrap();
        }
        assert_eq!(allowed.add(5, 6), Err(Errno::EINVAL));
        assert_eq!(allowed.spans().collect::<Vec<_>>(), [(0x2000, 0x4fff), (0x6000, u64::MAX - PAGE)]);
    }
}
