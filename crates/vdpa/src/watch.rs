// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kick eventfds: heard, never read (VDPA-6.11).

use std::sync::Arc;

use caller::{Platform, WatchId};
use device::{Event, VirtioEndpoint};

/// A kick eventfd of a ring; heard while this lives.
#[derive(Debug)]
pub(crate) struct Watch {
    id: WatchId,
    event: Arc<dyn Event>,
    platform: Arc<dyn Platform>,
}

/// Watches of VFIO count from 1.
const FIRST: u64 = 1 << 62;

impl Watch {
    /// Has `event` kick a queue. One that is signalled already kicks at once.
    pub(crate) fn start(
        count: &mut u64,
        platform: &Arc<dyn Platform>,
        event: Arc<dyn Event>,
        endpoint: &Arc<VirtioEndpoint>,
        queue: u16,
    ) -> Watch {
        *count += 1;
        let id = WatchId(FIRST + *count);
        let endpoint = Arc::downgrade(endpoint);
        let kick = move || {
            if let Some(endpoint) = endpoint.upgrade() {
                endpoint.kick(queue);
            }
        };
        platform.listen(id, &event, Arc::new(kick));
        Watch { id, event, platform: Arc::clone(platform) }
    }

    /// Whether it is this eventfd that is heard.
    pub(crate) fn hears(&self, event: &Arc<dyn Event>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.event), Arc::as_ptr(event))
            || self.event.number().is_some_and(|number| event.number() == Some(number))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.platform.unwatch(self.id);
    }
}
