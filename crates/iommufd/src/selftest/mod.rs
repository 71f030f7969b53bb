// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_TEST_CMD`: the kernel side of Linux's iommufd selftest
//! (iommufd-selftest.md).
//!
//! It is a client of the same objects that programs and devices use: the mock
//! IOMMU is a [`Driver`](crate::driver::Driver), a mock device is bound as any
//! other, an access pins as any other. Only a lab that asks for it has it.

mod access;
mod buffer;
mod check;
mod device;
mod mock;
mod pins;
mod viommu;

use uapi::Errno;
use uapi::iommufd_test::{TestCmd, op};

pub(crate) use device::MockDevice;
pub(crate) use mock::REGION;

use crate::dispatch::Request;
use crate::ids::Kind;
use crate::ioas::Owner;
use crate::{Call, Iommufd};

/// Least size of a buffer that Linux fills in steps.
const MEMORY_LIMIT: u32 = 12;

impl Iommufd {
    /// `IOMMU_TEST_CMD`. What the call returns.
    pub(crate) fn test(&mut self, request: &Request, cmd: &mut TestCmd, call: &mut Call<'_>) -> Result<u64, Errno> {
        match cmd.op {
            op::ADD_RESERVED => self.test_add_reserved(request, cmd),
            op::MOCK_DOMAIN | op::MOCK_DOMAIN_FLAGS => self.test_mock_domain(request, cmd, call),
            op::MD_CHECK_MAP => self.test_check_map(request, cmd, call),
            op::MD_CHECK_REFS => self.test_check_refs(cmd, call),
            op::CREATE_ACCESS => self.test_create_access(request, cmd, call),
            op::DESTROY_ACCESS_PAGES => self.test_destroy_access_pages(cmd, call),
            op::ACCESS_PAGES => self.test_access_pages(request, cmd, call),
            op::ACCESS_RW => self.test_access_rw(cmd, call),
            op::SET_TEMP_MEMORY_LIMIT if cmd.u32_at(16) < MEMORY_LIMIT => Err(Errno::EINVAL),
            op::SET_TEMP_MEMORY_LIMIT => Ok(()),
            op::MOCK_DOMAIN_REPLACE => self.test_mock_domain_replace(request, cmd, call),
            op::ACCESS_REPLACE_IOAS => self.test_access_replace_ioas(cmd, call),
            op::DIRTY => self.test_dirty(request, cmd, call),
            op::MD_CHECK_IOTLB => self.test_check_iotlb(request, cmd),
            op::TRIGGER_IOPF => self.test_trigger_iopf(request, cmd),
            op::DEV_CHECK_CACHE => self.test_check_cache(request, cmd),
            op::TRIGGER_VEVENT => self.test_trigger_vevent(request, cmd),
            op::PASID_ATTACH => self.test_pasid_attach(request, cmd, call),
            op::PASID_REPLACE => self.test_pasid_replace(request, cmd, call),
            op::PASID_DETACH => self.test_pasid_detach(request, cmd),
            op::PASID_CHECK_HWPT => self.test_pasid_check_hwpt(request, cmd),
            op::DMABUF_GET => return self.test_dmabuf_get(cmd, call),
            op::DMABUF_REVOKE => self.test_dmabuf_revoke(cmd, call),
            _ => Err(Errno::EOPNOTSUPP),
        }
        .map(|()| 0)
    }

    /// Reserves IOVAs that nobody gives back.
    fn test_add_reserved(&mut self, request: &Request, cmd: &TestCmd) -> Result<(), Errno> {
        let (start, length) = (cmd.u64_at(16), cmd.u64_at(24));
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = start.checked_add(length - 1).ok_or(Errno::EOVERFLOW)?;
        let context = self.context_mut(request.context)?;
        let ioas = context.ids.expect(cmd.id, Kind::Ioas)?;
        let ioas = context.ioases.get_mut(&ioas).ok_or(Errno::ENOENT)?;
        ioas.reserve(Owner::Nobody, start, last, &context.backing)
    }
}
