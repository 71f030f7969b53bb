// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Log pages (5.14) and asynchronous events (5.2).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

codes! {
    /// Log page identifiers.
    LogPage: u8 {
        /// Error Information.
        Error = 0x01,
        /// SMART / Health Information.
        Smart = 0x02,
        /// Firmware Slot Information.
        Firmware = 0x03,
        /// Changed Namespace List.
        ChangedNamespaces = 0x04,
        /// Commands Supported and Effects.
        CommandEffects = 0x05,
    }
}

codes! {
    /// Asynchronous event types.
    EventType: u8 {
        /// Error status.
        Error = 0,
        /// SMART / health status.
        Smart = 1,
        /// Notice.
        Notice = 2,
    }
}

/// What completes an Asynchronous Event Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Type.
    pub kind: EventType,
    /// Information; its meaning depends on the type.
    pub info: u8,
    /// The log page that tells more and whose reading clears the event.
    pub log: LogPage,
}

impl AsyncEvent {
    /// Write to a doorbell of no queue.
    pub const INVALID_DOORBELL_REGISTER: AsyncEvent =
        AsyncEvent { kind: EventType::Error, info: 0, log: LogPage::Error };
    /// A doorbell value out of range, or an overrun of the queue.
    pub const INVALID_DOORBELL_VALUE: AsyncEvent = AsyncEvent { kind: EventType::Error, info: 1, log: LogPage::Error };
    /// The temperature crossed its threshold.
    pub const TEMPERATURE: AsyncEvent = AsyncEvent { kind: EventType::Smart, info: 1, log: LogPage::Smart };
    /// Identify Namespace data have changed.
    pub const NAMESPACE_CHANGED: AsyncEvent =
        AsyncEvent { kind: EventType::Notice, info: 0, log: LogPage::ChangedNamespaces };

    /// Dword 0 of the completion.
    #[must_use]
    pub const fn dword(self) -> u32 {
        self.kind.raw() as u32 | (self.info as u32) << 8 | (self.log.raw() as u32) << 16
    }
}

/// An entry of the Error Information log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// Serial number of the error since power on, from 1.
    pub count: U64,
    /// Submission queue id; FFFFh when no command is concerned.
    pub sq_id: U16,
    /// Command id; FFFFh when no command is concerned.
    pub cid: U16,
    /// Status field, phase tag in bit 0.
    pub status: U16,
    /// Byte in bits 7:0 and bit in bits 10:8 of the wrong parameter; FFFFh unknown.
    pub location: U16,
    /// First LBA concerned.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Vendor specific information.
    pub vendor: u8,
    /// Transport type; 0 where the transport is memory.
    pub transport: u8,
    /// Reserved.
    pub reserved0: [u8; 2],
    /// Command specific.
    pub command: U64,
    /// Transport specific.
    pub transport_info: U16,
    /// Reserved.
    pub reserved1: [u8; 22],
}

/// Bits of the SMART log's critical warning.
pub mod critical_warning {
    /// A temperature is over or under its threshold.
    pub const TEMPERATURE: u8 = 1 << 1;
}

/// SMART / Health Information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Smart {
    /// Critical warnings.
    pub critical_warning: u8,
    /// Composite temperature in kelvin.
    pub temperature: U16,
    /// Available spare in per cent.
    pub spare: u8,
    /// Threshold of the available spare.
    pub spare_threshold: u8,
    /// Life used in per cent.
    pub used: u8,
    /// Endurance group warnings.
    pub group_warning: u8,
    /// Reserved.
    pub reserved0: [u8; 25],
    /// Data read, in thousands of 512 bytes, rounded up.
    pub units_read: U128,
    /// Data written, in thousands of 512 bytes, rounded up.
    pub units_written: U128,
    /// Read and compare commands.
    pub reads: U128,
    /// Write commands.
    pub writes: U128,
    /// Minutes busy.
    pub busy: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Hours powered on.
    pub hours: U128,
    /// Power losses without a shutdown before.
    pub unsafe_shutdowns: U128,
    /// Errors of the medium.
    pub media_errors: U128,
    /// Entries ever made in the error log.
    pub error_entries: U128,
    /// Minutes above the warning temperature.
    pub warning_minutes: U32,
    /// Minutes above the critical temperature.
    pub critical_minutes: U32,
    /// Temperature sensors in kelvin.
    pub sensors: [U16; 8],
    /// Thermal management and reserved.
    pub reserved1: [u8; 296],
}

/// Firmware Slot Information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlots {
    /// Active slot in bits 2:0.
    pub active: u8,
    /// Reserved.
    pub reserved0: [u8; 7],
    /// Revisions of slots 1 to 7.
    pub revisions: [[u8; 8]; 7],
    /// Reserved.
    pub reserved1: [u8; 448],
}

/// Bits of a command in the Commands Supported and Effects log.
pub mod effects {
    /// Supported.
    pub const SUPPORTED: u32 = 1;
    /// May change logical blocks.
    pub const BLOCKS: u32 = 1 << 1;
}

/// Commands Supported and Effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandEffects {
    /// By opcode of the admin command set.
    pub admin: [U32; 256],
    /// By opcode of the NVM command set.
    pub nvm: [U32; 256],
    /// Reserved.
    pub reserved: [u8; 2048],
}
