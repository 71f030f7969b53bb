// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a place reaches through a space: translations and memories.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{VolatileMemory, VolatileSlice};

use crate::marks::Marks;
use crate::table::Entry;
use crate::{AddressSpace, FaultReason, Memory, Prot, Tables};

/// The memories of a space that a place has used.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// By number; filled as they are used.
    memories: Vec<Option<Arc<dyn Memory>>>,
}

impl Reach {
    /// What is mapped at `address`. Its memory is known then, unless it is gone.
    pub(crate) fn find(&mut self, space: &AddressSpace, address: u64) -> Result<Entry, FaultReason> {
        let entry = space.translate(address).ok_or(FaultReason::NotMapped)?;
        if self.memory(entry.memory).is_none() {
            self.learn(space, entry.memory);
        }
        Ok(entry)
    }

    /// A memory found before.
    #[inline]
    pub(crate) fn memory(&self, number: u32) -> Option<&dyn Memory> {
        self.memories.get(number as usize)?.as_deref()
    }

    #[cold]
    fn learn(&mut self, space: &AddressSpace, number: u32) {
        let memory = space.memory(number);
        let number = number as usize;
        if self.memories.len() <= number {
            self.memories.resize(number + 1, None);
        }
        self.memories[number] = memory;
    }

    /// Lets go of a memory.
    pub(crate) fn forget(&mut self, number: u32) {
        if let Some(memory) = self.memories.get_mut(number as usize) {
            *memory = None;
        }
    }

    /// The space's memory, for a walk of tables in it.
    pub(crate) fn tables<'a>(&'a mut self, space: &'a AddressSpace, marks: Option<&'a mut Marks>) -> Walk<'a> {
        Walk { reach: self, space, marks }
    }
}

/// Tables of the program, reached through a space.
pub(crate) struct Walk<'a> {
    reach: &'a mut Reach,
    space: &'a AddressSpace,
    marks: Option<&'a mut Marks>,
}

impl Walk<'_> {
    /// The memory of the entry at `address`, and where in it.
    fn entry(&mut self, address: u64, need: Prot) -> Result<(&dyn Memory, u64), FaultReason> {
        let entry = self.reach.find(self.space, address).map_err(|_| FaultReason::Stage1Unreachable)?;
        let inside = address.checked_add(7).is_some_and(|last| last <= entry.last);
        if !inside || !entry.prot.contains(need) {
            return Err(FaultReason::Stage1Unreachable);
        }
        let memory = self.reach.memory(entry.memory).ok_or(FaultReason::Stage1Unreachable)?;
        Ok((memory, entry.offset.wrapping_add(address - entry.first)))
    }
}

impl Tables for Walk<'_> {
    fn read(&mut self, address: u64) -> Result<u64, FaultReason> {
        let (memory, offset) = self.entry(address, Prot::READ)?;
        if let Some(slice) = memory.slice(offset, 8)
            && let Ok(entry) = slice.get_atomic_ref::<AtomicU64>(0)
        {
            return Ok(u64::from_le(entry.load(Ordering::Acquire)));
        }
        let mut bytes = [0; 8];
        memory.read(offset, &VolatileSlice::from(&mut bytes[..])).map_err(|_| FaultReason::Stage1Unreachable)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn update(&mut self, address: u64, old: u64, new: u64) -> Result<bool, FaultReason> {
        let (memory, offset) = self.entry(address, Prot::READ | Prot::WRITE)?;
        let Some(slice) = memory.slice(offset, 8) else { return Ok(true) };
        let Ok(entry) = slice.get_atomic_ref::<AtomicU64>(0) else { return Ok(true) };
        let done = entry.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if let Some(marks) = &mut self.marks {
            marks.mark(address, address + 7);
        }
        Ok(done)
    }
}

/// Another device that requests reach by its bus address before any IOMMU sees
/// them: a switch, or a device of several functions, routes them so (PCIe 6.12,
/// where Access Control Services do not redirect them).
#[derive(Clone, Debug)]
pub struct Direct {
    /// First address.
    pub first: u64,
    /// Last address, inclusive.
    pub last: u64,
    /// What is there; the first address is its offset 0.
    pub memory: Arc<dyn Memory>,
}

/// Numbers of memories from here on are those of such devices.
pub(crate) const DIRECT: u32 = 1 << 31;

/// The device that an address is of, and its number.
pub(crate) fn direct_at(direct: &[Direct], iova: u64) -> Option<(u32, &Direct)> {
    (DIRECT..).zip(direct).find(|(_, window)| window.first <= iova && iova <= window.last)
}

/// How much of a range around `iova` is of no such device.
pub(crate) fn between(direct: &[Direct], iova: u64, (mut first, mut last): (u64, u64)) -> (u64, u64) {
    for window in direct {
        if window.last < iova {
            first = first.max(window.last + 1);
        } else if window.first > iova {
            last = last.min(window.first - 1);
        }
    }
    (first, last)
}
