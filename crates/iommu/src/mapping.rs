// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a mapping is.

use std::sync::Arc;

use crate::Memory;

bitflags::bitflags! {
    /// What a device may do with a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

/// One mapping. Ends are inclusive, so that the last byte can be 2^64-1.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First IOVA.
    pub first: u64,
    /// Last IOVA, inclusive.
    pub last: u64,
    /// Rights of the device.
    pub prot: Prot,
    /// Memory that it points into.
    pub memory: Arc<dyn Memory>,
    /// Offset in `memory` of the byte at `first`.
    pub offset: u64,
    /// Bits of the owner's own (type1: a vaddr that was taken away, accounting).
    pub tag: u32,
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range touches a mapping.
    #[error("the range touches an existing mapping")]
    Overlap,
    /// No memory for the table.
    #[error("no memory for the translation table")]
    NoMemory,
}
