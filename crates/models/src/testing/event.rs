// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts that are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use device::Event;

/// An event that counts its signals.
#[derive(Debug, Default)]
pub struct CountedEvent(AtomicU64);

impl CountedEvent {
    /// Signals since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Event for CountedEvent {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
