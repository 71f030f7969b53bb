// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Block storage behind a device model.

use iommu::Segment;

/// Bytes that survive the device: a file, a piece of RAM.
///
/// Offsets and lengths are in bytes; a range that is not wholly inside
/// [`len`](Disk::len) is [`DiskError::OutOfRange`]. Methods may be called from
/// several threads at once.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether there is no byte in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writing fails, always.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Reads from `offset` into a run of translated memory.
    fn read(&self, offset: u64, to: &Segment<'_>) -> Result<(), DiskError>;

    /// Writes a run of translated memory at `offset`.
    fn write(&self, offset: u64, from: &Segment<'_>) -> Result<(), DiskError>;

    /// [`read`](Disk::read) for several parts, each with a result of its own.
    /// They may be done in any order.
    fn read_many(&self, parts: &mut [DiskPart<'_>]) {
        for part in parts {
            part.result = self.read(part.offset, &part.segment);
        }
    }

    /// [`write`](Disk::write) for several parts, each with a result of its
    /// own. They may be done in any order.
    fn write_many(&self, parts: &mut [DiskPart<'_>]) {
        for part in parts {
            part.result = self.write(part.offset, &part.segment);
        }
    }

    /// Returns when everything written so far is durable.
    fn flush(&self) -> Result<(), DiskError>;

    /// Makes the range read as zeros; may give its space back.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Says that the range is not needed; what it reads as then is zeros.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError>;
}

/// One of several transfers.
#[derive(Debug)]
pub struct DiskPart<'a> {
    /// Offset on the disk.
    pub offset: u64,
    /// Memory to read into or to write from.
    pub segment: Segment<'a>,
    /// What came of it.
    pub result: Result<(), DiskError>,
}

impl<'a> DiskPart<'a> {
    /// A transfer that is not done yet.
    #[must_use]
    pub fn new(offset: u64, segment: Segment<'a>) -> DiskPart<'a> {
        DiskPart { offset, segment, result: Ok(()) }
    }
}

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The range is not inside the disk.
    #[error("the range is not inside the disk")]
    OutOfRange,
    /// The memory to copy from or to is gone.
    #[error(transparent)]
    Memory(#[from] iommu::MemoryFault),
    /// The medium failed; the number is the host's errno.
    #[error("the medium failed with errno {0}")]
    Medium(i32),
}
