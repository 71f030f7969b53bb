// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on `/dev/vfio/vfio` that the container itself answers. The rest
//! goes to its backend, see [`type1`](super::type1).

use super::request;

/// Returns [`API_VERSION`].
pub const GET_API_VERSION: u32 = request(0);
/// The argument is an extension number; the answer a number, 0 for no.
pub const CHECK_EXTENSION: u32 = request(1);
/// The argument is a backend's type.
pub const SET_IOMMU: u32 = request(2);

/// What `GET_API_VERSION` returns.
pub const API_VERSION: u64 = 0;

/// Numbers of `CHECK_EXTENSION` and `SET_IOMMU`.
pub mod extension {
    /// type1 backend, first version.
    pub const TYPE1: u64 = 1;
    /// type1 backend, second version.
    pub const TYPE1_V2: u64 = 3;
    /// Every domain enforces cache coherency.
    pub const DMA_CC: u64 = 4;
    /// The backend for devices without an IOMMU.
    pub const NOIOMMU: u64 = 8;
    /// `UNMAP_DMA` knows the ALL flag.
    pub const UNMAP_ALL: u64 = 9;
    /// `MAP_DMA` and `UNMAP_DMA` know the VADDR flag.
    pub const UPDATE_VADDR: u64 = 10;
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bindings::bindings::vfio as linux;

    #[test]
    fn numbers_are_linux_s() {
        assert_eq!([GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU], [0x3b64, 0x3b65, 0x3b66]);
        assert_eq!(API_VERSION, u64::from(linux::VFIO_API_VERSION));
        for (ours, theirs) in [
            (extension::TYPE1, linux::VFIO_TYPE1_IOMMU),
            (extension::TYPE1_V2, linux::VFIO_TYPE1v2_IOMMU),
            (extension::DMA_CC, linux::VFIO_DMA_CC_IOMMU),
            (extension::NOIOMMU, linux::VFIO_NOIOMMU_IOMMU),
            (extension::UNMAP_ALL, linux::VFIO_UNMAP_ALL),
            (extension::UPDATE_VADDR, linux::VFIO_UPDATE_VADDR),
        ] {
            assert_eq!(ours, u64::from(theirs));
        }
    }
}
