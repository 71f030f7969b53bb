// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process may do, remembered from one mapping to the next.
//!
//! Its limit on locked memory and whether its user namespace is the machine's
//! first cost a system call or more to ask for. They change by calls that are
//! rare, so the filter shows them; but it shows them before they are done, and
//! nobody tells when that is. So from the first on nothing is remembered,
//! until another program is executed.
//!
//! A limit that somebody outside the lab changes is not seen at once. What is
//! remembered only ever allows: before anything is refused the limit is read.

use std::cell::Cell;

use caller::Capability;
use sys::limits::{self, Capabilities};

/// What is remembered of a process.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    memlock: Cell<Option<u64>>,
    first_namespace: Cell<Option<bool>>,
    changing: Cell<bool>,
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
        let Ok(all) = Capabilities::in_namespace(tid, self.first_namespace.get()) else { return false };
        if !self.changing.get() {
            self.first_namespace.set(all.first_namespace());
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
    }
}
