// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memories that areas point to where there is no plain one.

use std::sync::Arc;

use iommu::{Memory, MemoryFault, PageId};
use vm_memory::VolatileSlice;

use super::Piece;

/// Memory of areas of which nothing is pinned: there is none.
#[derive(Debug)]
pub(crate) struct Nowhere;

impl Memory for Nowhere {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _offset: u64, _to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Err(MemoryFault)
    }

    fn write(&self, _offset: u64, _from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Err(MemoryFault)
    }
}

/// Pages that were pinned at several times and are not one run of one memory.
/// Offsets count from the first byte.
#[derive(Debug)]
pub(super) struct Patchwork {
    /// Where each piece ends.
    ends: Vec<u64>,
    pieces: Vec<Piece>,
}

impl Patchwork {
    pub(super) fn new(pieces: Vec<Piece>) -> Patchwork {
        let mut end = 0;
        let ends = pieces.iter().map(|piece| {
            end += piece.length;
            end
        });
        Patchwork { ends: ends.collect(), pieces }
    }

    /// The memory at an offset: where in it, and how many bytes of it there are.
    fn find(&self, offset: u64) -> Option<(&Arc<dyn Memory>, u64, u64)> {
        let at = self.ends.partition_point(|end| *end <= offset);
        let (end, piece) = (*self.ends.get(at)?, self.pieces.get(at)?);
        let within = offset - (end - piece.length);
        Some((&piece.memory, piece.offset.wrapping_add(within), end - offset))
    }

    fn each(
        &self,
        offset: u64,
        own: &VolatileSlice<'_>,
        copy: impl Fn(&dyn Memory, u64, &VolatileSlice<'_>) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let mut done = 0;
        while done < own.len() {
            let at = offset.checked_add(done as u64).ok_or(MemoryFault)?;
            let (memory, at, left) = self.find(at).ok_or(MemoryFault)?;
            let run = usize::try_from(left).unwrap_or(usize::MAX).min(own.len() - done);
            copy(&**memory, at, &own.subslice(done, run).map_err(|_| MemoryFault)?)?;
            done += run;
        }
        Ok(())
    }
}

impl Memory for Patchwork {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let (memory, at, left) = self.find(offset)?;
        if len as u64 > left {
            return None;
        }
        memory.slice(at, len)
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.each(offset, to, |memory, at, part| memory.read(at, part))
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.each(offset, from, |memory, at, part| memory.write(at, part))
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        let (memory, at, _) = self.find(offset)?;
        memory.identity(at)
    }
}
