// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOEVENTFD: a signal that stores a value to a BAR (vfio-api.md, section
//! 6.8).

use std::collections::HashMap;

use caller::{Caller, WatchId};
use uapi::Errno;
use uapi::vfio::device::{Ioeventfd, region_index};

use super::state::Device;
use super::watches::{Action, Watches};
use crate::args;

/// As many as a device may have.
const MAX: usize = 1000;

/// What one stores, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Store {
    bar: u32,
    pos: u64,
    data: u64,
    size: u32,
}

/// Those of one device.
#[derive(Debug, Default)]
pub(super) struct IoEvents {
    by_store: HashMap<Store, WatchId>,
    by_watch: HashMap<WatchId, Store>,
}

impl IoEvents {
    /// Removes all (API-188).
    pub(super) fn clear(&mut self, watches: &mut Watches) {
        for id in self.by_watch.keys() {
            watches.remove(*id);
        }
        *self = IoEvents::default();
    }
}

impl Device {
    /// Adds or removes one (API-184 to API-186).
    pub(super) fn ioeventfd(&mut self, arg: u64, caller: &dyn Caller, watches: &mut Watches) -> Result<(), Errno> {
        let request: Ioeventfd = args::read(caller, arg, Ioeventfd::MINSZ)?;
        let size = request.flags;
        if size & !Ioeventfd::SIZE_MASK != 0 || size.count_ones() != 1 || request.fd < -1 {
            return Err(Errno::EINVAL);
        }
        let (bar, pos) = self.locate(request.offset)?;
        if bar > region_index::BAR5 {
            return Err(Errno::EINVAL);
        }
        let place = self.bars.get(bar as usize).copied().unwrap_or_default();
        let end = pos + u64::from(size);
        if end > place.size {
            return Err(Errno::EINVAL);
        }
        if place.table.1 != 0 && end > place.table.0 && pos < place.table.1 {
            return Err(Errno::EINVAL);
        }
        if size == 8 {
            return Err(Errno::EINVAL);
        }
        let store = Store { bar, pos, data: request.data, size };
        if let Some(id) = self.ioevents.by_store.get(&store).copied() {
            if request.fd >= 0 {
                return Err(Errno::EEXIST);
            }
            self.ioevents.by_store.remove(&store);
            self.ioevents.by_watch.remove(&id);
            watches.remove(id);
            return Ok(());
        }
        if request.fd < 0 {
            return Err(Errno::ENODEV);
        }
        if self.ioevents.by_store.len() >= MAX {
            return Err(Errno::ENOSPC);
        }
        let event = caller.event(request.fd)?;
        let id = watches.add(self.address, Action::Store, &event);
        self.ioevents.by_store.insert(store, id);
        self.ioevents.by_watch.insert(id, store);
        Ok(())
    }

    /// One was signalled (API-187).
    pub(super) fn ioeventfd_fired(&mut self, id: WatchId, now: u64) {
        if self.recovery.keep_store(id) {
            return;
        }
        if let Some(store) = self.ioevents.by_watch.get(&id).copied() {
            self.store(store.bar as usize, store.pos, store.data, store.size, now);
        }
    }
}
