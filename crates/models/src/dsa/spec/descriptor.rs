// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors and completion records.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// PASID in bits 19:0, privileged in bit 31.
    pub pasid: u32,
    /// [`flag`] bits in bits 23:0, [`opcode`] in bits 31:24.
    pub operation: u32,
    /// IOVA of the completion record.
    pub completion: u64,
    /// IOVA of the source; the pattern of a fill or comparison, the list of a
    /// batch, the delta record to apply.
    pub source: u64,
    /// IOVA of the destination or of the second source.
    pub destination: u64,
    /// Bytes; descriptors of a batch.
    pub size: u32,
    /// Interrupt handle.
    pub interrupt: u16,
    /// Zero.
    pub reserved: u16,
    /// What only some operations have; see the methods.
    pub specific: [u8; 24],
}

impl Descriptor {
    /// A descriptor of this operation with these flags.
    #[must_use]
    pub fn new(opcode: u8, flags: u32) -> Descriptor {
        Descriptor { operation: u32::from(opcode) << 24 | flags & 0xff_ffff, ..Descriptor::default() }
    }

    /// The operation.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        (self.operation >> 24) as u8
    }

    /// The flags.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.operation & 0xff_ffff
    }

    /// Whether any of these flags is set.
    #[must_use]
    pub fn has(&self, flags: u32) -> bool {
        self.operation & flags != 0
    }

    /// Whether it is this operation, with none but these flags, nothing reserved
    /// and nothing that only some operations have.
    #[must_use]
    #[inline]
    pub fn is_plain(&self, opcode: u8, flags: u32) -> bool {
        let operation = (self.operation & !flags) ^ u32::from(opcode) << 24;
        let rest = self.words().iter().fold(u64::from(self.reserved), |bits, word| bits | word);
        u64::from(operation) | rest == 0
    }

    fn specific<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.specific.get(offset..offset + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    /// What only some operations have, as numbers.
    #[must_use]
    pub fn words(&self) -> [u64; 3] {
        [0, 8, 16].map(|offset| u64::from_le_bytes(self.specific(offset)))
    }

    /// Second destination of a dual cast, or delta record to create.
    #[must_use]
    pub fn second(&self) -> u64 {
        u64::from_le_bytes(self.specific(0))
    }

    /// Longest delta record to create.
    #[must_use]
    pub fn max_delta(&self) -> u32 {
        u32::from_le_bytes(self.specific(8))
    }

    /// Length of the delta record to apply, and seed of a CRC.
    #[must_use]
    pub fn word(&self) -> u32 {
        u32::from_le_bytes(self.specific(0))
    }

    /// IOVA of a CRC's seed.
    #[must_use]
    pub fn seed_address(&self) -> u64 {
        u64::from_le_bytes(self.specific(8))
    }

    /// Result that a comparison should have.
    #[must_use]
    pub fn expected(&self) -> u8 {
        self.specific::<1>(0)[0] & 1
    }

    /// Results that creating a delta record may have, a bit each.
    #[must_use]
    pub fn expected_mask(&self) -> u8 {
        self.specific::<1>(16)[0]
    }

    /// Sets what only some operations have.
    #[must_use]
    pub fn with(mut self, offset: usize, bytes: &[u8]) -> Descriptor {
        if let Some(to) = self.specific.get_mut(offset..offset + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self
    }
}

/// A completion record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Completion {
    /// [`Status`]; bit 7: a write has faulted.
    pub status: u8,
    /// What the operation says.
    pub result: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Bytes, or descriptors of a batch, done.
    pub done: u32,
    /// First IOVA that could not be accessed.
    pub address: u64,
    /// Invalid flags, length of a delta record, or a CRC.
    pub value: u64,
    /// Zero.
    pub reserved2: u64,
}

/// Bits of a descriptor's flags.
pub mod flag {
    /// Not before those before it in the batch; not at all if one has failed.
    pub const FENCE: u32 = 1 << 0;
    /// Ask for missing pages.
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// There is a completion record.
    pub const RECORD: u32 = 1 << 2;
    /// Write the completion record in any case.
    pub const REQUEST_RECORD: u32 = 1 << 3;
    /// Interrupt when done.
    pub const INTERRUPT: u32 = 1 << 4;
    /// Hint about the completion record.
    pub const STEER_RECORD: u32 = 1 << 5;
    /// Compare the result with the expected one.
    pub const CHECK_RESULT: u32 = 1 << 7;
    /// Hint: into the cache.
    pub const CACHE: u32 = 1 << 8;
    /// Traffic class of the first address.
    pub const CLASS_1: u32 = 1 << 9;
    /// Traffic class of the second address.
    pub const CLASS_2: u32 = 1 << 10;
    /// Traffic class of the third address.
    pub const CLASS_3: u32 = 1 << 11;
    /// Traffic class of the completion record.
    pub const CLASS_RECORD: u32 = 1 << 12;
    /// Writes in order.
    pub const STRICT: u32 = 1 << 13;
    /// Read the destination back.
    pub const READBACK: u32 = 1 << 14;
    /// Hint about the destination.
    pub const STEER: u32 = 1 << 15;
    /// CRC: the seed is in memory.
    pub const READ_SEED: u32 = 1 << 16;
    /// CRC: seed and result are as they are.
    pub const RAW_CRC: u32 = 1 << 17;
    /// CRC: bytes are as they are.
    pub const RAW_DATA: u32 = 1 << 18;
}

/// Numbers of operations.
pub mod opcode {
    /// Nothing.
    pub const NO_OPERATION: u8 = 0x00;
    /// Do the descriptors of a list.
    pub const BATCH: u8 = 0x01;
    /// Wait for what came before.
    pub const DRAIN: u8 = 0x02;
    /// Copy.
    pub const MOVE: u8 = 0x03;
    /// Fill with 8 bytes.
    pub const FILL: u8 = 0x04;
    /// Compare two ranges.
    pub const COMPARE: u8 = 0x05;
    /// Compare a range with 8 bytes.
    pub const COMPARE_PATTERN: u8 = 0x06;
    /// Say where two ranges differ.
    pub const CREATE_DELTA: u8 = 0x07;
    /// Change a range as that says.
    pub const APPLY_DELTA: u8 = 0x08;
    /// Copy to two places.
    pub const DUAL_CAST: u8 = 0x09;
    /// CRC-32C of a range.
    pub const CRC: u8 = 0x10;
    /// Copy with CRC-32C.
    pub const COPY_CRC: u8 = 0x11;
    /// Out of the caches.
    pub const FLUSH: u8 = 0x20;

    /// All of them.
    pub const ALL: [u8; 13] = [
        NO_OPERATION,
        BATCH,
        DRAIN,
        MOVE,
        FILL,
        COMPARE,
        COMPARE_PATTERN,
        CREATE_DELTA,
        APPLY_DELTA,
        DUAL_CAST,
        CRC,
        COPY_CRC,
        FLUSH,
    ];
}

/// Results in completion records.
pub mod result {
    /// Move: it went from the end down, and so does the count of bytes.
    pub const DOWNWARDS: u8 = 1;
    /// Comparison: not the same.
    pub const DIFFERENT: u8 = 1;
    /// Create delta: there are differences.
    pub const DELTA: u8 = 1;
    /// Create delta: more than there was room for.
    pub const DELTA_OVERFLOW: u8 = 2;
}

/// Status of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Success = 0x01,
    /// Done, and the result is not the expected one.
    FalsePredicate = 0x02,
    /// A page is missing.
    PageFault = 0x03,
    /// A descriptor of the batch was not a success.
    BatchFailed = 0x05,
    /// The list of a batch could not be read.
    BatchPageFault = 0x06,
    /// Offsets of a delta record do not increase.
    DeltaOrder = 0x07,
    /// An offset of a delta record is beyond the range.
    DeltaOffset = 0x08,
    /// There is no such operation here.
    Opcode = 0x10,
    /// Flags that the operation does not have.
    Flags = 0x11,
    /// A reserved field is not zero.
    Reserved = 0x12,
    /// Number of bytes.
    Size = 0x13,
    /// Number of descriptors.
    Count = 0x14,
    /// Length of a delta record.
    DeltaSize = 0x15,
    /// Ranges overlap.
    Overlap = 0x16,
    /// Destinations of a dual cast lie differently in their pages.
    DualCast = 0x17,
    /// The list of a batch is not aligned.
    ListAlignment = 0x18,
    /// Interrupt handle.
    Interrupt = 0x19,
    /// The completion record could not be written.
    RecordFault = 0x1a,
    /// The completion record is not aligned.
    RecordAlignment = 0x1b,
    /// An address is not aligned.
    Alignment = 0x1c,
}

/// Bit 7 of a status: a write has faulted.
pub const WRITE_FAULT: u8 = 0x80;

const _: () = assert!(size_of::<Descriptor>() == super::DESCRIPTOR_BYTES);
const _: () = assert!(size_of::<Completion>() == super::COMPLETION_BYTES);
