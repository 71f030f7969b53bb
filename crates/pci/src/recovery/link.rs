// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The resets of recovery and the waits that belong to them, as steps
//! (ERR-048, ERR-049).
//!
//! The times are Linux's: 2 ms of asserted reset, 20 ms and then up to 1 s for
//! the link, 100 ms before the first request, then the function is asked at
//! growing distances for up to a minute.

use super::{Nanos, Next};
use crate::{Address, Fabric, PortType, cap, dpc};

const MS: Nanos = 1_000_000;
/// Until a link that does not come up counts as failed.
const LINK_TIMEOUT: Nanos = 1000 * MS;
/// From the reset on, a function must answer within this time (in ms).
const READY: u64 = 60_000;
/// A function behind a slow link is first asked for this long (in ms).
const FIRST: u64 = 1000;
/// Before the first request to a function after a reset (in ms).
const DELAY: u64 = 100;

/// A reset under way: of a link, or of one function.
#[derive(Clone, Debug)]
pub struct Reset {
    port: Address,
    step: Step,
    /// Not to be gone on with before then.
    until: Nanos,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Assert,
    Release,
    /// Containment: wait for the link to be down, until then.
    Down {
        deadline: Nanos,
    },
    ClearTrigger,
    Secondary,
    /// Wait for the link to be up, until then.
    Up {
        deadline: Nanos,
    },
    /// Ask `child` for up to `timeout` ms; the last wait was `delay` ms.
    Ask {
        child: Address,
        delay: u64,
        timeout: u64,
        second: Option<u64>,
    },
    FunctionReset,
    Done(bool),
}

/// Link Status: data link layer active.
const LINK_ACTIVE: u32 = 0x2000;

impl Reset {
    /// Secondary bus reset of the port, for recovery through the error
    /// service; function level reset of a root-complex device.
    pub(super) fn error(fabric: &Fabric, port: Address) -> Reset {
        let integrated =
            matches!(fabric.port_type(port), Some(PortType::IntegratedEndpoint | PortType::EventCollector));
        let step = if integrated { Step::FunctionReset } else { Step::Assert };
        Reset { port, step, until: 0 }
    }

    /// Secondary bus reset of what is behind a bridge.
    #[must_use]
    pub fn bus(bridge: Address) -> Reset {
        Reset { port: bridge, step: Step::Assert, until: 0 }
    }

    /// Function level reset.
    #[must_use]
    pub fn function(address: Address) -> Reset {
        Reset { port: address, step: Step::FunctionReset, until: 0 }
    }

    /// The end of containment: hardware has reset the link already.
    pub(super) fn containment(port: Address, now: Nanos) -> Reset {
        Reset { port, step: Step::Down { deadline: now + LINK_TIMEOUT }, until: 0 }
    }

    /// Goes on; `Some` with whether it worked once it is over.
    pub fn step(&mut self, fabric: &mut Fabric, now: Nanos) -> (Next, Option<bool>) {
        if now < self.until {
            return (Next::At(self.until), None);
        }
        let wait = |this: &mut Reset, ns: Nanos| {
            this.until = now.saturating_add(ns);
            (Next::At(this.until), None)
        };
        match self.step {
            Step::Assert => {
                if !fabric.is_bus_resettable_behind(self.port) {
                    self.step = Step::Done(false);
                    return (Next::Now, None);
                }
                self.bus_reset_bit(fabric, true);
                self.step = Step::Release;
                wait(self, 2 * MS)
            }
            Step::Release => {
                self.bus_reset_bit(fabric, false);
                self.step = Step::Secondary;
                (Next::Now, None)
            }
            Step::Down { deadline } => {
                if self.link_active(fabric) && now < deadline {
                    return wait(self, MS);
                }
                self.step = Step::ClearTrigger;
                (Next::Now, None)
            }
            Step::ClearTrigger => {
                if let Some(at) = fabric.function(self.port).and_then(|f| f.extended_capability(cap::EXT_DPC)) {
                    fabric.write(self.port, at + dpc::STATUS, 2, dpc::STATUS_TRIGGER);
                }
                self.step = Step::Secondary;
                (Next::Now, None)
            }
            Step::Secondary => self.secondary(fabric, now),
            Step::Up { deadline } => {
                if self.link_active(fabric) {
                    self.step = match fabric.children(self.port).first() {
                        Some(&child) => Step::Ask { child, delay: 1, timeout: READY - DELAY, second: None },
                        None => Step::Done(true),
                    };
                    return wait(self, DELAY * MS);
                }
                if now >= deadline {
                    self.step = Step::Done(false);
                    return (Next::Now, None);
                }
                wait(self, MS)
            }
            Step::Ask { child, delay, timeout, second } => {
                if is_ready(fabric, child) {
                    self.step = Step::Done(true);
                    return (Next::Now, None);
                }
                let gone = fabric.is_removed(child) || fabric.function(child).is_none();
                if gone || delay > timeout {
                    self.step = match second {
                        Some(timeout) if !gone && self.link_active(fabric) => {
                            Step::Ask { child, delay: 1, timeout, second: None }
                        }
                        _ => Step::Done(false),
                    };
                    return (Next::Now, None);
                }
                self.step = Step::Ask { child, delay: delay * 2, timeout, second };
                wait(self, delay * MS)
            }
            Step::FunctionReset => {
                let flr = |f: &crate::Function| {
                    let at = f.capability(cap::EXPRESS)?;
                    (f.peek(at + 4, 4) & 1 << 28 != 0).then_some(at + 8)
                };
                let Some(at) = fabric.function(self.port).and_then(flr) else {
                    self.step = Step::Done(false);
                    return (Next::Now, None);
                };
                let control = fabric.read(self.port, at, 2);
                fabric.write(self.port, at, 2, control | 0x8000);
                self.step = Step::Ask { child: self.port, delay: 1, timeout: READY, second: None };
                wait(self, DELAY * MS)
            }
            Step::Done(worked) => (Next::Now, Some(worked)),
        }
    }

    /// What there is to wait for after a reset depends on the bridge.
    fn secondary(&mut self, fabric: &Fabric, now: Nanos) -> (Next, Option<bool>) {
        let kind = fabric.port_type(self.port);
        let Some(&child) = fabric.children(self.port).first() else {
            self.step = Step::Done(true);
            return (Next::Now, None);
        };
        let (step, ms) = match kind {
            Some(kind) if !kind.is_express() => (Step::Done(true), 1000 + DELAY),
            Some(PortType::RootPort | PortType::DownstreamPort) => {
                if fabric.function(self.port).is_some_and(|f| f.spec().link.speed <= 2) {
                    let second = Some(READY - FIRST);
                    (Step::Ask { child, delay: 1, timeout: FIRST - DELAY, second }, DELAY)
                } else {
                    (Step::Up { deadline: now + 20 * MS + LINK_TIMEOUT }, 20)
                }
            }
            _ => (Step::Done(true), 0),
        };
        self.step = step;
        self.until = now + ms * MS;
        (Next::At(self.until), None)
    }

    fn bus_reset_bit(&self, fabric: &mut Fabric, on: bool) {
        let control = fabric.read(self.port, cap::BRIDGE_CONTROL, 2) & !u32::from(cap::BRIDGE_CONTROL_RESET);
        let bit = if on { u32::from(cap::BRIDGE_CONTROL_RESET) } else { 0 };
        fabric.write(self.port, cap::BRIDGE_CONTROL, 2, control | bit);
    }

    fn link_active(&self, fabric: &Fabric) -> bool {
        let Some(at) = fabric.function(self.port).and_then(|f| f.capability(cap::EXPRESS)) else { return false };
        fabric.read(self.port, at + 0x12, 2) & LINK_ACTIVE != 0
    }
}

/// Whether a function no longer asks to be asked again. Linux looks at the
/// vendor id, which is 0001 then; FFFF it takes for an answer, and finds out
/// at the first use. A virtual function has no ids.
fn is_ready(fabric: &Fabric, address: Address) -> bool {
    match fabric.port_type(address) {
        Some(PortType::VirtualFunction) => fabric.read(address, cap::COMMAND, 2) != 0xffff,
        _ => fabric.read(address, 0, 2) != 0x0001,
    }
}
