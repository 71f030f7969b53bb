// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Areas: the records of the address space, and what is told of them apart.

use iommu::{Mapping, Prot};

use super::Ioas;
use crate::PAGE;
use crate::backing::{Backing, Origin, Pages, PagesId, PagesOrigin, Payer, Source, pages_of};

/// Bits of a record's tag.
pub(super) mod tag {
    /// The area has an entry among the special ones.
    pub(in crate::ioas) const SPECIAL: u32 = 1;
    /// Else, above this bit: its source.
    pub(in crate::ioas) const SOURCE_SHIFT: u32 = 4;
}

/// What there is to say of an area whose pages are shared.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) pages: PagesId,
    /// Byte of the pages at which the area begins.
    pub(super) start: u64,
    /// Pins of accesses that touch it.
    pub(super) accesses: u64,
    /// Those among them that forbid to unmap it (hardware queues).
    pub(super) locks: u64,
}

/// Where an area's pages are.
#[derive(Debug)]
pub(super) enum Behind<'a> {
    /// Its own.
    Own(u32, &'a Source),
    /// Shared ones.
    Shared(&'a Special, &'a Pages),
}

/// An area.
#[derive(Debug)]
pub(super) struct Area<'a> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) prot: Prot,
    pub(super) mapping: Mapping,
    pub(super) behind: Behind<'a>,
}

impl Area<'_> {
    /// Bytes; the whole of 2^64 cannot be mapped.
    pub(super) fn length(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Address, or offset in the file or buffer, of its first byte.
    pub(super) fn address(&self) -> u64 {
        match &self.behind {
            Behind::Own(_, source) => self.mapping.offset.wrapping_add(source.distance),
            Behind::Shared(special, pages) => pages.base.wrapping_add(special.start),
        }
    }

    pub(super) fn page_offset(&self) -> u64 {
        self.address() % PAGE
    }

    /// Whether its pages may be written at all (IOMMUFD-5.9).
    pub(super) fn writable(&self) -> bool {
        match &self.behind {
            Behind::Own(..) => self.prot.contains(Prot::WRITE),
            Behind::Shared(_, pages) => pages.writable,
        }
    }

    pub(super) fn payer(&self) -> &Payer {
        match &self.behind {
            Behind::Own(_, source) => &source.payer,
            Behind::Shared(_, pages) => &pages.payer,
        }
    }

    /// Program's memory or file; `None` for a dma-buf.
    pub(super) fn origin(&self) -> Option<&Origin> {
        match &self.behind {
            Behind::Own(_, source) => Some(&source.origin),
            Behind::Shared(_, Pages { origin: PagesOrigin::Program(origin), .. }) => Some(origin),
            Behind::Shared(..) => None,
        }
    }

    /// Pages that it touches.
    pub(super) fn pages(&self) -> u64 {
        pages_of(self.address(), self.length())
    }

    /// Byte of its pages object that is at an IOVA.
    pub(super) fn byte(&self, iova: u64) -> u64 {
        let start = match &self.behind {
            Behind::Own(..) => self.page_offset(),
            Behind::Shared(special, _) => special.start,
        };
        start + (iova - self.first)
    }
}

impl Ioas {
    /// An area by its record.
    pub(super) fn area_of<'a>(&'a self, mapping: Mapping, backing: &'a Backing) -> Option<Area<'a>> {
        let behind = if mapping.tag & tag::SPECIAL == 0 {
            let index = mapping.tag >> tag::SOURCE_SHIFT;
            Behind::Own(index, backing.sources.get(index)?)
        } else {
            let special = self.special.get(&mapping.first)?;
            Behind::Shared(special, backing.pages.get(&special.pages)?)
        };
        let (first, last, prot) = (mapping.first, mapping.last, mapping.prot);
        Some(Area { first, last, prot, mapping, behind })
    }

    /// The first area that touches a range.
    pub(super) fn touching<'a>(&'a self, first: u64, last: u64, backing: &'a Backing) -> Option<Area<'a>> {
        let mapping = self.space.at_or_after(first).filter(|mapping| mapping.first <= last)?;
        self.area_of(mapping, backing)
    }

    /// Areas that touch a range, in ascending order.
    pub(super) fn areas<'a>(
        &'a self,
        first: u64,
        last: u64,
        backing: &'a Backing,
    ) -> impl Iterator<Item = Area<'a>> + 'a {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let area = self.touching(next?, last, backing)?;
            next = area.last.checked_add(1);
            Some(area)
        })
    }

    /// Whether a range touches an area.
    pub(super) fn is_mapped(&self, first: u64, last: u64) -> bool {
        self.space.at_or_after(first).is_some_and(|mapping| mapping.first <= last)
    }

    /// Makes an ordinary area one whose pages can be shared. Returns its pages,
    /// and the byte of them at which it begins.
    pub(super) fn share(&mut self, first: u64, backing: &mut Backing) -> Option<(PagesId, u64)> {
        if let Some(special) = self.special.get(&first) {
            return Some((special.pages, special.start));
        }
        backing.budget.take(crate::backing::SHARED).ok()?;
        let area = self.touching(first, first, backing).filter(|area| area.first == first)?;
        let Behind::Own(index, source) = &area.behind else { return None };
        let (index, start, count) = (*index, area.page_offset(), area.pages());
        let mut pages = Pages {
            origin: PagesOrigin::Program(source.origin.clone()),
            payer: source.payer.clone(),
            base: area.address() - start,
            writable: area.writable(),
            areas: 1,
            coverage: Default::default(),
        };
        if !self.domains.is_empty() {
            let pinned = caller::Pinned {
                memory: std::sync::Arc::clone(&area.mapping.memory),
                offset: area.mapping.offset.wrapping_sub(start),
            };
            pages.coverage.add(0, count - 1, vec![(0, count - 1, pinned)]);
            if let Some(source) = backing.sources.get_mut(index) {
                source.pinned -= count;
            }
        }
        backing.sources.give(index, 1);
        let pages = backing.add_pages(pages);
        self.special.insert(first, Special { pages, start, accesses: 0, locks: 0 });
        self.space.update(first, &mut |mapping| mapping.tag = tag::SPECIAL);
        Some((pages, start))
    }
}
