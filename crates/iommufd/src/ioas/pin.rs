// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What accesses do with areas: pin their pages, read and write them
//! (iommufd-api.md, section 13).

use std::sync::Arc;

use caller::{Caller, is_user_range};
use iommu::Prot;
use uapi::Errno;
use vm_memory::VolatileSlice;

use super::Ioas;
use super::area::{Area, Behind};
use crate::PAGE;
use crate::backing::{Backing, Origin, Piece, pages_of};

/// What an access does with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads them.
    Read,
    /// Writes them, and perhaps reads.
    Write,
}

/// A range of which an access has the pages pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PinnedRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Whether its areas cannot be unmapped until it is unpinned.
    pub(crate) locks: bool,
}

impl Area<'_> {
    /// IOMMUFD-5.9: `EPERM`.
    fn check_use(&self, how: Use) -> Result<(), Errno> {
        let right = if how == Use::Write { Prot::WRITE } else { Prot::READ };
        if self.prot.contains(right) { Ok(()) } else { Err(Errno::EPERM) }
    }
}

impl Ioas {
    /// Pins the pages of a range and says what they are: `EINVAL` if it is not
    /// page aligned at an area's end or a dma-buf, `EPERM`, `ENOENT` if it is
    /// not covered, `EFAULT`, `ENOMEM`. On failure nothing is left.
    pub(crate) fn pin(&mut self, range: PinnedRange, how: Use, backing: &mut Backing) -> Result<Vec<Piece>, Errno> {
        let PinnedRange { first, last, locks } = range;
        let mut pieces = Vec::new();
        let mut at = first;
        loop {
            match self.pin_part(at, last, how, locks, backing) {
                Ok((mut part, end)) => {
                    pieces.append(&mut part);
                    if end >= last {
                        return Ok(pieces);
                    }
                    at = end + 1;
                }
                Err(errno) => {
                    if at > first {
                        self.unpin(PinnedRange { first, last: at - 1, locks }, backing);
                    }
                    return Err(errno);
                }
            }
        }
    }

    /// Pins from `at` to the end of its area or to `last`, and says where that is.
    fn pin_part(
        &mut self,
        at: u64,
        last: u64,
        how: Use,
        locks: bool,
        backing: &mut Backing,
    ) -> Result<(Vec<Piece>, u64), Errno> {
        let area = self.touching(at, at, backing).ok_or(Errno::ENOENT)?;
        let (first, end) = (area.first, area.last.min(last));
        let aligned = area.byte(at) % PAGE == 0 && (last <= area.last || area.byte(area.last) % PAGE == PAGE - 1);
        if !aligned {
            return Err(Errno::EINVAL);
        }
        area.check_use(how)?;
        if how == Use::Write && !area.writable() {
            return Err(Errno::EPERM);
        }
        if area.origin().is_none() {
            return Err(Errno::EINVAL);
        }
        let (id, start) = self.share(first, backing).ok_or(Errno::ENOMEM)?;
        let byte = start + (at - first);
        let to = (byte + (end - at)) / PAGE;
        backing.cover(id, byte / PAGE, to)?;
        let Some(special) = self.special.get_mut(&first) else { return Err(Errno::EINVAL) };
        special.accesses += 1;
        special.locks += u64::from(locks);
        // Whole pages: an access has pages, not bytes.
        let pages = backing.pages.get(&id);
        let pieces = pages.map(|pages| pages.coverage.pieces(byte, (to + 1) * PAGE - byte)).unwrap_or_default();
        Ok((pieces, end))
    }

    /// Undoes [`pin`](Self::pin) of the same range.
    pub(crate) fn unpin(&mut self, range: PinnedRange, backing: &mut Backing) {
        let PinnedRange { first, last, locks } = range;
        let mut at = first;
        while let Some(mapping) = self.space.at_or_after(at).filter(|mapping| mapping.first <= at) {
            let end = mapping.last.min(last);
            if let Some(special) = self.special.get_mut(&mapping.first) {
                special.accesses -= 1;
                special.locks -= u64::from(locks);
                let byte = special.start + (at - mapping.first);
                backing.uncover(special.pages, byte / PAGE, (byte + (end - at)) / PAGE);
            }
            if end == last {
                break;
            }
            at = end + 1;
        }
    }

    /// Copies between a range and `data`. `slow` does not take the shortcut
    /// through the caller's addresses. `EPERM`, `EINVAL` for a dma-buf,
    /// `EFAULT`, `ENOENT` if it is not covered; what comes before is done.
    pub(crate) fn rw(
        &self,
        iova: u64,
        data: &mut [u8],
        how: Use,
        slow: bool,
        caller: &dyn Caller,
        backing: &Backing,
    ) -> Result<(), Errno> {
        let last = iova.checked_add(data.len() as u64 - 1).ok_or(Errno::EOVERFLOW)?;
        let mut at = iova;
        loop {
            let area = self.touching(at, at, backing).ok_or(Errno::ENOENT)?;
            let end = area.last.min(last);
            area.check_use(how)?;
            let part = data.get_mut((at - iova) as usize..=(end - iova) as usize).ok_or(Errno::EINVAL)?;
            self.rw_area(&area, at, part, how, slow, caller)?;
            if end == last {
                return Ok(());
            }
            at = end + 1;
        }
    }

    /// `iopt_pages_rw_access`
    fn rw_area(
        &self,
        area: &Area<'_>,
        iova: u64,
        data: &mut [u8],
        how: Use,
        slow: bool,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if how == Use::Write && !area.writable() {
            return Err(Errno::EPERM);
        }
        let origin = area.origin().ok_or(Errno::EINVAL)?;
        let length = data.len() as u64;
        let address = area.address().wrapping_add(iova - area.first);
        let mm = &area.payer().mm;
        if matches!(origin, Origin::User) {
            let own = !slow && mm.process() == caller.process();
            if own || address / PAGE == address.wrapping_add(length - 1) / PAGE {
                // By the mapper's addresses, whatever is pinned.
                let done = match how {
                    _ if !is_user_range(address, length) => Err(Errno::EFAULT),
                    Use::Read => mm.read(address, data),
                    Use::Write => mm.write(address, data),
                };
                // If the mapper is gone its pinned pages are still there.
                if own || done.is_ok() {
                    return done;
                }
            }
        }
        let pieces = match &area.behind {
            Behind::Own(..) if !self.domains.is_empty() => {
                let memory = Arc::clone(&area.mapping.memory);
                vec![Piece { memory, offset: area.mapping.offset.wrapping_add(iova - area.first), length }]
            }
            Behind::Own(_, source) => {
                let within = address % PAGE;
                let pages = pages_of(address, length);
                let pinned = origin.pin(&source.payer, address - within, pages, area.writable())?;
                vec![Piece { memory: pinned.memory, offset: pinned.offset.wrapping_add(within), length }]
            }
            Behind::Shared(_, pages) => pages.look(area.byte(iova), length)?,
        };
        let mut rest = data;
        for piece in pieces {
            let (part, after) = rest.split_at_mut(piece.length as usize);
            let part = VolatileSlice::from(part);
            match how {
                Use::Read => piece.memory.read(piece.offset, &part),
                Use::Write => piece.memory.write(piece.offset, &part),
            }
            .map_err(|_| Errno::EFAULT)?;
            rest = after;
        }
        Ok(())
    }
}
