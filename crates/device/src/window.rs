// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file through which a program sees a device's regions, and the pages of
//! it that the device shares with the program.
//!
//! A program that maps a BAR loads and stores without the device being told;
//! the device finds out by looking at the same pages when it has a turn.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use iommu::Memory;
use vm_memory::VolatileSlice;

/// Pages of one BAR, shared with the program. Use the slice's atomic `load`
/// and `store` for registers.
pub trait Window: Send + Sync + Debug {
    /// The whole BAR.
    fn slice(&self) -> VolatileSlice<'_>;
}

/// Which regions a device file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionLayout {
    /// File offset of BAR 0; BAR `n` lies `n << 40` further on. Nothing lies
    /// below it.
    pub base: u64,
    /// Length in bytes of each BAR that may be mapped; 0 for the others.
    pub mmap: [u64; 6],
}

/// One open device's file.
pub trait DeviceFile: Any + Send + Sync + Debug {
    /// The shared pages of a BAR; `None` if the layout gives it no length.
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>>;

    /// `false`: from the return on, the program's accesses to every mapped BAR
    /// raise SIGBUS (memory disabled, low power, reset). `true`: they work
    /// again, and read what the device last stored.
    ///
    /// The device must not touch its windows while they are off.
    fn set_accessible(&self, on: bool);

    /// `true`: while the mapped BARs are not accessible, accesses of the program
    /// wait instead of raising SIGBUS; whether they can be made to. `false`:
    /// no longer; those that wait are made again.
    fn hold(&self, on: bool) -> bool {
        let _ = on;
        false
    }

    /// What DMA reaches where a program has mapped a BAR for devices: `bar` as
    /// another device finds it, whatever of it can be mapped. Said before a
    /// program has the file; always the same.
    fn connect(&self, bar: usize, peer: Arc<dyn Memory>) {
        let _ = (bar, peer);
    }
}

/// Makes device files.
pub trait DeviceFiles: Send + Sync + Debug {
    /// A file with windows as `layout` says, accessible, all zeros.
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile>;
}

/// The machine has no memory or descriptors for another device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory or file descriptor left for the device's file")]
pub struct NoDeviceFile;
