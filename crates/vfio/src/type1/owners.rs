// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which programs pay for the pages that a container has pinned.
//!
//! A mapping names its payer by a small index, which fits its tag. Nearly
//! always there is one payer.

use std::collections::BTreeMap;

use caller::{Accounts, ProcessId};

/// The programs whose memory a container has mapped.
#[derive(Debug, Default)]
pub(super) struct Owners {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_process: BTreeMap<ProcessId, u32>,
}

#[derive(Debug)]
struct Slot {
    process: ProcessId,
    mappings: u64,
    pages: u64,
}

impl Owners {
    /// One more mapping of `pages` pages, which are charged already; returns
    /// the payer's index.
    pub(super) fn add(&mut self, process: ProcessId, pages: u64) -> u32 {
        let index = match self.by_process.get(&process) {
            Some(index) => *index,
            None => {
                let slot = Slot { process, mappings: 0, pages: 0 };
                let index = match self.free.pop() {
                    Some(index) => index,
                    None => u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
                };
                match self.slots.get_mut(index as usize) {
                    Some(old) => *old = slot,
                    None => self.slots.push(slot),
                }
                self.by_process.insert(process, index);
                index
            }
        };
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.mappings += 1;
            slot.pages += pages;
        }
        index
    }

    /// `mappings` fewer mappings of together `pages` pages; uncharges them.
    pub(super) fn remove(&mut self, index: u32, mappings: u64, pages: u64, locked: &Accounts) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.mappings -= mappings;
        slot.pages -= pages;
        locked.uncharge(slot.process, pages);
        if slot.mappings == 0 {
            self.by_process.remove(&slot.process);
            self.free.push(index);
        }
    }

    /// The program behind an index.
    pub(super) fn process(&self, index: u32) -> Option<ProcessId> {
        self.slots.get(index as usize).map(|slot| slot.process)
    }

    /// Uncharges everything.
    pub(super) fn release(self, locked: &Accounts) {
        for slot in self.slots {
            if slot.mappings > 0 {
                locked.uncharge(slot.process, slot.pages);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// API-076
    #[test]
    fn places_are_used_again() {
        let (mut owners, locked) = (Owners::default(), Accounts::default());
        for round in 0..100 {
            let [one, two] = [ProcessId(2 * round), ProcessId(2 * round + 1)];
            for process in [one, one, two] {
                locked.charge(process, 3);
            }
            let (a, b) = (owners.add(one, 3), owners.add(two, 3));
            assert_ne!(a, b);
            assert_eq!(owners.add(one, 3), a);
            assert_eq!([owners.process(a), owners.process(b)], [Some(one), Some(two)]);
            owners.remove(a, 1, 3, &locked);
            assert_eq!([locked.pages(one), locked.pages(two)], [3, 3]);
            owners.remove(b, 1, 3, &locked);
            owners.remove(a, 1, 3, &locked);
            // One comes back after its place was given up.
            locked.charge(two, 1);
            let again = owners.add(two, 1);
            assert_eq!(owners.process(again), Some(two));
            owners.remove(again, 1, 1, &locked);
            assert_eq!([locked.pages(one), locked.pages(two)], [0, 0]);
        }
        assert_eq!(owners.slots.len(), 2);
    }
}
