// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memories that a space's mappings point into. A record names its memory
//! by a number; a memory that several mappings share has one number.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use crate::Memory;
use crate::sync::RwLock;
use crate::table::MEMORIES;

/// From number to memory. Its lock is held for moments only, never while
/// somebody waits for a session.
#[derive(Debug, Default)]
pub(crate) struct Memories(RwLock<Vec<Option<Arc<dyn Memory>>>>);

impl Memories {
    pub(crate) fn get(&self, number: u32) -> Option<Arc<dyn Memory>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(number as usize)?.clone()
    }

    fn set(&self, number: u32, memory: Option<Arc<dyn Memory>>) {
        let mut memories = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let number = number as usize;
        if memories.len() <= number {
            memories.resize(number + 1, None);
        }
        let old = std::mem::replace(&mut memories[number], memory);
        drop(memories);
        drop(old);
    }
}

/// From memory to number, for the writer.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    by_address: HashMap<usize, u32>,
    uses: Vec<Uses>,
    free: Vec<u32>,
    latest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Uses {
    address: usize,
    count: u32,
}

fn address(memory: &Arc<dyn Memory>) -> usize {
    Arc::as_ptr(memory).cast::<()>().addr()
}

impl Numbers {
    /// The number of `memory`, for one more mapping.
    pub(crate) fn take(&mut self, memories: &Memories, memory: &Arc<dyn Memory>) -> Option<u32> {
        let address = address(memory);
        if let Some(uses) = self.uses.get_mut(self.latest as usize)
            && uses.address == address
            && uses.count > 0
        {
            uses.count += 1;
            return Some(self.latest);
        }
        let number = match self.by_address.get(&address) {
            Some(number) => *number,
            None => {
                let number = match self.free.pop() {
                    Some(number) => number,
                    None => {
                        let number = u32::try_from(self.uses.len()).ok().filter(|number| *number < MEMORIES)?;
                        self.uses.push(Uses { address, count: 0 });
                        number
                    }
                };
                self.uses[number as usize] = Uses { address, count: 0 };
                memories.set(number, Some(memory.clone()));
                self.by_address.insert(address, number);
                number
            }
        };
        self.uses[number as usize].count += 1;
        self.latest = number;
        Some(number)
    }

    /// One mapping fewer uses it. Returns whether none is left: then
    /// [`forget`](Self::forget) it after a fence.
    pub(crate) fn give(&mut self, number: u32) -> bool {
        let Some(uses) = self.uses.get_mut(number as usize) else { return false };
        uses.count -= 1;
        uses.count == 0
    }

    /// Lets go of a memory.
    pub(crate) fn forget(&mut self, memories: &Memories, number: u32) {
        let Some(uses) = self.uses.get(number as usize) else { return };
        self.by_address.remove(&uses.address);
        self.free.push(number);
        memories.set(number, None);
    }

    pub(crate) fn memory_used(&self) -> usize {
        self.uses.capacity() * (size_of::<Uses>() + size_of::<Option<Arc<dyn Memory>>>())
            + self.free.capacity() * size_of::<u32>()
            // One byte of control beside each entry, an eighth of all entries empty.
            + self.by_address.capacity() * 8 / 7 * (size_of::<(usize, u32)>() + 1)
    }
}
