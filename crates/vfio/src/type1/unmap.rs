// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_UNMAP_DMA`.

use caller::{Accounts, Caller, is_user_range};
use uapi::Errno;
use uapi::vfio::type1::{Bitmap, DmaUnmap, UnmapFlags};

use super::dirty::{Unwritten, check_size};
use super::{PAGE, TRACKED_PAGES_MAX, Type1, charged, pages, tag};
use crate::args;

impl Type1 {
    pub(super) fn unmap_dma(&mut self, arg: u64, caller: &dyn Caller, locked: &Accounts) -> Result<(), Errno> {
        let minsz = size_of::<DmaUnmap>();
        let mut unmap: DmaUnmap = args::read(caller, arg, minsz)?;
        let flags = UnmapFlags::from_bits(unmap.flags).ok_or(Errno::EINVAL)?;
        let report = flags.contains(UnmapFlags::GET_DIRTY_BITMAP);
        if report && flags.intersects(UnmapFlags::ALL | UnmapFlags::VADDR) {
            return Err(Errno::EINVAL);
        }
        let bitmap = if report { Some(read_bitmap(caller, arg, &unmap)?) } else { None };

        // Emulated (mdev) groups, with which VADDR is EBUSY, do not exist here.
        if unmap.iova & (PAGE - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let all = flags.contains(UnmapFlags::ALL);
        let last = if all {
            if unmap.iova != 0 || unmap.size != 0 {
                return Err(Errno::EINVAL);
            }
            u64::MAX
        } else {
            if unmap.size == 0 || unmap.size & (PAGE - 1) != 0 {
                return Err(Errno::EINVAL);
            }
            unmap.iova.checked_add(unmap.size - 1).ok_or(Errno::EOVERFLOW)?
        };
        if bitmap.is_some_and(|b| !self.tracking || b.pgsize != PAGE) {
            return Err(Errno::EINVAL); // API-083
        }
        let last = if self.v2 {
            if !all && self.bisects(unmap.iova, last) {
                return Err(Errno::EINVAL);
            }
            Some(last)
        } else {
            self.widened(unmap.iova, last)
        };

        unmap.size = match last {
            None => 0,
            Some(last) if flags.contains(UnmapFlags::VADDR) => self.invalidate(unmap.iova, last)?,
            Some(last) => {
                if let Some(bitmap) = bitmap
                    && let Err(Unwritten { before }) = self.report(unmap.iova, last, bitmap.data, caller)
                {
                    // What was reported is gone, as each mapping goes when its
                    // bits are out.
                    if before > unmap.iova {
                        self.remove(unmap.iova, before - 1, locked);
                    }
                    return Err(Errno::EFAULT);
                }
                self.remove(unmap.iova, last, locked)
            }
        };
        tracing::trace!(name: "vfio.unmap_dma", iova = unmap.iova, size = unmap.size, flags = unmap.flags);
        args::write_prefix(caller, arg, &unmap, minsz)
    }

    /// Where a version 1 range really ends: mappings that begin in it go as a
    /// whole. `None` if it begins inside of one, then nothing goes (API-087).
    fn widened(&self, first: u64, last: u64) -> Option<u64> {
        if self.overlap(first, last).is_some_and(|m| m.first < first) {
            return None;
        }
        Some(self.overlap(last, last).map_or(last, |m| m.last))
    }

    /// Removes the mappings in a range; the bytes removed.
    fn remove(&mut self, first: u64, last: u64, locked: &Accounts) -> u64 {
        let mut removed = 0;
        // Neighbours mostly have one owner: settle with it once for a run.
        let mut run: Option<(u32, u64, u64)> = None;
        let (owners, invalid) = (&mut self.owners, &mut self.invalid);
        let (available, untrackable) = (&mut self.available, &mut self.untrackable);
        self.space.unmap(first, last, &mut |m| {
            let (owner, pages, charged) = (m.tag >> tag::OWNER_SHIFT, pages(m), charged(m));
            removed += pages * PAGE;
            *available += 1;
            *invalid -= u64::from(m.tag & tag::INVALID != 0);
            *untrackable -= u64::from(pages > TRACKED_PAGES_MAX);
            match &mut run {
                Some((same, mappings, total)) if *same == owner => {
                    *mappings += 1;
                    *total += charged;
                }
                _ => {
                    if let Some((owner, mappings, pages)) = run.replace((owner, 1, charged)) {
                        owners.remove(owner, mappings, pages, locked);
                    }
                }
            }
        });
        if let Some((owner, mappings, pages)) = run {
            owners.remove(owner, mappings, pages, locked);
        }
        removed
    }

    /// Takes `vaddr` away from the mappings in a range; the bytes covered. If
    /// one has none, no mapping is changed and it is `EINVAL` (API-089).
    fn invalidate(&mut self, first: u64, last: u64) -> Result<u64, Errno> {
        let (mut covered, mut count, mut at) = (0, 0, first);
        while let Some(m) = self.overlap(at, last) {
            if m.tag & tag::INVALID != 0 {
                self.validate(first, at);
                return Err(Errno::EINVAL);
            }
            self.space.update(m.first, &mut |m| m.tag |= tag::INVALID);
            covered += pages(&m) * PAGE;
            count += 1;
            match m.last.checked_add(1) {
                Some(next) => at = next,
                None => break,
            }
        }
        self.invalid += count;
        Ok(covered)
    }

    /// Undoes what [`invalidate`](Self::invalidate) did below `end`.
    fn validate(&self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let Some(m) = self.space.at_or_after(at).filter(|m| m.first < end) else { break };
            self.space.update(m.first, &mut |m| m.tag &= !tag::INVALID);
            match m.last.checked_add(1) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
}

/// The bitmap that follows the structure (API-080).
fn read_bitmap(caller: &dyn Caller, arg: u64, unmap: &DmaUnmap) -> Result<Bitmap, Errno> {
    let minsz = size_of::<DmaUnmap>();
    if (unmap.argsz as usize) < minsz + size_of::<Bitmap>() {
        return Err(Errno::EINVAL);
    }
    let bitmap: Bitmap = args::read_plain(caller, arg.checked_add(minsz as u64).ok_or(Errno::EFAULT)?)?;
    if !is_user_range(bitmap.data, bitmap.size) {
        return Err(Errno::EINVAL);
    }
    check_size(unmap.size, &bitmap)?;
    Ok(bitmap)
}
