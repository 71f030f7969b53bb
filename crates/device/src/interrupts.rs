// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of one function: what the device raises, and which eventfds the
//! program has bound.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

/// An eventfd, as the core sees it.
pub trait Event: Send + Sync + Debug {
    /// Adds 1 to the counter; never blocks (a full counter stays full).
    fn signal(&self);
}

/// The interrupt type in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// None: nothing the device raises gets out.
    #[default]
    None,
    /// The pin.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// Interrupt state of a function, shared by the device and the host.
#[derive(Debug, Default)]
pub struct Interrupts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    vectors: Vec<Vector>,
    level: bool,
    masked: bool,
}

#[derive(Clone, Debug, Default)]
struct Vector {
    event: Option<Arc<dyn Event>>,
    pending: bool,
}

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    // What the device does.

    /// The interrupt type in force.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// Sends message `vector` (MSI or MSI-X). While no eventfd is bound it
    /// stays pending and goes out at the next bind (API-166).
    pub fn message(&self, vector: u16) {
        let mut state = self.lock();
        if !matches!(state.mode, Mode::Msi | Mode::Msix) {
            return;
        }
        if let Some(v) = state.vectors.get_mut(usize::from(vector)) {
            match &v.event {
                Some(event) => event.signal(),
                None => v.pending = true,
            }
        }
    }

    /// Drives the pin. The program is told once per assertion and not again
    /// until it unmasks (API-175).
    pub fn set_pin(&self, level: bool) {
        let mut state = self.lock();
        state.level = level;
        state.deliver_pin();
    }
}

impl State {
    fn deliver_pin(&mut self) {
        if self.mode == Mode::Intx && self.level && !self.masked {
            self.masked = true;
            if let Some(event) = self.vectors.first().and_then(|v| v.event.as_ref()) {
                event.signal();
            }
        }
    }
}
