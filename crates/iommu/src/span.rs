// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All of one mapping, for a device that has much to do in it.
//!
//! Translating an address takes longer than copying 64 bytes to it. What is the
//! same for all addresses of a mapping is done once for them here: looking it
//! up, asking for rights, and finding its bytes.

use vm_memory::VolatileSlice;

use crate::{Access, Memory, Session};

/// A mapping whose bytes can be addressed, and of whose use nothing has to be
/// noted. It is good as long as the session.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    first: u64,
    slice: VolatileSlice<'a>,
    memory: &'a dyn Memory,
    /// Of the first byte, in the memory.
    offset: u64,
    access: Access,
}

impl Session<'_> {
    /// The mapping that `iova` is in, for accesses of one kind. `None`: it is
    /// not mapped so, cannot be addressed, or each access is counted or noted:
    /// then translate one by one. Nothing is logged.
    #[inline]
    pub fn span(&mut self, iova: u64, access: Access) -> Option<Span<'_>> {
        let hit = self.find(iova, access)?;
        let memory = self.memory(hit.memory)?;
        let (first, offset) = (hit.first, hit.offset(hit.first));
        let len = usize::try_from(hit.last - hit.first).ok()?.checked_add(1)?;
        Some(Span { first, slice: memory.slice(offset, len)?, memory, offset, access })
    }
}

impl<'a> Span<'a> {
    /// `len` bytes from `iova` on, if it has them.
    #[inline]
    #[must_use]
    pub fn part(&self, iova: u64, len: usize) -> Option<VolatileSlice<'a>> {
        let at = self.at(iova, len)?;
        self.slice.subslice(at, len).ok()
    }

    /// Has `len` bytes from `iova` on fetched into the processor's cache, to be
    /// used soon. Whether the mapping has them.
    #[inline]
    #[must_use]
    pub fn prefetch(&self, iova: u64, len: usize) -> bool {
        let Some(at) = self.at(iova, len) else { return false };
        self.memory.prefetch(self.offset.wrapping_add(at as u64), len, self.access);
        true
    }

    #[inline]
    fn at(&self, iova: u64, len: usize) -> Option<usize> {
        // The slice has no more bytes than can be counted.
        let at = iova.checked_sub(self.first).filter(|at| *at < self.slice.len() as u64)? as usize;
        (len <= self.slice.len() - at).then_some(at)
    }
}
