// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that more than one area or an access uses.

use std::sync::Arc;

use caller::{Accounts, Pinned};
use uapi::Errno;

use super::coverage::Coverage;
use super::{DmaBuf, Origin, Payer, Piece};
use crate::PAGE;

/// A pages object of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PagesId(pub(super) u64);

/// What pages come from.
#[derive(Clone, Debug)]
pub(crate) enum PagesOrigin {
    /// A program's memory or a file.
    Program(Origin),
    /// A buffer of a device. `lost`: it was revoked since it was mapped, and
    /// does not come back (IOMMUFD-5.11).
    DmaBuf {
        /// The buffer.
        buffer: Arc<DmaBuf>,
        /// Whether it was revoked.
        lost: bool,
        /// How often it had been when it was mapped.
        losses: u64,
    },
}

/// What a program mapped in one call, with all areas and accesses that use it.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) origin: PagesOrigin,
    pub(crate) payer: Payer,
    /// Address, or offset in the file or buffer, of page 0.
    pub(crate) base: u64,
    /// Whether the pages may ever be written through it.
    pub(crate) writable: bool,
    /// Areas that use it.
    pub(crate) areas: u64,
    pub(crate) coverage: Coverage,
}

impl Pages {
    /// Pins a range of pages for one more user: those that nobody has pinned.
    /// On failure nothing is left.
    pub(super) fn cover(&mut self, first: u64, last: u64, accounts: &Accounts) -> Result<(), Errno> {
        let PagesOrigin::Program(origin) = &self.origin else { return Ok(()) };
        let (mut pins, mut new) = (Vec::new(), 0);
        for (first, last) in self.coverage.holes(first, last) {
            pins.push((first, last, self.pin(origin, first, last)?));
            new += last - first + 1;
        }
        if new > 0 {
            self.payer.charge(accounts, new)?;
        }
        self.coverage.add(first, last, pins);
        Ok(())
    }

    /// Undoes [`cover`](Self::cover).
    pub(super) fn uncover(&mut self, first: u64, last: u64, accounts: &Accounts) {
        if let PagesOrigin::Program(_) = &self.origin {
            let unused = self.coverage.remove(first, last);
            if unused > 0 {
                self.payer.uncharge(accounts, unused);
            }
        }
    }

    /// The memory of a range of bytes for devices; nothing if a buffer was
    /// revoked. All of it is pinned.
    pub(crate) fn memory(&self, start: u64, length: u64) -> Result<Option<Pinned>, Errno> {
        match &self.origin {
            PagesOrigin::Program(_) => self.coverage.memory(start, length).map(Some),
            PagesOrigin::DmaBuf { lost: true, .. } => Ok(None),
            PagesOrigin::DmaBuf { buffer, .. } => Ok(Some(buffer.memory(self.base + start))),
        }
    }

    /// The memory of a range of bytes for a moment: what is pinned as it is,
    /// the rest pinned only now and charged to nobody.
    pub(crate) fn look(&self, start: u64, length: u64) -> Result<Vec<Piece>, Errno> {
        let PagesOrigin::Program(origin) = &self.origin else { return Err(Errno::EINVAL) };
        let (mut at, end) = (start, start + length);
        let mut pieces = Vec::new();
        for (first, last) in self.coverage.holes(start / PAGE, (end - 1) / PAGE) {
            if first * PAGE > at {
                pieces.append(&mut self.coverage.pieces(at, first * PAGE - at));
                at = first * PAGE;
            }
            let Pinned { memory, offset } = self.pin(origin, first, last)?;
            let stop = end.min((last + 1) * PAGE);
            pieces.push(Piece { memory, offset: offset.wrapping_add(at - first * PAGE), length: stop - at });
            at = stop;
        }
        if at < end {
            pieces.append(&mut self.coverage.pieces(at, end - at));
        }
        Ok(pieces)
    }

    fn pin(&self, origin: &Origin, first: u64, last: u64) -> Result<Pinned, Errno> {
        origin.pin(&self.payer, self.base.wrapping_add(first * PAGE), last - first + 1, self.writable)
    }
}
