// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the selftest compares, and the pages that it marks dirty.

use iommu::{Mapping, Prot};
use uapi::Errno;
use uapi::iommufd_test::TestCmd;

use crate::dispatch::Request;
use crate::driver::Iommu;
use crate::hwpt::{Form, PagingHwpt};
use crate::ids::Kind;
use crate::selftest::mock::MockNested;
use crate::{Call, Iommufd, PAGE};

/// Most bits of a bitmap of DIRTY.
const MOST_BITS: u64 = 1 << 27;

impl Iommufd {
    /// Each IOVA leads to the byte at the address (MD_CHECK_MAP): `EINVAL`.
    pub(super) fn test_check_map(
        &mut self,
        request: &Request,
        cmd: &TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let (iova, length, address) = (cmd.u64_at(16), cmd.u64_at(24), cmd.u64_at(32));
        let paging = self.mock_paging(request, cmd.id)?;
        let step = 1 << paging.properties.page_sizes.trailing_zeros();
        if (iova | length | address) & (step - 1) != 0 || address.checked_add(length).is_none() {
            return Err(Errno::EINVAL);
        }
        if length == 0 {
            return Ok(());
        }
        let start = address / PAGE * PAGE;
        let end = (address + length).next_multiple_of(PAGE);
        let pinned = call.caller.mm()?.pin(start, end - start, false)?;
        let mut mapping: Option<Mapping> = None;
        for at in (0..length).step_by(step as usize) {
            let iova = iova.checked_add(at).ok_or(Errno::EINVAL)?;
            if mapping.as_ref().is_none_or(|mapping| iova < mapping.first || iova > mapping.last) {
                mapping = paging.domain.space.at_or_after(iova).filter(|mapping| mapping.first <= iova);
            }
            let mapping = mapping.as_ref().ok_or(Errno::EINVAL)?;
            let there = mapping.memory.identity(mapping.offset.wrapping_add(iova - mapping.first));
            let here = pinned.memory.identity(pinned.offset.wrapping_add(address - start + at));
            if there.is_none() || there != here {
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }

    /// Each page is pinned so many times, all contexts together (MD_CHECK_REFS):
    /// `EIO`.
    pub(super) fn test_check_refs(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<(), Errno> {
        let (length, address, refs) = (cmd.u64_at(16), cmd.u64_at(24), cmd.u32_at(32));
        if (length | address) & (PAGE - 1) != 0 || address.checked_add(length).is_none() {
            return Err(Errno::EINVAL);
        }
        if length == 0 {
            return Ok(());
        }
        let pinned = call.caller.mm()?.pin(address, length, false)?;
        let pages = (0..length).step_by(PAGE as usize).map(|at| pinned.memory.identity(pinned.offset.wrapping_add(at)));
        let pages: Option<Vec<_>> = pages.collect();
        let counts = self.pin_counts(&pages.ok_or(Errno::EFAULT)?);
        if counts.iter().all(|count| *count == u64::from(refs)) { Ok(()) } else { Err(Errno::EIO) }
    }

    /// A word of a nested domain's cache (MD_CHECK_IOTLB): `EINVAL`.
    pub(super) fn test_check_iotlb(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let context = self.context_mut(request.context)?;
        let id = context.ids.expect(cmd.id, Kind::HwptNested)?;
        let Form::Nested { table, .. } = &context.hwpt(id)?.form else { return Err(Errno::ENOENT) };
        let word = MockNested::of(&**table).ok_or(Errno::EINVAL)?.iotlb.get(cmd.u32_at(16) as usize);
        if word == Some(&cmd.u32_at(20)) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Marks what a device would have written (DIRTY).
    pub(super) fn test_dirty(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let (iova, length, page_size, bitmap) = (cmd.u64_at(24), cmd.u64_at(32), cmd.u64_at(40), cmd.u64_at(48));
        if page_size == 0
            || length == 0
            || !iova.is_multiple_of(page_size)
            || !length.is_multiple_of(page_size)
            || bitmap == 0
        {
            return Err(Errno::EINVAL);
        }
        let bits = length / page_size;
        if bits > MOST_BITS {
            return Err(Errno::EOVERFLOW);
        }
        let paging = self.mock_paging(request, cmd.id)?;
        let log = paging.domain.log.as_ref().filter(|log| log.is_enabled()).ok_or(Errno::EINVAL)?;
        let mut bytes = vec![0; bits.div_ceil(8) as usize];
        call.caller.read(bitmap, &mut bytes)?;
        let is_set = |bit: u64| bytes.get((bit / 8) as usize).is_some_and(|byte| byte & 1 << (bit % 8) != 0);
        let mut count = 0;
        let mut mapping: Option<Mapping> = None;
        for bit in (0..bits).filter(|bit| is_set(*bit)) {
            count += 1;
            let at = iova.wrapping_add(bit * page_size);
            if mapping.as_ref().is_none_or(|mapping| at < mapping.first || at > mapping.last) {
                mapping = paging.domain.space.at_or_after(at).filter(|mapping| mapping.first <= at);
            }
            // What is not mapped for writing has no dirty bit.
            if mapping.as_ref().is_some_and(|mapping| mapping.prot.contains(Prot::WRITE)) {
                log.mark(at, at);
            }
        }
        cmd.set_u64(56, count);
        request.argument.respond(call.caller, cmd)
    }

    /// A paging HWPT of the mock's: `ENOENT`, `EINVAL`.
    fn mock_paging(&mut self, request: &Request, id: u32) -> Result<&PagingHwpt, Errno> {
        let context = self.context_mut(request.context)?;
        let (id, paging) = context.paging(id)?;
        if context.hwpt(id)?.iommu == Iommu::Mock { Ok(paging) } else { Err(Errno::EINVAL) }
    }
}
