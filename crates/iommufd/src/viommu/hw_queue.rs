// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hardware queues of vIOMMUs, whose memory stays mapped while they are there
//! (IOMMUFD-11.12).

use iommu::PageId;
use uapi::Errno;
use uapi::iommufd::HwQueueAlloc;
use uapi::iommufd_hw::NONE;

use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::ioas::Use;
use crate::{Call, Iommufd, PAGE};

/// A hardware queue.
#[derive(Debug)]
pub(crate) struct HwQueue {
    viommu: ObjectId,
    /// The access that has its memory pinned.
    access: ObjectId,
    /// The queue that it cannot be without.
    depends_on: Option<ObjectId>,
}

impl Iommufd {
    /// `IOMMU_HW_QUEUE_ALLOC`.
    pub(crate) fn hw_queue_alloc(
        &mut self,
        request: &Request,
        cmd: &mut HwQueueAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags != 0 || cmd.kind == NONE {
            return Err(Errno::EOPNOTSUPP);
        }
        if cmd.length == 0 {
            return Err(Errno::EINVAL);
        }
        cmd.nesting_parent_iova.checked_add(cmd.length - 1).ok_or(Errno::EOVERFLOW)?;
        let context = self.context_mut(request.context)?;
        let viommu = context.ids.expect(cmd.viommu_id, Kind::Viommu)?;
        context.viommus.get(&viommu).ok_or(Errno::ENOENT)?.driver.check_hw_queue(cmd.kind)?;
        let id = context.ids.add(Kind::HwQueue)?;
        let first = cmd.nesting_parent_iova / PAGE * PAGE;
        // In whole pages.
        let length = cmd.length.checked_add(cmd.nesting_parent_iova - first).ok_or(Errno::ERANGE);
        let length = length.and_then(|length| length.checked_next_multiple_of(PAGE).ok_or(Errno::ERANGE));
        let made = length.and_then(|length| context.alloc_hw_queue(id, viommu, cmd.index, (first, length)));
        made.inspect_err(|_| context.ids.remove(id))?;
        cmd.out_hw_queue_id = id.0;
        request.argument.respond(call.caller, cmd).inspect_err(|_| context.destroy_hw_queue(id))
    }
}

impl Context {
    fn alloc_hw_queue(
        &mut self,
        id: ObjectId,
        viommu: ObjectId,
        index: u32,
        (first, length): (u64, u64),
    ) -> Result<(), Errno> {
        let access = self.create_internal_access()?;
        let pinned = self.pin_hw_queue(access, viommu, first, length);
        let driver = self.viommus.get_mut(&viommu).ok_or(Errno::ENOENT).map(|viommu| &mut viommu.driver);
        let depends_on =
            pinned.and_then(|()| driver?.add_hw_queue(index, id)).inspect_err(|_| self.destroy_access(access))?;
        if let Some(other) = depends_on {
            self.ids.get(other);
        }
        self.ids.get(viommu);
        self.hw_queues.insert(id, HwQueue { viommu, access, depends_on });
        Ok(())
    }

    /// Pins what must lie in one piece: `EFAULT`.
    fn pin_hw_queue(&mut self, access: ObjectId, viommu: ObjectId, first: u64, length: u64) -> Result<(), Errno> {
        let parent = self.viommus.get(&viommu).ok_or(Errno::ENOENT)?.hwpt;
        let ioas = self.ioas_of(parent).ok_or(Errno::ENOENT)?;
        self.attach_access(access, ioas.0)?;
        let (_, pieces) = self.pin_pages(access, first, length, Use::Read)?;
        let mut pages = pieces.iter().flat_map(|piece| {
            (0..piece.length / PAGE).map(|page| piece.memory.identity(piece.offset.wrapping_add(page * PAGE)))
        });
        let mut last = pages.next().flatten();
        let contiguous = pages.all(|page| {
            let follows = follows(last, page);
            last = page;
            follows
        });
        if contiguous { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Takes a hardware queue apart that nobody depends on.
    pub(crate) fn destroy_hw_queue(&mut self, id: ObjectId) {
        if let Some(HwQueue { viommu, access, depends_on }) = self.hw_queues.remove(&id) {
            if let Some(on) = self.viommus.get_mut(&viommu) {
                on.driver.remove_hw_queue(id);
            }
            if let Some(other) = depends_on {
                self.ids.put(other);
            }
            self.destroy_access(access);
            self.ids.put(viommu);
        }
        self.ids.remove(id);
    }
}

/// Whether a page lies right behind another.
fn follows(one: Option<PageId>, next: Option<PageId>) -> bool {
    match (one, next) {
        (Some(one), Some(next)) => one.object == next.object && one.offset.wrapping_add(PAGE) == next.offset,
        _ => false,
    }
}
