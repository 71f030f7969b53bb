// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for tests, by the byte.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(dead_code)] // not every test needs all

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use iommu::{AddressSpace, Mapping, Memory, MemoryFault, Prot};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Memory that takes everything.
#[derive(Debug)]
pub(crate) struct Sink;

impl Memory for Sink {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }
}

/// Memory that can vanish.
#[derive(Debug)]
pub(crate) struct Bytes {
    copied: Vec<AtomicU8>,
    direct: Option<MmapRegion<()>>,
    gone: AtomicBool,
}

impl Bytes {
    /// So many zeroed pages that are reached by copying.
    pub(crate) fn copied(pages: usize) -> Arc<Bytes> {
        let copied = (0..pages * PAGE as usize).map(|_| AtomicU8::new(0)).collect();
        Arc::new(Bytes { copied, direct: None, gone: AtomicBool::new(false) })
    }

    /// So many zeroed pages that are addressed.
    pub(crate) fn direct(pages: usize) -> Arc<Bytes> {
        let direct = MmapRegion::new(pages * PAGE as usize).unwrap();
        Arc::new(Bytes { copied: Vec::new(), direct: Some(direct), gone: AtomicBool::new(false) })
    }

    pub(crate) fn len(&self) -> u64 {
        self.direct.as_ref().map_or(self.copied.len(), MmapRegion::size) as u64
    }

    pub(crate) fn vanish(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(crate) fn set(&self, offset: u64, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.write(offset, &VolatileSlice::from(&mut bytes[..])).unwrap();
    }

    pub(crate) fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &VolatileSlice::from(&mut bytes[..])).unwrap();
        bytes
    }

    fn part(&self, offset: u64, len: usize) -> Result<&[AtomicU8], MemoryFault> {
        if self.gone.load(Ordering::SeqCst) {
            return Err(MemoryFault);
        }
        self.copied.get(offset as usize..offset as usize + len).ok_or(MemoryFault)
    }
}

impl Memory for Bytes {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.direct.as_ref()?.get_slice(offset as usize, len).ok()
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if let Some(slice) = self.slice(offset, to.len()) {
            slice.copy_to_volatile_slice(*to);
            return Ok(());
        }
        let bytes: Vec<u8> = self.part(offset, to.len())?.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if let Some(slice) = self.slice(offset, from.len()) {
            from.copy_to_volatile_slice(slice);
            return Ok(());
        }
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes);
        for (cell, byte) in self.part(offset, from.len())?.iter().zip(bytes) {
            cell.store(byte, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Maps `first..=last` to a memory from `offset`.
pub(crate) fn map(space: &AddressSpace, memory: &Arc<Bytes>, first: u64, last: u64, prot: Prot, offset: u64) {
    space.map(Mapping { first, last, prot, memory: memory.clone(), offset, tag: 0 }).unwrap();
}
