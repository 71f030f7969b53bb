// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of one function: what the device raises, and which eventfds the
//! program has bound.
//!
//! The device drives its pin or sends messages; the host chooses the mode,
//! binds eventfds and masks. Both sides call from any thread.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

/// An eventfd, as the core sees it.
pub trait Event: Any + Send + Sync + Debug {
    /// Adds 1 to the counter; never blocks (a full counter stays full).
    fn signal(&self);

    /// A number that tells it from all others, however many descriptors it
    /// has; `None`: this is the only way to it.
    fn number(&self) -> Option<u64> {
        None
    }
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
    /// Of MSI what was allocated, of MSI-X the whole table, of INTx none.
    vectors: Vec<Vector>,
    /// Messages are not sent although the mode is MSI or MSI-X: the enable bit
    /// is off.
    silenced: bool,
    /// Unbound or masked vectors keep one message: always with MSI-X, with MSI
    /// if it has mask bits.
    keeps: bool,
    /// Mask bits of MSI.
    mask: u32,
    /// The eventfd of the pin.
    intx: Option<Arc<dyn Event>>,
    /// The device asserts its pin.
    level: bool,
    /// The host masks the pin: it has told the program, or was asked to.
    masked: bool,
    /// The program has set its virtual DisINTx bit (API-176).
    disabled: bool,
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

    /// Sends message `vector` (MSI or MSI-X). While the vector has no eventfd
    /// or is masked the message stays pending; it goes out when that ends
    /// (API-166). MSI without mask bits has no place to keep it: it is lost.
    pub fn message(&self, vector: u16) {
        let mut state = self.lock();
        match state.mode {
            Mode::Msi | Mode::Msix if !state.silenced => {}
            _ => return,
        }
        let (masked, keeps) = (state.is_masked(vector), state.keeps);
        if let Some(v) = state.vectors.get_mut(usize::from(vector)) {
            match &v.event {
                Some(event) if !masked => event.signal(),
                _ => v.pending = keeps,
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

    /// Whether a message waits for its vector to be bound or unmasked: the
    /// vector's pending bit.
    #[must_use]
    pub fn pending(&self, vector: u16) -> bool {
        self.lock().vectors.get(usize::from(vector)).is_some_and(|v| v.pending)
    }

    // What the host does.

    /// Whether the device asserts its pin (Interrupt Status of the Status
    /// register).
    #[must_use]
    pub fn pin(&self) -> bool {
        self.lock().level
    }

    /// From [`Mode::None`] to INTx; it starts masked while DisINTx is set
    /// (API-177). Without an event what the pin says is lost.
    pub fn enable_intx(&self, event: Option<Arc<dyn Event>>) {
        let mut state = self.lock();
        state.mode = Mode::Intx;
        state.intx = event;
        state.masked = state.disabled;
        state.deliver_pin();
    }

    /// Exchanges the eventfd of the pin.
    pub fn set_intx_event(&self, event: Option<Arc<dyn Event>>) {
        self.lock().intx = event;
    }

    /// From [`Mode::None`] to MSI with so many vectors, none of them bound;
    /// `maskable`: it has mask bits.
    pub fn enable_msi(&self, vectors: u16, maskable: bool) {
        let mut state = self.lock();
        state.mode = Mode::Msi;
        state.silenced = false;
        state.keeps = maskable;
        state.vectors = vec![Vector::default(); usize::from(vectors)];
    }

    /// From [`Mode::None`] to MSI-X; `vectors` is the table's size, none of
    /// them is bound.
    pub fn enable_msix(&self, vectors: u16) {
        let mut state = self.lock();
        state.mode = Mode::Msix;
        state.silenced = false;
        state.keeps = true;
        state.vectors = vec![Vector::default(); usize::from(vectors)];
    }

    /// Back to [`Mode::None`]: every eventfd is dropped, pending messages too.
    pub fn disable(&self) {
        let mut state = self.lock();
        state.mode = Mode::None;
        state.vectors = Vec::new();
        state.intx = None;
        state.masked = false;
    }

    /// How many vectors can be bound: those allocated of MSI, the table of
    /// MSI-X.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.lock().vectors.len()
    }

    /// Binds a vector's eventfd, or with `None` unbinds it. A pending message
    /// goes out. Nothing happens to a vector that does not exist.
    pub fn bind(&self, vector: u16, event: Option<Arc<dyn Event>>) {
        let mut state = self.lock();
        if let Some(v) = state.vectors.get_mut(usize::from(vector)) {
            v.event = event;
            state.deliver(vector);
        }
    }

    /// Signals a vector's eventfd as if the device had sent its message.
    pub fn trigger(&self, vector: u16) {
        if let Some(event) = self.lock().vectors.get(usize::from(vector)).and_then(|v| v.event.as_ref()) {
            event.signal();
        }
    }

    /// Signals the eventfd of the pin, except while DisINTx is set.
    pub fn trigger_intx(&self) {
        self.lock().signal_pin();
    }

    /// Masks the pin; whether that is a change. `false` outside INTx mode.
    pub fn mask_intx(&self) -> bool {
        let mut state = self.lock();
        let change = state.mode == Mode::Intx && !state.masked;
        state.masked |= change;
        change
    }

    /// Unmasks the pin, unless DisINTx is set. If the device still asserts it
    /// the eventfd is signalled and the pin stays masked (API-155).
    pub fn unmask_intx(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Intx && state.masked && !state.disabled {
            state.masked = false;
            state.deliver_pin();
        }
    }

    /// The program has set or cleared its virtual DisINTx bit (API-176).
    pub fn set_intx_disabled(&self, disabled: bool) {
        self.lock().disabled = disabled;
        if disabled {
            self.mask_intx();
        } else {
            self.unmask_intx();
        }
    }

    /// The enable bit of MSI or MSI-X, whichever the mode is. A program turns
    /// MSI off by it (API-252), a reset both (ERR-039).
    pub fn set_messages_enabled(&self, enabled: bool) {
        self.lock().silenced = !enabled;
    }

    /// The mask bits of MSI, bit `n` for vector `n`. What was pending and is no
    /// longer masked goes out.
    pub fn set_msi_mask(&self, mask: u32) {
        let mut state = self.lock();
        state.mask = mask;
        for vector in 0..state.vectors.len().min(32) {
            state.deliver(vector as u16);
        }
    }

    /// The function was reset: the pin is not asserted, no message is pending.
    /// Mode, masks and eventfds stay (API-181).
    pub fn reset(&self) {
        let mut state = self.lock();
        state.level = false;
        for vector in &mut state.vectors {
            vector.pending = false;
        }
    }
}

impl State {
    fn is_masked(&self, vector: u16) -> bool {
        self.mode == Mode::Msi && self.mask.checked_shr(u32::from(vector)).unwrap_or(0) & 1 != 0
    }

    /// Sends what is pending, if it can go out.
    fn deliver(&mut self, vector: u16) {
        if self.is_masked(vector) {
            return;
        }
        if let Some(v) = self.vectors.get_mut(usize::from(vector))
            && let Some(event) = v.event.as_ref().filter(|_| v.pending)
        {
            event.signal();
            v.pending = false;
        }
    }

    fn deliver_pin(&mut self) {
        if self.mode == Mode::Intx && self.level && !self.masked {
            self.masked = true;
            self.signal_pin();
        }
    }

    fn signal_pin(&self) {
        if let Some(event) = self.intx.as_ref().filter(|_| self.mode == Mode::Intx && !self.disabled) {
            event.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicU64);

    impl Event for Count {
        fn signal(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn take(&self) -> u64 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    /// API-166
    #[test]
    fn msix_message_waits_for_its_eventfd() {
        let (irq, event) = (Interrupts::default(), Arc::new(Count::default()));
        irq.message(1);
        irq.enable_msix(4);
        irq.message(1);
        irq.message(1);
        irq.message(9);
        assert!(irq.pending(1) && !irq.pending(0));
        irq.bind(1, Some(event.clone()));
        assert_eq!((event.take(), irq.pending(1)), (1, false), "pending is one bit");
        irq.message(1);
        irq.message(1);
        assert_eq!(event.take(), 2);
        irq.bind(1, None);
        irq.message(1);
        irq.reset();
        irq.bind(1, Some(event.clone()));
        assert_eq!(event.take(), 0);
        irq.disable();
        irq.message(1);
        assert_eq!((event.take(), Arc::strong_count(&event)), (0, 1), "every reference is dropped");
    }

    #[test]
    fn msi_message_without_eventfd_is_lost() {
        let (irq, event) = (Interrupts::default(), Arc::new(Count::default()));
        irq.enable_msi(2, false);
        irq.message(0);
        irq.bind(0, Some(event.clone()));
        assert_eq!(event.take(), 0);
        irq.set_messages_enabled(false);
        irq.message(0);
        irq.set_messages_enabled(true);
        irq.message(0);
        assert_eq!(event.take(), 1);
    }

    #[test]
    fn msi_mask_bits_hold_a_message_back() {
        let (irq, event) = (Interrupts::default(), Arc::new(Count::default()));
        irq.set_msi_mask(3);
        irq.enable_msi(2, true);
        irq.message(1);
        irq.bind(1, Some(event.clone()));
        assert_eq!((event.take(), irq.pending(1)), (0, true));
        irq.set_msi_mask(1);
        assert_eq!((event.take(), irq.pending(1)), (1, false));
        irq.message(1);
        assert_eq!(event.take(), 1);
    }

    /// API-175, API-155
    #[test]
    fn pin_is_told_once_until_unmasked() {
        let (irq, event) = (Interrupts::default(), Arc::new(Count::default()));
        irq.enable_intx(Some(event.clone()));
        irq.set_pin(true);
        irq.set_pin(false);
        irq.set_pin(true);
        assert_eq!(event.take(), 1);
        irq.unmask_intx();
        assert_eq!(event.take(), 1, "still asserted: told again, masked again");
        irq.set_pin(false);
        irq.unmask_intx();
        assert_eq!(event.take(), 0);
        irq.set_pin(true);
        assert_eq!(event.take(), 1);
    }

    /// API-176, API-177
    #[test]
    fn virtual_disable_masks_and_sends_again_when_cleared() {
        let (irq, event) = (Interrupts::default(), Arc::new(Count::default()));
        irq.set_intx_disabled(true);
        irq.set_pin(true);
        irq.enable_intx(Some(event.clone()));
        irq.unmask_intx();
        irq.trigger_intx();
        assert_eq!(event.take(), 0);
        irq.set_intx_disabled(false);
        assert_eq!(event.take(), 1);
        irq.trigger_intx();
        assert_eq!(event.take(), 1, "loopback");
    }
}
