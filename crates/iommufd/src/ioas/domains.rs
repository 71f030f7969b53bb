// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains come and go: with the first the areas are pinned, with the last
//! they are let go of.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::RangeInclusive;
use std::sync::Arc;

use caller::Pinned;
use iommu::{DirtyLog, Mapping, Prot};
use uapi::Errno;

use super::area::{Behind, tag};
use super::{Ioas, Owner};
use crate::PAGE;
use crate::backing::{Backing, PagesId};
use crate::ids::ObjectId;

/// What an IOAS must know of a domain that is to use its mappings.
#[derive(Clone, Debug)]
pub(crate) struct DomainProperties {
    /// Sizes of page, a bit each.
    pub(crate) page_sizes: u64,
    /// IOVAs that it translates.
    pub(crate) aperture: RangeInclusive<u64>,
    /// Where writes are noted: what is unmapped is clean again.
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// Whether it enforces cache coherency.
    pub(crate) coherent: bool,
    /// Whether it has mappings for writing only (a nesting parent of VT-d,
    /// which an erratum forbids read-only ones).
    pub(crate) force_writeable: bool,
}

impl DomainProperties {
    fn smallest_page(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros().min(63)
    }
}

/// The domains that use the mappings, and what calls ask of all of them
/// together: a program can make many.
#[derive(Debug, Default)]
pub(super) struct Domains {
    all: BTreeMap<ObjectId, DomainProperties>,
    /// How many have this smallest page.
    smallest_pages: BTreeMap<u64, usize>,
    logs: BTreeMap<ObjectId, Arc<DirtyLog>>,
    /// How many have mappings for writing only.
    force_writeable: usize,
    /// How many do not enforce coherency.
    incoherent: usize,
}

impl Domains {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The largest of their smallest pages.
    pub(super) fn alignment(&self) -> Option<u64> {
        self.smallest_pages.last_key_value().map(|(page, _)| *page)
    }

    fn add(&mut self, hwpt: ObjectId, domain: DomainProperties) {
        *self.smallest_pages.entry(domain.smallest_page()).or_default() += 1;
        self.force_writeable += usize::from(domain.force_writeable);
        self.incoherent += usize::from(!domain.coherent);
        if let Some(log) = &domain.log {
            self.logs.insert(hwpt, Arc::clone(log));
        }
        self.all.insert(hwpt, domain);
    }

    /// Whether it was one of them.
    fn remove(&mut self, hwpt: ObjectId) -> bool {
        let Some(domain) = self.all.remove(&hwpt) else { return false };
        if let Entry::Occupied(mut count) = self.smallest_pages.entry(domain.smallest_page()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.force_writeable -= usize::from(domain.force_writeable);
        self.incoherent -= usize::from(!domain.coherent);
        self.logs.remove(&hwpt);
        true
    }
}

impl Ioas {
    /// A domain begins to use the mappings: `EINVAL` if its pages are too
    /// large, `EADDRINUSE` if areas do not fit its pages or aperture, `EFAULT`
    /// and `ENOMEM` from pinning. On failure nothing is left behind.
    pub(crate) fn add_domain(
        &mut self,
        hwpt: ObjectId,
        domain: &DomainProperties,
        backing: &mut Backing,
    ) -> Result<(), Errno> {
        let alignment = domain.smallest_page().max(self.alignment);
        if alignment > PAGE {
            return Err(Errno::EINVAL);
        }
        if alignment != self.alignment {
            self.check_alignment(alignment, backing)?;
        }
        let owner = Owner::Domain(hwpt);
        let undo = |ioas: &mut Ioas, backing: &Backing| ioas.unreserve(owner, backing);
        let (start, end) = (*domain.aperture.start(), *domain.aperture.end());
        if let Some(before) = start.checked_sub(1) {
            self.reserve(owner, 0, before, backing)?;
        }
        if let Some(after) = end.checked_add(1) {
            self.reserve(owner, after, u64::MAX, backing).inspect_err(|_| undo(self, backing))?;
        }
        if domain.force_writeable && self.has_read_only() {
            undo(self, backing);
            return Err(Errno::EINVAL);
        }
        if self.domains.is_empty() {
            self.fill(backing).inspect_err(|_| undo(self, backing))?;
        }
        self.alignment = alignment;
        self.domains.add(hwpt, domain.clone());
        Ok(())
    }

    /// A domain, to which no device is attached any more, ends.
    pub(crate) fn remove_domain(&mut self, hwpt: ObjectId, backing: &mut Backing) {
        if !self.domains.remove(hwpt) {
            return;
        }
        if self.domains.is_empty() {
            self.unfill(u64::MAX, backing);
        }
        self.unreserve(Owner::Domain(hwpt), backing);
        // Cannot fail: the alignment does not rise.
        let _ = self.update_alignment(backing);
    }

    /// A buffer is taken away from devices (IOMMUFD-5.11): areas of these pages
    /// lead nowhere from the return on.
    pub(crate) fn revoke(&mut self, pages: &[PagesId], backing: &mut Backing) {
        if self.domains.is_empty() {
            return;
        }
        let lost = self.special.iter().filter(|(_, special)| pages.contains(&special.pages));
        for first in lost.map(|(first, _)| *first).collect::<Vec<_>>() {
            if self.point(first, &backing.nowhere(0), tag::SPECIAL) {
                continue;
            }
            // Without room for another record there must not be this one.
            if let Some(area) = self.space.at_or_after(first).filter(|area| area.first == first) {
                self.remove(first, area.last, backing);
            }
        }
    }

    /// The areas whose pages are pinned for domains and for nobody else.
    pub(crate) fn pinned_areas(&self) -> impl Iterator<Item = Mapping> {
        let mut next = (!self.domains.is_empty()).then_some(0);
        let areas = std::iter::from_fn(move || {
            let mapping = self.space.at_or_after(next?)?;
            next = mapping.last.checked_add(1);
            Some(mapping)
        });
        areas.filter(|mapping| mapping.tag & tag::SPECIAL == 0)
    }

    /// Whether domains refuse an area with these rights: `EINVAL`.
    pub(super) fn check_prot(&self, prot: Prot) -> Result<(), Errno> {
        let force_writeable = self.domains.force_writeable > 0;
        // VT-d has no entries without rights (IOMMUFD-12.4).
        let none = prot.is_empty() && !self.domains.is_empty();
        if none || (force_writeable && !prot.contains(Prot::WRITE)) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn has_read_only(&self) -> bool {
        let mut next = Some(0);
        let mut areas = std::iter::from_fn(|| {
            let mapping = self.space.at_or_after(next?)?;
            next = mapping.last.checked_add(1);
            Some(mapping.prot)
        });
        areas.any(|prot| !prot.contains(Prot::WRITE))
    }

    /// Whether every domain enforces cache coherency.
    pub(crate) fn is_coherent(&self) -> bool {
        self.domains.incoherent == 0
    }

    /// Page sizes that all domains have.
    pub(crate) fn page_sizes(&self) -> u64 {
        self.domains.all.values().fold(u64::MAX, |sizes, domain| sizes & domain.page_sizes)
    }

    /// What was written in a range that is unmapped now is of no interest.
    pub(super) fn forget_dirty(&self, first: u64, last: u64) {
        self.domains.logs.values().for_each(|log| log.clear(first, last));
    }

    /// Pins all areas for the first domain.
    fn fill(&mut self, backing: &mut Backing) -> Result<(), Errno> {
        let mut next = Some(0);
        while let Some(at) = next
            && let Some(mapping) = self.space.at_or_after(at)
        {
            let first = mapping.first;
            if let Err(errno) = self.fill_area(first, backing) {
                if let Some(end) = first.checked_sub(1) {
                    self.unfill(end, backing);
                }
                return Err(errno);
            }
            next = mapping.last.checked_add(1);
        }
        Ok(())
    }

    /// Pins an area and makes devices see it.
    fn fill_area(&mut self, first: u64, backing: &mut Backing) -> Result<(), Errno> {
        let Some(area) = self.touching(first, first, backing) else { return Ok(()) };
        let refused = area.prot.is_empty(); // as VT-d (IOMMUFD-12.4)
        let (length, count) = (area.length(), area.pages());
        match &area.behind {
            Behind::Own(old, source) => {
                let (old, address) = (*old, area.address());
                let (payer, origin) = (source.payer.clone(), source.origin.clone());
                let pinned = backing.pin(&payer, &origin, address, length, area.writable())?;
                if refused {
                    payer.uncharge(&backing.accounts, count);
                    return Err(Errno::EINVAL);
                }
                let distance = address.wrapping_sub(pinned.offset);
                let Some(new) = backing.sources.take(&payer, &origin, distance) else {
                    payer.uncharge(&backing.accounts, count);
                    return Err(Errno::ENOMEM);
                };
                if !self.point(first, &pinned, new << tag::SOURCE_SHIFT) {
                    backing.sources.give(new, 1);
                    payer.uncharge(&backing.accounts, count);
                    return Err(Errno::ENOMEM);
                }
                if let Some(source) = backing.sources.get_mut(new) {
                    source.pinned += count;
                }
                backing.sources.give(old, 1);
            }
            Behind::Shared(special, _) => {
                let (id, start) = (special.pages, special.start);
                let (from, to) = (start / PAGE, (start + length - 1) / PAGE);
                backing.cover(id, from, to)?;
                let memory = backing.pages.get(&id).map(|pages| pages.memory(start, length));
                let done = memory.unwrap_or(Err(Errno::EFAULT)).and_then(|memory| match memory {
                    _ if refused => Err(Errno::EINVAL),
                    Some(pinned) if !self.point(first, &pinned, tag::SPECIAL) => Err(Errno::ENOMEM),
                    _ => Ok(()),
                });
                done.inspect_err(|_| backing.uncover(id, from, to))?;
            }
        }
        Ok(())
    }

    /// Lets go of all areas up to an IOVA.
    fn unfill(&mut self, last: u64, backing: &mut Backing) {
        let mut next = Some(0);
        while let Some(at) = next
            && let Some(mapping) = self.space.at_or_after(at)
            && mapping.first <= last
        {
            self.unfill_area(mapping.first, backing);
            next = mapping.last.checked_add(1);
        }
    }

    fn unfill_area(&mut self, first: u64, backing: &mut Backing) {
        let Some(area) = self.touching(first, first, backing) else { return };
        let (length, count, address) = (area.length(), area.pages(), area.address());
        match &area.behind {
            Behind::Own(old, source) => {
                let (old, payer, origin) = (*old, source.payer.clone(), source.origin.clone());
                if let Some(source) = backing.sources.get_mut(old) {
                    source.pinned -= count;
                }
                // Without room for that it keeps its source, which says the
                // address, too; nobody is attached to the space any more.
                let to = backing.nowhere(address);
                if let Some(new) = backing.sources.take(&payer, &origin, 0) {
                    let moved = self.point(first, &to, new << tag::SOURCE_SHIFT);
                    backing.sources.give(if moved { old } else { new }, 1);
                }
                payer.uncharge(&backing.accounts, count);
            }
            Behind::Shared(special, _) => {
                let (id, start) = (special.pages, special.start);
                self.point(first, &backing.nowhere(0), tag::SPECIAL);
                backing.uncover(id, start / PAGE, (start + length - 1) / PAGE);
            }
        }
    }

    /// Makes an area point to memory; whether there was room for that.
    pub(super) fn point(&self, first: u64, to: &Pinned, tag: u32) -> bool {
        self.space.update(first, &mut |mapping| {
            mapping.memory = Arc::clone(&to.memory);
            (mapping.offset, mapping.tag) = (to.offset, tag);
        })
    }
}
