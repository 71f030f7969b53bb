// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that mappings point into.

use std::fmt::Debug;

use vm_memory::{Bytes, VolatileSlice};

use crate::Access;

/// Memory of a program, as a device reaches it. Offsets are in bytes and mean
/// what the implementation says (a file offset, a virtual address).
pub trait Memory: Send + Sync + Debug {
    /// The bytes themselves, where they can be addressed directly.
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>>;

    /// Copies from the memory. All of `to` is filled, or it is an error.
    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault>;

    /// Copies to the memory.
    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault>;

    /// [`read`](Self::read) for several places, each an offset and where its
    /// bytes go. After an error any of them may have been filled.
    fn read_many(&self, parts: &[(u64, VolatileSlice<'_>)]) -> Result<(), MemoryFault> {
        parts.iter().try_for_each(|(offset, to)| self.read(*offset, to))
    }

    /// [`write`](Self::write) for several places, in order: whoever sees bytes
    /// of a part sees all of the parts before it. After an error any of them
    /// may have been written.
    fn write_many(&self, parts: &[(u64, VolatileSlice<'_>)]) -> Result<(), MemoryFault> {
        parts.iter().try_for_each(|(offset, from)| self.write(*offset, from))
    }

    /// Bytes that will soon be read or written: where they can be addressed, the
    /// processor may fetch them meanwhile. Nothing else happens.
    fn prefetch(&self, offset: u64, len: usize, access: Access) {
        let _ = (offset, len, access);
    }

    /// Whether it is a device's: accesses are transactions with a peer, and
    /// there are no pages that are pinned.
    fn is_peer(&self) -> bool {
        false
    }

    /// Which byte this is, where that can be told.
    fn identity(&self, offset: u64) -> Option<PageId> {
        let _ = offset;
        None
    }
}

/// A byte of memory by what it is, not by how it is reached: the same byte has
/// the same identity through any memory and mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// What it belongs to: a file (device and inode), or a process.
    pub object: u128,
    /// Offset in the file, or address in the process.
    pub offset: u64,
}

/// The memory behind a mapping is gone (its owner died, exec'd or truncated it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory behind the mapping is gone")]
pub struct MemoryFault;

/// A run of translated bytes.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'a> {
    /// Addressed directly.
    Direct(VolatileSlice<'a>),
    /// Reached by copying.
    Remote {
        /// Where it lies.
        memory: &'a dyn Memory,
        /// Offset of the first byte.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
}

impl Segment<'_> {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Segment::Direct(slice) => slice.len(),
            Segment::Remote { len, .. } => *len,
        }
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the segment to `to`, which has the same length.
    pub fn copy_to(&self, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        debug_assert_eq!(self.len(), to.len());
        match self {
            Segment::Direct(slice) => {
                slice.copy_to_volatile_slice(*to);
                Ok(())
            }
            Segment::Remote { memory, offset, .. } => memory.read(*offset, to),
        }
    }

    /// Fills the segment from `from`, which has the same length.
    pub fn copy_from(&self, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        debug_assert_eq!(self.len(), from.len());
        match self {
            Segment::Direct(slice) => {
                from.copy_to_volatile_slice(*slice);
                Ok(())
            }
            Segment::Remote { memory, offset, .. } => memory.write(*offset, from),
        }
    }

    /// Copies the segment to `to`, which has the same length.
    pub fn read(&self, to: &mut [u8]) -> Result<(), MemoryFault> {
        match self {
            Segment::Direct(slice) => slice.read_slice(to, 0).map_err(|_| MemoryFault),
            Segment::Remote { .. } => self.copy_to(&VolatileSlice::from(to)),
        }
    }

    /// Fills the segment from `from`, which has the same length.
    pub fn write(&self, from: &[u8]) -> Result<(), MemoryFault> {
        match self {
            Segment::Direct(slice) => slice.write_slice(from, 0).map_err(|_| MemoryFault),
            // A VolatileSlice is made of writable memory only, hence the copy.
            Segment::Remote { .. } => self.copy_from(&VolatileSlice::from(from.to_vec().as_mut_slice())),
        }
    }
}
