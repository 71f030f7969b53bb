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

    /// Whether the caller may pin so many pages more; if not, how many it may.
    pub(crate) fn check(&self, caller: &dyn Caller, pages: u64) -> Result<(), u64> {
        if self.unlimited {
            return Ok(());
        }
        // Who is below the limit need not be asked for rights: that costs more.
        let room = (caller.memlock_limit() / PAGE).saturating_sub(self.pages(caller.process()));
        if pages <= room || caller.capable(Capability::IpcLock) { Ok(()) } else { Err(room) }
    }

    /// Counts pages; who calls has had them [`check`](Self::check)ed.
    pub(crate) fn charge(&mut self, process: ProcessId, pages: u64) {
        let count = self.pages.entry(process).or_default();
        *count = count.saturating_add(pages);
    }

    /// Counts pages if there is room for them; `ENOMEM`.
    pub(crate) fn try_charge(&mut self, caller: &dyn Caller, pages: u64) -> Result<(), Errno> {
        self.check(caller, pages).map_err(|_| Errno::ENOMEM)?;
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
