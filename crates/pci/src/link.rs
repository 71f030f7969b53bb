// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links that go down and come back, functions that do not answer yet or no
//! longer, and what software is told by interrupts of ports.
//!
//! The fabric has no clock: [`Fabric::advance`] says what time it is. A link
//! that comes up takes [`Timing::link`], a function after a reset
//! [`Timing::ready`] until it answers configuration requests.

use std::collections::BTreeSet;

use crate::aer::AerError;
use crate::aer::spec::uncorrectable;
use crate::{Address, Fabric, Function, cap, dpc};

/// An interrupt of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// A root port or event collector has logged an error message.
    RootError(Address),
    /// The same, as a system error (Root Control).
    SystemError(Address),
    /// Containment has taken a port's link down.
    Contained(Address),
    /// The device has gone from a hot-plug slot.
    Removed(Address),
}

/// How a function answers configuration requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Answers {
    /// As it should.
    #[default]
    Yes,
    /// With Request Retry Status: it was reset and is not ready.
    Retry,
    /// Not at all: reads give ones.
    No,
}

/// Times in nanoseconds; `u64::MAX` for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Of a function: from the end of a reset until it answers.
    pub ready: u64,
    /// Of a port: from the end of a reset until the link is active.
    pub link: u64,
}

/// What the fabric knows of one function's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence {
    pub(crate) timing: Timing,
    /// Of a port: why its link is down.
    down: Down,
    /// When the function will be ready.
    ready_at: u64,
    removed: bool,
    /// It stopped answering; a reset from above helps.
    hung: bool,
}

/// Why a link is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Down {
    contained: bool,
    /// Secondary bus reset is asserted.
    reset: bool,
    /// It fails to train until a reset.
    failed: bool,
    /// Nothing is there any more.
    empty: bool,
    /// It trains until then.
    until: u64,
}

/// Link Status: data link layer active.
const LINK_ACTIVE: u32 = 0x2000;
/// Slot Status: presence detect changed, presence detect state, link changed.
const PRESENCE_CHANGED: u32 = 0x0008;
const PRESENCE: u32 = 0x0040;
const LINK_CHANGED: u32 = 0x0100;

impl Fabric {
    /// Sets how long links and resets take at a function or port.
    pub fn set_timing(&mut self, address: Address, timing: Timing) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.presence.timing = timing;
        }
    }

    /// How long links and resets take at a function or port.
    #[must_use]
    pub fn timing(&self, address: Address) -> Timing {
        self.nodes.get(&address).map(|node| node.presence.timing).unwrap_or_default()
    }

    /// Takes what ports have signalled since the last call, in order, each
    /// once.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }

    /// Takes the functions that links and bridges have reset since the last
    /// call: their models are to follow.
    pub fn take_resets(&mut self) -> BTreeSet<Address> {
        std::mem::take(&mut self.resets)
    }

    /// Takes the functions that have begun or ceased to answer since the last
    /// call.
    pub fn take_changed(&mut self) -> BTreeSet<Address> {
        std::mem::take(&mut self.changed)
    }

    /// Takes those of these functions that were reset since the last
    /// [`take_resets`](Self::take_resets).
    pub fn claim_resets(&mut self, scope: &[Address]) -> BTreeSet<Address> {
        let claimed: BTreeSet<Address> = scope.iter().filter(|a| self.resets.contains(*a)).copied().collect();
        self.resets.retain(|address| !claimed.contains(address));
        claimed
    }

    /// Whether a reset of this function by itself takes time.
    #[must_use]
    pub fn is_slow(&self, address: Address) -> bool {
        self.nodes.get(&address).is_some_and(|node| node.presence.timing.ready != 0)
    }

    /// Whether a reset of what is behind a bridge takes time.
    #[must_use]
    pub fn is_slow_behind(&self, bridge: Address) -> bool {
        self.nodes.get(&bridge).is_some_and(|node| node.presence.timing.link != 0)
            || self.below(bridge).iter().any(|address| self.is_slow(*address))
    }

    /// When the next link will be up or the next function ready.
    #[must_use]
    pub fn next_change(&self) -> Option<u64> {
        let times = self.unsettled.iter().filter_map(|address| self.nodes.get(address)).flat_map(|node| {
            let presence = &node.presence;
            [presence.ready_at, presence.down.until]
        });
        times.filter(|time| *time > self.now && *time != u64::MAX).min()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.signals.contains(&signal) {
            self.signals.push(signal);
        }
    }

    /// It is `now`: links that have trained are up, functions that are ready
    /// answer.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        for address in std::mem::take(&mut self.unsettled) {
            self.settle(address);
        }
    }

    /// Whether software gets through to what is behind a port.
    #[must_use]
    pub fn link_is_up(&self, port: Address) -> bool {
        self.nodes.get(&port).is_some_and(|node| {
            let down = node.presence.down;
            !(down.contained || down.reset || down.failed || down.empty) && down.until <= self.now
        })
    }

    /// Whether a function's device was pulled out.
    #[must_use]
    pub fn is_removed(&self, address: Address) -> bool {
        self.nodes.get(&address).is_some_and(|node| node.presence.removed)
    }

    /// Reads a function's register over the bus: ones if nobody answers.
    #[must_use]
    pub fn read(&self, address: Address, offset: u16, len: u8) -> u32 {
        let ones = u32::MAX >> (32 - 8 * u32::from(len.clamp(1, 4)));
        self.functions.get(&address).map_or(ones, |function| function.read(offset, len))
    }

    /// Writes a function's register over the bus, and does what the write sets
    /// off behind ports: secondary bus reset, containment.
    pub fn write(&mut self, address: Address, offset: u16, len: u8, value: u32) -> Vec<crate::Effect> {
        use crate::Effect;
        let Some(function) = self.functions.get_mut(&address) else { return Vec::new() };
        let effects = function.write(offset, len, value);
        for effect in &effects {
            match effect {
                Effect::SecondaryBusReset(true) => self.assert_reset(address),
                Effect::SecondaryBusReset(false) => self.release_reset(address),
                Effect::ContainmentTrigger => drop(self.contain(address, dpc::Reason::Software, 0)),
                Effect::ContainmentEnd => self.train(address, |down| down.contained = false),
                Effect::FunctionLevelReset => {
                    self.resets.insert(address);
                    self.was_reset(address);
                }
                _ => {}
            }
        }
        effects
    }

    fn assert_reset(&mut self, bridge: Address) {
        if let Some(node) = self.nodes.get_mut(&bridge) {
            node.presence.down.reset = true;
        }
        self.reset_behind(bridge);
    }

    fn release_reset(&mut self, bridge: Address) {
        // A reset is also what a link that failed is trained again by.
        self.unstick(bridge);
        self.train(bridge, |down| (down.reset, down.failed) = (false, false));
    }

    /// Containment has triggered: the port disables its link.
    pub(crate) fn link_down(&mut self, port: Address) {
        if let Some(node) = self.nodes.get_mut(&port) {
            node.presence.down.contained = true;
        }
        self.reset_behind(port);
    }

    /// The link behind a port fails (until somebody resets it, if `again`, else
    /// for good), which the port reports as a Surprise Down error. A link that
    /// is down already, as by a reset, is no surprise (PCI Express 5.0, 3.2.1).
    /// In a hot-plug slot it is the same as a device that was pulled out: Linux
    /// takes it away.
    pub fn surprise_down(&mut self, port: Address, again: bool) {
        if self.is_hotplug(port) {
            return self.slot_emptied(port, true);
        }
        let surprise = self.link_is_up(port);
        if let Some(node) = self.nodes.get_mut(&port) {
            node.presence.down.failed = again;
            node.presence.down.empty |= !again;
        }
        self.reset_behind(port);
        if surprise {
            let error = AerError { uncorrectable: uncorrectable::SURPRISE_DOWN, ..AerError::default() };
            // A bridge to conventional PCI has no link; nobody reports then.
            let _ = self.raise(port, &error);
        }
    }

    /// The device behind a port is pulled out. In a hot-plug slot that is an
    /// event of the slot, elsewhere a link that fails for good.
    pub fn surprise_removal(&mut self, port: Address) {
        if self.is_hotplug(port) {
            return self.slot_emptied(port, false);
        }
        self.remove_behind(port);
        self.surprise_down(port, false);
    }

    /// The slot's link is down for good; whether its device is `present`.
    fn slot_emptied(&mut self, port: Address, present: bool) {
        self.remove_behind(port);
        if let Some(function) = self.functions.get_mut(&port)
            && let Some(at) = function.capability(cap::EXPRESS)
        {
            let (gone, changed) = if present { (0, LINK_CHANGED) } else { (PRESENCE, PRESENCE_CHANGED | LINK_CHANGED) };
            let status = function.peek(at + 0x1a, 2) & !gone;
            function.set(at + 0x1a, 2, status | changed);
        }
        if let Some(node) = self.nodes.get_mut(&port) {
            node.presence.down.empty = true;
        }
        self.reset_behind(port);
        self.signal(Signal::Removed(port));
    }

    fn remove_behind(&mut self, port: Address) {
        for address in self.below(port) {
            if let Some(node) = self.nodes.get_mut(&address) {
                node.presence.removed = true;
            }
        }
    }

    fn is_hotplug(&self, port: Address) -> bool {
        self.functions.get(&port).is_some_and(|f| f.spec().slot.is_some_and(|slot| slot.hotplug))
    }

    /// A function leaves the fabric for good, with its virtual functions; what
    /// is behind a bridge must have gone before.
    pub fn unplug(&mut self, address: Address) {
        self.disable_vfs(address);
        if self.secondary(address).is_some_and(|bus| !bus.devices.is_empty()) {
            return;
        }
        if let Some(bus) = self.secondary(address).map(|bus| (bus.segment, bus.number)) {
            self.buses.remove(&bus);
        }
        self.leave_group(address);
        self.functions.remove(&address);
        self.nodes.remove(&address);
        self.names.retain(|_, named| *named != address);
        self.unsettled.remove(&address);
        if let Some(bus) = self.buses.get_mut(&(address.segment, address.bus)) {
            bus.devices.retain(|other| *other != address);
        }
    }

    /// A function stops answering until its bus is reset.
    pub fn hang(&mut self, address: Address) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.presence.hung = true;
        }
        self.settle(address);
    }

    /// The bus behind a bridge was reset in no time: what hung answers, a link
    /// that failed has trained.
    pub(crate) fn revive(&mut self, bridge: Address) {
        self.unstick(bridge);
        if let Some(node) = self.nodes.get_mut(&bridge) {
            node.presence.down.failed = false;
        }
        self.settle(bridge);
    }

    /// Behind a bridge nothing hangs and no link has failed any more.
    fn unstick(&mut self, bridge: Address) {
        for address in self.below(bridge) {
            if let Some(node) = self.nodes.get_mut(&address) {
                (node.presence.hung, node.presence.down.failed) = (false, false);
            }
        }
    }

    /// A link that is down resets what is behind it.
    fn reset_behind(&mut self, port: Address) {
        let mut behind = self.below(port);
        // Virtual functions on buses of their own are on no bridge's bus.
        let vfs: Vec<Address> = behind.iter().flat_map(|pf| self.virtual_functions(*pf)).copied().collect();
        behind.extend(vfs);
        for address in behind {
            if let Some(function) = self.functions.get_mut(&address) {
                function.reset();
            }
            self.resets.insert(address);
            if let Some(node) = self.nodes.get_mut(&address) {
                // Ready some time after the link is up again.
                node.presence.ready_at = u64::MAX;
                node.presence.hung = false;
                // Their own links went with them, and come back with them.
                (node.presence.down.reset, node.presence.down.failed) = (false, false);
            }
        }
        self.settle(port);
    }

    /// The link behind a port may come up; it takes its time.
    fn train(&mut self, port: Address, change: impl FnOnce(&mut Down)) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&port) {
            change(&mut node.presence.down);
            node.presence.down.until = now.saturating_add(node.presence.timing.link);
        }
        self.settle(port);
    }

    /// A function was reset by itself.
    fn was_reset(&mut self, address: Address) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&address) {
            node.presence.ready_at = now.saturating_add(node.presence.timing.ready);
        }
        self.settle(address);
    }

    /// Works out who answers, at a port and behind it.
    fn settle(&mut self, top: Address) {
        let below = self.below(top);
        let vfs: Vec<Address> =
            std::iter::once(&top).chain(&below).flat_map(|pf| self.virtual_functions(*pf)).copied().collect();
        for address in std::iter::once(top).chain(below).chain(vfs) {
            let reachable = self.parent(address).is_none_or(|bridge| {
                self.link_is_up(bridge) && self.functions.get(&bridge).is_some_and(|f| f.answers() == Answers::Yes)
            });
            let now = self.now;
            // From when on it could be reached: the time may have jumped.
            let bridge = self.parent(address).and_then(|bridge| self.nodes.get(&bridge)).map(|node| &node.presence);
            let since = bridge.map_or(now, |p| p.down.until.max(p.ready_at).min(now));
            let Some(node) = self.nodes.get_mut(&address) else { continue };
            let presence = &mut node.presence;
            if reachable && presence.ready_at == u64::MAX && presence.timing.ready != u64::MAX {
                presence.ready_at = since.saturating_add(presence.timing.ready);
            }
            let ready = presence.ready_at <= now;
            let answers = match (reachable && !presence.removed && !presence.hung, ready) {
                (true, true) => Answers::Yes,
                (true, false) => Answers::Retry,
                (false, _) => Answers::No,
            };
            let waits = !ready || presence.down.until > now;
            if waits {
                self.unsettled.insert(address);
            }
            let up = self.link_is_up(address);
            if let Some(function) = self.functions.get_mut(&address) {
                if function.answers() != answers {
                    self.changed.insert(address);
                }
                function.set_answers(answers);
                show_link(function, up);
            }
        }
    }
}

/// Link Status of a port: active or not; speed and width stay as negotiated.
fn show_link(port: &mut Function, up: bool) {
    if !port.spec().port_type.has_link_below() {
        return;
    }
    if let Some(at) = port.capability(cap::EXPRESS) {
        let status = port.peek(at + 0x12, 2) & !LINK_ACTIVE;
        // A link without lanes has nothing behind it.
        let lanes = status & 0x03f0 != 0;
        port.set(at + 0x12, 2, status | if up && lanes { LINK_ACTIVE } else { 0 });
    }
}
