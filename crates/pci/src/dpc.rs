// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Downstream Port Containment: a port that takes its link down itself when it
//! sees an uncorrectable error (PCI Express 5.0, 6.2.10; ERR-048).

use crate::{Address, Fabric, PortType, Signal, cap};

/// Control register.
pub const CONTROL: u16 = 0x06;
/// Control: triggers on ERR_FATAL and own uncorrectable errors.
pub const CONTROL_FATAL: u32 = 0x0001;
/// Control: triggers on ERR_NONFATAL as well.
pub const CONTROL_NONFATAL: u32 = 0x0002;
/// Control: interrupts.
pub const CONTROL_INTERRUPT: u32 = 0x0008;
/// Control: software triggers by writing 1.
pub const CONTROL_TRIGGER: u32 = 0x0040;
/// Status register, RW1C.
pub const STATUS: u16 = 0x08;
/// Status: triggered; the link is down until software clears it.
pub const STATUS_TRIGGER: u32 = 0x0001;
/// Status: interrupt.
pub const STATUS_INTERRUPT: u32 = 0x0008;
/// Requester id of the message that triggered.
pub const SOURCE: u16 = 0x0a;

/// Why containment triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The port detected an unmasked uncorrectable error.
    OwnError,
    /// It received ERR_NONFATAL.
    NonFatalMessage,
    /// It received ERR_FATAL.
    FatalMessage,
    /// Software wrote the trigger bit.
    Software,
}

impl Reason {
    /// Trigger reason and its extension in the status register.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Reason::OwnError => 0,
            Reason::NonFatalMessage => 0x02,
            Reason::FatalMessage => 0x04,
            Reason::Software => 0x26,
        }
    }
}

impl Fabric {
    /// Triggers containment at a port, if it is there and enabled for the
    /// reason. Whether the link is down by it now; what triggered it goes no
    /// further.
    pub(crate) fn contain(&mut self, port: Address, reason: Reason, source: u16) -> bool {
        let down = matches!(self.port_type(port), Some(PortType::RootPort | PortType::DownstreamPort));
        let Some(function) = self.functions.get_mut(&port).filter(|_| down) else { return false };
        let Some(at) = function.extended_capability(cap::EXT_DPC) else { return false };
        let control = function.peek(at + CONTROL, 2);
        let enabled = match reason {
            Reason::NonFatalMessage => control & 3 == CONTROL_NONFATAL,
            Reason::OwnError | Reason::FatalMessage | Reason::Software => matches!(control & 3, 1 | 2),
        };
        let status = function.peek(at + STATUS, 2);
        if !enabled || status & STATUS_TRIGGER != 0 {
            return false;
        }
        let interrupt = if control & CONTROL_INTERRUPT != 0 { STATUS_INTERRUPT } else { 0 };
        function.set(at + STATUS, 2, status & !0x66 | STATUS_TRIGGER | reason.bits() | interrupt);
        function.set(at + SOURCE, 2, u32::from(source));
        if interrupt != 0 {
            self.signal(Signal::Contained(port));
        }
        self.link_down(port);
        true
    }

    /// Whether containment holds a port's link down.
    #[must_use]
    pub fn is_contained(&self, port: Address) -> bool {
        self.functions.get(&port).is_some_and(|function| {
            function
                .extended_capability(cap::EXT_DPC)
                .is_some_and(|at| function.peek(at + STATUS, 2) & STATUS_TRIGGER != 0)
        })
    }
}
