// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `linux/vhost.h`, as far as vhost-vdpa has it: request numbers, structures
//! and IOTLB messages (vhost-vdpa.md, 2 and 3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Type byte of all requests.
pub const TYPE: u8 = 0xaf;

/// Request numbers (VDPA-3).
pub mod request {
    /// Reads the device's features: u64.
    pub const GET_FEATURES: u32 = 0x8008_af00;
    /// Sets the driver's features: u64.
    pub const SET_FEATURES: u32 = 0x4008_af00;
    /// The caller becomes the owner.
    pub const SET_OWNER: u32 = 0xaf01;
    /// Not implemented by vhost-vdpa.
    pub const RESET_OWNER: u32 = 0xaf02;
    /// Memory table of vhost-net: accepted, no effect.
    pub const SET_MEM_TABLE: u32 = 0x4008_af03;
    /// Refused.
    pub const SET_LOG_BASE: u32 = 0x4008_af04;
    /// Refused.
    pub const SET_LOG_FD: u32 = 0x4004_af07;
    /// Size of a ring: [`VringState`](super::VringState).
    pub const SET_VRING_NUM: u32 = 0x4008_af10;
    /// Where a ring lies: [`VringAddr`](super::VringAddr).
    pub const SET_VRING_ADDR: u32 = 0x4028_af11;
    /// Sets where a ring goes on: [`VringState`](super::VringState).
    pub const SET_VRING_BASE: u32 = 0x4008_af12;
    /// Reads where a ring goes on: [`VringState`](super::VringState).
    pub const GET_VRING_BASE: u32 = 0xc008_af12;
    /// Eventfd that the driver signals: [`VringFile`](super::VringFile).
    pub const SET_VRING_KICK: u32 = 0x4008_af20;
    /// Eventfd that the device signals: [`VringFile`](super::VringFile).
    pub const SET_VRING_CALL: u32 = 0x4008_af21;
    /// Eventfd of errors: [`VringFile`](super::VringFile).
    pub const SET_VRING_ERR: u32 = 0x4008_af22;
    /// Of vhost-net: stored, no effect.
    pub const SET_VRING_BUSYLOOP_TIMEOUT: u32 = 0x4008_af23;
    /// Reads it back.
    pub const GET_VRING_BUSYLOOP_TIMEOUT: u32 = 0x4008_af24;
    /// Acknowledges backend features: u64.
    pub const SET_BACKEND_FEATURES: u32 = 0x4008_af25;
    /// Reads the backend features offered: u64.
    pub const GET_BACKEND_FEATURES: u32 = 0x8008_af26;
    /// Virtio device id: u32.
    pub const VDPA_GET_DEVICE_ID: u32 = 0x8004_af70;
    /// Status: u8.
    pub const VDPA_GET_STATUS: u32 = 0x8001_af71;
    /// Status: u8.
    pub const VDPA_SET_STATUS: u32 = 0x4001_af72;
    /// Reads configuration space: [`ConfigHeader`](super::ConfigHeader) and bytes.
    pub const VDPA_GET_CONFIG: u32 = 0x8008_af73;
    /// Writes configuration space.
    pub const VDPA_SET_CONFIG: u32 = 0x4008_af74;
    /// Makes a ring ready or not: [`VringState`](super::VringState).
    pub const VDPA_SET_VRING_ENABLE: u32 = 0x4008_af75;
    /// Largest ring: u16.
    pub const VDPA_GET_VRING_NUM: u32 = 0x8002_af76;
    /// Eventfd of configuration changes: s32.
    pub const VDPA_SET_CONFIG_CALL: u32 = 0x4004_af77;
    /// [`IovaRange`](super::IovaRange).
    pub const VDPA_GET_IOVA_RANGE: u32 = 0x8010_af78;
    /// Length of configuration space: u32.
    pub const VDPA_GET_CONFIG_SIZE: u32 = 0x8004_af79;
    /// Number of address spaces: u32.
    pub const VDPA_GET_AS_NUM: u32 = 0x8004_af7a;
    /// Group of a queue: [`VringState`](super::VringState).
    pub const VDPA_GET_VRING_GROUP: u32 = 0xc008_af7b;
    /// Puts a group (index) into an address space (num).
    pub const VDPA_SET_GROUP_ASID: u32 = 0x4008_af7c;
    /// Stops the device.
    pub const VDPA_SUSPEND: u32 = 0xaf7d;
    /// Lets it go on.
    pub const VDPA_RESUME: u32 = 0xaf7e;
    /// Group of a queue's descriptors.
    pub const VDPA_GET_VRING_DESC_GROUP: u32 = 0xc008_af7f;
    /// Number of queues: u32.
    pub const VDPA_GET_VQS_COUNT: u32 = 0x8004_af80;
    /// Number of groups: u32.
    pub const VDPA_GET_GROUP_NUM: u32 = 0x8004_af81;
    /// Largest size of one ring.
    pub const VDPA_GET_VRING_SIZE: u32 = 0xc008_af82;
    /// How vhost's threads are made: u8.
    pub const SET_FORK_FROM_OWNER: u32 = 0x4001_af84;
    /// Reads it back: u8.
    pub const GET_FORK_FROM_OWNER: u32 = 0x8001_af85;
}

/// Backend features, as bits (VDPA-4).
pub mod backend {
    /// Messages of version 2.
    pub const IOTLB_MSG_V2: u64 = 1 << 1;
    /// Batches.
    pub const IOTLB_BATCH: u64 = 1 << 2;
    /// Several address spaces.
    pub const IOTLB_ASID: u64 = 1 << 3;
    /// `SUSPEND`.
    pub const SUSPEND: u64 = 1 << 4;
    /// `RESUME`.
    pub const RESUME: u64 = 1 << 5;
    /// Rings may be enabled after DRIVER_OK.
    pub const ENABLE_AFTER_DRIVER_OK: u64 = 1 << 6;
    /// Descriptors have groups of their own.
    pub const DESC_ASID: u64 = 1 << 7;
    /// Mappings outlive a reset.
    pub const IOTLB_PERSIST: u64 = 1 << 8;
}

/// `struct vhost_vring_state`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// The ring, or the group.
    pub index: u32,
    /// A number.
    pub num: u32,
}

/// `struct vhost_vring_file`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringFile {
    /// The ring.
    pub index: u32,
    /// An eventfd; -1 for none.
    pub fd: i32,
}

/// `struct vhost_vring_addr`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// The ring.
    pub index: u32,
    /// Bit 0: log writes.
    pub flags: u32,
    /// IOVA of the descriptors.
    pub desc: u64,
    /// IOVA of the used ring.
    pub used: u64,
    /// IOVA of the available ring.
    pub avail: u64,
    /// Where writes are logged.
    pub log: u64,
}

/// Head of `struct vhost_vdpa_config`; the bytes follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigHeader {
    /// Offset in configuration space.
    pub off: u32,
    /// Bytes.
    pub len: u32,
}

/// `struct vhost_vdpa_iova_range`: ends inclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IovaRange {
    /// First IOVA.
    pub first: u64,
    /// Last IOVA.
    pub last: u64,
}

/// `struct vhost_memory` without its regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryHeader {
    /// Number of regions.
    pub nregions: u32,
    /// Zero.
    pub padding: u32,
}

/// `struct vhost_memory_region`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// User address.
    pub user: u64,
    /// Zero.
    pub flags: u64,
}

/// Envelope of messages of version 1.
pub const MSG_V1: u32 = 1;
/// Envelope of messages of version 2.
pub const MSG_V2: u32 = 2;
/// Length of an envelope: what a successful write returns.
pub const MSG_LEN: u64 = 72;
/// Offset of the IOTLB message in an envelope.
pub const MSG_OFFSET: usize = 8;

/// `struct vhost_iotlb_msg`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IotlbMsg {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// User address.
    pub uaddr: u64,
    /// 1 the device reads, 2 it writes, 3 both.
    pub perm: u8,
    /// What is to be done: see [`iotlb`].
    pub kind: u8,
    /// Not looked at.
    pub pad: [u8; 6],
}

/// Kinds of IOTLB message.
pub mod iotlb {
    /// A translation is missing; only kernels send it.
    pub const MISS: u8 = 1;
    /// Adds a mapping.
    pub const UPDATE: u8 = 2;
    /// Removes mappings.
    pub const INVALIDATE: u8 = 3;
    /// Access was refused; nobody sends it.
    pub const ACCESS_FAIL: u8 = 4;
    /// Several messages follow that take effect together.
    pub const BATCH_BEGIN: u8 = 5;
    /// They take effect.
    pub const BATCH_END: u8 = 6;
    /// Permission: the device reads.
    pub const RO: u8 = 1;
    /// Permission: the device writes.
    pub const WO: u8 = 2;
    /// Permission: both.
    pub const RW: u8 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VDPA-2
    #[test]
    fn structures_have_linux_sizes() {
        assert_eq!(size_of::<VringState>(), 8);
        assert_eq!(size_of::<VringFile>(), 8);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(size_of::<IotlbMsg>(), 32);
        assert_eq!(std::mem::offset_of!(IotlbMsg, perm), 24);
        assert_eq!(std::mem::offset_of!(IotlbMsg, kind), 25);
        assert_eq!(size_of::<ConfigHeader>(), 8);
        assert_eq!(size_of::<IovaRange>(), 16);
        assert_eq!(MSG_OFFSET as u64 + 64, MSG_LEN);
    }
}
