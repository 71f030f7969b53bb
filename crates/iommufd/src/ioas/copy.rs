// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Areas that share the pages of others: `IOMMU_IOAS_COPY`.

use iommu::Prot;
use uapi::Errno;

use super::area::{Special, tag};
use super::{Ioas, Place};
use crate::PAGE;
use crate::backing::{Backing, PagesId, SHARED};

/// A part of shared pages that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    pub(crate) pages: PagesId,
    /// Byte of the pages at which it begins.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// Address, or offset in the file or buffer, of its first byte.
    pub(crate) address: u64,
    /// Whether the pages may be written.
    pub(crate) writable: bool,
}

impl Ioas {
    /// The pages behind a range, one slice for each area: `EINVAL`,
    /// `EOVERFLOW`, `ENOENT` if it is not covered (IOMMUFD-5.13). The pages are
    /// held until [`put_slices`].
    pub(crate) fn slices(&mut self, iova: u64, length: u64, backing: &mut Backing) -> Result<Vec<Slice>, Errno> {
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
        if !self.is_covered(iova, last) {
            return Err(Errno::ENOENT);
        }
        let mut slices = Vec::new();
        let mut at = iova;
        loop {
            let slice = self.slice(at, last, backing).inspect_err(|_| put_slices(&slices, backing));
            let (slice, end) = slice?;
            slices.push(slice);
            if end >= last {
                return Ok(slices);
            }
            at = end + 1;
        }
    }

    /// The slice from `at` to the end of its area or to `last`, and where that is.
    fn slice(&mut self, at: u64, last: u64, backing: &mut Backing) -> Result<(Slice, u64), Errno> {
        let area = self.touching(at, at, backing).ok_or(Errno::ENOENT)?;
        let (first, end, writable) = (area.first, area.last.min(last), area.writable());
        let address = area.address().wrapping_add(at - first);
        let (pages, start) = self.share(first, backing).ok_or(Errno::ENOMEM)?;
        if let Some(pages) = backing.pages.get_mut(&pages) {
            pages.areas += 1;
        }
        Ok((Slice { pages, start: start + (at - first), length: end - at + 1, address, writable }, end))
    }

    /// Whether areas cover a range without a gap.
    pub(crate) fn is_covered(&self, first: u64, last: u64) -> bool {
        self.mapped_until(first, last) == Some(last)
    }

    /// Up to where in `first..=last` areas cover it without a gap; nothing if
    /// there is none at `first`.
    pub(crate) fn mapped_until(&self, first: u64, last: u64) -> Option<u64> {
        let mut end = None;
        let mut at = first;
        while let Some(mapping) = self.space.at_or_after(at).filter(|mapping| mapping.first <= at) {
            end = Some(mapping.last.min(last));
            match mapping.last.checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => break,
            }
        }
        end
    }

    /// Maps slices side by side, an area for each. Returns the IOVA of the first.
    pub(crate) fn map_slices(
        &mut self,
        slices: &[Slice],
        length: u64,
        place: Place,
        prot: Prot,
        backing: &mut Backing,
    ) -> Result<u64, Errno> {
        let address = slices.first().ok_or(Errno::EINVAL)?.address;
        let iova = self.place(address, length, place)?;
        for slice in slices {
            if prot.contains(Prot::WRITE) && !slice.writable {
                return Err(Errno::EPERM);
            }
            self.check_page_offset(slice.address)?;
        }
        let mut at = iova;
        for slice in slices {
            if let Err(errno) = self.map_slice(slice, at, prot, backing) {
                if at > iova {
                    self.remove(iova, at - 1, backing);
                }
                return Err(errno);
            }
            at = at.wrapping_add(slice.length);
        }
        Ok(iova)
    }

    fn map_slice(&mut self, slice: &Slice, iova: u64, prot: Prot, backing: &mut Backing) -> Result<(), Errno> {
        let Slice { pages: id, start, length, .. } = *slice;
        let (from, to) = (start / PAGE, (start + length - 1) / PAGE);
        let mut pinned = backing.nowhere(0);
        backing.budget.take(SHARED)?;
        let filled = !self.domains.is_empty();
        let done = (|| {
            if filled {
                backing.cover(id, from, to)?;
                let memory = backing.pages.get(&id).map_or(Ok(None), |pages| pages.memory(start, length));
                match memory {
                    Ok(Some(memory)) => pinned = memory,
                    Ok(None) => {}
                    Err(errno) => {
                        backing.uncover(id, from, to);
                        return Err(errno);
                    }
                }
            }
            self.insert(iova, length, prot, &pinned, tag::SPECIAL, backing).inspect_err(|_| {
                if filled {
                    backing.uncover(id, from, to);
                }
            })
        })();
        if let Err(errno) = done {
            backing.budget.give(SHARED);
            return Err(errno);
        }
        self.special.insert(iova, Special { pages: id, start, accesses: 0, locks: 0 });
        if let Some(pages) = backing.pages.get_mut(&id) {
            pages.areas += 1;
        }
        Ok(())
    }
}

/// Lets go of what [`Ioas::slices`] held.
pub(crate) fn put_slices(slices: &[Slice], backing: &mut Backing) {
    for slice in slices {
        backing.put_pages(slice.pages);
    }
}
