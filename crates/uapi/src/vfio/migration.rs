// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration and DMA logging: data of device features and the request of the
//! saving stream (vfio-migration.md).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request;

/// Fills a [`PrecopyInfo`]; on the data descriptor (MIG-035).
pub const MIG_GET_PRECOPY_INFO: u32 = request(21);

bitflags! {
    /// `flags` of feature MIGRATION, a u64 (MIG-001).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MigrationFlags: u64 {
        /// Always.
        const STOP_COPY = 1;
        /// There is RUNNING_P2P.
        const P2P = 2;
        /// There is PRE_COPY.
        const PRE_COPY = 4;
    }
}

/// `struct vfio_device_feature_mig_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MigState {
    /// `enum vfio_device_mig_state`.
    pub device_state: u32,
    /// The stream's descriptor, or -1.
    pub data_fd: i32,
}

/// `struct vfio_precopy_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrecopyInfo {
    /// Bytes of the structure.
    pub argsz: u32,
    /// An output from version 2 on: [`PRECOPY_INFO_REINIT`].
    pub flags: u32,
    /// Bytes of the first part that are left to read.
    pub initial_bytes: u64,
    /// Bytes that have changed since.
    pub dirty_bytes: u64,
}

/// New initial data has appeared (MIG-042).
pub const PRECOPY_INFO_REINIT: u32 = 1;

/// `struct vfio_device_feature_dma_logging_control`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoggingControl {
    /// Bytes of a page: asked for, and given.
    pub page_size: u64,
    /// Number of ranges.
    pub num_ranges: u32,
    /// Ignored.
    pub reserved: u32,
    /// Pointer to [`LoggingRange`]s.
    pub ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoggingRange {
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoggingReport {
    /// First byte.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit stands for.
    pub page_size: u64,
    /// Pointer to 64-bit words.
    pub bitmap: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bindings::bindings::vfio as linux;

    /// MIG-001, MIG-011, MIG-035: what is passed is laid out as Linux does.
    #[test]
    fn structures_and_numbers_are_linux_s() {
        assert_eq!(size_of::<MigState>(), size_of::<linux::vfio_device_feature_mig_state>());
        assert_eq!(size_of::<PrecopyInfo>(), size_of::<linux::vfio_precopy_info>());
        assert_eq!(size_of::<LoggingControl>(), size_of::<linux::vfio_device_feature_dma_logging_control>());
        assert_eq!(size_of::<LoggingRange>(), size_of::<linux::vfio_device_feature_dma_logging_range>());
        assert_eq!(size_of::<LoggingReport>(), size_of::<linux::vfio_device_feature_dma_logging_report>());
        assert_eq!(MIG_GET_PRECOPY_INFO, 0x3b79);
        for (ours, theirs) in [
            (MigrationFlags::STOP_COPY, linux::VFIO_MIGRATION_STOP_COPY),
            (MigrationFlags::P2P, linux::VFIO_MIGRATION_P2P),
            (MigrationFlags::PRE_COPY, linux::VFIO_MIGRATION_PRE_COPY),
        ] {
            assert_eq!(ours.bits(), u64::from(theirs));
        }
    }
}
