// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device (5.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio device id.
pub const ID: u32 = 2;

/// Bytes of a sector, whatever the block size.
pub const SECTOR: u64 = 512;

/// Feature bits, as masks.
pub mod feature {
    /// `size_max` holds.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` holds.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The medium cannot be written.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` holds.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` holds.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of request.
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Get the device's name.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Results of a request.
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// Device or driver error.
    pub const IOERR: u8 = 1;
    /// Not supported.
    pub const UNSUPP: u8 = 2;
}

/// Length of a device's name.
pub const ID_LEN: usize = 20;

/// What a request begins with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of [`request`].
    pub kind: U32,
    /// Reserved.
    pub reserved: U32,
    /// First sector.
    pub sector: U64,
}

/// A range to discard or to zero.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First sector.
    pub sector: U64,
    /// Sectors.
    pub sectors: U32,
    /// Bit 0: zeroed sectors may be given back.
    pub flags: U32,
}

/// Flag of a [`Range`]: the sectors may be given back.
pub const UNMAP: u32 = 1;

/// Configuration space.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Sectors of the medium.
    pub capacity: U64,
    /// Most bytes of a part.
    pub size_max: U32,
    /// Most parts of a request's data.
    pub seg_max: U32,
    /// Cylinders, heads, sectors; not used.
    pub geometry: [u8; 4],
    /// Bytes of a block.
    pub blk_size: U32,
    /// Logical blocks of a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned block.
    pub alignment_offset: u8,
    /// Least I/O size in blocks.
    pub min_io_size: U16,
    /// Best I/O size in blocks.
    pub opt_io_size: U32,
    /// Whether the cache writes back; reserved without its feature.
    pub writeback: u8,
    /// Reserved.
    pub unused0: u8,
    /// Queues.
    pub num_queues: U16,
    /// Most sectors of a range to discard.
    pub max_discard_sectors: U32,
    /// Most ranges of a discard.
    pub max_discard_seg: U32,
    /// Alignment of ranges to discard, in sectors.
    pub discard_sector_alignment: U32,
    /// Most sectors of a range to zero.
    pub max_write_zeroes_sectors: U32,
    /// Most ranges of a write zeroes.
    pub max_write_zeroes_seg: U32,
    /// Whether zeroing may give sectors back.
    pub write_zeroes_may_unmap: u8,
    /// Reserved.
    pub unused1: [u8; 3],
}

// Programs read 60 bytes (VNET-4).
const _: () = assert!(size_of::<Config>() == 60);
