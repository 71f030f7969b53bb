// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of a pretend program: what devices do DMA to, and mapped BARs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use device::{DeviceFile, Window};
use iommu::{Memory, MemoryFault};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

pub(super) fn region(size: usize) -> MmapRegion {
    MmapRegion::new(size).unwrap_or_else(|error| panic!("{size} bytes of test memory: {error}"))
}

/// Memory that a device reaches directly, or only by copying.
#[derive(Debug)]
pub struct TestMemory {
    region: MmapRegion,
    remote: bool,
    gone: AtomicBool,
}

impl TestMemory {
    /// Zeroed memory. `remote`: it can be reached by copying only.
    #[must_use]
    pub fn new(size: usize, remote: bool) -> Arc<TestMemory> {
        Arc::new(TestMemory { region: region(size), remote, gone: AtomicBool::new(false) })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.region.size()
    }

    /// From now on, copying fails as if the owner had died. Direct accesses
    /// still work.
    pub fn kill(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    /// Copies out. Panics outside the memory.
    pub fn get(&self, offset: u64, to: &mut [u8]) {
        self.region.as_volatile_slice().read_slice(to, offset as usize).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Copies in. Panics outside the memory.
    pub fn set(&self, offset: u64, from: &[u8]) {
        self.region.as_volatile_slice().write_slice(from, offset as usize).unwrap_or_else(|e| panic!("{e}"));
    }

    fn part(&self, offset: u64, len: usize) -> Result<VolatileSlice<'_>, MemoryFault> {
        let offset = usize::try_from(offset).map_err(|_| MemoryFault)?;
        if self.gone.load(Ordering::SeqCst) {
            return Err(MemoryFault);
        }
        self.region.get_slice(offset, len).map_err(|_| MemoryFault)
    }
}

impl Memory for TestMemory {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        if self.remote {
            return None;
        }
        self.region.get_slice(usize::try_from(offset).ok()?, len).ok()
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.part(offset, to.len())?.copy_to_volatile_slice(*to);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        from.copy_to_volatile_slice(self.part(offset, from.len())?);
        Ok(())
    }
}

/// The mapped pages of one BAR.
#[derive(Debug)]
pub struct TestWindow(MmapRegion);

impl Window for TestWindow {
    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// An open device's file.
#[derive(Debug)]
pub struct TestFile {
    windows: [Option<Arc<TestWindow>>; 6],
    accessible: AtomicBool,
    /// Whether accesses can be made to wait, and do.
    holds: bool,
    held: AtomicBool,
}

impl TestFile {
    /// A file with a window of that many bytes for each BAR; 0 for none.
    #[must_use]
    pub fn new(sizes: [u64; 6]) -> Arc<TestFile> {
        let windows = sizes.map(|size| (size > 0).then(|| Arc::new(TestWindow(region(size as usize)))));
        Arc::new(TestFile { windows, accessible: AtomicBool::new(true), holds: false, held: AtomicBool::new(false) })
    }

    /// The same, of which accesses can be made to wait.
    #[must_use]
    pub fn holding(sizes: [u64; 6]) -> Arc<TestFile> {
        let windows = sizes.map(|size| (size > 0).then(|| Arc::new(TestWindow(region(size as usize)))));
        Arc::new(TestFile { windows, accessible: AtomicBool::new(true), holds: true, held: AtomicBool::new(false) })
    }

    /// Whether accesses wait that do not work.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// A mapped BAR, as the program sees it.
    #[must_use]
    pub fn bar(&self, bar: usize) -> Option<&TestWindow> {
        self.windows.get(bar)?.as_deref()
    }

    /// Whether the program's accesses work.
    #[must_use]
    pub fn is_accessible(&self) -> bool {
        self.accessible.load(Ordering::SeqCst)
    }
}

impl DeviceFile for TestFile {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        let window = self.windows.get(bar)?.clone()?;
        Some(window)
    }

    fn hold(&self, on: bool) -> bool {
        self.held.store(on && self.holds, Ordering::SeqCst);
        self.holds
    }

    fn set_accessible(&self, on: bool) {
        self.accessible.store(on, Ordering::SeqCst);
    }
}
