// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! I/O address spaces: which IOVAs are mapped to what, which must not be used,
//! and who uses the mappings (Linux: `struct io_pagetable`).
//!
//! All domains of an IOAS have the same mappings, so there is one
//! [`AddressSpace`], to which their devices are attached. Its records are the
//! areas; while there is no domain they point [`Nowhere`](crate::backing::Nowhere)
//! and remember the address (lazy mappings, IOMMUFD-5.6).

mod area;
mod copy;
mod domains;
mod locate;
mod map;
mod pin;
mod reserve;
mod split;
mod unmap;

pub(crate) use copy::{Slice, put_slices};
pub(crate) use domains::DomainProperties;
pub(crate) use map::{Mapped, Place, check_dma_buf, check_length};
pub(crate) use pin::{PinnedRange, Use};
pub(crate) use reserve::{Allowed, Owner};
pub(crate) use unmap::Then;

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::AddressSpace;
use uapi::Errno;

use crate::ids::ObjectId;
use crate::{PAGE, backing};
use area::Special;
use backing::Backing;
use domains::Domains;
use reserve::Reserved;

/// An I/O address space.
#[derive(Debug)]
pub(crate) struct Ioas {
    space: Arc<AddressSpace>,
    domains: Domains,
    reserved: Reserved,
    allowed: Allowed,
    /// Accesses that use it, and the alignment that each asks for: a page or 1.
    accesses: BTreeMap<ObjectId, u64>,
    /// How many ask for a page.
    page_accesses: usize,
    huge_pages: bool,
    alignment: u64,
    /// What there is to say of areas that are no ordinary ones, by first IOVA.
    special: BTreeMap<u64, Special>,
    /// All from `PAGE` up to here is mapped or reserved.
    frontier: u64,
}

impl Ioas {
    /// IOMMUFD-3.2
    pub(crate) fn new() -> Ioas {
        Ioas {
            space: AddressSpace::new(),
            domains: Domains::default(),
            reserved: Reserved::default(),
            allowed: Allowed::default(),
            accesses: BTreeMap::new(),
            page_accesses: 0,
            huge_pages: true,
            alignment: 1,
            special: BTreeMap::new(),
            frontier: PAGE,
        }
    }

    /// The mappings, as devices see them.
    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// What IOVAs, lengths and offsets in pages are multiples of.
    pub(crate) fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Whether large pages may be used (`IOMMU_OPTION_HUGE_PAGES`).
    pub(crate) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Turns large pages on.
    pub(crate) fn enable_huge_pages(&mut self, backing: &Backing) {
        self.huge_pages = true;
        // Cannot fail: the alignment does not rise.
        let _ = self.update_alignment(backing);
    }

    /// Turns large pages off: `EINVAL` if domains have pages mapped,
    /// `EADDRINUSE` if an area is not page aligned (IOMMUFD-6.3).
    pub(crate) fn disable_huge_pages(&mut self, backing: &Backing) -> Result<(), Errno> {
        if !self.huge_pages {
            return Ok(());
        }
        if !self.domains.is_empty() && !self.space.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.huge_pages = false;
        self.update_alignment(backing).inspect_err(|_| self.huge_pages = true)
    }

    /// Makes the alignment what domains, accesses and the option ask for:
    /// `EADDRINUSE` if an area does not conform to a higher one (IOMMUFD-4.5).
    fn update_alignment(&mut self, backing: &Backing) -> Result<(), Errno> {
        let least = if self.huge_pages && self.page_accesses == 0 { 1 } else { PAGE };
        let alignment = self.domains.alignment().unwrap_or(1).max(least);
        if alignment > self.alignment {
            self.check_alignment(alignment, backing)?;
        }
        self.alignment = alignment;
        Ok(())
    }

    /// Whether all areas conform to an alignment: `EADDRINUSE`.
    fn check_alignment(&self, alignment: u64, backing: &Backing) -> Result<(), Errno> {
        let mask = alignment - 1;
        for area in self.areas(0, u64::MAX, backing) {
            if (area.first | (area.last - area.first + 1) | area.page_offset()) & mask != 0 {
                return Err(Errno::EADDRINUSE);
            }
        }
        Ok(())
    }

    /// Most accesses of an IOAS (IOMMUFD-13.3).
    const ACCESSES: usize = 1 << 16;

    /// An access begins to use the mappings: `EBUSY` if there are too many,
    /// `EADDRINUSE` if an area does not conform to its alignment.
    pub(crate) fn add_access(&mut self, access: ObjectId, alignment: u64, backing: &Backing) -> Result<(), Errno> {
        if self.accesses.len() >= Self::ACCESSES {
            return Err(Errno::EBUSY);
        }
        self.page_accesses += usize::from(alignment == PAGE);
        if let Err(errno) = self.update_alignment(backing) {
            self.page_accesses -= usize::from(alignment == PAGE);
            return Err(errno);
        }
        self.accesses.insert(access, alignment);
        Ok(())
    }

    /// An access, which has nothing pinned, ends.
    pub(crate) fn remove_access(&mut self, access: ObjectId, backing: &Backing) {
        let alignment = self.accesses.remove(&access);
        self.page_accesses -= usize::from(alignment == Some(PAGE));
        let _ = self.update_alignment(backing);
    }

    /// The accesses that use it.
    pub(crate) fn accesses(&self) -> impl Iterator<Item = ObjectId> {
        self.accesses.keys().copied()
    }

    /// Gives back all that it has. No domain and no access uses it.
    pub(crate) fn release(mut self, backing: &mut Backing) {
        self.unmap_all(backing);
        let ranges = self.reserved.len() + self.allowed.len();
        backing.budget.give(ranges as u64 * backing::RANGE);
    }
}
