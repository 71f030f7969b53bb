// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of a ring: in one piece where that is so, else copied.

use std::sync::atomic::{Ordering, fence};

use iommu::{Access, DmaFault, Session};
use vm_memory::{Bytes, VolatileSlice};

/// One of a ring's areas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    iova: u64,
    len: usize,
}

impl Area {
    pub(super) fn new(iova: u64, len: usize) -> Area {
        Area { iova, len }
    }

    /// The bytes themselves, if they lie in one mapping and can be addressed.
    #[inline]
    pub(super) fn direct<'s>(
        self,
        session: &'s mut Session<'_>,
        access: Access,
    ) -> Result<Option<VolatileSlice<'s>>, DmaFault> {
        let found = session.translate(self.iova, access)?;
        if found.last - self.iova < self.len as u64 - 1 {
            return Ok(None);
        }
        Ok(found.memory.slice(found.offset, self.len))
    }

    /// Loads a number; what is loaded later was stored before it.
    #[inline]
    pub(super) fn load(self, session: &mut Session<'_>, offset: usize) -> Result<u16, DmaFault> {
        if let Some(slice) = self.direct(session, Access::Read)?
            && let Ok(value) = slice.load::<u16>(offset, Ordering::Acquire)
        {
            return Ok(u16::from_le(value));
        }
        let mut bytes = [0; 2];
        self.read(session, offset, &mut bytes)?;
        fence(Ordering::Acquire);
        Ok(u16::from_le_bytes(bytes))
    }

    /// Stores a number; who sees it sees what was stored before it.
    #[inline]
    pub(super) fn store(self, session: &mut Session<'_>, offset: usize, value: u16) -> Result<(), DmaFault> {
        if let Some(slice) = self.direct(session, Access::Write)?
            && slice.store(value.to_le(), offset, Ordering::Release).is_ok()
        {
            return Ok(());
        }
        fence(Ordering::Release);
        self.write(session, offset, &value.to_le_bytes())
    }

    /// Copies from the area.
    pub(super) fn read(self, session: &mut Session<'_>, offset: usize, to: &mut [u8]) -> Result<(), DmaFault> {
        session.read(self.iova.wrapping_add(offset as u64), to)
    }

    /// Copies to the area.
    pub(super) fn write(self, session: &mut Session<'_>, offset: usize, from: &[u8]) -> Result<(), DmaFault> {
        session.write(self.iova.wrapping_add(offset as u64), from)
    }
}
