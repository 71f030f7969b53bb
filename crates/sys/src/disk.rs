// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks: [`RamDisk`] in memory, [`FileDisk`] in a file or block device.

mod file;
mod ram;
mod ring;

pub use file::{FileDisk, OpenDiskError, Options};
pub use ram::RamDisk;

use device::DiskError;

/// `OutOfRange` unless `len` bytes at `offset` are inside `size`.
fn check(size: u64, offset: u64, len: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange),
    }
}
