// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory at its own addresses: where a table leads that nobody has filled.

use std::sync::{Arc, Mutex};

use caller::Mm;
use iommu::{Memory, MemoryFault};
use vm_memory::{VolatileSlice, bitmap::BitmapSlice};

/// The memory of the program that is bound, by virtual address. Without one
/// (and in PA mode always) addresses are physical: nothing of a lab is there.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    mm: Mutex<Option<Arc<dyn Mm>>>,
}

/// Copied at once at most.
const STEP: usize = 4096;

impl Identity {
    /// Binds a program's memory, or none.
    pub(crate) fn bind(&self, mm: Option<Arc<dyn Mm>>) {
        *self.mm.lock().unwrap_or_else(|e| e.into_inner()) = mm;
    }

    fn mm(&self) -> Result<Arc<dyn Mm>, MemoryFault> {
        self.mm.lock().unwrap_or_else(|e| e.into_inner()).clone().ok_or(MemoryFault)
    }
}

fn steps<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> impl Iterator<Item = (usize, usize)> {
    let len = slice.len();
    (0..len).step_by(STEP).map(move |at| (at, STEP.min(len - at)))
}

impl Memory for Identity {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let (mm, mut bytes) = (self.mm()?, [0; STEP]);
        for (at, len) in steps(to) {
            let addr = offset.checked_add(at as u64).ok_or(MemoryFault)?;
            mm.read(addr, &mut bytes[..len]).map_err(|_| MemoryFault)?;
            to.subslice(at, len).map_err(|_| MemoryFault)?.copy_from(&bytes[..len]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let (mm, mut bytes) = (self.mm()?, [0; STEP]);
        for (at, len) in steps(from) {
            let addr = offset.checked_add(at as u64).ok_or(MemoryFault)?;
            from.subslice(at, len).map_err(|_| MemoryFault)?.copy_to(&mut bytes[..len]);
            mm.write(addr, &bytes[..len]).map_err(|_| MemoryFault)?;
        }
        Ok(())
    }
}
