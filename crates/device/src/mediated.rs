// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function that several users share, each with a part of it that looks like
//! a function of its own (a mediated device; FAULT-5.4).
//!
//! Each part is an [`Endpoint`] with registers, interrupts and work of its own.
//! Its DMA and page requests leave by the function: they carry the function's
//! requester id and one of the part's PASIDs. So the parts have in common what
//! the function has once: the PASIDs ([`Pasids`]), the page request indexes
//! and reset. A reset of the function resets every part; that of a part
//! concerns its own work only.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Device, Endpoint, Nanos, ResetKind};

/// The parts of a function.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    parts: Mutex<Vec<Weak<Endpoint>>>,
    pasids: Arc<Mutex<Table>>,
}

/// Which part has which PASID of the function.
#[derive(Debug, Default)]
struct Table {
    owners: BTreeMap<u32, u32>,
    parts: u32,
}

impl Shares {
    /// The function was reset.
    pub(crate) fn reset(&self, kind: ResetKind, now: Nanos) {
        let parts: Vec<_> = lock(&self.parts).iter().filter_map(Weak::upgrade).collect();
        for part in parts {
            part.reset(kind, now);
            part.interrupts.reset();
        }
    }
}

/// PASIDs as one part of a function has them.
#[derive(Clone, Debug)]
pub struct Pasids {
    /// What its requests carry that name none.
    own: u32,
    /// Those that it may use besides.
    pool: RangeInclusive<u32>,
    part: u32,
    table: Arc<Mutex<Table>>,
}

impl Pasids {
    /// What requests carry that name no PASID.
    #[must_use]
    pub fn own(&self) -> u32 {
        self.own
    }

    /// Whether the part may name a PASID.
    #[must_use]
    pub fn may_use(&self, pasid: u32) -> bool {
        pasid != self.own && self.pool.contains(&pasid)
    }

    /// The part begins to use a PASID: whether no other has it.
    #[must_use]
    pub fn claim(&self, pasid: u32) -> bool {
        let mut table = lock(&self.table);
        *table.owners.entry(pasid).or_insert(self.part) == self.part
    }

    /// The part uses a PASID no more; another may.
    pub fn release(&self, pasid: u32) {
        let mut table = lock(&self.table);
        if pasid != self.own && table.owners.get(&pasid) == Some(&self.part) {
            table.owners.remove(&pasid);
        }
    }
}

impl Endpoint {
    /// A part of this function for one more user: `device` is what the user
    /// sees. `own` is the PASID of its requests that name none, `pool` what it
    /// may name besides. `None` if another part has `own` as its own.
    #[must_use]
    pub fn share(
        &self,
        device: Box<dyn Device>,
        own: u32,
        pool: RangeInclusive<u32>,
    ) -> Option<(Arc<Endpoint>, Pasids)> {
        let mut table = lock(&self.shares.pasids);
        table.parts += 1;
        let pasids = Pasids { own, pool, part: table.parts, table: Arc::clone(&self.shares.pasids) };
        drop(table);
        if !pasids.claim(own) {
            return None;
        }
        let part = Endpoint::place(device, self.page_requests.share(own));
        let mut parts = lock(&self.shares.parts);
        parts.push(Arc::downgrade(&part));
        Some((part, pasids))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
