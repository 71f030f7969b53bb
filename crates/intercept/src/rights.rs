// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process may do, remembered from one mapping to the next.
//!
//! Its limit on locked memory, its capabilities and whether its user namespace
//! is the machine's first cost a system call or more to ask for. They change by
//! calls that are rare, so the filter shows them; but it shows them before they
//! are done, and nobody tells when that is. So from the first on nothing is
//! remembered, until another program is executed.
//!
//! Capabilities are a thread's, but threads start with what their makers have
//! and a process starts with one: until the first such call all of a process's
//! threads have the same. A program that is executed may have others than the
//! one before, and another thread may ask while that is under way.
//!
//! A limit that somebody outside the lab changes is not seen at once. What is
//! remembered of it only ever allows: before anything is refused it is read.

use std::cell::Cell;

use caller::Capability;
use sys::limits::{self, Capabilities};

/// What is remembered of a process.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    memlock: Cell<Option<u64>>,
    first_namespace: Cell<Option<bool>>,
    capabilities: Cell<Option<Capabilities>>,
    changing: Cell<bool>,
    /// Capabilities are.
    dropping: Cell<bool>,
}

impl Rights {
    /// Nothing is known; `changing`: nor can be.
    pub(crate) fn new(changing: bool) -> Rights {
        Rights { changing: Cell::new(changing), ..Rights::default() }
    }

    /// They are about to change.
    pub(crate) fn change(&self) {
        self.changing.set(true);
        self.memlock.set(None);
        self.first_namespace.set(None);
        self.capabilities.set(None);
    }

    /// The capabilities of one of its threads are about to change, if no others.
    pub(crate) fn change_capabilities(&self) {
        self.dropping.set(true);
        self.capabilities.set(None);
    }

    /// `RLIMIT_MEMLOCK` of the process now.
    pub(crate) fn memlock(&self, pid: i32) -> u64 {
        // A limit that cannot be read is the strictest.
        let limit = limits::memlock(pid).unwrap_or(0);
        self.memlock.set((!self.changing.get()).then_some(limit));
        limit
    }

    /// Whether the limit is at least so many bytes.
    pub(crate) fn memlock_allows(&self, pid: i32, bytes: u64) -> bool {
        self.memlock.get().is_some_and(|limit| bytes <= limit) || bytes <= self.memlock(pid)
    }

    /// Whether a thread of the process has a capability.
    pub(crate) fn capable(&self, tid: i32, capability: Capability) -> bool {
        if let Some(all) = self.capabilities.get() {
            return all.has(capability);
        }
        let Ok(all) = Capabilities::in_namespace(tid, self.first_namespace.get()) else { return false };
        if !self.changing.get() {
            self.first_namespace.set(all.first_namespace());
            self.capabilities.set((!self.dropping.get()).then_some(all));
        }
        all.has(capability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_not_remembered() {
        let me = std::process::id() as i32;
        let rights = Rights::default();
        let limit = rights.memlock(me);
        assert_eq!(rights.memlock.get(), Some(limit));
        assert!(rights.memlock_allows(me, limit) && (limit == u64::MAX || !rights.memlock_allows(me, limit + 1)));
        // A memory of less only has it read again.
        rights.memlock.set(Some(0));
        assert!(rights.memlock_allows(me, limit));
        rights.change();
        assert!(rights.memlock_allows(me, limit));
        let _ = rights.capable(me, Capability::IpcLock);
        assert_eq!((rights.memlock.get(), rights.first_namespace.get()), (None, None));
        assert_eq!(rights.capabilities.get(), None);
    }

    #[test]
    fn capabilities_are_asked_for_once_until_one_may_be_dropped() {
        let me = std::process::id() as i32;
        let rights = Rights::default();
        let may = rights.capable(me, Capability::IpcLock);
        assert_eq!(rights.capabilities.get(), Capabilities::of(me).ok());
        // Nobody has this id, so only what is remembered can answer.
        assert_eq!(rights.capable(i32::MAX, Capability::IpcLock), may);
        rights.change_capabilities();
        assert!(!rights.capable(i32::MAX, Capability::IpcLock));
        assert_eq!(rights.capable(me, Capability::IpcLock), may);
        assert_eq!(rights.capabilities.get(), None);
        let limit = rights.memlock(me);
        assert_eq!(rights.memlock.get(), Some(limit), "a limit is none of them");
    }
}
