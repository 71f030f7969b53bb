// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers and descriptors of an Intel I/OAT DMA engine, version 3.3, with
//! one channel. Offsets are in BAR 0; everything is little-endian.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of channels, 8 bits.
pub const CHANCNT: usize = 0x00;
/// log2 of the longest transfer, 8 bits.
pub const XFERCAP: usize = 0x01;
/// Version of the interface, 8 bits.
pub const CBVER: usize = 0x08;

/// Channel control, 16 bits.
pub const CHANCTRL: usize = 0x80;
/// Channel command, 8 bits; reads as 0 once it is carried out.
pub const CHANCMD: usize = 0x84;
/// Number of descriptors to have run since the chain was armed, 16 bits.
pub const DMACOUNT: usize = 0x86;
/// Channel status, 64 bits: [`State`] in bits 2:0, above it the address of
/// the last descriptor done.
pub const CHANSTS: usize = 0x88;
/// Address of the first descriptor, 64 bits.
pub const CHAINADDR: usize = 0x90;
/// Where the status is written at a completion, 64 bits.
pub const CHANCMP: usize = 0x98;
/// Channel error, 32 bits, write 1 to clear.
pub const CHANERR: usize = 0xa8;
/// Bytes from the first to behind the last register.
pub const REGISTERS: usize = 0xb0;

/// [`CHANCTRL`]: interrupt when an error has halted the channel.
pub const CTRL_ERROR_INTERRUPT: u16 = 0x10;
/// [`CHANCMD`]: stop after what was asked for.
pub const CMD_SUSPEND: u8 = 0x04;
/// [`CHANCMD`]: drop everything.
pub const CMD_RESET: u8 = 0x20;

/// Bits of [`CHANERR`].
pub mod chanerr {
    /// The source cannot be read.
    pub const SOURCE: u32 = 1 << 0;
    /// The destination cannot be written.
    pub const DESTINATION: u32 = 1 << 1;
    /// A descriptor cannot be read.
    pub const DESCRIPTOR: u32 = 1 << 8;
    /// A length of 0, or above what [`super::XFERCAP`] says.
    pub const LENGTH: u32 = 1 << 10;
    /// An operation that the engine does not have.
    pub const CONTROL: u32 = 1 << 9;
    /// The completion cannot be written.
    pub const COMPLETION: u32 = 1 << 12;
}

/// States of a channel, bits 2:0 of [`CHANSTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Working.
    Active = 0,
    /// Everything asked for is done.
    Done = 1,
    /// Stopped by a suspend.
    Suspended = 2,
    /// Stopped by an error or a reset.
    Halted = 3,
    /// A chain is set, nothing was asked for yet.
    Armed = 4,
}

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Bytes to move.
    pub size: u32,
    /// [`ctl`] bits; the operation in bits 31:24.
    pub control: u32,
    /// Source IOVA, or the pattern of a fill.
    pub source: u64,
    /// Destination IOVA.
    pub destination: u64,
    /// IOVA of the next descriptor.
    pub next: u64,
    /// Not looked at.
    pub reserved: [u64; 4],
}

/// Bits of [`Descriptor::control`].
pub mod ctl {
    /// Interrupt when done.
    pub const INTERRUPT: u32 = 1 << 0;
    /// Write the status when done.
    pub const COMPLETION: u32 = 1 << 3;
    /// Operation: copy.
    pub const COPY: u32 = 0;
    /// Operation: fill with the 8 bytes in the source field.
    pub const FILL: u32 = 1;
}
