// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locked memory of each program, as `RLIMIT_MEMLOCK` counts it.
//!
//! Pages count once for each mapping, whoever else has them pinned (API-076).

use std::collections::BTreeMap;

use caller::{Caller, Capability, ProcessId};
use uapi::Errno;

/// Pages are 4 KiB.
pub(crate) const PAGE: u64 = 4096;

/// Pages that programs have pinned for devices.
#[derive(Debug, Default)]
pub(crate) struct LockedMemory {
    pages: BTreeMap<ProcessId, u64>,
    unlimited: bool,
}

impl LockedMemory {
    /// Nothing pinned yet; `unlimited` lets everybody pin all they like.
    pub(crate) fn new(unlimited: bool) -> LockedMemory {
        LockedMemory { pages: BTreeMap::new(), unlimited }
    }

    /// Pages that the caller may still pin.
    pub(crate) fn room(&self, caller: &dyn Caller) -> u64 {
        if self.unlimited || caller.capable(Capability::IpcLock) {
            return u64::MAX;
        }
        (caller.memlock_limit() / PAGE).saturating_sub(self.pages(caller.process()))
    }

    /// Counts pages; who calls has looked at [`room`](Self::room).
    pub(crate) fn charge(&mut self, process: ProcessId, pages: u64) {
        let count = self.pages.entry(process).or_default();
        *count = count.saturating_add(pages);
    }

    /// Counts pages if there is room for them; `ENOMEM`.
    pub(crate) fn try_charge(&mut self, caller: &dyn Caller, pages: u64) -> Result<(), Errno> {
        if pages > self.room(caller) {
            return Err(Errno::ENOMEM);
        }
        self.charge(caller.process(), pages);
        Ok(())
    }

    /// Takes pages out of the count.
    pub(crate) fn uncharge(&mut self, process: ProcessId, pages: u64) {
        if let Some(count) = self.pages.get_mut(&process) {
            *count = count.saturating_sub(pages);
            if *count == 0 {
                self.pages.remove(&process);
            }
        }
    }

    /// Pages that a program has pinned.
    pub(crate) fn pages(&self, process: ProcessId) -> u64 {
        self.pages.get(&process).copied().unwrap_or(0)
    }
}
