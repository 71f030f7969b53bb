// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of an error message: from the function that sends it through the
//! bridges above to the root port, which logs it and interrupts (PCI Express
//! 5.0, 6.2.6; ERR-043, ERR-054).

use super::Severity;
use super::log::{AerError, COMMAND_SERR, Raised, Rules, SYSTEM_ERROR};
use super::spec::{self, register, root};
use crate::dpc::Reason;
use crate::{Address, Fabric, PortType, Signal, cap};

/// Why no error can be raised at a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaiseError {
    /// There is no such function.
    #[error("there is no function at {0}")]
    NoFunction(Address),
    /// Conventional PCI has no error messages.
    #[error("{0} is a conventional PCI function; only PCI Express functions report errors")]
    NotExpress(Address),
    /// A bit that no error has.
    #[error("{0:#x}: only bits {spec:#x} are errors", spec = spec::UNCORRECTABLE)]
    Uncorrectable(u32),
    /// A bit that no error has.
    #[error("{0:#x}: only bits {spec:#x} are correctable errors", spec = spec::CORRECTABLE)]
    Correctable(u32),
}

/// Bridge Control: SERR# enable, which lets messages pass upwards.
const FORWARD: u16 = 0x0002;
/// Secondary Status of a bridge.
const SECONDARY_STATUS: u16 = 0x1e;

impl Fabric {
    /// A function detects errors: it logs them, and what its masks and enables
    /// let through goes up as messages.
    ///
    /// A function that is not there for software (link down) can detect errors,
    /// too, but its messages get nowhere.
    pub fn raise(&mut self, address: Address, error: &AerError) -> Result<Raised, RaiseError> {
        let kind = self.port_type(address).ok_or(RaiseError::NoFunction(address))?;
        if !kind.is_express() {
            return Err(RaiseError::NotExpress(address));
        }
        if error.uncorrectable & !spec::UNCORRECTABLE != 0 {
            return Err(RaiseError::Uncorrectable(error.uncorrectable));
        }
        if error.correctable & !spec::CORRECTABLE != 0 {
            return Err(RaiseError::Correctable(error.correctable));
        }
        let owner = self.physical_function(address).unwrap_or(address);
        let rules = self.functions.get(&owner).map(Rules::of).ok_or(RaiseError::NoFunction(address))?;
        let mut raised = Raised::default();
        for bit in bits(error.uncorrectable) {
            let Some(function) = self.functions.get_mut(&address) else { continue };
            let logged = function.log_uncorrectable(bit, error, rules);
            if logged.unmasked && self.contain(address, Reason::OwnError, 0) {
                raised.contained = true;
            } else if let Some(severity) = logged.message {
                raised.sent.push(severity);
                self.send(address, severity);
            }
        }
        for bit in bits(error.correctable) {
            let Some(function) = self.functions.get_mut(&address) else { continue };
            if let Some(severity) = function.log_correctable(bit, rules).message {
                raised.sent.push(severity);
                self.send(address, severity);
            }
        }
        Ok(raised)
    }

    /// A function sends an error message.
    fn send(&mut self, from: Address, severity: Severity) {
        self.signalled(from, severity);
        let mut at = from;
        if self.port_type(from) == Some(PortType::RootPort) {
            return self.received_at_root(from, from, severity);
        }
        while let Some(bridge) = self.parent(at) {
            if !self.forwards(bridge, from, severity) {
                return;
            }
            if self.port_type(bridge) == Some(PortType::RootPort) {
                return self.received_at_root(bridge, from, severity);
            }
            at = bridge;
        }
        // On a root bus: to the collector there is, if any.
        if let Some(collector) = self.collector(at) {
            self.received_at_root(collector, from, severity);
        }
    }

    /// The collector of the integrated endpoints of a root bus.
    pub(crate) fn collector(&self, address: Address) -> Option<Address> {
        let bus = self.bus(address.segment, address.bus)?;
        bus.devices.iter().copied().find(|a| self.port_type(*a) == Some(PortType::EventCollector))
    }

    /// Whether a bridge lets a message pass that came from below.
    fn forwards(&mut self, bridge: Address, from: Address, severity: Severity) -> bool {
        if !self.link_is_up(bridge) {
            return false;
        }
        let reason = match severity {
            Severity::Correctable => None,
            Severity::NonFatal => Some(Reason::NonFatalMessage),
            Severity::Fatal => Some(Reason::FatalMessage),
        };
        if let Some(reason) = reason {
            if let Some(function) = self.functions.get_mut(&bridge) {
                let status = function.peek(SECONDARY_STATUS, 2);
                function.set(SECONDARY_STATUS, 2, status | SYSTEM_ERROR);
            }
            // Containment keeps the message to itself.
            if self.contain(bridge, reason, from.requester_id()) {
                return false;
            }
        }
        let Some(function) = self.functions.get(&bridge) else { return false };
        if function.peek(cap::BRIDGE_CONTROL, 2) as u16 & FORWARD == 0 {
            return false;
        }
        // At its primary side a root port has no link to send it on.
        let root = self.port_type(bridge) == Some(PortType::RootPort);
        let enabled = function.capability(cap::EXPRESS).map_or(0, |at| function.peek(at + 0x08, 2)) & severity.bit();
        let passes =
            root || severity == Severity::Correctable || enabled != 0 || function.command() & COMMAND_SERR != 0;
        if passes && !root {
            self.signalled(bridge, severity);
        }
        passes
    }

    /// Signalled System Error in the Status of who sends the message.
    fn signalled(&mut self, address: Address, severity: Severity) {
        if let Some(function) = self.functions.get_mut(&address)
            && severity != Severity::Correctable
            && function.command() & COMMAND_SERR != 0
        {
            function.or_status(SYSTEM_ERROR);
        }
    }

    /// A root port or collector has a message.
    fn received_at_root(&mut self, port: Address, from: Address, severity: Severity) {
        let Some(function) = self.functions.get_mut(&port) else { return };
        let root_control = function.capability(cap::EXPRESS).map_or(0, |at| function.peek(at + 0x1c, 2));
        if let Some(aer) = function.extended_capability(cap::EXT_AER) {
            let before = function.peek(aer + register::ROOT_STATUS, 4);
            let (status, source) = received(before, severity);
            function.set(aer + register::ROOT_STATUS, 4, before | status);
            if let Some(half) = source {
                function.set(aer + register::SOURCE + half, 2, u32::from(from.requester_id()));
            }
            if function.peek(aer + register::ROOT_COMMAND, 4) & severity.bit() != 0 {
                self.signal(Signal::RootError(port));
            }
        }
        if root_control & severity.bit() != 0 {
            self.signal(Signal::SystemError(port));
        }
    }
}

/// The bits that a message adds to a root status, and which half of the source
/// register takes its requester id: that of the first one only.
fn received(before: u32, severity: Severity) -> (u32, Option<u16>) {
    match severity {
        Severity::Correctable if before & root::COR != 0 => (root::MULTI_COR, None),
        Severity::Correctable => (root::COR, Some(0)),
        _ => {
            let fatal = severity == Severity::Fatal;
            let kind = if fatal { root::FATAL } else { root::NONFATAL };
            if before & root::UNCOR != 0 {
                (root::MULTI_UNCOR | kind, None)
            } else {
                (root::UNCOR | kind | if fatal { root::FIRST_FATAL } else { 0 }, Some(2))
            }
        }
    }
}

/// The bits of a word one by one, lowest first.
pub(super) fn bits(word: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|n| 1 << n).filter(move |bit| word & bit != 0)
}
