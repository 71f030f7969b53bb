// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands behind the mappings of a context's address spaces: whose memory
//! or which file, who pays for it, and which of its pages are pinned
//! (Linux: `struct iopt_pages`).
//!
//! An ordinary area, which is one `IOAS_MAP`, is a record of the address space
//! and nothing else. All that is not in the record is in a [`Source`], which
//! areas of the same origin share and which the record's tag names. Areas that
//! share their pages with others, by `IOAS_COPY` or an access's pins, and
//! those of dma-bufs have [`Pages`] of their own.

mod accounting;
mod budget;
mod coverage;
mod dmabuf;
mod memory;
mod pages;
mod source;

pub(crate) use accounting::{Mode, Payer};
pub(crate) use budget::{AREA, Budget, OBJECT, RANGE, SHARED};
pub(crate) use coverage::Piece;
pub use dmabuf::DmaBuf;
use memory::Nowhere;
pub(crate) use pages::{Pages, PagesId, PagesOrigin};
pub(crate) use source::{Origin, Source};

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{Accounts, Pinned};
use iommu::Memory;
use uapi::Errno;

use crate::PAGE;
use source::Sources;

/// What a context's mappings share.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) accounts: Accounts,
    pub(crate) budget: Budget,
    pub(crate) sources: Sources,
    pub(crate) pages: BTreeMap<PagesId, Pages>,
    last_pages: u64,
    /// The memory of areas that are not pinned.
    nowhere: Arc<dyn Memory>,
}

impl Backing {
    pub(crate) fn new(accounts: Accounts, budget: Budget) -> Backing {
        Backing {
            accounts,
            budget,
            sources: Sources::default(),
            pages: BTreeMap::new(),
            last_pages: 0,
            nowhere: Arc::new(Nowhere),
        }
    }

    /// What an area of which nothing is pinned points to.
    pub(crate) fn nowhere(&self, offset: u64) -> Pinned {
        Pinned { memory: Arc::clone(&self.nowhere), offset }
    }

    /// Pins `length` bytes at `address` and charges for their pages: `EFAULT`
    /// or `EINVAL` (by the origin), `ENOMEM`.
    pub(crate) fn pin(
        &self,
        payer: &Payer,
        origin: &Origin,
        address: u64,
        length: u64,
        write: bool,
    ) -> Result<Pinned, Errno> {
        let within = address % PAGE;
        let pages = pages_of(address, length);
        let mut pinned = origin.pin(payer, address - within, pages, write)?;
        payer.charge(&self.accounts, pages)?;
        pinned.offset = pinned.offset.wrapping_add(within);
        Ok(pinned)
    }

    /// New pages objects are made here; [`put_pages`](Self::put_pages) ends them.
    pub(crate) fn add_pages(&mut self, pages: Pages) -> PagesId {
        self.last_pages += 1;
        let id = PagesId(self.last_pages);
        self.pages.insert(id, pages);
        id
    }

    /// One area fewer has the pages.
    pub(crate) fn put_pages(&mut self, id: PagesId) {
        if let Some(pages) = self.pages.get_mut(&id) {
            pages.areas -= 1;
            if pages.areas == 0 {
                debug_assert!(pages.coverage.is_empty());
                self.pages.remove(&id);
            }
        }
    }

    /// Pins the pages of a range of a pages object for one more user of it.
    pub(crate) fn cover(&mut self, id: PagesId, first: u64, last: u64) -> Result<(), Errno> {
        let Some(pages) = self.pages.get_mut(&id) else { return Err(Errno::EINVAL) };
        pages.cover(first, last, &self.accounts)
    }

    /// One user fewer has the pages of a range pinned.
    pub(crate) fn uncover(&mut self, id: PagesId, first: u64, last: u64) {
        if let Some(pages) = self.pages.get_mut(&id) {
            pages.uncover(first, last, &self.accounts);
        }
    }
}

/// Pages that a range of bytes touches.
pub(crate) fn pages_of(address: u64, length: u64) -> u64 {
    (address % PAGE + length).div_ceil(PAGE)
}
