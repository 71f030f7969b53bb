// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! New areas (iommufd-api.md, section 5).

use caller::Pinned;
use iommu::{MapError, Mapping, Prot};
use uapi::Errno;

use super::area::tag;
use super::{Ioas, Slice};
use crate::PAGE;
use crate::backing::{AREA, Backing, DmaBuf, Origin, Pages, PagesOrigin, Payer, pages_of};

use std::sync::Arc;

/// Where an area is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// There.
    Fixed(u64),
    /// Wherever there is room.
    Anywhere,
}

/// What is mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) payer: Payer,
    pub(crate) origin: Origin,
    /// Address, or offset in the file.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// The rule for the length of what is mapped (`iopt_alloc_pages`): `EINVAL`.
pub(crate) fn check_length(length: u64) -> Result<(), Errno> {
    if length == 0 || length > u64::MAX - PAGE { Err(Errno::EINVAL) } else { Ok(()) }
}

/// The rule for a part of a dma-buf of `size` bytes (`iopt_alloc_dmabuf_pages`):
/// `EINVAL`.
pub(crate) fn check_dma_buf(size: u64, start: u64, length: u64) -> Result<(), Errno> {
    let last = start.checked_add(length.saturating_sub(1)).ok_or(Errno::EOVERFLOW)?;
    if size <= last || length / PAGE >= u64::from(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    check_length(length)
}

impl Ioas {
    /// Maps a program's memory or file. Returns the IOVA.
    pub(crate) fn map(
        &mut self,
        mapped: &Mapped,
        place: Place,
        prot: Prot,
        backing: &mut Backing,
    ) -> Result<u64, Errno> {
        let Mapped { payer, origin, address, length } = mapped;
        let (address, length) = (*address, *length);
        check_length(length)?;
        let iova = self.place(address, length, place)?;
        self.check_page_offset(address)?;

        let lazy = self.domains.is_empty();
        let write = prot.contains(Prot::WRITE);
        let pinned =
            if lazy { backing.nowhere(address) } else { backing.pin(payer, origin, address, length, write)? };
        let count = if lazy { 0 } else { pages_of(address, length) };
        self.insert_own(mapped, iova, prot, &pinned, count, backing).inspect_err(|_| {
            if !lazy {
                payer.uncharge(&backing.accounts, count);
            }
        })?;
        Ok(iova)
    }

    /// The record of an ordinary area, of which `count` pages are pinned.
    fn insert_own(
        &mut self,
        mapped: &Mapped,
        iova: u64,
        prot: Prot,
        pinned: &Pinned,
        count: u64,
        backing: &mut Backing,
    ) -> Result<(), Errno> {
        let distance = mapped.address.wrapping_sub(pinned.offset);
        let source = backing.sources.take(&mapped.payer, &mapped.origin, distance).ok_or(Errno::ENOMEM)?;
        let tag = source << tag::SOURCE_SHIFT;
        let done = self.insert(iova, mapped.length, prot, pinned, tag, backing);
        match done {
            Ok(()) => {
                if let Some(source) = backing.sources.get_mut(source) {
                    source.pinned += count;
                }
            }
            Err(_) => backing.sources.give(source, 1),
        }
        done
    }

    /// A record: `ENOMEM`; `EINVAL` where a domain refuses the rights.
    pub(super) fn insert(
        &mut self,
        iova: u64,
        length: u64,
        prot: Prot,
        pinned: &Pinned,
        tag: u32,
        backing: &Backing,
    ) -> Result<(), Errno> {
        self.check_prot(prot)?;
        backing.budget.take(AREA)?;
        let memory = Arc::clone(&pinned.memory);
        let mapping = Mapping { first: iova, last: iova + (length - 1), prot, memory, offset: pinned.offset, tag };
        self.space.map(mapping).map_err(|error| {
            backing.budget.give(AREA);
            match error {
                MapError::Overlap => Errno::EEXIST,
                MapError::NoMemory => Errno::ENOMEM,
            }
        })
    }

    /// Maps a buffer of a device: `EINVAL` beyond its end, `ENODEV` while it is
    /// revoked (IOMMUFD-5.11), `EOPNOTSUPP` if it is in pieces.
    pub(crate) fn map_dma_buf(
        &mut self,
        buffer: &Arc<DmaBuf>,
        mapped: &Mapped,
        place: Place,
        prot: Prot,
        backing: &mut Backing,
    ) -> Result<u64, Errno> {
        let Mapped { payer, address, length, .. } = mapped;
        check_dma_buf(buffer.size, *address, *length)?;
        if buffer.is_revoked() {
            return Err(Errno::ENODEV);
        }
        if !buffer.single {
            return Err(Errno::EOPNOTSUPP); // API-212
        }
        let start = address % PAGE;
        let pages = backing.add_pages(Pages {
            origin: PagesOrigin::DmaBuf { buffer: Arc::clone(buffer), lost: false, losses: buffer.losses() },
            payer: payer.clone(),
            base: address - start,
            writable: prot.contains(Prot::WRITE),
            areas: 1,
            coverage: Default::default(),
        });
        let slice = Slice { pages, start, length: *length, address: *address, writable: prot.contains(Prot::WRITE) };
        let done = self.map_slices(&[slice], *length, place, prot, backing);
        backing.put_pages(pages);
        done
    }

    /// Where `length` bytes at `address` go: the rules for IOVAs of
    /// `iopt_alloc_area_pages`.
    pub(super) fn place(&mut self, address: u64, length: u64, place: Place) -> Result<u64, Errno> {
        let mask = self.alignment - 1;
        if length == 0 || length & mask != 0 {
            return Err(Errno::EINVAL);
        }
        match place {
            Place::Anywhere => self.locate(address, length),
            Place::Fixed(iova) => {
                if iova & mask != 0 {
                    return Err(Errno::EINVAL);
                }
                let last = iova.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
                if self.reserved.touching(iova, last).is_some() {
                    return Err(Errno::EINVAL);
                }
                if self.is_mapped(iova, last) { Err(Errno::EEXIST) } else { Ok(iova) }
            }
        }
    }

    /// IOMMUFD-5.3: `EINVAL`.
    pub(super) fn check_page_offset(&self, address: u64) -> Result<(), Errno> {
        if (address % PAGE) & (self.alignment - 1) == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }
}
