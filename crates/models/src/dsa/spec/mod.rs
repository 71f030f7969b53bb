// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers, descriptors and completion records of Intel's Data Streaming
//! Accelerator, as Linux's `idxd` driver and its `linux/idxd.h` describe them.
//! Everything is little-endian.

mod descriptor;
mod registers;

pub use descriptor::{Completion, Descriptor, Status, WRITE_FAULT, flag, opcode, result};
pub use registers::*;

/// Bytes of a page of portals.
pub const PAGE: u64 = 4096;
/// Bytes of a descriptor, and of a place for one in a portal.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Bytes of a completion record.
pub const COMPLETION_BYTES: usize = 32;
/// Bytes of an entry of a delta record.
pub const DELTA_BYTES: usize = 10;
