// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Object ids: what each names, and how many others hold on to it
//! (iommufd-api.md, section 2).

use std::collections::BTreeMap;

use uapi::Errno;

use crate::backing::{Budget, OBJECT};

/// The number by which a program names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u32);

/// Types of object (IOMMUFD-2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A kernel user's view of an IOAS.
    Access,
    /// A bound device.
    Device,
    /// A fault queue.
    Fault,
    /// A hardware queue.
    HwQueue,
    /// A paging HWPT.
    HwptPaging,
    /// A nested HWPT.
    HwptNested,
    /// An I/O address space.
    Ioas,
    /// A virtual device.
    Vdevice,
    /// A virtual event queue.
    Veventq,
    /// A virtual IOMMU.
    Viommu,
    /// What the selftest makes.
    Selftest,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    /// `users`: references besides the table's own.
    Live { kind: Kind, users: u32 },
    /// Never to be used again (IOMMUFD-2.8).
    Tombstone,
}

/// The ids of a context.
#[derive(Debug)]
pub(crate) struct Ids {
    slots: BTreeMap<u32, Slot>,
    /// No id below is free.
    lowest: u32,
    budget: Budget,
}

/// Largest id.
const MAX: u32 = i32::MAX as u32;

impl Ids {
    pub(crate) fn new(budget: Budget) -> Ids {
        Ids { slots: BTreeMap::new(), lowest: 1, budget }
    }

    /// The lowest free id becomes the object's (IOMMUFD-2.1); `EBUSY` if there
    /// is none, as Linux's `xa_alloc`, and `ENOMEM`. A command that fails afterwards [`remove`](Self::remove)s it.
    pub(crate) fn add(&mut self, kind: Kind) -> Result<ObjectId, Errno> {
        let mut id = self.lowest;
        for taken in self.slots.range(id..).map(|(taken, _)| *taken) {
            if taken != id {
                break;
            }
            id += 1;
        }
        if id > MAX {
            return Err(Errno::EBUSY);
        }
        self.budget.take(OBJECT)?;
        self.slots.insert(id, Slot::Live { kind, users: 0 });
        self.lowest = id + 1;
        Ok(ObjectId(id))
    }

    /// What an id names.
    pub(crate) fn kind(&self, id: ObjectId) -> Option<Kind> {
        match self.slots.get(&id.0)? {
            Slot::Live { kind, .. } => Some(*kind),
            Slot::Tombstone => None,
        }
    }

    /// The id as one of a kind; `ENOENT` if it names none or another kind
    /// (IOMMUFD-1.7).
    pub(crate) fn expect(&self, id: u32, kind: Kind) -> Result<ObjectId, Errno> {
        let id = ObjectId(id);
        if self.kind(id) == Some(kind) { Ok(id) } else { Err(Errno::ENOENT) }
    }

    /// One more user.
    pub(crate) fn get(&mut self, id: ObjectId) {
        if let Some(Slot::Live { users, .. }) = self.slots.get_mut(&id.0) {
            *users += 1;
        }
    }

    /// One user fewer.
    pub(crate) fn put(&mut self, id: ObjectId) {
        if let Some(Slot::Live { users, .. }) = self.slots.get_mut(&id.0) {
            debug_assert!(*users > 0, "object {} has no user", id.0);
            *users = users.saturating_sub(1);
        }
    }

    /// References besides the table's own.
    pub(crate) fn users(&self, id: ObjectId) -> u32 {
        match self.slots.get(&id.0) {
            Some(Slot::Live { users, .. }) => *users,
            _ => 0,
        }
    }

    /// The id is free again.
    pub(crate) fn remove(&mut self, id: ObjectId) {
        if self.slots.remove(&id.0).is_some() {
            self.lowest = self.lowest.min(id.0);
            self.budget.give(OBJECT);
        }
    }

    /// The object is gone, its id is not used again.
    pub(crate) fn bury(&mut self, id: ObjectId) {
        self.slots.insert(id.0, Slot::Tombstone);
    }

    /// Whether there is any object (tombstones count, as in Linux's table).
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Live objects, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ObjectId, Kind, u32)> {
        self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Live { kind, users } => Some((ObjectId(*id), *kind, *users)),
            Slot::Tombstone => None,
        })
    }
}

impl Drop for Ids {
    fn drop(&mut self) {
        self.budget.give(self.slots.len() as u64 * OBJECT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IOMMUFD-2.1, IOMMUFD-2.8
    #[test]
    fn lowest_free_id_is_given() {
        let mut ids = Ids::new(Budget::new(100 * OBJECT));
        let given: Vec<u32> = (0..4).map(|_| ids.add(Kind::Ioas).unwrap().0).collect();
        assert_eq!(given, [1, 2, 3, 4]);
        ids.remove(ObjectId(3));
        ids.remove(ObjectId(2));
        ids.bury(ObjectId(1));
        assert_eq!(ids.kind(ObjectId(1)), None);
        assert_eq!(
            [ids.add(Kind::Fault), ids.add(Kind::Fault), ids.add(Kind::Fault)],
            [2, 3, 5].map(|n| Ok(ObjectId(n)))
        );
        assert_eq!(ids.expect(4, Kind::Fault), Err(Errno::ENOENT));
        assert_eq!(ids.expect(4, Kind::Ioas), Ok(ObjectId(4)));
    }

    /// IOMMUFD-2.1: the last id is 2^31 - 1, and there is none behind it.
    #[test]
    fn ids_are_exhausted() {
        let mut ids = Ids::new(Budget::new(100 * OBJECT));
        ids.lowest = MAX;
        assert_eq!(ids.add(Kind::Ioas), Ok(ObjectId(i32::MAX as u32)));
        for _ in 0..2 {
            assert_eq!(ids.add(Kind::Ioas), Err(Errno::EBUSY));
        }
        ids.remove(ObjectId(MAX));
        assert_eq!(ids.add(Kind::Fault), Ok(ObjectId(MAX)));
        ids.bury(ObjectId(MAX));
        assert_eq!(ids.add(Kind::Fault), Err(Errno::EBUSY), "a tombstone is taken");
    }
}
