// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locked memory, as `RLIMIT_MEMLOCK` counts it: of each program, which type1
//! and iommufd's process mode share, and of each user.
//!
//! Pages count once for each mapping, whoever else has them pinned (API-076).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uapi::Errno;

use crate::{Caller, Capability, Mm, ProcessId, UserId};

/// Pages are 4 KiB.
const PAGE: u64 = 4096;

/// The pages that programs have locked; one for a lab. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Accounts(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    /// `mm->locked_vm`.
    processes: BTreeMap<ProcessId, u64>,
    /// `user->locked_vm`.
    users: BTreeMap<UserId, u64>,
    /// `mm->pinned_vm`.
    pinned: BTreeMap<ProcessId, u64>,
    unlimited: bool,
}

impl Accounts {
    /// Nothing locked yet; `unlimited` lets everybody lock all they like.
    #[must_use]
    pub fn new(unlimited: bool) -> Accounts {
        Accounts(Arc::new(Mutex::new(Books { unlimited, ..Books::default() })))
    }

    /// Whether the caller may lock so many pages more; if not, how many it may.
    pub fn check(&self, caller: &dyn Caller, pages: u64) -> Result<(), u64> {
        let books = self.books();
        if books.unlimited {
            return Ok(());
        }
        // Who is below the limit need not be asked for rights: that costs more.
        let used = get(&books.processes, &caller.process());
        if used.checked_add(pages).and_then(|all| all.checked_mul(PAGE)).is_some_and(|all| caller.memlock_allows(all)) {
            return Ok(());
        }
        let room = (caller.memlock_limit() / PAGE).saturating_sub(used);
        if pages <= room || caller.capable(Capability::IpcLock) { Ok(()) } else { Err(room) }
    }

    /// Whether the caller may choose which limit holds for it (IOMMUFD-6.2).
    /// Where none does, there is nothing to guard.
    #[must_use]
    pub fn may_choose_limit(&self, caller: &dyn Caller) -> bool {
        self.books().unlimited || caller.capable(Capability::SysResource)
    }

    /// Counts pages; who calls has had them [`check`](Self::check)ed.
    pub fn charge(&self, process: ProcessId, pages: u64) {
        add(&mut self.books().processes, process, pages);
    }

    /// Counts pages if there is room for them; `ENOMEM`.
    pub fn try_charge(&self, caller: &dyn Caller, pages: u64) -> Result<(), Errno> {
        self.check(caller, pages).map_err(|_| Errno::ENOMEM)?;
        self.charge(caller.process(), pages);
        Ok(())
    }

    /// Takes pages out of a program's count.
    pub fn uncharge(&self, process: ProcessId, pages: u64) {
        sub(&mut self.books().processes, process, pages);
    }

    /// Pages that a program has locked (`VmLck`).
    #[must_use]
    pub fn pages(&self, process: ProcessId) -> u64 {
        get(&self.books().processes, &process)
    }

    /// Counts pages with a program if its limit allows: `ENOMEM`. Nobody is
    /// asked for rights.
    pub fn charge_process(&self, mm: &dyn Mm, pages: u64) -> Result<(), Errno> {
        let mut books = self.books();
        if !books.unlimited && get(&books.processes, &mm.process()).saturating_add(pages) > mm.memlock_limit() / PAGE {
            return Err(Errno::ENOMEM);
        }
        add(&mut books.processes, mm.process(), pages);
        Ok(())
    }

    /// Counts pages with a user if the limit of the program that it is for
    /// allows: `ENOMEM`.
    pub fn charge_user(&self, user: UserId, mm: &dyn Mm, pages: u64) -> Result<(), Errno> {
        let mut books = self.books();
        if !books.unlimited && get(&books.users, &user).saturating_add(pages) > mm.memlock_limit() / PAGE {
            return Err(Errno::ENOMEM);
        }
        add(&mut books.users, user, pages);
        Ok(())
    }

    /// Takes pages out of a user's count.
    pub fn uncharge_user(&self, user: UserId, pages: u64) {
        sub(&mut self.books().users, user, pages);
    }

    /// Pages that a user has locked.
    #[must_use]
    pub fn user_pages(&self, user: UserId) -> u64 {
        get(&self.books().users, &user)
    }

    /// Counts pinned pages if the caller's limit allows: `ENOMEM`. Nobody is
    /// asked for rights (VDPA-7.16).
    pub fn try_pin(&self, caller: &dyn Caller, process: ProcessId, pages: u64) -> Result<(), Errno> {
        let mut books = self.books();
        let all = get(&books.pinned, &process).checked_add(pages).and_then(|all| all.checked_mul(PAGE));
        if !books.unlimited && !all.is_some_and(|all| caller.memlock_allows(all)) {
            return Err(Errno::ENOMEM);
        }
        add(&mut books.pinned, process, pages);
        Ok(())
    }

    /// So many more pages of a program are pinned, charged or not.
    pub fn pin(&self, process: ProcessId, pages: u64) {
        add(&mut self.books().pinned, process, pages);
    }

    /// So many fewer.
    pub fn unpin(&self, process: ProcessId, pages: u64) {
        sub(&mut self.books().pinned, process, pages);
    }

    /// Pages of a program that iommufd has pinned (`VmPin`).
    #[must_use]
    pub fn pinned(&self, process: ProcessId) -> u64 {
        get(&self.books().pinned, &process)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn get<K: Ord>(counts: &BTreeMap<K, u64>, key: &K) -> u64 {
    counts.get(key).copied().unwrap_or(0)
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, pages: u64) {
    let count = counts.entry(key).or_default();
    *count = count.saturating_add(pages);
}

fn sub<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, pages: u64) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(pages);
        if *count.get() == 0 {
            count.remove();
        }
    }
}
