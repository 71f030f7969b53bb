// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a command failed: the status that the host is told, and its cause.

use device::DiskError;
use iommu::{DmaFault, MemoryFault};

use super::spec::Status;

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The command itself is wrong, or a comparison failed.
    #[error("{0}")]
    Status(Status),
    /// The IOMMU refused an access to data or to a PRP list.
    #[error(transparent)]
    Dma(#[from] DmaFault),
    /// Memory that was mapped is gone.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// The disk could not be read.
    #[error("reading the medium: {0}")]
    Read(DiskError),
    /// The disk could not be written or flushed.
    #[error("writing the medium: {0}")]
    Write(DiskError),
}

impl From<Status> for Error {
    fn from(status: Status) -> Error {
        Error::Status(status)
    }
}

/// The errno of a full medium.
const ENOSPC: i32 = 28;
/// The errno of a medium that may not be written.
const EROFS: i32 = 30;

impl Error {
    /// The status of the completion.
    pub(crate) fn status(&self) -> Status {
        match self {
            Error::Status(status) => *status,
            Error::Dma(_) | Error::Memory(_) => Status::DATA_TRANSFER_ERROR,
            Error::Read(DiskError::Memory(_)) | Error::Write(DiskError::Memory(_)) => Status::DATA_TRANSFER_ERROR,
            Error::Read(DiskError::OutOfRange) | Error::Write(DiskError::OutOfRange) => Status::LBA_OUT_OF_RANGE,
            Error::Read(DiskError::Medium(_)) => Status::UNRECOVERED_READ_ERROR,
            Error::Write(DiskError::Medium(ENOSPC)) => Status::CAPACITY_EXCEEDED,
            Error::Write(DiskError::Medium(EROFS)) => Status::WRITE_PROTECTED,
            Error::Write(DiskError::Medium(_)) => Status::WRITE_FAULT,
        }
    }

    /// Whether the medium is to blame (a SMART media error).
    pub(crate) fn is_medium(&self) -> bool {
        matches!(self.status(), Status::UNRECOVERED_READ_ERROR | Status::WRITE_FAULT)
    }
}
