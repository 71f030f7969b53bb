// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! eventfds of programs that set something off here: irqfds that unmask and
//! ioeventfds.

use std::collections::HashMap;
use std::sync::Arc;

use ::device::Event;
use caller::{Platform, WatchId};
use pci::Address;

/// What a signal sets off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// INTx is unmasked.
    Unmask,
    /// A value is stored to a BAR.
    Store,
}

/// All watched events.
#[derive(Debug)]
pub(super) struct Watches {
    platform: Arc<dyn Platform>,
    next: u64,
    map: HashMap<WatchId, (Address, Action)>,
}

impl Watches {
    pub(super) fn new(platform: Arc<dyn Platform>) -> Watches {
        Watches { platform, next: 0, map: HashMap::new() }
    }

    /// Watches an event for a device.
    pub(super) fn add(&mut self, address: Address, action: Action, event: &Arc<dyn Event>) -> WatchId {
        let id = WatchId(self.next);
        self.next += 1;
        self.map.insert(id, (address, action));
        self.platform.watch(id, event);
        id
    }

    /// Watches it no longer. A signal under way finds nothing.
    pub(super) fn remove(&mut self, id: WatchId) {
        self.map.remove(&id);
        self.platform.unwatch(id);
    }

    /// What the signal of a watched event sets off, and on which device.
    pub(super) fn get(&self, id: WatchId) -> Option<(Address, Action)> {
        self.map.get(&id).copied()
    }
}
