// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses: who uses an address space's memory without DMA. On Linux these
//! are emulated VFIO devices, hardware queues of vIOMMUs, and the selftest's
//! files (iommufd-api.md, section 13).
//!
//! An access keeps what it has pinned, so that its unmap callback is not more
//! than letting go of it (IOMMUFD-13.5). So 100 fruitless rounds, `EDEADLK`,
//! cannot come, nor, as calls never overlap, the `EINVAL` for pins of an area
//! that is being unmapped and the `EBUSY` of a detach under way.

use std::collections::BTreeMap;

use caller::Caller;
use uapi::Errno;

use crate::PAGE;
use crate::backing::{Piece, SHARED};
use crate::context::Context;
use crate::ids::{Kind, ObjectId};
use crate::ioas::{PinnedRange, Use};

/// An access.
#[derive(Debug)]
pub(crate) struct Access {
    ioas: Option<ObjectId>,
    /// What it asks of its IOAS: a page if it pins, else 1.
    alignment: u64,
    /// Pins of it lock their areas, and no unmap asks it to let go.
    internal: bool,
    pins: BTreeMap<u32, PinnedRange>,
    next: u32,
}

impl Context {
    /// A new access without an IOAS. `pins`: it may pin pages. Who made it
    /// destroys it; `DESTROY` is `EBUSY` until then (IOMMUFD-2.4).
    pub(crate) fn create_access(&mut self, pins: bool) -> Result<ObjectId, Errno> {
        self.insert_access(if pins { PAGE } else { 1 }, false)
    }

    /// A new access of a hardware queue.
    pub(crate) fn create_internal_access(&mut self) -> Result<ObjectId, Errno> {
        self.insert_access(PAGE, true)
    }

    fn insert_access(&mut self, alignment: u64, internal: bool) -> Result<ObjectId, Errno> {
        let id = self.ids.add(Kind::Access)?;
        self.ids.get(id);
        self.accesses.insert(id, Access { ioas: None, alignment, internal, pins: BTreeMap::new(), next: 0 });
        Ok(id)
    }

    /// Ends an access and all that it has pinned.
    pub(crate) fn destroy_access(&mut self, id: ObjectId) {
        // Cannot fail: there is no new IOAS.
        let _ = self.change_access(id, None);
        if self.accesses.remove(&id).is_some() {
            self.ids.put(id);
            self.ids.remove(id);
        }
    }

    /// Attaches an access that has no IOAS: `ENOENT`, `EADDRINUSE`, `EBUSY`.
    pub(crate) fn attach_access(&mut self, id: ObjectId, ioas: u32) -> Result<(), Errno> {
        let ioas = self.ids.expect(ioas, Kind::Ioas)?;
        self.change_access(id, Some(ioas))
    }

    /// Moves an access to another IOAS: `ENOENT` if it has none or there is no
    /// such, else as [`attach_access`](Self::attach_access) (IOMMUFD-13.4).
    pub(crate) fn replace_access(&mut self, id: ObjectId, ioas: u32) -> Result<(), Errno> {
        self.access(id)?.ioas.ok_or(Errno::ENOENT)?;
        self.attach_access(id, ioas)
    }

    /// The IOAS of an access.
    pub(crate) fn access_ioas(&self, id: ObjectId) -> Option<ObjectId> {
        self.accesses.get(&id)?.ioas
    }

    /// Whether an access may pin pages.
    pub(crate) fn access_pins(&self, id: ObjectId) -> bool {
        self.accesses.get(&id).is_some_and(|access| access.alignment == PAGE)
    }

    fn access(&mut self, id: ObjectId) -> Result<&mut Access, Errno> {
        self.accesses.get_mut(&id).ok_or(Errno::ENOENT)
    }

    fn change_access(&mut self, id: ObjectId, new: Option<ObjectId>) -> Result<(), Errno> {
        let access = self.accesses.get(&id).ok_or(Errno::ENOENT)?;
        let (old, alignment) = (access.ioas, access.alignment);
        if old == new {
            return Ok(());
        }
        if let Some(ioas) = new {
            let target = self.ioases.get_mut(&ioas).ok_or(Errno::ENOENT)?;
            target.add_access(id, alignment, &self.backing)?;
            self.ids.get(ioas);
        }
        if let Some(ioas) = old {
            self.unpin_access(id, 0, u64::MAX);
            if let Some(target) = self.ioases.get_mut(&ioas) {
                target.remove_access(id, &self.backing);
            }
            self.ids.put(ioas);
        }
        self.access(id)?.ioas = new;
        Ok(())
    }

    /// Pins the pages of a range: a number by which to unpin them, and what
    /// they are, in whole pages (IOMMUFD-13.1).
    pub(crate) fn pin_pages(
        &mut self,
        id: ObjectId,
        iova: u64,
        length: u64,
        how: Use,
    ) -> Result<(u32, Vec<Piece>), Errno> {
        let access = self.accesses.get_mut(&id).ok_or(Errno::ENOENT)?;
        if access.alignment != PAGE {
            return Err(Errno::EINVAL);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
        let ioas = access.ioas.ok_or(Errno::ENOENT)?;
        let range = PinnedRange { first: iova, last, locks: access.internal };
        let ioas = self.ioases.get_mut(&ioas).ok_or(Errno::ENOENT)?;
        self.backing.budget.take(SHARED)?;
        let budget = self.backing.budget.clone();
        let pieces = ioas.pin(range, how, &mut self.backing).inspect_err(|_| budget.give(SHARED))?;
        let pin = access.next;
        access.next = access.next.wrapping_add(1);
        access.pins.insert(pin, range);
        Ok((pin, pieces))
    }

    /// Unpins what a number stands for: `ENOENT`.
    pub(crate) fn unpin_pages(&mut self, id: ObjectId, pin: u32) -> Result<(), Errno> {
        let access = self.access(id)?;
        let range = access.pins.remove(&pin).ok_or(Errno::ENOENT)?;
        let ioas = access.ioas;
        if let Some(ioas) = ioas.and_then(|ioas| self.ioases.get_mut(&ioas)) {
            ioas.unpin(range, &mut self.backing);
        }
        self.backing.budget.give(SHARED);
        Ok(())
    }

    /// The unmap callback: lets go of all that touches a range.
    fn unpin_access(&mut self, id: ObjectId, first: u64, last: u64) {
        let Some(access) = self.accesses.get(&id) else { return };
        let touches = |range: &PinnedRange| range.first <= last && range.last >= first;
        let pins: Vec<u32> = access.pins.iter().filter(|(_, range)| touches(range)).map(|(pin, _)| *pin).collect();
        for pin in pins {
            let _ = self.unpin_pages(id, pin);
        }
    }

    /// Tells all accesses of an IOAS that an area is to go.
    pub(crate) fn notify_unmap(&mut self, ioas: ObjectId, first: u64, last: u64) {
        let accesses: Vec<ObjectId> = self.ioases.get(&ioas).map(|ioas| ioas.accesses().collect()).unwrap_or_default();
        for access in accesses {
            if self.accesses.get(&access).is_some_and(|access| !access.internal) {
                self.unpin_access(access, first, last);
            }
        }
    }

    /// Copies from or to an address space (IOMMUFD-13.2).
    pub(crate) fn rw(
        &self,
        id: ObjectId,
        iova: u64,
        data: &mut [u8],
        how: Use,
        slow: bool,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if data.is_empty() {
            return Err(Errno::EINVAL);
        }
        iova.checked_add(data.len() as u64 - 1).ok_or(Errno::EOVERFLOW)?;
        let access = self.accesses.get(&id).ok_or(Errno::ENOENT)?;
        let ioas = access.ioas.and_then(|ioas| self.ioases.get(&ioas)).ok_or(Errno::ENOENT)?;
        ioas.rw(iova, data, how, slow, caller, &self.backing)
    }
}
