// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Splitting areas, which only VFIO's type1 needs (IOMMUFD-12.6).

use uapi::Errno;

use super::Ioas;
use super::area::{Behind, Special};
use crate::backing::{AREA, Backing, SHARED};

impl Ioas {
    /// Makes `iova` the last of an area, if it lies in one: `EBUSY`, `EINVAL`,
    /// `EOPNOTSUPP`, `ENOMEM`.
    pub(crate) fn cut(&mut self, iova: u64, backing: &mut Backing) -> Result<(), Errno> {
        let Some(area) = self.touching(iova, iova, backing) else { return Ok(()) };
        if iova == area.first || iova == area.last {
            return Ok(());
        }
        if area.origin().is_none() {
            return Err(Errno::EOPNOTSUPP);
        }
        let (start, mask) = (iova + 1, self.alignment - 1);
        if (start | area.byte(start)) & mask != 0 {
            return Err(Errno::EINVAL);
        }
        if matches!(&area.behind, Behind::Shared(special, _) if special.accesses > 0) {
            return Err(Errno::EINVAL);
        }
        if !self.domains.is_empty() && self.huge_pages {
            return Err(Errno::EINVAL);
        }
        let upper = match &area.behind {
            Behind::Own(source, _) => {
                let source = *source;
                backing.budget.take(AREA)?;
                backing.sources.share(source);
                if !self.space.split_at(start) {
                    backing.sources.give(source, 1);
                    backing.budget.give(AREA);
                    return Err(Errno::ENOMEM);
                }
                return Ok(());
            }
            Behind::Shared(special, _) => {
                let byte = area.byte(start);
                Special { pages: special.pages, start: byte, accesses: 0, locks: 0 }
            }
        };
        backing.budget.take(AREA + SHARED)?;
        if !self.space.split_at(start) {
            backing.budget.give(AREA + SHARED);
            return Err(Errno::ENOMEM);
        }
        // The pages that are pinned are the same; with large pages off the
        // halves have none in common.
        if let Some(pages) = backing.pages.get_mut(&upper.pages) {
            pages.areas += 1;
        }
        self.special.insert(start, upper);
        Ok(())
    }
}
