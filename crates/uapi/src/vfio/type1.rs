// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on a container whose backend is type1.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request;

/// Fills an [`Info`] and its capability chain.
pub const GET_INFO: u32 = request(12);
/// Takes a [`DmaMap`].
pub const MAP_DMA: u32 = request(13);
/// Takes a [`DmaUnmap`], with a [`Bitmap`] behind it if it asks for one.
pub const UNMAP_DMA: u32 = request(14);
/// PowerPC only.
pub const ENABLE: u32 = request(15);
/// PowerPC only.
pub const DISABLE: u32 = request(16);
/// Takes a [`DirtyBitmap`], with a [`DirtyBitmapGet`] behind it for a report.
pub const DIRTY_PAGES: u32 = request(17);

/// `struct vfio_iommu_type1_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Info {
    /// Bytes that the caller provides; needed, on return.
    pub argsz: u32,
    /// [`InfoFlags`].
    pub flags: u32,
    /// Bit `n`: pages of `2^n` bytes can be mapped.
    pub iova_pgsizes: u64,
    /// Where the capability chain starts.
    pub cap_offset: u32,
    /// Padding.
    pub pad: u32,
}

impl Info {
    /// Bytes that every caller provides.
    pub const MINSZ: usize = 16;
}

bitflags! {
    /// What an [`Info`] holds.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InfoFlags: u32 {
        /// `iova_pgsizes` is valid.
        const PGSIZES = 1;
        /// There are capabilities.
        const CAPS = 2;
    }
}

/// Id of the [`IovaRange`] list; body after the header: count, padding, ranges.
pub const CAP_IOVA_RANGE: u16 = 1;
/// Id of [`CapMigration`].
pub const CAP_MIGRATION: u16 = 2;
/// Id of the number of mappings that are left, one `u32`.
pub const CAP_DMA_AVAIL: u16 = 3;

/// Body, after the header, of the fixed part of `CAP_IOVA_RANGE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapIovaRange {
    /// Number of [`IovaRange`]s that follow.
    pub nr_iovas: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct vfio_iova_range`: IOVAs that can be mapped, ends inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaRange {
    /// First.
    pub start: u64,
    /// Last.
    pub end: u64,
}

/// Body of `CAP_MIGRATION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapMigration {
    /// Zero.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// Page sizes of dirty bitmaps.
    pub pgsize_bitmap: u64,
    /// Largest bitmap in bytes.
    pub max_dirty_bitmap_size: u64,
}

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`MapFlags`].
    pub flags: u32,
    /// Address in the caller.
    pub vaddr: u64,
    /// Address for devices.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

bitflags! {
    /// Flags of a [`DmaMap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Devices may read.
        const READ = 1;
        /// Devices may write.
        const WRITE = 2;
        /// Gives an existing mapping a new `vaddr`.
        const VADDR = 4;
    }
}

/// `struct vfio_iommu_type1_dma_unmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`UnmapFlags`].
    pub flags: u32,
    /// First address.
    pub iova: u64,
    /// Bytes; bytes removed, on return.
    pub size: u64,
}

bitflags! {
    /// Flags of a [`DmaUnmap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UnmapFlags: u32 {
        /// A [`Bitmap`] follows and is filled before the removal.
        const GET_DIRTY_BITMAP = 1;
        /// Everything.
        const ALL = 2;
        /// Only `vaddr` is taken away.
        const VADDR = 4;
    }
}

/// `struct vfio_bitmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bitmap {
    /// Bytes that a bit stands for.
    pub pgsize: u64,
    /// Bytes of the bitmap.
    pub size: u64,
    /// Address of the bitmap in the caller.
    pub data: u64,
}

/// Largest dirty bitmap in bytes (API-099).
pub const BITMAP_SIZE_MAX: u64 = 1 << 28;

/// `struct vfio_iommu_type1_dirty_bitmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DirtyBitmap {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// One of [`DirtyFlags`].
    pub flags: u32,
}

bitflags! {
    /// Flags of a [`DirtyBitmap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DirtyFlags: u32 {
        /// Tracking on.
        const START = 1;
        /// Tracking off.
        const STOP = 2;
        /// Report.
        const GET_BITMAP = 4;
    }
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DirtyBitmapGet {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Where to.
    pub bitmap: Bitmap,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::InfoCapHeader;
    use std::mem::offset_of;
    use vfio_bindings::bindings::vfio as linux;

    #[test]
    fn layouts_are_linux_s() {
        assert_eq!(size_of::<Info>(), size_of::<linux::vfio_iommu_type1_info>());
        assert_eq!(offset_of!(Info, cap_offset), Info::MINSZ);
        assert_eq!(size_of::<DmaMap>(), size_of::<linux::vfio_iommu_type1_dma_map>());
        assert_eq!(offset_of!(DmaMap, iova), offset_of!(linux::vfio_iommu_type1_dma_map, iova));
        assert_eq!(size_of::<DmaUnmap>(), size_of::<linux::vfio_iommu_type1_dma_unmap>());
        assert_eq!(offset_of!(DmaUnmap, size), offset_of!(linux::vfio_iommu_type1_dma_unmap, size));
        assert_eq!(size_of::<Bitmap>(), size_of::<linux::vfio_bitmap>());
        assert_eq!(offset_of!(Bitmap, data), offset_of!(linux::vfio_bitmap, data));
        assert_eq!(size_of::<DirtyBitmap>(), size_of::<linux::vfio_iommu_type1_dirty_bitmap>());
        assert_eq!(size_of::<DirtyBitmapGet>(), size_of::<linux::vfio_iommu_type1_dirty_bitmap_get>());
        assert_eq!(size_of::<IovaRange>(), size_of::<linux::vfio_iova_range>());
        let header = size_of::<InfoCapHeader>();
        assert_eq!(header + size_of::<CapIovaRange>(), size_of::<linux::vfio_iommu_type1_info_cap_iova_range>());
        assert_eq!(header + size_of::<CapMigration>(), size_of::<linux::vfio_iommu_type1_info_cap_migration>());
        assert_eq!(header + size_of::<u32>(), size_of::<linux::vfio_iommu_type1_info_dma_avail>());
    }

    #[test]
    fn numbers_are_linux_s() {
        assert_eq!(
            [GET_INFO, MAP_DMA, UNMAP_DMA, ENABLE, DISABLE, DIRTY_PAGES],
            [0x3b70, 0x3b71, 0x3b72, 0x3b73, 0x3b74, 0x3b75]
        );
        for (ours, theirs) in [
            (InfoFlags::PGSIZES.bits(), linux::VFIO_IOMMU_INFO_PGSIZES),
            (InfoFlags::CAPS.bits(), linux::VFIO_IOMMU_INFO_CAPS),
            (u32::from(CAP_IOVA_RANGE), linux::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
            (u32::from(CAP_MIGRATION), linux::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION),
            (u32::from(CAP_DMA_AVAIL), linux::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL),
            (MapFlags::READ.bits(), linux::VFIO_DMA_MAP_FLAG_READ),
            (MapFlags::WRITE.bits(), linux::VFIO_DMA_MAP_FLAG_WRITE),
            (MapFlags::VADDR.bits(), linux::VFIO_DMA_MAP_FLAG_VADDR),
            (UnmapFlags::GET_DIRTY_BITMAP.bits(), linux::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP),
            (UnmapFlags::ALL.bits(), linux::VFIO_DMA_UNMAP_FLAG_ALL),
            (UnmapFlags::VADDR.bits(), linux::VFIO_DMA_UNMAP_FLAG_VADDR),
            (DirtyFlags::START.bits(), linux::VFIO_IOMMU_DIRTY_PAGES_FLAG_START),
            (DirtyFlags::STOP.bits(), linux::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP),
            (DirtyFlags::GET_BITMAP.bits(), linux::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP),
        ] {
            assert_eq!(ours, theirs);
        }
    }
}
