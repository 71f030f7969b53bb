// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One recovery: whom an error concerns, what their drivers say, and what is
//! done about it (ERR-015 to ERR-032).

use std::collections::{BTreeMap, VecDeque};

use super::link::Reset;
use super::{Call, Channel, Kernel, Nanos, Next, Uevent, UserReset, Vote};
use crate::aer::spec::register;
use crate::{Address, Fabric, PortType, cap};

/// State of the channel of each function that has had an error.
pub(super) type Channels = BTreeMap<Address, Channel>;

/// Who resets the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ResetBy {
    /// The error service, by the bridge control register.
    Software,
    /// Containment has.
    Containment,
}

/// What became of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// The result that the drivers arrived at.
    pub vote: Vote,
    /// Whether all is well: else every driver was told of permanent failure.
    pub recovered: bool,
    /// Whether the link was reset.
    pub reset: bool,
}

/// A recovery under way.
#[derive(Clone, Debug)]
pub struct Recovery {
    source: Address,
    bridge: Address,
    state: Channel,
    reset: ResetBy,
    vote: Vote,
    was_reset: bool,
    phase: Phase,
    /// Functions that the phase has still to come to.
    walk: VecDeque<Address>,
    held: Vec<Address>,
    /// Whose device locks it has.
    locked: Vec<Address>,
}

#[derive(Clone, Debug)]
enum Phase {
    Begin,
    Detected,
    MmioEnabled,
    Decide,
    UserReset,
    /// Takes the device locks that a bus reset is under.
    Lock,
    Reset(Reset),
    AfterReset,
    SlotReset,
    Judge,
    Resume,
    Clear,
    Fail,
    PermFailure,
    Over(bool),
}

impl Recovery {
    /// From an error of `source`: `state` is frozen if it was fatal.
    pub(super) fn new(fabric: &Fabric, source: Address, state: Channel, reset: ResetBy) -> Recovery {
        let own = matches!(
            fabric.port_type(source),
            Some(
                PortType::RootPort | PortType::DownstreamPort | PortType::EventCollector | PortType::IntegratedEndpoint
            )
        );
        let bridge = if own { source } else { fabric.parent(source).unwrap_or(source) };
        Recovery {
            source,
            bridge,
            state,
            reset,
            vote: Vote::CanRecover,
            was_reset: false,
            phase: Phase::Begin,
            walk: VecDeque::new(),
            held: Vec::new(),
            locked: Vec::new(),
        }
    }

    /// The function whose error it is.
    #[must_use]
    pub const fn source(&self) -> Address {
        self.source
    }

    /// The port above all functions concerned, or the one function.
    #[must_use]
    pub const fn bridge(&self) -> Address {
        self.bridge
    }

    /// Whether a function is among those concerned.
    #[must_use]
    pub fn concerns(&self, fabric: &Fabric, address: Address) -> bool {
        if fabric.is_bridge(self.bridge) { fabric.is_below(address, self.bridge) } else { address == self.bridge }
    }

    /// Goes one step on; the outcome once it is over.
    pub(super) fn step(
        &mut self,
        fabric: &mut Fabric,
        channels: &mut Channels,
        kernel: &mut dyn Kernel,
        now: Nanos,
    ) -> (Next, Option<Outcome>) {
        let go = (Next::Now, None);
        // Every callback is under its function's device lock, and a bus reset
        // under those of the bridge and of all behind it, taken from the top.
        if self.walk.front().is_some_and(|address| kernel.is_locked(*address)) {
            return (Next::Idle, None);
        }
        match &mut self.phase {
            Phase::Begin => {
                self.held = scope(fabric, self.bridge);
                for address in &self.held {
                    kernel.hold(fabric, *address, true);
                }
                self.broadcast(fabric, Phase::Detected);
            }
            Phase::Detected => match self.walk.pop_front() {
                Some(address) => self.detected(fabric, channels, kernel, address),
                None if self.vote == Vote::CanRecover => {
                    self.vote = Vote::Recovered;
                    self.broadcast(fabric, Phase::MmioEnabled);
                }
                None => self.phase = Phase::Decide,
            },
            Phase::MmioEnabled => match self.walk.pop_front() {
                Some(address) => {
                    if kernel.handlers(address).mmio_enabled {
                        self.vote = self.vote.merge(kernel.call(fabric, address, Call::MmioEnabled));
                    }
                }
                None => self.phase = Phase::Decide,
            },
            Phase::Decide => {
                let frozen = self.state == Channel::Frozen;
                if frozen && self.vote == Vote::Recovered && self.reset == ResetBy::Software {
                    self.phase = Phase::UserReset;
                } else if frozen || self.vote == Vote::NeedReset {
                    self.prepare_reset(fabric, now);
                } else {
                    self.phase = Phase::Judge;
                }
            }
            Phase::UserReset => match kernel.user_resets(fabric, &scope(fabric, self.bridge)) {
                UserReset::Until(time) if time > now => return (Next::At(time), None),
                UserReset::Done => {
                    self.was_reset = true;
                    self.phase = Phase::AfterReset;
                }
                UserReset::No | UserReset::Until(_) => self.prepare_reset(fabric, now),
            },
            Phase::Lock => match self.walk.pop_front() {
                Some(address) => {
                    kernel.lock(address, true);
                    self.locked.push(address);
                }
                None => self.begin_reset(fabric, now),
            },
            Phase::Reset(reset) => match reset.step(fabric, now) {
                (next, None) => return (next, None),
                (_, Some(worked)) => {
                    for address in std::mem::take(&mut self.locked).into_iter().rev() {
                        kernel.lock(address, false);
                    }
                    self.root_interrupts(fabric, true);
                    self.was_reset = worked;
                    self.phase = if worked { Phase::AfterReset } else { Phase::Fail };
                }
            },
            Phase::AfterReset => {
                if self.vote == Vote::NeedReset {
                    self.vote = Vote::Recovered;
                    self.broadcast(fabric, Phase::SlotReset);
                } else {
                    self.phase = Phase::Judge;
                }
            }
            Phase::SlotReset => match self.walk.pop_front() {
                Some(address) => {
                    let changed = channels.entry(address).or_default().set(Channel::Normal);
                    if changed && kernel.handlers(address).slot_reset {
                        self.vote = self.vote.merge(kernel.call(fabric, address, Call::SlotReset));
                    }
                }
                None => self.phase = Phase::Judge,
            },
            Phase::Judge => {
                if self.vote == Vote::Recovered {
                    self.broadcast(fabric, Phase::Resume);
                } else {
                    self.phase = Phase::Fail;
                }
            }
            Phase::Resume => match self.walk.pop_front() {
                Some(address) => {
                    let changed = channels.entry(address).or_default().set(Channel::Normal);
                    if changed && kernel.handlers(address).resume {
                        kernel.call(fabric, address, Call::Resume);
                    }
                    kernel.uevent(address, Uevent::Success);
                }
                None => self.phase = Phase::Clear,
            },
            Phase::Clear => {
                clear_device_status(fabric, self.source);
                clear_status(fabric, self.source, |severity| !severity);
                self.let_go(fabric, kernel);
                self.phase = Phase::Over(true);
            }
            Phase::Fail => {
                self.let_go(fabric, kernel);
                self.broadcast(fabric, Phase::PermFailure);
            }
            Phase::PermFailure => match self.walk.pop_front() {
                Some(address) => {
                    // The state of the channel stays as it is (ERR-030).
                    if kernel.handlers(address).error_detected {
                        kernel.call(fabric, address, Call::ErrorDetected(Channel::PermFailure));
                    }
                    kernel.uevent(address, Uevent::Failed);
                }
                None => self.phase = Phase::Over(false),
            },
            Phase::Over(recovered) => {
                let outcome = Outcome { vote: self.vote, recovered: *recovered, reset: self.was_reset };
                return (Next::Now, Some(outcome));
            }
        }
        go
    }

    /// The root port is silent before the locks are waited for. Containment,
    /// and the reset of one function, are under none.
    fn prepare_reset(&mut self, fabric: &mut Fabric, now: Nanos) {
        self.root_interrupts(fabric, false);
        if self.reset == ResetBy::Software && fabric.is_bus_resettable_behind(self.bridge) {
            self.broadcast(fabric, Phase::Lock);
            self.walk.push_front(self.bridge);
        } else {
            self.begin_reset(fabric, now);
        }
    }

    fn begin_reset(&mut self, fabric: &Fabric, now: Nanos) {
        self.phase = Phase::Reset(match self.reset {
            ResetBy::Software => Reset::error(fabric, self.bridge),
            ResetBy::Containment => Reset::containment(self.bridge, now),
        });
    }

    /// Linux walks the bus anew for each callback: what has gone is not called.
    fn broadcast(&mut self, fabric: &Fabric, phase: Phase) {
        self.walk = scope(fabric, self.bridge).into();
        self.phase = phase;
    }

    fn detected(&mut self, fabric: &mut Fabric, channels: &mut Channels, kernel: &mut dyn Kernel, address: Address) {
        let channel = channels.entry(address).or_default();
        let vote = if *channel == Channel::PermFailure {
            Vote::Disconnect
        } else if !channel.set(self.state) {
            Vote::None
        } else if kernel.handlers(address).error_detected {
            kernel.call(fabric, address, Call::ErrorDetected(self.state))
        } else if fabric.is_bridge(address) {
            Vote::None
        } else {
            Vote::NoAerDriver
        };
        match vote {
            Vote::None | Vote::CanRecover | Vote::NeedReset => kernel.uevent(address, Uevent::Begin),
            Vote::Recovered => kernel.uevent(address, Uevent::Success),
            Vote::Disconnect => kernel.uevent(address, Uevent::Failed),
            Vote::NoAerDriver => {}
        }
        self.vote = self.vote.merge(vote);
    }

    fn let_go(&mut self, fabric: &mut Fabric, kernel: &mut dyn Kernel) {
        for address in std::mem::take(&mut self.held) {
            if fabric.function(address).is_some() {
                kernel.hold(fabric, address, false);
            }
        }
    }

    /// While its link is reset by software the root port does not interrupt;
    /// what it logged meanwhile is dropped.
    fn root_interrupts(&self, fabric: &mut Fabric, on: bool) {
        if self.reset == ResetBy::Containment {
            return;
        }
        let Some(root) = fabric.error_root(self.bridge) else { return };
        let Some(aer) = fabric.function(root).and_then(|f| f.extended_capability(cap::EXT_AER)) else { return };
        if on {
            let status = fabric.read(root, aer + register::ROOT_STATUS, 4);
            fabric.write(root, aer + register::ROOT_STATUS, 4, status);
        }
        let command = fabric.read(root, aer + register::ROOT_COMMAND, 4) & !7;
        fabric.write(root, aer + register::ROOT_COMMAND, 4, command | if on { 7 } else { 0 });
    }
}

/// Functions concerned: all below a bridge, without itself; else the one.
fn scope(fabric: &Fabric, bridge: Address) -> Vec<Address> {
    if fabric.is_bridge(bridge) { fabric.below(bridge) } else { vec![bridge] }
}

/// Clears Device Status.
pub(super) fn clear_device_status(fabric: &mut Fabric, address: Address) {
    if let Some(at) = fabric.function(address).and_then(|f| f.capability(cap::EXPRESS)) {
        let status = fabric.read(address, at + 0x0a, 2);
        fabric.write(address, at + 0x0a, 2, status);
    }
}

/// Clears those bits of the uncorrectable status that `which` takes out of the
/// severity register.
pub(super) fn clear_status(fabric: &mut Fabric, address: Address, which: impl FnOnce(u32) -> u32) {
    if let Some(at) = fabric.function(address).and_then(|f| f.extended_capability(cap::EXT_AER)) {
        let status = fabric.read(address, at + register::UNCORRECTABLE_STATUS, 4);
        let severity = fabric.read(address, at + register::SEVERITY, 4);
        fabric.write(address, at + register::UNCORRECTABLE_STATUS, 4, status & which(severity));
    }
}
