// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Identify data structures (5.15).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

codes! {
    /// Which data structure Identify returns. The last two are of the NVM
    /// Command Set Specification 1.0; newer drivers ask for them first.
    Cns: u8 {
        /// A namespace.
        Namespace = 0x00,
        /// The controller.
        Controller = 0x01,
        /// Active namespace ids above the one given.
        ActiveNamespaces = 0x02,
        /// Namespace identification descriptors.
        NamespaceDescriptors = 0x03,
        /// A namespace, what is specific to the command set.
        CommandSetNamespace = 0x05,
        /// The controller, what is specific to the command set.
        CommandSetController = 0x06,
        /// Controllers attached to a namespace.
        AttachedControllers = 0x12,
        /// Controllers of the subsystem.
        Controllers = 0x13,
    }
}

codes! {
    /// Types of a namespace identification descriptor.
    NidType: u8 {
        /// IEEE Extended Unique Identifier, 8 bytes.
        Eui64 = 1,
        /// Namespace Globally Unique Identifier, 16 bytes.
        Nguid = 2,
        /// UUID, 16 bytes.
        Uuid = 3,
    }
}

/// Text in a fixed field: ASCII, padded with spaces (`1.5` Keywords, ASCII).
#[must_use]
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, c) in field.iter_mut().zip(text.chars()) {
        *to = if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
    }
    field
}

/// Bits of Identify Controller.
pub mod controller {
    /// OAES: namespace attribute notices.
    pub const OAES_NAMESPACE: u32 = 1 << 8;
    /// OACS: Format NVM.
    pub const OACS_FORMAT: u16 = 1 << 1;
    /// LPA: Commands Supported and Effects.
    pub const LPA_EFFECTS: u8 = 1 << 1;
    /// LPA: offsets and 32-bit lengths in Get Log Page.
    pub const LPA_EXTENDED: u8 = 1 << 2;
    /// ONCS: Compare.
    pub const ONCS_COMPARE: u16 = 1;
    /// ONCS: Dataset Management.
    pub const ONCS_DATASET: u16 = 1 << 2;
    /// ONCS: Write Zeroes.
    pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
    /// ONCS: Save and Select fields of Set and Get Features.
    pub const ONCS_SELECT: u16 = 1 << 4;
    /// ONCS: Timestamp feature.
    pub const ONCS_TIMESTAMP: u16 = 1 << 6;
    /// VWC: there is a volatile write cache.
    pub const VWC_PRESENT: u8 = 1;
    /// VWC: Flush takes the namespace id of all namespaces.
    pub const VWC_FLUSH_ALL: u8 = 3 << 1;
}

/// A power state descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerState {
    /// Largest power in centiwatts.
    pub max_power: U16,
    /// Reserved.
    pub reserved0: u8,
    /// Scale and non-operational bits.
    pub flags: u8,
    /// Entry latency in µs.
    pub entry_latency: U32,
    /// Exit latency in µs.
    pub exit_latency: U32,
    /// Relative throughputs and the rest.
    pub reserved1: [u8; 20],
}

/// Identify Controller. Fields that this project never sets are reserved here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor id.
    pub vid: U16,
    /// PCI subsystem vendor id.
    pub ssvid: U16,
    /// Serial number.
    pub sn: [u8; 20],
    /// Model number.
    pub mn: [u8; 40],
    /// Firmware revision.
    pub fr: [u8; 8],
    /// Recommended arbitration burst, a power of two.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path capabilities.
    pub cmic: u8,
    /// Maximum data transfer size: `4096 << mdts` bytes.
    pub mdts: u8,
    /// Controller id.
    pub cntlid: U16,
    /// Version.
    pub ver: U32,
    /// RTD3 resume and entry latency.
    pub rtd3: [U32; 2],
    /// Optional asynchronous events supported.
    pub oaes: U32,
    /// Controller attributes.
    pub ctratt: U32,
    /// Read recovery levels and reserved.
    pub reserved0: [u8; 11],
    /// Controller type: 1 is an I/O controller.
    pub cntrltype: u8,
    /// FRU GUID.
    pub fguid: [u8; 16],
    /// Command retry delay times and reserved.
    pub reserved1: [u8; 128],
    /// Optional admin commands.
    pub oacs: U16,
    /// Abort command limit, zero based.
    pub acl: u8,
    /// Asynchronous event request limit, zero based.
    pub aerl: u8,
    /// Firmware updates.
    pub frmw: u8,
    /// Log page attributes.
    pub lpa: u8,
    /// Error log entries, zero based.
    pub elpe: u8,
    /// Number of power states, zero based.
    pub npss: u8,
    /// Vendor specific admin commands.
    pub avscc: u8,
    /// Autonomous power states.
    pub apsta: u8,
    /// Warning temperature in kelvin.
    pub wctemp: U16,
    /// Critical temperature in kelvin.
    pub cctemp: U16,
    /// Firmware activation time and host memory buffer.
    pub reserved2: [u8; 10],
    /// Bytes of NVM in all.
    pub tnvmcap: U128,
    /// Bytes of NVM not allocated.
    pub unvmcap: U128,
    /// Replay protected memory, self test, firmware granularity.
    pub reserved3: [u8; 8],
    /// Keep alive granularity in units of 100 ms.
    pub kas: U16,
    /// Thermal management, sanitise, sets, groups and reserved.
    pub reserved4: [u8; 190],
    /// Submission queue entry sizes, powers of two: largest, smallest.
    pub sqes: u8,
    /// Completion queue entry sizes, powers of two: largest, smallest.
    pub cqes: u8,
    /// Maximum outstanding commands.
    pub maxcmd: U16,
    /// Number of namespaces.
    pub nn: U32,
    /// Optional NVM commands.
    pub oncs: U16,
    /// Fused operations.
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache.
    pub vwc: u8,
    /// Atomic write unit, normal, zero based.
    pub awun: U16,
    /// Atomic write unit, power fail, zero based.
    pub awupf: U16,
    /// Vendor specific NVM commands.
    pub nvscc: u8,
    /// Namespace write protection.
    pub nwpc: u8,
    /// Atomic compare and write unit.
    pub acwu: U16,
    /// Reserved.
    pub reserved5: U16,
    /// Scatter gather lists.
    pub sgls: U32,
    /// Largest number of allowed namespaces.
    pub mnan: U32,
    /// Reserved.
    pub reserved6: [u8; 224],
    /// NVM subsystem qualified name, padded with NULs.
    pub subnqn: [u8; 256],
    /// Reserved, and fabrics.
    pub reserved7: [u8; 1024],
    /// Power state descriptors.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vendor: [u8; 1024],
}

/// An LBA format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata bytes a block.
    pub ms: U16,
    /// Block size, a power of two.
    pub lbads: u8,
    /// Relative performance, 0 is best.
    pub rp: u8,
}

/// Bits of Identify Namespace.
pub mod namespace {
    /// DLFEAT: deallocated blocks read as zeros, and Write Zeroes may deallocate.
    pub const DLFEAT_ZEROES: u8 = 1 | 1 << 3;
    /// NSATTR: write protected.
    pub const NSATTR_WRITE_PROTECTED: u8 = 1;
    /// FPI: a Format NVM progress indicator; none is under way.
    pub const FPI_IDLE: u8 = 0x80;
}

/// Identify Namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in blocks.
    pub nsze: U64,
    /// Capacity in blocks.
    pub ncap: U64,
    /// Blocks in use.
    pub nuse: U64,
    /// Features.
    pub nsfeat: u8,
    /// Number of LBA formats, zero based.
    pub nlbaf: u8,
    /// Formatted LBA size: index of the format.
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// Data protection capabilities.
    pub dpc: u8,
    /// Data protection settings.
    pub dps: u8,
    /// Sharing.
    pub nmic: u8,
    /// Reservations.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: u8,
    /// Deallocation features.
    pub dlfeat: u8,
    /// Atomicity and boundaries.
    pub atomicity: [U16; 7],
    /// Capacity in bytes.
    pub nvmcap: U128,
    /// Preferred granularities and reserved.
    pub reserved0: [u8; 35],
    /// Attributes.
    pub nsattr: u8,
    /// NVM set and endurance group.
    pub sets: [U16; 2],
    /// Namespace Globally Unique Identifier.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 16],
    /// Reserved.
    pub reserved1: [u8; 192],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyController>() == 4096);
const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);
