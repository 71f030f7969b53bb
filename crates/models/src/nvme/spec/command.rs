// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Submission and completion queue entries (4.2, 4.6) and opcodes (5, 6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Status;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Command {
    /// Opcode.
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// PRP entry 1.
    pub prp1: U64,
    /// PRP entry 2.
    pub prp2: U64,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

impl Command {
    /// Bytes of an entry.
    pub const SIZE: usize = 64;

    /// Whether it is half of a fused operation.
    #[must_use]
    pub const fn is_fused(&self) -> bool {
        self.flags & 3 != 0
    }

    /// Whether its data pointer is a scatter gather list.
    #[must_use]
    pub const fn uses_sgl(&self) -> bool {
        self.flags & 0xc0 != 0
    }

    /// Starting LBA of an NVM command.
    #[must_use]
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw10.get()) | u64::from(self.cdw11.get()) << 32
    }

    /// Number of logical blocks of an NVM command.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        u64::from(self.cdw12.get() & 0xffff) + 1
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Completion {
    /// Command specific.
    pub dw0: U32,
    /// Command specific.
    pub dw1: U32,
    /// Submission queue head pointer.
    pub sq_head: U16,
    /// Submission queue identifier.
    pub sq_id: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field; bit 0 is the phase tag.
    pub status: U16,
}

impl Completion {
    /// Bytes of an entry.
    pub const SIZE: usize = 16;

    /// The phase tag.
    #[must_use]
    pub fn phase(&self) -> bool {
        self.status.get() & 1 != 0
    }

    /// The status code and its type.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_field(self.status.get())
    }
}

/// A range of a Dataset Management command (6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range {
    /// Context attributes.
    pub attributes: U32,
    /// Length in logical blocks.
    pub blocks: U32,
    /// Starting LBA.
    pub slba: U64,
}

codes! {
    /// Opcodes of admin commands.
    AdminOpcode: u8 {
        /// Delete I/O Submission Queue.
        DeleteSubmissionQueue = 0x00,
        /// Create I/O Submission Queue.
        CreateSubmissionQueue = 0x01,
        /// Get Log Page.
        GetLogPage = 0x02,
        /// Delete I/O Completion Queue.
        DeleteCompletionQueue = 0x04,
        /// Create I/O Completion Queue.
        CreateCompletionQueue = 0x05,
        /// Identify.
        Identify = 0x06,
        /// Abort.
        Abort = 0x08,
        /// Set Features.
        SetFeatures = 0x09,
        /// Get Features.
        GetFeatures = 0x0a,
        /// Asynchronous Event Request.
        AsyncEventRequest = 0x0c,
        /// Keep Alive.
        KeepAlive = 0x18,
        /// Format NVM.
        FormatNvm = 0x80,
    }
}

codes! {
    /// Opcodes of the NVM command set.
    NvmOpcode: u8 {
        /// Flush.
        Flush = 0x00,
        /// Write.
        Write = 0x01,
        /// Read.
        Read = 0x02,
        /// Compare.
        Compare = 0x05,
        /// Write Zeroes.
        WriteZeroes = 0x08,
        /// Dataset Management.
        DatasetManagement = 0x09,
    }
}
