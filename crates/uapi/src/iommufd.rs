// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `linux/iommufd.h`: request numbers and structures (iommufd-api.md, 1.6).
//!
//! Each request's structure starts with its size as the caller knows it. The
//! least that a caller must give is [`Command::MIN`].

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Request `nr`: `_IO(';', nr)` (IOMMUFD-1.2).
#[must_use]
pub const fn request(nr: u8) -> u32 {
    (crate::vfio::TYPE as u32) << 8 | nr as u32
}

/// First request number of iommufd's own; below are those of VFIO.
pub const BASE: u8 = 0x80;

/// A request's structure.
pub trait Command: FromBytes + IntoBytes + Immutable {
    /// The request number.
    const REQUEST: u32;
    /// Bytes that a caller must give at least: up to the last mandatory field.
    const MIN: usize;
}

/// `struct iommu_iova_range`: ends inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA.
    pub last: u64,
}

bitflags! {
    /// Flags of `IOAS_MAP`, `IOAS_MAP_FILE` and `IOAS_COPY`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// `iova` says where; else the kernel chooses.
        const FIXED_IOVA = 1;
        /// Devices may write.
        const WRITEABLE = 2;
        /// Devices may read.
        const READABLE = 4;
    }
}

bitflags! {
    /// Flags of `HWPT_ALLOC`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HwptFlags: u32 {
        /// Nested HWPTs can be built on it.
        const NEST_PARENT = 1;
        /// Dirty tracking; only devices that have it attach.
        const DIRTY_TRACKING = 2;
        /// `fault_id` is valid.
        const FAULT_ID_VALID = 4;
        /// May be used with PASIDs.
        const PASID = 8;
    }
}

bitflags! {
    /// `out_capabilities` of `GET_HW_INFO`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HwCapabilities: u64 {
        /// The IOMMU tracks dirty pages.
        const DIRTY_TRACKING = 1;
        /// PASIDs with execute permission.
        const PCI_PASID_EXEC = 2;
        /// PASIDs with privileged mode.
        const PCI_PASID_PRIV = 4;
        /// ATS cannot be used.
        const PCI_ATS_NOT_SUPPORTED = 8;
    }
}

/// `struct iommu_destroy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Destroy {
    /// Bytes that the caller gives.
    pub size: u32,
    /// Object to destroy.
    pub id: u32,
}

impl Command for Destroy {
    const REQUEST: u32 = request(0x80);
    const MIN: usize = 8;
}

/// `struct iommu_ioas_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// The new IOAS.
    pub out_ioas_id: u32,
}

impl Command for IoasAlloc {
    const REQUEST: u32 = request(0x81);
    const MIN: usize = 12;
}

/// `struct iommu_ioas_allow_iovas`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasAllowIovas {
    /// Bytes that the caller gives.
    pub size: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// Entries of the array.
    pub num_iovas: u32,
    /// 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
}

impl Command for IoasAllowIovas {
    const REQUEST: u32 = request(0x82);
    const MIN: usize = 24;
}

/// `struct iommu_ioas_copy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasCopy {
    /// Bytes that the caller gives.
    pub size: u32,
    /// [`MapFlags`].
    pub flags: u32,
    /// IOAS copied to.
    pub dst_ioas_id: u32,
    /// IOAS copied from.
    pub src_ioas_id: u32,
    /// Bytes.
    pub length: u64,
    /// IOVA of the copy; in with FIXED_IOVA, and out.
    pub dst_iova: u64,
    /// IOVA copied from.
    pub src_iova: u64,
}

impl Command for IoasCopy {
    const REQUEST: u32 = request(0x83);
    const MIN: usize = 40;
}

/// `struct iommu_ioas_iova_ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasIovaRanges {
    /// Bytes that the caller gives.
    pub size: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// Entries that fit (in), that there are (out).
    pub num_iovas: u32,
    /// 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
    /// Alignment of IOVAs in bytes.
    pub out_iova_alignment: u64,
}

impl Command for IoasIovaRanges {
    const REQUEST: u32 = request(0x84);
    const MIN: usize = 32;
}

/// `struct iommu_ioas_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasMap {
    /// Bytes that the caller gives.
    pub size: u32,
    /// [`MapFlags`].
    pub flags: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// 0.
    pub reserved: u32,
    /// Address of the memory.
    pub user_va: u64,
    /// Bytes.
    pub length: u64,
    /// IOVA; in with FIXED_IOVA, and out.
    pub iova: u64,
}

impl Command for IoasMap {
    const REQUEST: u32 = request(0x85);
    const MIN: usize = 40;
}

/// `struct iommu_ioas_unmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasUnmap {
    /// Bytes that the caller gives.
    pub size: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes to unmap (in), unmapped (out).
    pub length: u64,
}

impl Command for IoasUnmap {
    const REQUEST: u32 = request(0x86);
    const MIN: usize = 24;
}

/// `struct iommu_option`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetOption {
    /// Bytes that the caller gives.
    pub size: u32,
    /// See [`option`].
    pub option_id: u32,
    /// See [`option`].
    pub op: u16,
    /// 0.
    pub reserved: u16,
    /// Object it is of, or 0.
    pub object_id: u32,
    /// Value.
    pub val64: u64,
}

impl Command for SetOption {
    const REQUEST: u32 = request(0x87);
    const MIN: usize = 24;
}

/// `option_id` and `op` of `OPTION`.
pub mod option {
    /// `IOMMU_OPTION_RLIMIT_MODE`
    pub const RLIMIT_MODE: u32 = 0;
    /// `IOMMU_OPTION_HUGE_PAGES`
    pub const HUGE_PAGES: u32 = 1;
    /// `IOMMU_OPTION_OP_SET`
    pub const SET: u16 = 0;
    /// `IOMMU_OPTION_OP_GET`
    pub const GET: u16 = 1;
}

/// `op` of `VFIO_IOAS`.
pub mod vfio_ioas {
    /// `IOMMU_VFIO_IOAS_GET`
    pub const GET: u16 = 0;
    /// `IOMMU_VFIO_IOAS_SET`
    pub const SET: u16 = 1;
    /// `IOMMU_VFIO_IOAS_CLEAR`
    pub const CLEAR: u16 = 2;
}

/// `struct iommu_vfio_ioas`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VfioIoas {
    /// Bytes that the caller gives.
    pub size: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// See [`vfio_ioas`].
    pub op: u16,
    /// 0.
    pub reserved: u16,
}

impl Command for VfioIoas {
    const REQUEST: u32 = request(0x88);
    const MIN: usize = 12;
}

/// `struct iommu_hwpt_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// [`HwptFlags`].
    pub flags: u32,
    /// Device it is for.
    pub dev_id: u32,
    /// IOAS, parent HWPT or vIOMMU.
    pub pt_id: u32,
    /// The new HWPT.
    pub out_hwpt_id: u32,
    /// 0.
    pub reserved: u32,
    /// What the driver's data is.
    pub data_type: u32,
    /// Bytes of it.
    pub data_len: u32,
    /// Address of it.
    pub data_uptr: u64,
    /// Fault queue.
    pub fault_id: u32,
    /// Unchecked.
    pub reserved2: u32,
}

impl Command for HwptAlloc {
    const REQUEST: u32 = request(0x89);
    const MIN: usize = 24;
}

/// `struct iommu_hw_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetHwInfo {
    /// Bytes that the caller gives.
    pub size: u32,
    /// INPUT_TYPE is 1.
    pub flags: u32,
    /// Device.
    pub dev_id: u32,
    /// Bytes that fit (in), that there are (out).
    pub data_len: u32,
    /// Address of the buffer.
    pub data_uptr: u64,
    /// Type asked for (in), given (out).
    pub data_type: u32,
    /// Log2 of the number of PASIDs; 0: none.
    pub out_max_pasid_log2: u8,
    /// 0.
    pub reserved: [u8; 3],
    /// [`HwCapabilities`].
    pub out_capabilities: u64,
}

impl Command for GetHwInfo {
    const REQUEST: u32 = request(0x8a);
    const MIN: usize = 32;
}

/// `struct iommu_hwpt_set_dirty_tracking`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptSetDirtyTracking {
    /// Bytes that the caller gives.
    pub size: u32,
    /// ENABLE is 1.
    pub flags: u32,
    /// HWPT.
    pub hwpt_id: u32,
    /// Unchecked.
    pub reserved: u32,
}

impl Command for HwptSetDirtyTracking {
    const REQUEST: u32 = request(0x8b);
    const MIN: usize = 16;
}

/// `struct iommu_hwpt_get_dirty_bitmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptGetDirtyBitmap {
    /// Bytes that the caller gives.
    pub size: u32,
    /// HWPT.
    pub hwpt_id: u32,
    /// NO_CLEAR is 1.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit stands for.
    pub page_size: u64,
    /// Address of the bitmap.
    pub data: u64,
}

impl Command for HwptGetDirtyBitmap {
    const REQUEST: u32 = request(0x8c);
    const MIN: usize = 48;
}

/// `struct iommu_hwpt_invalidate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwptInvalidate {
    /// Bytes that the caller gives.
    pub size: u32,
    /// Nested HWPT or vIOMMU.
    pub hwpt_id: u32,
    /// Address of the entries.
    pub data_uptr: u64,
    /// What the entries are.
    pub data_type: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// Entries (in), handled (out).
    pub entry_num: u32,
    /// 0.
    pub reserved: u32,
}

impl Command for HwptInvalidate {
    const REQUEST: u32 = request(0x8d);
    const MIN: usize = 32;
}

/// `struct iommu_fault_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FaultQueueAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// The new fault queue.
    pub out_fault_id: u32,
    /// Its descriptor.
    pub out_fault_fd: u32,
}

impl Command for FaultQueueAlloc {
    const REQUEST: u32 = request(0x8e);
    const MIN: usize = 16;
}

/// `struct iommu_ioas_map_file`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasMapFile {
    /// Bytes that the caller gives.
    pub size: u32,
    /// [`MapFlags`].
    pub flags: u32,
    /// IOAS.
    pub ioas_id: u32,
    /// The file.
    pub fd: i32,
    /// Offset in it.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// IOVA; in with FIXED_IOVA, and out.
    pub iova: u64,
}

impl Command for IoasMapFile {
    const REQUEST: u32 = request(0x8f);
    const MIN: usize = 40;
}

/// `struct iommu_viommu_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ViommuAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// Type of the vIOMMU.
    pub kind: u32,
    /// Device behind the same IOMMU.
    pub dev_id: u32,
    /// Nesting parent.
    pub hwpt_id: u32,
    /// The new vIOMMU.
    pub out_viommu_id: u32,
    /// Bytes of the driver's data.
    pub data_len: u32,
    /// Unchecked.
    pub reserved: u32,
    /// Address of the driver's data.
    pub data_uptr: u64,
}

impl Command for ViommuAlloc {
    const REQUEST: u32 = request(0x90);
    const MIN: usize = 24;
}

/// `struct iommu_vdevice_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VdeviceAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// vIOMMU.
    pub viommu_id: u32,
    /// Device.
    pub dev_id: u32,
    /// The new vDEVICE.
    pub out_vdevice_id: u32,
    /// The device's id on the vIOMMU.
    pub virt_id: u64,
}

impl Command for VdeviceAlloc {
    const REQUEST: u32 = request(0x91);
    const MIN: usize = 24;
}

/// `struct iommu_ioas_change_process`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoasChangeProcess {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub reserved: u32,
}

impl Command for IoasChangeProcess {
    const REQUEST: u32 = request(0x92);
    const MIN: usize = 8;
}

/// `struct iommu_veventq_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VeventqAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// vIOMMU.
    pub viommu_id: u32,
    /// Type of the events.
    pub kind: u32,
    /// Events that fit.
    pub veventq_depth: u32,
    /// The new queue.
    pub out_veventq_id: u32,
    /// Its descriptor.
    pub out_veventq_fd: u32,
    /// 0.
    pub reserved: u32,
}

impl Command for VeventqAlloc {
    const REQUEST: u32 = request(0x93);
    const MIN: usize = 28;
}

/// `struct iommu_hw_queue_alloc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HwQueueAlloc {
    /// Bytes that the caller gives.
    pub size: u32,
    /// 0.
    pub flags: u32,
    /// vIOMMU.
    pub viommu_id: u32,
    /// Type of the queue.
    pub kind: u32,
    /// Its index.
    pub index: u32,
    /// The new queue.
    pub out_hw_queue_id: u32,
    /// IOVA of its memory in the nesting parent.
    pub nesting_parent_iova: u64,
    /// Bytes of it.
    pub length: u64,
}

impl Command for HwQueueAlloc {
    const REQUEST: u32 = request(0x94);
    const MIN: usize = 40;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<T: Command>() -> (u32, usize, usize) {
        (T::REQUEST, size_of::<T>(), T::MIN)
    }

    /// IOMMUFD-1.6
    #[test]
    fn numbers_and_sizes_are_linux_s() {
        let table = [
            (row::<Destroy>(), (0x3b80, 8, 8)),
            (row::<IoasAlloc>(), (0x3b81, 12, 12)),
            (row::<IoasAllowIovas>(), (0x3b82, 24, 24)),
            (row::<IoasCopy>(), (0x3b83, 40, 40)),
            (row::<IoasIovaRanges>(), (0x3b84, 32, 32)),
            (row::<IoasMap>(), (0x3b85, 40, 40)),
            (row::<IoasUnmap>(), (0x3b86, 24, 24)),
            (row::<SetOption>(), (0x3b87, 24, 24)),
            (row::<VfioIoas>(), (0x3b88, 12, 12)),
            (row::<HwptAlloc>(), (0x3b89, 48, 24)),
            (row::<GetHwInfo>(), (0x3b8a, 40, 32)),
            (row::<HwptSetDirtyTracking>(), (0x3b8b, 16, 16)),
            (row::<HwptGetDirtyBitmap>(), (0x3b8c, 48, 48)),
            (row::<HwptInvalidate>(), (0x3b8d, 32, 32)),
            (row::<FaultQueueAlloc>(), (0x3b8e, 16, 16)),
            (row::<IoasMapFile>(), (0x3b8f, 40, 40)),
            (row::<ViommuAlloc>(), (0x3b90, 40, 24)),
            (row::<VdeviceAlloc>(), (0x3b91, 24, 24)),
            (row::<IoasChangeProcess>(), (0x3b92, 8, 8)),
            (row::<VeventqAlloc>(), (0x3b93, 32, 28)),
            (row::<HwQueueAlloc>(), (0x3b94, 40, 40)),
        ];
        for (ours, linux) in table {
            assert_eq!(ours, linux);
        }
    }
}
