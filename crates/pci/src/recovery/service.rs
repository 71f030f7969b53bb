// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's error service: what it does with the interrupts of root ports and
//! of containment (ERR-042 to ERR-050), and what it counts (ERR-057).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::machine::{Channels, ResetBy, clear_device_status, clear_status};
use super::ratelimit::RateLimit;
use super::sources::{Info, integrated, is_source, own_severity, read_info, take_containment, take_root_status};
use super::{Call, Channel, Kernel, Nanos, Next, Outcome, Recovery, lane};
use crate::aer::Severity;
use crate::aer::spec::{register, root};
use crate::{Address, Fabric, PortType, Signal, cap, dpc};

/// Root events that wait, for each root port (ERR-045).
const EVENTS: usize = 128;
/// Devices looked at for one event.
const DEVICES: usize = 5;

/// A line of the kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A root port had a message.
    Received {
        /// The root port.
        root: Address,
        /// Of the message.
        severity: Severity,
        /// Requester id of the first one.
        source: u16,
        /// There were more.
        multiple: bool,
        /// Whether a function was found that it is from.
        found: bool,
    },
    /// What a function has logged.
    Error {
        /// The function.
        address: Address,
        /// Of the message.
        severity: Severity,
        /// Its status register, 0 if it could not be read.
        status: u32,
        /// Its mask.
        mask: u32,
        /// The first error's bit.
        first: u32,
        /// TLP header, if there is one for these errors.
        header: Option<[u32; 4]>,
    },
    /// A port has taken its link down.
    Contained {
        /// The port.
        port: Address,
        /// Its containment status.
        status: u16,
        /// Requester id of the message that did it.
        source: u16,
    },
    /// A recovery is over.
    Recovery {
        /// The function that had the error.
        source: Address,
        /// The port above what was recovered.
        bridge: Address,
        /// What became of it.
        outcome: Outcome,
    },
}

/// Errors of a device, by bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By bit of the correctable status.
    pub correctable: [u64; 16],
    /// By bit of the uncorrectable status.
    pub nonfatal: [u64; 32],
    /// By bit of the uncorrectable status.
    pub fatal: [u64; 32],
    /// By severity: messages, whatever bits.
    pub total: [u64; 3],
}

/// Messages that a root port had, by severity.
pub type RootCounters = [u64; 3];

/// The error service of all root ports.
#[derive(Clone, Debug, Default)]
pub struct ErrorService {
    lanes: BTreeMap<Address, Lane>,
    channels: Channels,
    counters: BTreeMap<Address, Counters>,
    roots: BTreeMap<Address, RootCounters>,
    limits: BTreeMap<Address, RateLimit>,
    /// Whose counters have changed.
    counted: BTreeSet<Address>,
}

/// What concerns one root port.
#[derive(Clone, Debug, Default)]
struct Lane {
    events: VecDeque<Event>,
    work: VecDeque<Work>,
    recovery: Option<Recovery>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Root { status: u32, source: u32 },
    Contained(Address),
    Removed(Address),
}

#[derive(Clone, Copy, Debug)]
enum Work {
    /// Finds and reports who sent a message.
    Find {
        severity: Severity,
        id: u16,
        multiple: bool,
    },
    Handle {
        address: Address,
        severity: Severity,
    },
}

impl ErrorService {
    /// State of a function's channel.
    #[must_use]
    pub fn channel(&self, address: Address) -> Channel {
        self.channels.get(&address).copied().unwrap_or_default()
    }

    /// Errors of a device so far.
    #[must_use]
    pub fn counters(&self, address: Address) -> Counters {
        self.counters.get(&address).cloned().unwrap_or_default()
    }

    /// Messages that a root port had so far.
    #[must_use]
    pub fn root_counters(&self, root: Address) -> RootCounters {
        self.roots.get(&root).copied().unwrap_or_default()
    }

    /// Takes those whose counters have changed since the last call.
    pub fn take_counted(&mut self) -> BTreeSet<Address> {
        std::mem::take(&mut self.counted)
    }

    /// The recovery that concerns a function now.
    #[must_use]
    pub fn recovery_of(&self, fabric: &Fabric, address: Address) -> Option<&Recovery> {
        self.lanes.values().filter_map(|lane| lane.recovery.as_ref()).find(|r| r.concerns(fabric, address))
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.values().all(|lane| lane.events.is_empty() && lane.work.is_empty() && lane.recovery.is_none())
    }

    /// A function has left the fabric.
    pub fn forget(&mut self, address: Address) {
        self.channels.remove(&address);
        self.counters.remove(&address);
        self.limits.remove(&address);
        self.roots.remove(&address);
    }

    /// Takes the fabric's signals and goes one step on for each root port.
    pub fn step(&mut self, fabric: &mut Fabric, kernel: &mut dyn Kernel, now: Nanos) -> Next {
        fabric.advance(now);
        kernel.follow(fabric);
        for signal in fabric.take_signals() {
            self.interrupt(fabric, signal);
        }
        let mut next = Next::Idle;
        for port in self.lanes.keys().copied().collect::<Vec<_>>() {
            let Some(mut lane) = self.lanes.remove(&port) else { continue };
            next = sooner(next, self.step_lane(&mut lane, port, fabric, kernel, now));
            if !(lane.events.is_empty() && lane.work.is_empty() && lane.recovery.is_none()) {
                self.lanes.insert(port, lane);
            }
            kernel.follow(fabric);
        }
        next
    }

    /// Steps until there is nothing to do now, or `steps` were done; when the
    /// next is due.
    pub fn run(&mut self, fabric: &mut Fabric, kernel: &mut dyn Kernel, now: Nanos, steps: usize) -> Next {
        for _ in 0..steps {
            match self.step(fabric, kernel, now) {
                Next::Now => {}
                Next::At(time) if time <= now => {}
                other => return other,
            }
        }
        Next::Now
    }

    /// The part of an interrupt that cannot wait.
    fn interrupt(&mut self, fabric: &mut Fabric, signal: Signal) {
        let Some(port) = lane(fabric, signal) else { return };
        let event = match signal {
            Signal::RootError(root) => match take_root_status(fabric, root) {
                Some((status, source)) => Event::Root { status, source },
                None => return,
            },
            Signal::Contained(port) => match take_containment(fabric, port) {
                true => Event::Contained(port),
                false => return,
            },
            Signal::Removed(port) => {
                for address in fabric.below(port) {
                    self.channels.entry(address).or_default().set(Channel::PermFailure);
                }
                Event::Removed(port)
            }
            Signal::SystemError(_) => return,
        };
        let lane = self.lanes.entry(port).or_default();
        // A port is contained or emptied once until it was seen to.
        let full = match event {
            Event::Root { .. } => lane.events.len() >= EVENTS,
            _ => lane.events.contains(&event),
        };
        if !full {
            lane.events.push_back(event);
        }
    }

    fn step_lane(
        &mut self,
        lane: &mut Lane,
        port: Address,
        fabric: &mut Fabric,
        kernel: &mut dyn Kernel,
        now: Nanos,
    ) -> Next {
        if let Some(recovery) = &mut lane.recovery {
            let (next, outcome) = recovery.step(fabric, &mut self.channels, kernel, now);
            if let Some(outcome) = outcome {
                let (source, bridge) = (recovery.source(), recovery.bridge());
                lane.recovery = None;
                kernel.report(&Report::Recovery { source, bridge, outcome });
            }
            return next;
        }
        if let Some(work) = lane.work.pop_front() {
            match work {
                Work::Find { severity, id, multiple } => {
                    let found = self.find(port, severity, id, multiple, fabric, kernel, now);
                    for address in found.into_iter().rev() {
                        lane.work.push_front(Work::Handle { address, severity });
                    }
                }
                Work::Handle { address, severity } => {
                    lane.recovery = self.handle(address, severity, fabric, kernel);
                }
            }
            return Next::Now;
        }
        match lane.events.pop_front() {
            None => Next::Idle,
            Some(Event::Root { status, source }) => {
                self.count_root(port, status);
                if status & root::COR != 0 {
                    let multiple = status & root::MULTI_COR != 0;
                    lane.work.push_back(Work::Find { severity: Severity::Correctable, id: source as u16, multiple });
                }
                if status & root::UNCOR != 0 {
                    let severity = if status & root::FATAL != 0 { Severity::Fatal } else { Severity::NonFatal };
                    let multiple = status & root::MULTI_UNCOR != 0;
                    lane.work.push_back(Work::Find { severity, id: (source >> 16) as u16, multiple });
                }
                Next::Now
            }
            Some(Event::Contained(port)) => {
                if self.report_containment(port, fabric, kernel, now) {
                    let recovery = Recovery::new(fabric, port, Channel::Frozen, ResetBy::Containment);
                    lane.recovery = Some(recovery);
                }
                Next::Now
            }
            Some(Event::Removed(port)) => {
                let gone = fabric.below(port);
                kernel.removed(fabric, &gone);
                Next::Now
            }
        }
    }

    fn count_root(&mut self, port: Address, status: u32) {
        self.counted.insert(port);
        let counters = self.roots.entry(port).or_default();
        if status & root::COR != 0 {
            counters[Severity::Correctable as usize] += 1;
        }
        if status & root::UNCOR != 0 {
            let severity = if status & root::FATAL != 0 { Severity::Fatal } else { Severity::NonFatal };
            counters[severity as usize] += 1;
        }
    }

    /// Finds who sent a message, and reports what each has logged before
    /// anything is done about it.
    #[expect(clippy::too_many_arguments, reason = "what a message says, and the three that every step needs")]
    fn find(
        &mut self,
        port: Address,
        severity: Severity,
        id: u16,
        multiple: bool,
        fabric: &mut Fabric,
        kernel: &mut dyn Kernel,
        now: Nanos,
    ) -> Vec<Address> {
        let found = senders(port, severity, id, multiple, fabric);
        let mut printed = false;
        let mut prints = Vec::new();
        for address in &found {
            let allowed = self.limits.entry(*address).or_default().allows(severity, now);
            printed |= allowed;
            prints.push(allowed);
        }
        if printed || found.is_empty() && self.limits.entry(port).or_default().allows(severity, now) {
            let found = !found.is_empty();
            kernel.report(&Report::Received { root: port, severity, source: id, multiple, found });
        }
        for (address, prints) in found.iter().zip(prints) {
            if let Some(info) = read_info(fabric, *address, severity) {
                self.account(*address, severity, &info);
                if prints {
                    kernel.report(&info.report(*address, severity));
                }
            }
        }
        found
    }

    fn account(&mut self, address: Address, severity: Severity, info: &Info) {
        self.counted.insert(address);
        let counters = self.counters.entry(address).or_default();
        counters.total[severity as usize] += 1;
        let by_bit: &mut [u64] = match severity {
            Severity::Correctable => &mut counters.correctable,
            Severity::NonFatal => &mut counters.nonfatal,
            Severity::Fatal => &mut counters.fatal,
        };
        for (bit, count) in by_bit.iter_mut().enumerate() {
            if (info.status & !info.mask) >> bit & 1 != 0 {
                *count += 1;
            }
        }
    }

    /// What is done about an error: cleared, or a recovery begun.
    fn handle(
        &mut self,
        address: Address,
        severity: Severity,
        fabric: &mut Fabric,
        kernel: &mut dyn Kernel,
    ) -> Option<Recovery> {
        let info = read_info(fabric, address, severity)?;
        let state = match severity {
            Severity::Correctable => {
                if let Some(at) = fabric.function(address).and_then(|f| f.extended_capability(cap::EXT_AER)) {
                    fabric.write(address, at + register::CORRECTABLE_STATUS, 4, info.status);
                }
                if kernel.handlers(address).cor_error_detected {
                    kernel.call(fabric, address, Call::CorErrorDetected);
                }
                clear_device_status(fabric, address);
                return None;
            }
            Severity::NonFatal => Channel::Normal,
            Severity::Fatal => Channel::Frozen,
        };
        Some(Recovery::new(fabric, address, state, ResetBy::Software))
    }

    /// Whether there is something to recover: a device that was pulled out has
    /// taken its link down, too.
    fn report_containment(&mut self, port: Address, fabric: &mut Fabric, kernel: &mut dyn Kernel, now: Nanos) -> bool {
        let Some(at) = fabric.function(port).and_then(|f| f.extended_capability(cap::EXT_DPC)) else { return false };
        let hotplug = fabric.function(port).is_some_and(|f| f.spec().slot.is_some_and(|slot| slot.hotplug));
        if hotplug && fabric.children(port).iter().all(|child| fabric.is_removed(*child)) {
            clear_status(fabric, port, |_| !0);
            clear_device_status(fabric, port);
            fabric.write(port, at + dpc::STATUS, 2, dpc::STATUS_TRIGGER);
            return false;
        }
        let status = fabric.read(port, at + dpc::STATUS, 2);
        let source = fabric.read(port, at + dpc::SOURCE, 2) as u16;
        kernel.report(&Report::Contained { port, status: status as u16, source });
        let own = status & 0x6 == dpc::Reason::OwnError.bits();
        if let Some(severity) = own_severity(fabric, port).filter(|_| own)
            && let Some(info) = read_info(fabric, port, severity)
        {
            self.account(port, severity, &info);
            let _ = self.limits.entry(port).or_default().allows(severity, now);
            kernel.report(&info.report(port, severity));
            clear_status(fabric, port, |_| !0);
        }
        true
    }
}

/// Who sent a message. One that says who it is from is not looked for.
fn senders(port: Address, severity: Severity, id: u16, multiple: bool, fabric: &Fabric) -> Vec<Address> {
    let collector = fabric.port_type(port) == Some(PortType::EventCollector);
    let named = Address::from_devfn(port.segment, (id >> 8) as u8, id as u8);
    if !collector && !multiple && named.bus != 0 {
        let is_there = named == port || fabric.is_below(named, port) && fabric.function(named).is_some();
        return if is_there { vec![named] } else { Vec::new() };
    }
    let below = if collector { integrated(fabric, port) } else { fabric.below(port) };
    let mut found = Vec::new();
    for address in std::iter::once(port).chain(below) {
        if found.len() < DEVICES && is_source(fabric, address, severity, id, multiple) {
            found.push(address);
            if !multiple {
                break;
            }
        }
    }
    found
}

fn sooner(a: Next, b: Next) -> Next {
    match (a, b) {
        (Next::Now, _) | (_, Next::Now) => Next::Now,
        (Next::At(a), Next::At(b)) => Next::At(a.min(b)),
        (Next::At(time), Next::Idle) | (Next::Idle, Next::At(time)) => Next::At(time),
        (Next::Idle, Next::Idle) => Next::Idle,
    }
}
