// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a virtio device tells its driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::Event;

/// Callbacks of a virtio device: one for each queue, one for its configuration.
#[derive(Debug)]
pub struct VirtioInterrupts {
    queues: Vec<Callback>,
    config: Callback,
}

#[derive(Debug, Default)]
struct Callback {
    /// Whether there is an event; spares the lock where a driver polls.
    set: AtomicBool,
    event: Mutex<Option<Arc<dyn Event>>>,
}

impl Callback {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn Event>>> {
        self.event.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn signal(&self) {
        if self.set.load(Ordering::Acquire)
            && let Some(event) = &*self.lock()
        {
            event.signal();
        }
    }

    fn bind(&self, event: Option<Arc<dyn Event>>) {
        let mut bound = self.lock();
        self.set.store(event.is_some(), Ordering::Release);
        *bound = event;
    }
}

impl VirtioInterrupts {
    pub(crate) fn new(queues: usize) -> VirtioInterrupts {
        VirtioInterrupts { queues: (0..queues).map(|_| Callback::default()).collect(), config: Callback::default() }
    }

    /// Buffers of a queue have been used. Whether the driver wants to know is
    /// the ring's to say.
    pub fn queue(&self, queue: u16) {
        if let Some(callback) = self.queues.get(usize::from(queue)) {
            callback.signal();
        }
    }

    /// The configuration has changed.
    pub fn config(&self) {
        self.config.signal();
    }

    /// Exchanges a queue's eventfd. A fence: the old one is not signalled after
    /// the return.
    pub fn bind_queue(&self, queue: u16, event: Option<Arc<dyn Event>>) {
        if let Some(callback) = self.queues.get(usize::from(queue)) {
            callback.bind(event);
        }
    }

    /// Exchanges the eventfd of the configuration.
    pub fn bind_config(&self, event: Option<Arc<dyn Event>>) {
        self.config.bind(event);
    }

    /// Forgets every eventfd, as a reset does (VDPA-5.2).
    pub fn clear(&self) {
        self.queues.iter().for_each(|callback| callback.bind(None));
        self.config.bind(None);
    }
}
