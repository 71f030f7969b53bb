// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty tracking of a HWPT (iommufd-api.md, section 9).

use std::ops::ControlFlow;

use uapi::Errno;
use uapi::iommufd::{HwptGetDirtyBitmap, HwptSetDirtyTracking};

use crate::dispatch::Request;
use crate::{Call, DirtyBitmap, Iommufd};

const ENABLE: u32 = 1;
const NO_CLEAR: u32 = 1;

impl Iommufd {
    /// `IOMMU_HWPT_SET_DIRTY_TRACKING` (IOMMUFD-9.1). Turned off, pages that were
    /// written before are still reported: their bits stay in the page table.
    pub(crate) fn hwpt_set_dirty_tracking(
        &mut self,
        request: &Request,
        cmd: &mut HwptSetDirtyTracking,
        _call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags & !ENABLE != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let context = self.context_mut(request.context)?;
        let (_, paging) = context.paging(cmd.hwpt_id)?;
        let log = paging.domain.log.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let on = cmd.flags & ENABLE != 0;
        if on || log.is_enabled() {
            log.set_enabled(on);
        }
        Ok(())
    }

    /// `IOMMU_HWPT_GET_DIRTY_BITMAP` (IOMMUFD-9.2 to 9.8).
    pub(crate) fn hwpt_get_dirty_bitmap(
        &mut self,
        request: &Request,
        cmd: &mut HwptGetDirtyBitmap,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags & !NO_CLEAR != 0 || cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let context = self.context_mut(request.context)?;
        let (_, paging) = context.paging(cmd.hwpt_id)?;
        let ioas = context.ioases.get(&paging.ioas).ok_or(Errno::ENOENT)?;
        let last = check(cmd, ioas.alignment())?;
        let log = paging.domain.log.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        // What comes after the first hole is neither reported nor cleared (9.7).
        let Some(last) = ioas.mapped_until(cmd.iova, last) else { return Ok(()) };
        let (shift, granule) = (cmd.page_size.trailing_zeros(), log.page_shift());
        let mut bitmap = DirtyBitmap::new(call.caller, cmd.data, cmd.iova..=last, shift, granule);
        let _ = log.read(cmd.iova, last, cmd.flags & NO_CLEAR == 0, &mut |first, words| {
            bitmap.add(first, words);
            ControlFlow::Continue(())
        });
        bitmap.flush();
        Ok(())
    }
}

/// The last IOVA that is asked for. `EOVERFLOW`, `EINVAL`.
fn check(cmd: &HwptGetDirtyBitmap, alignment: u64) -> Result<u64, Errno> {
    let last = cmd.iova.checked_add(cmd.length.wrapping_sub(1)).ok_or(Errno::EOVERFLOW)?;
    let misaligned = |to: u64| (cmd.iova | last.wrapping_add(1)) & (to - 1) != 0;
    if misaligned(alignment) || cmd.page_size == 0 || misaligned(cmd.page_size) {
        return Err(Errno::EINVAL);
    }
    Ok(last)
}
