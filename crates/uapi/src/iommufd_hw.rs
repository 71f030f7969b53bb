// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What iommufd's requests carry for a kind of IOMMU: Intel VT-d
//! (iommufd-api.md, 10.5 and 11.5).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `data_type` of `GET_HW_INFO` and `HWPT_ALLOC` for none, or any.
pub const NONE: u32 = 0;
/// `GET_HW_INFO`: Intel VT-d, [`HwInfoVtd`].
pub const HW_INFO_VTD: u32 = 1;
/// `HWPT_ALLOC`: a first-stage table of Intel VT-d, [`HwptVtdS1`].
pub const HWPT_VTD_S1: u32 = 1;
/// `HWPT_INVALIDATE`: [`InvalidateVtdS1`].
pub const INVALIDATE_VTD_S1: u32 = 0;

/// `struct iommu_hw_info_vtd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwInfoVtd {
    /// Errata.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// Capability register.
    pub cap_reg: u64,
    /// Extended capability register.
    pub ecap_reg: u64,
}

bitflags! {
    /// Attributes of the entries of a first-stage table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VtdS1Flags: u64 {
        /// Supervisor requests.
        const SRE = 1;
        /// Extended access bits.
        const EAFE = 2;
        /// Write protection counts for the supervisor, too.
        const WPE = 4;
    }
}

/// `struct iommu_hwpt_vtd_s1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptVtdS1 {
    /// [`VtdS1Flags`].
    pub flags: u64,
    /// Where the table begins, in the parent.
    pub pgtbl_addr: u64,
    /// Bits of an address.
    pub addr_width: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct iommu_hwpt_vtd_s1_invalidate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InvalidateVtdS1 {
    /// First address, a multiple of 4 KiB.
    pub addr: u64,
    /// Pages of 4 KiB; 2^64-1 with `addr` 0: all.
    pub npages: u64,
    /// LEAF is 1: only entries that lead to memory.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IOMMUFD-10.5, IOMMUFD-11.5
    #[test]
    fn sizes_are_linux_s() {
        assert_eq!((size_of::<HwInfoVtd>(), size_of::<HwptVtdS1>(), size_of::<InvalidateVtdS1>()), (24, 24, 24));
    }
}
