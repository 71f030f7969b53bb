// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux's iommufd selftest asks of the kernel side that is built for it
//! (iommufd-selftest.md, sections 3 and 4).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::iommufd::{Command, request};

/// `struct iommu_test_cmd`. The union in the middle is read by offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TestCmd {
    /// Bytes that the caller gives.
    pub size: u32,
    /// One of [`op`].
    pub op: u32,
    /// Object, or a descriptor.
    pub id: u32,
    /// Unchecked.
    pub reserved: u32,
    /// The arguments.
    pub args: [u64; 6],
    /// End of the first version.
    pub last: u32,
    /// Rounds up.
    pub pad: u32,
}

impl Command for TestCmd {
    const REQUEST: u32 = request(0xa0);
    const MIN: usize = 68;
}

impl TestCmd {
    /// The u64 at an offset from the structure's start; 0 beyond the arguments.
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> u64 {
        self.as_bytes()
            .get(offset..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// The u32 at an offset from the structure's start.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        self.as_bytes()
            .get(offset..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Sets the u32 at an offset from the structure's start.
    pub fn set_u32(&mut self, offset: usize, value: u32) {
        if let Some(bytes) = self.as_mut_bytes().get_mut(offset..).and_then(|bytes| bytes.first_chunk_mut()) {
            *bytes = value.to_ne_bytes();
        }
    }

    /// Sets the u64 at an offset from the structure's start.
    pub fn set_u64(&mut self, offset: usize, value: u64) {
        if let Some(bytes) = self.as_mut_bytes().get_mut(offset..).and_then(|bytes| bytes.first_chunk_mut()) {
            *bytes = value.to_ne_bytes();
        }
    }
}

/// Operations.
pub mod op {
    /// Reserves IOVAs of an IOAS.
    pub const ADD_RESERVED: u32 = 1;
    /// Makes a mock device and attaches it.
    pub const MOCK_DOMAIN: u32 = 2;
    /// Compares what IOVAs lead to with what addresses lead to.
    pub const MD_CHECK_MAP: u32 = 3;
    /// Compares pin counts.
    pub const MD_CHECK_REFS: u32 = 4;
    /// Makes an access.
    pub const CREATE_ACCESS: u32 = 5;
    /// Unpins an item of an access.
    pub const DESTROY_ACCESS_PAGES: u32 = 6;
    /// Pins through an access.
    pub const ACCESS_PAGES: u32 = 7;
    /// Reads or writes through an access.
    pub const ACCESS_RW: u32 = 8;
    /// Sets the size of a buffer of the kernel's.
    pub const SET_TEMP_MEMORY_LIMIT: u32 = 9;
    /// Replaces a mock device's attachment.
    pub const MOCK_DOMAIN_REPLACE: u32 = 10;
    /// Moves an access to another IOAS.
    pub const ACCESS_REPLACE_IOAS: u32 = 11;
    /// As MOCK_DOMAIN, with flags.
    pub const MOCK_DOMAIN_FLAGS: u32 = 12;
    /// Marks pages dirty.
    pub const DIRTY: u32 = 13;
    /// Compares a word of a nested domain's cache.
    pub const MD_CHECK_IOTLB: u32 = 14;
    /// Sends a page request.
    pub const TRIGGER_IOPF: u32 = 15;
    /// Compares a word of a device's cache.
    pub const DEV_CHECK_CACHE: u32 = 16;
    /// Sends a vIOMMU's event.
    pub const TRIGGER_VEVENT: u32 = 17;
    /// Attaches a PASID.
    pub const PASID_ATTACH: u32 = 18;
    /// Replaces a PASID's attachment.
    pub const PASID_REPLACE: u32 = 19;
    /// Detaches a PASID.
    pub const PASID_DETACH: u32 = 20;
    /// Compares what a PASID is attached to.
    pub const PASID_CHECK_HWPT: u32 = 21;
    /// Makes a dma-buf.
    pub const DMABUF_GET: u32 = 22;
    /// Revokes a dma-buf, or gives it back.
    pub const DMABUF_REVOKE: u32 = 23;
}

/// Mock device without dirty tracking.
pub const DEVICE_NO_DIRTY: u32 = 1;
/// Mock device with PASIDs.
pub const DEVICE_PASID: u32 = 4;
/// Bits of a mock device's PASIDs.
pub const PASID_WIDTH: u32 = 20;
/// ACCESS_PAGES: for writing.
pub const ACCESS_WRITE: u32 = 1;
/// ACCESS_PAGES, ACCESS_RW: the IOVA is an area's number and an offset.
pub const ACCESS_SYZ: u32 = 1 << 16;
/// ACCESS_RW: not through the caller's own memory.
pub const RW_SLOW_PATH: u32 = 4;
/// CREATE_ACCESS: it pins.
pub const CREATE_NEEDS_PIN_PAGES: u32 = 1;

/// First IOVA of the mock's default table.
pub const APERTURE_START: u64 = 1 << 24;
/// Last IOVA of the mock's default table.
pub const APERTURE_LAST: u64 = (1 << 31) - 1;
/// The mock's page size.
pub const PAGE_SIZE: u64 = 2048;
/// The mock's huge page size.
pub const HUGE_PAGE_SIZE: u64 = 512 * PAGE_SIZE;
/// `pagetable_type` of the default table.
pub const TABLE_DEFAULT: u32 = 0;
/// `pagetable_type` of the table with huge pages.
pub const TABLE_HUGE: u32 = 1;

/// Type of the mock's hardware information.
pub const HW_INFO: u32 = 0xfeed_beef;
/// Its register.
pub const HW_INFO_REGISTER: u32 = 0xdead_beef;
/// Type of the mock's HWPT data.
pub const HWPT_DATA: u32 = 0xdead;
/// Type of invalidations of nested HWPTs and vIOMMUs, and of the mock's vIOMMU
/// and hardware queue.
pub const TYPE: u32 = 0xdead_beef;
/// Type of the mock's event queue.
pub const VEVENTQ: u32 = 0xbeef_beef;
/// What a device's cache holds at first.
pub const DEVICE_CACHE_DEFAULT: u32 = 0x00ba_ddad;
/// Words of a device's cache and of a nested domain's.
pub const CACHE_WORDS: usize = 4;
/// Invalidation: all words.
pub const INVALIDATE_ALL: u32 = 1;
/// Hardware queues of a vIOMMU.
pub const HW_QUEUES: usize = 2;
/// The PASID whose second attachment fails.
pub const PASID_RESERVED: u32 = 1024;

/// `struct iommu_test_hw_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwInfo {
    /// 0.
    pub flags: u32,
    /// [`HW_INFO_REGISTER`].
    pub test_reg: u32,
}

/// `struct iommu_hwpt_selftest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptData {
    /// What a nested domain's cache holds at first.
    pub iotlb: u32,
    /// Kind of table.
    pub pagetable_type: u32,
}

/// `struct iommu_hwpt_invalidate_selftest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InvalidateHwpt {
    /// [`INVALIDATE_ALL`].
    pub flags: u32,
    /// Word.
    pub iotlb_id: u32,
}

/// `struct iommu_viommu_invalidate_selftest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InvalidateViommu {
    /// [`INVALIDATE_ALL`].
    pub flags: u32,
    /// The device, as the vIOMMU knows it.
    pub vdev_id: u32,
    /// Word.
    pub cache_id: u32,
}

/// `struct iommu_viommu_selftest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ViommuData {
    /// Anything.
    pub in_data: u32,
    /// The same.
    pub out_data: u32,
    /// Where the region lies for `mmap`.
    pub out_mmap_offset: u64,
    /// Its bytes.
    pub out_mmap_length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SELF-3: the envelope of TEST_CMD.
    #[test]
    fn the_structure_is_linux_s() {
        assert_eq!((TestCmd::REQUEST, size_of::<TestCmd>(), TestCmd::MIN), (0x3ba0, 72, 68));
        assert_eq!((std::mem::offset_of!(TestCmd, args), std::mem::offset_of!(TestCmd, last)), (16, 64));
        let mut cmd = TestCmd { args: [1 | 2 << 32, 3, 0, 0, 0, 0], ..TestCmd::default() };
        assert_eq!((cmd.u32_at(16), cmd.u32_at(20), cmd.u64_at(24)), (1, 2, 3));
        cmd.set_u32(28, 7);
        cmd.set_u64(56, 9);
        assert_eq!((cmd.args[1], cmd.args[5]), (3 | 7 << 32, 9));
        assert_eq!((cmd.u64_at(72), cmd.u32_at(100)), (0, 0));
    }
}
