// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in memory, which can be told to fail.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use device::{Disk, DiskError};
use iommu::Segment;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use super::memory::region;

/// A disk that keeps its bytes in memory, on a page.
#[derive(Debug)]
pub struct MemoryDisk {
    state: Mutex<State>,
    read_only: bool,
}

#[derive(Debug)]
struct State {
    bytes: MmapRegion,
    calls: DiskCalls,
    failure: Option<DiskError>,
}

/// How often each operation was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCalls {
    /// Reads, one a segment.
    pub reads: u64,
    /// Writes, one a segment.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Writes of zeros.
    pub zeroes: u64,
    /// Discards.
    pub discards: u64,
}

impl MemoryDisk {
    /// A disk of `len` zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Arc<MemoryDisk> {
        MemoryDisk::with(len, false)
    }

    /// A disk of `len` zero bytes that says it cannot be written.
    #[must_use]
    pub fn read_only(len: usize) -> Arc<MemoryDisk> {
        MemoryDisk::with(len, true)
    }

    fn with(len: usize, read_only: bool) -> Arc<MemoryDisk> {
        let state = State { bytes: region(len), calls: DiskCalls::default(), failure: None };
        Arc::new(MemoryDisk { state: Mutex::new(state), read_only })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From now on every operation fails, or with `None` none does.
    pub fn fail(&self, failure: Option<DiskError>) {
        self.lock().failure = failure;
    }

    /// The calls since the last time.
    pub fn take_calls(&self) -> DiskCalls {
        std::mem::take(&mut self.lock().calls)
    }

    /// A copy of some bytes. Panics outside the disk.
    #[must_use]
    pub fn get(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        self.lock().bytes.as_volatile_slice().read_slice(&mut bytes, range.start).unwrap_or_else(|e| panic!("{e}"));
        bytes
    }

    /// Changes some bytes. Panics outside the disk.
    pub fn set(&self, offset: usize, from: &[u8]) {
        self.lock().bytes.as_volatile_slice().write_slice(from, offset).unwrap_or_else(|e| panic!("{e}"));
    }

    fn part(
        &self,
        offset: u64,
        len: u64,
        count: fn(&mut DiskCalls) -> &mut u64,
        act: impl FnOnce(VolatileSlice<'_>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut state = self.lock();
        *count(&mut state.calls) += 1;
        if let Some(failure) = state.failure {
            return Err(failure);
        }
        let start = usize::try_from(offset).map_err(|_| DiskError::OutOfRange)?;
        let len = usize::try_from(len).map_err(|_| DiskError::OutOfRange)?;
        act(state.bytes.get_slice(start, len).map_err(|_| DiskError::OutOfRange)?)
    }
}

fn zero(bytes: &VolatileSlice<'_>) -> Result<(), DiskError> {
    bytes.copy_from(&vec![0_u8; bytes.len()]);
    Ok(())
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.lock().bytes.size() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &Segment<'_>) -> Result<(), DiskError> {
        self.part(offset, to.len() as u64, |calls| &mut calls.reads, |bytes| Ok(to.copy_from(&bytes)?))
    }

    fn write(&self, offset: u64, from: &Segment<'_>) -> Result<(), DiskError> {
        self.part(offset, from.len() as u64, |calls| &mut calls.writes, |bytes| Ok(from.copy_to(&bytes)?))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.part(0, 0, |calls| &mut calls.flushes, |_| Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.part(offset, len, |calls| &mut calls.zeroes, |bytes| zero(&bytes))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.part(offset, len, |calls| &mut calls.discards, |bytes| zero(&bytes))
    }
}
