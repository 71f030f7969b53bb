// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on an open device.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request;

/// Fills an [`Info`] and its capability chain.
pub const GET_INFO: u32 = request(7);
/// Fills a [`RegionInfo`] and its capability chain.
pub const GET_REGION_INFO: u32 = request(8);
/// Fills an [`IrqInfo`].
pub const GET_IRQ_INFO: u32 = request(9);
/// Takes an [`IrqSet`] and the data behind it.
pub const SET_IRQS: u32 = request(10);
/// No argument.
pub const RESET: u32 = request(11);
/// Fills a [`HotResetInfo`] and the [`DependentDevice`]s behind it.
pub const GET_PCI_HOT_RESET_INFO: u32 = request(12);
/// Takes a [`HotReset`] and the group descriptors behind it.
pub const PCI_HOT_RESET: u32 = request(13);
/// Graphics of mediated devices.
pub const QUERY_GFX_PLANE: u32 = request(14);
/// Graphics of mediated devices.
pub const GET_GFX_DMABUF: u32 = request(15);
/// Takes an [`Ioeventfd`].
pub const IOEVENTFD: u32 = request(16);
/// Takes a [`Feature`] and the data behind it.
pub const FEATURE: u32 = request(17);
/// Character device files only.
pub const BIND_IOMMUFD: u32 = request(18);
/// Character device files only.
pub const ATTACH_IOMMUFD_PT: u32 = request(19);
/// Character device files only.
pub const DETACH_IOMMUFD_PT: u32 = request(20);

/// Indices of regions (API-129).
pub mod region_index {
    /// First of six BARs.
    pub const BAR0: u32 = 0;
    /// Last BAR.
    pub const BAR5: u32 = 5;
    /// Expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Legacy VGA ranges.
    pub const VGA: u32 = 8;
    /// How many regions every PCI device has.
    pub const COUNT: u32 = 9;
}

/// Indices of interrupts (API-144).
pub mod irq_index {
    /// The pin.
    pub const INTX: u32 = 0;
    /// MSI.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// An uncorrectable error.
    pub const ERR: u32 = 3;
    /// The host asks for the device back.
    pub const REQ: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// `struct vfio_device_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Info {
    /// Bytes that the caller provides; needed, on return.
    pub argsz: u32,
    /// [`InfoFlags`].
    pub flags: u32,
    /// Highest region index plus one.
    pub num_regions: u32,
    /// Highest interrupt index plus one.
    pub num_irqs: u32,
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
    /// Flags of an [`Info`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InfoFlags: u32 {
        /// `RESET` works.
        const RESET = 1;
        /// It is a PCI device.
        const PCI = 2;
        /// There are capabilities.
        const CAPS = 0x80;
    }
}

/// Device capability: widths of atomic operations that the way to the root
/// completes. Body: [`AtomicFlags`], reserved word.
pub const CAP_PCI_ATOMIC_COMP: u16 = 5;

bitflags! {
    /// Body of `CAP_PCI_ATOMIC_COMP`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AtomicFlags: u32 {
        /// 32 bits.
        const COMP32 = 1;
        /// 64 bits.
        const COMP64 = 2;
        /// 128 bits.
        const COMP128 = 4;
    }
}

/// `struct vfio_region_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes that the caller provides; needed, on return.
    pub argsz: u32,
    /// [`RegionFlags`].
    pub flags: u32,
    /// Which region is asked about.
    pub index: u32,
    /// Where the capability chain starts.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Offset in the device's file.
    pub offset: u64,
}

bitflags! {
    /// Flags of a [`RegionInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// `read` works.
        const READ = 1;
        /// `write` works.
        const WRITE = 2;
        /// `mmap` works.
        const MMAP = 4;
        /// There are capabilities.
        const CAPS = 8;
    }
}

/// Region capability without a body: the MSI-X table may be mapped as well.
pub const REGION_CAP_MSIX_MAPPABLE: u16 = 3;

/// `struct vfio_irq_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`IrqInfoFlags`].
    pub flags: u32,
    /// Which interrupt is asked about.
    pub index: u32,
    /// How many vectors it has.
    pub count: u32,
}

bitflags! {
    /// Flags of an [`IrqInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqInfoFlags: u32 {
        /// Told through eventfds.
        const EVENTFD = 1;
        /// Can be masked and unmasked.
        const MASKABLE = 2;
        /// Masks itself when told.
        const AUTOMASKED = 4;
        /// Vectors cannot be added while it is enabled.
        const NORESIZE = 8;
    }
}

/// The fixed part of `struct vfio_irq_set`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`IrqSetFlags`].
    pub flags: u32,
    /// Which interrupt.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// How many vectors.
    pub count: u32,
}

bitflags! {
    /// Flags of an [`IrqSet`]: one of the data types and one of the actions.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqSetFlags: u32 {
        /// No data: every vector.
        const DATA_NONE = 1;
        /// A byte a vector: those with another one than 0.
        const DATA_BOOL = 2;
        /// A descriptor a vector.
        const DATA_EVENTFD = 4;
        /// Mask.
        const ACTION_MASK = 8;
        /// Unmask.
        const ACTION_UNMASK = 16;
        /// Signal, enable, disable.
        const ACTION_TRIGGER = 32;
        /// All data types.
        const DATA_TYPE = 7;
        /// All actions.
        const ACTION_TYPE = 56;
    }
}

/// The fixed part of `struct vfio_pci_hot_reset_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HotResetInfo {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// Zero for files from a group.
    pub flags: u32,
    /// How many [`DependentDevice`]s there are.
    pub count: u32,
}

/// `struct vfio_pci_dependent_device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DependentDevice {
    /// IOMMU group.
    pub group_id: u32,
    /// PCI segment.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
}

/// Flag of a [`HotResetInfo`]: its entries have ids in the caller's iommufd.
pub const HOT_RESET_DEV_ID: u32 = 1;
/// Flag of a [`HotResetInfo`]: all of them are the caller's.
pub const HOT_RESET_DEV_ID_OWNED: u32 = 2;
/// Id of a device that is not the caller's.
pub const HOT_RESET_NOT_OWNED: u32 = u32::MAX;

/// The fixed part of `struct vfio_pci_hot_reset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HotReset {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// How many group descriptors follow.
    pub count: u32,
}

/// `struct vfio_device_ioeventfd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ioeventfd {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// The width of the store in bytes: 1, 2, 4 or 8.
    pub flags: u32,
    /// Where in the device's file.
    pub offset: u64,
    /// What is stored.
    pub data: u64,
    /// The eventfd; -1 to remove.
    pub fd: i32,
    /// Zero.
    pub reserved: u32,
}

impl Ioeventfd {
    /// Bytes that every caller provides.
    pub const MINSZ: usize = 28;
    /// Widths that `flags` may name.
    pub const SIZE_MASK: u32 = 15;
}

/// The fixed part of `struct vfio_device_feature`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Feature {
    /// Bytes that the caller provides, data included.
    pub argsz: u32,
    /// A number of [`feature`] and [`FeatureFlags`].
    pub flags: u32,
}

bitflags! {
    /// Operations of a [`Feature`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureFlags: u32 {
        /// The feature's number.
        const INDEX = 0xffff;
        /// Read.
        const GET = 1 << 16;
        /// Write or do.
        const SET = 1 << 17;
        /// Only ask whether that is possible.
        const PROBE = 1 << 18;
    }
}

/// Numbers of features (API-195).
pub mod feature {
    /// Sets the token of a PF's VFs, 16 bytes.
    pub const PCI_VF_TOKEN: u32 = 0;
    /// What the device's migration can do.
    pub const MIGRATION: u32 = 1;
    /// State of the migration.
    pub const MIG_DEVICE_STATE: u32 = 2;
    /// The device may be powered down.
    pub const LOW_POWER_ENTRY: u32 = 3;
    /// The same, with an eventfd for the wake-up.
    pub const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    /// The device may no longer be powered down.
    pub const LOW_POWER_EXIT: u32 = 5;
    /// Logging of the pages that the device writes.
    pub const DMA_LOGGING_START: u32 = 6;
    /// Its end.
    pub const DMA_LOGGING_STOP: u32 = 7;
    /// Its result.
    pub const DMA_LOGGING_REPORT: u32 = 8;
    /// Bytes of the device's state.
    pub const MIG_DATA_SIZE: u32 = 9;
    /// Bus mastering of CDX devices.
    pub const BUS_MASTER: u32 = 10;
    /// Makes a dma-buf from a BAR.
    pub const DMA_BUF: u32 = 11;
    /// Second version of the pre-copy information.
    pub const MIG_PRECOPY_INFO_V2: u32 = 12;
}

/// `struct vfio_device_low_power_entry_with_wakeup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LowPowerWakeup {
    /// Signalled when the device wakes.
    pub wakeup_eventfd: i32,
    /// Zero.
    pub reserved: u32,
}

/// The fixed part of `struct vfio_device_feature_dma_buf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaBuf {
    /// Which BAR.
    pub region_index: u32,
    /// Open flags of the new file.
    pub open_flags: u32,
    /// Zero.
    pub flags: u32,
    /// How many [`DmaRange`]s follow.
    pub nr_ranges: u32,
}

/// `struct vfio_region_dma_range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaRange {
    /// Offset in the BAR.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::InfoCapHeader;
    use std::mem::offset_of;
    use vfio_bindings::bindings::vfio as linux;

    #[test]
    fn layouts_are_linux_s() {
        assert_eq!(offset_of!(Info, cap_offset), Info::MINSZ);
        assert_eq!(size_of::<Info>(), 24);
        assert_eq!(size_of::<RegionInfo>(), size_of::<linux::vfio_region_info>());
        assert_eq!(offset_of!(RegionInfo, size), offset_of!(linux::vfio_region_info, size));
        assert_eq!(size_of::<IrqInfo>(), size_of::<linux::vfio_irq_info>());
        assert_eq!(size_of::<IrqSet>(), size_of::<linux::vfio_irq_set>());
        assert_eq!(size_of::<HotResetInfo>(), size_of::<linux::vfio_pci_hot_reset_info>());
        assert_eq!(size_of::<HotReset>(), size_of::<linux::vfio_pci_hot_reset>());
        assert_eq!(size_of::<DependentDevice>(), 8);
        assert_eq!(size_of::<Ioeventfd>(), 32);
        assert_eq!(offset_of!(Ioeventfd, reserved), Ioeventfd::MINSZ);
        assert_eq!(size_of::<Feature>(), size_of::<linux::vfio_device_feature>());
        assert_eq!((size_of::<LowPowerWakeup>(), size_of::<DmaBuf>(), size_of::<DmaRange>()), (8, 16, 16));
        assert_eq!(size_of::<InfoCapHeader>(), 8);
    }

    #[test]
    fn numbers_are_linux_s() {
        assert_eq!(
            [GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, SET_IRQS, RESET, GET_PCI_HOT_RESET_INFO, PCI_HOT_RESET],
            [0x3b6b, 0x3b6c, 0x3b6d, 0x3b6e, 0x3b6f, 0x3b70, 0x3b71]
        );
        assert_eq!(
            [IOEVENTFD, FEATURE, BIND_IOMMUFD, ATTACH_IOMMUFD_PT, DETACH_IOMMUFD_PT],
            [0x3b74, 0x3b75, 0x3b76, 0x3b77, 0x3b78]
        );
        for (ours, theirs) in [
            (InfoFlags::RESET.bits(), linux::VFIO_DEVICE_FLAGS_RESET),
            (InfoFlags::PCI.bits(), linux::VFIO_DEVICE_FLAGS_PCI),
            (RegionFlags::CAPS.bits(), linux::VFIO_REGION_INFO_FLAG_CAPS),
            (u32::from(REGION_CAP_MSIX_MAPPABLE), linux::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE),
            (IrqInfoFlags::NORESIZE.bits(), linux::VFIO_IRQ_INFO_NORESIZE),
            (IrqSetFlags::DATA_TYPE.bits(), linux::VFIO_IRQ_SET_DATA_TYPE_MASK),
            (IrqSetFlags::ACTION_TYPE.bits(), linux::VFIO_IRQ_SET_ACTION_TYPE_MASK),
            (FeatureFlags::GET.bits(), linux::VFIO_DEVICE_FEATURE_GET),
            (FeatureFlags::SET.bits(), linux::VFIO_DEVICE_FEATURE_SET),
            (FeatureFlags::PROBE.bits(), linux::VFIO_DEVICE_FEATURE_PROBE),
            (feature::LOW_POWER_ENTRY_WITH_WAKEUP, linux::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP),
            (feature::MIG_DATA_SIZE, linux::VFIO_DEVICE_FEATURE_MIG_DATA_SIZE),
        ] {
            assert_eq!(ours, theirs);
        }
    }
}
