// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in ordinary memory, which can be told to fail.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use device::{Disk, DiskError};
use iommu::Segment;
use vm_memory::VolatileSlice;

/// A disk that keeps its bytes in a vector.
#[derive(Debug)]
pub struct MemoryDisk {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
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
        Arc::new(MemoryDisk {
            state: Mutex::new(State { bytes: vec![0; len], calls: DiskCalls::default(), failure: None }),
        })
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
        self.lock().bytes[range].to_vec()
    }

    /// Changes some bytes. Panics outside the disk.
    pub fn set(&self, offset: usize, from: &[u8]) {
        self.lock().bytes[offset..offset + from.len()].copy_from_slice(from);
    }

    fn part(
        &self,
        offset: u64,
        len: u64,
        count: fn(&mut DiskCalls) -> &mut u64,
        act: impl FnOnce(&mut [u8]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut state = self.lock();
        *count(&mut state.calls) += 1;
        if let Some(failure) = state.failure {
            return Err(failure);
        }
        let start = usize::try_from(offset).map_err(|_| DiskError::OutOfRange)?;
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or(DiskError::OutOfRange)?;
        act(state.bytes.get_mut(start..end).ok_or(DiskError::OutOfRange)?)
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    fn read(&self, offset: u64, to: &Segment<'_>) -> Result<(), DiskError> {
        self.part(
            offset,
            to.len() as u64,
            |calls| &mut calls.reads,
            |bytes| Ok(to.copy_from(&VolatileSlice::from(bytes))?),
        )
    }

    fn write(&self, offset: u64, from: &Segment<'_>) -> Result<(), DiskError> {
        self.part(
            offset,
            from.len() as u64,
            |calls| &mut calls.writes,
            |bytes| Ok(from.copy_to(&VolatileSlice::from(bytes))?),
        )
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.part(0, 0, |calls| &mut calls.flushes, |_| Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.part(
            offset,
            len,
            |calls| &mut calls.zeroes,
            |bytes| {
                bytes.fill(0);
                Ok(())
            },
        )
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.part(
            offset,
            len,
            |calls| &mut calls.discards,
            |bytes| {
                bytes.fill(0);
                Ok(())
            },
        )
    }
}
