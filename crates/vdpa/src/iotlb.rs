// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Records: what vhost-vdpa knows to be mapped in an address space. No reset
//! touches them (VDPA-8.5).

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::Memory;
use uapi::Errno;

/// One record; the map has its first IOVA.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Last IOVA, inclusive.
    pub(crate) last: u64,
    /// As the program gave it.
    pub(crate) perm: u8,
    /// Where it leads.
    pub(crate) memory: Arc<dyn Memory>,
    /// Offset in `memory` of the first byte.
    pub(crate) offset: u64,
    /// Pages charged for it.
    pub(crate) pages: u64,
}

/// What has happened since a `set_map` parent was last given the records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// A record that starts here was added.
    Added(u64),
    /// Records between these ends, inclusive, went.
    Removed(u64, u64),
}

/// The records of an address space, in order; none overlaps another.
#[derive(Debug, Default)]
pub(crate) struct Iotlb {
    records: BTreeMap<u64, Record>,
    changes: Vec<Change>,
    /// More changes than it is worth keeping.
    many: bool,
}

impl Iotlb {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Records by first IOVA.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.records.iter().map(|(first, record)| (*first, record))
    }

    pub(crate) fn get(&self, first: u64) -> Option<&Record> {
        self.records.get(&first)
    }

    /// The first record that overlaps `start..=last`, as Linux's interval tree
    /// finds it: also where `last` is below `start` (VDPA-7.10).
    pub(crate) fn first_overlap(&self, start: u64, last: u64) -> Option<u64> {
        let before = self.records.range(..=start).next_back().filter(|(_, record)| record.last >= start);
        let (first, _) = before.or_else(|| self.records.range(start..).next())?;
        (*first <= last).then_some(*first)
    }

    /// Adds a record that overlaps none: `ENOSPC` beyond `limit` (VDPA-7.13).
    pub(crate) fn insert(&mut self, first: u64, record: Record, limit: usize) -> Result<(), Errno> {
        if self.records.len() >= limit {
            return Err(Errno::ENOSPC);
        }
        self.records.insert(first, record);
        self.note(Change::Added(first));
        Ok(())
    }

    /// Removes the record that starts at `first`.
    pub(crate) fn remove(&mut self, first: u64) -> Option<Record> {
        let record = self.records.remove(&first)?;
        self.note(Change::Removed(first, record.last));
        Some(record)
    }

    fn note(&mut self, change: Change) {
        // What a program could let grow by never ending a batch.
        self.many |= self.changes.len() > 64 + 2 * self.records.len();
        if self.many {
            self.changes = Vec::new();
        } else {
            self.changes.push(change);
        }
    }

    /// Takes the changes since the last call; `None` if they were too many.
    pub(crate) fn take_changes(&mut self) -> Option<Vec<Change>> {
        let many = std::mem::take(&mut self.many);
        let changes = std::mem::take(&mut self.changes);
        (!many).then_some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iotlb(ranges: &[(u64, u64)]) -> Iotlb {
        let mut iotlb = Iotlb::default();
        for (first, last) in ranges {
            let memory = Arc::new(crate::parent::Identity::default());
            let record = Record { last: *last, perm: 3, memory, offset: 0, pages: 0 };
            iotlb.insert(*first, record, 4).unwrap();
        }
        iotlb
    }

    /// VDPA-7.10
    #[test]
    fn overlap_also_of_ranges_that_wrap() {
        let iotlb = iotlb(&[(0x1000, 0x1fff), (0x3000, 0x3fff)]);
        assert_eq!(iotlb.first_overlap(0, 0xfff), None);
        assert_eq!(iotlb.first_overlap(0, 0x1000), Some(0x1000));
        assert_eq!(iotlb.first_overlap(0x1fff, u64::MAX), Some(0x1000));
        assert_eq!(iotlb.first_overlap(0x2000, 0x2fff), None);
        assert_eq!(iotlb.first_overlap(0, u64::MAX), Some(0x1000), "iova 0 size 0");
        assert_eq!(iotlb.first_overlap(0x3800, 0x37ff), Some(0x3000), "inside a record");
        assert_eq!(iotlb.first_overlap(0x3000, 0x2fff), None, "at its first byte");
        assert_eq!(iotlb.first_overlap(0x2800, 0x27ff), None);
    }

    /// VDPA-7.13
    #[test]
    fn as_many_records_as_allowed() {
        let mut iotlb = iotlb(&[(0, 0), (1, 1), (2, 2), (3, 3)]);
        let memory = Arc::new(crate::parent::Identity::default());
        let record = Record { last: 4, perm: 3, memory, offset: 0, pages: 0 };
        assert_eq!(iotlb.insert(4, record.clone(), 4), Err(Errno::ENOSPC));
        iotlb.remove(0);
        assert_eq!(iotlb.insert(4, record, 4), Ok(()));
    }

    #[test]
    fn changes_do_not_pile_up() {
        let mut iotlb = iotlb(&[(0, 0)]);
        for _ in 0..1000 {
            let record = iotlb.remove(0).unwrap();
            iotlb.insert(0, record, 4).unwrap();
        }
        assert!(iotlb.take_changes().is_none());
        assert_eq!(iotlb.take_changes().map(|changes| changes.len()), Some(0));
    }
}
