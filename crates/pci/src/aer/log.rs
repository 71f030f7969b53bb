// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a function does about an error that it detects: status, first error
//! pointer, header log, and whether it sends a message (PCI Express 5.0,
//! 6.2.5; ERR-053 to ERR-056).

use super::Severity;
use super::spec::{self, correctable, register, uncorrectable};
use crate::{Function, cap};

/// Errors that a function detects together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AerError {
    /// Bits of the correctable status.
    pub correctable: u32,
    /// Bits of the uncorrectable status.
    pub uncorrectable: u32,
    /// Header of the TLP concerned.
    pub header: Option<[u32; 4]>,
    /// The conditions of an advisory non-fatal error hold: somebody else deals
    /// with it (PCI Express 5.0, 6.2.3.2.4). Counts for those of non-fatal
    /// severity only.
    pub advisory: bool,
}

/// What came of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// Messages that the function sent, in order.
    pub sent: Vec<Severity>,
    /// The port detected it with containment enabled: its link is down, and
    /// no message was sent for it.
    pub contained: bool,
}

/// The registers by which a function decides; those of a virtual function are
/// its physical function's (SR-IOV 1.1, 4.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    control: u32,
    system_error: bool,
    severity: u32,
    uncorrectable_mask: u32,
    correctable_mask: u32,
}

/// Device Control: unsupported request reporting enable.
const REPORT_UNSUPPORTED: u32 = 8;
/// Device Status: unsupported request detected.
const UNSUPPORTED_DETECTED: u32 = 8;
/// Status and Secondary Status: system error signalled, or received.
pub(super) const SYSTEM_ERROR: u32 = 0x4000;
/// Command: SERR# enable.
pub(super) const COMMAND_SERR: u16 = 0x100;

impl Rules {
    pub(super) fn of(function: &Function) -> Rules {
        let aer = function.extended_capability(cap::EXT_AER);
        let register = |offset, otherwise| aer.map_or(otherwise, |at| function.peek(at + offset, 4));
        Rules {
            control: function.capability(cap::EXPRESS).map_or(0, |at| function.peek(at + 0x08, 2)),
            system_error: function.command() & COMMAND_SERR != 0,
            // Without the capability nothing is masked (ERR-056).
            severity: register(register::SEVERITY, spec::DEFAULT_SEVERITY),
            uncorrectable_mask: register(register::UNCORRECTABLE_MASK, 0),
            correctable_mask: register(register::CORRECTABLE_MASK, 0),
        }
    }

    /// Whether a message of this severity goes out (ERR-054).
    fn sends(self, severity: Severity, unsupported: bool) -> bool {
        let enabled = self.control & severity.bit() != 0 && (!unsupported || self.control & REPORT_UNSUPPORTED != 0);
        enabled || severity != Severity::Correctable && self.system_error
    }
}

/// What is to be done about one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    /// The message to send.
    pub(super) message: Option<Severity>,
    /// It was uncorrectable, not advisory and not masked: containment looks at
    /// these.
    pub(super) unmasked: bool,
}

impl Function {
    /// Logs one correctable error.
    pub(super) fn log_correctable(&mut self, bit: u32, rules: Rules) -> Logged {
        self.detected(Severity::Correctable.bit());
        if let Some(at) = self.extended_capability(cap::EXT_AER) {
            self.or(at + register::CORRECTABLE_STATUS, bit);
        }
        let sends = rules.correctable_mask & bit == 0 && rules.sends(Severity::Correctable, false);
        Logged { message: sends.then_some(Severity::Correctable), unmasked: false }
    }

    /// Logs one uncorrectable error.
    pub(super) fn log_uncorrectable(&mut self, bit: u32, error: &AerError, rules: Rules) -> Logged {
        let unsupported = bit == uncorrectable::UNSUPPORTED;
        let severity = if rules.severity & bit != 0 { Severity::Fatal } else { Severity::NonFatal };
        let advisory = error.advisory && severity == Severity::NonFatal;
        let mut detected = if advisory { Severity::Correctable.bit() } else { severity.bit() };
        if unsupported {
            detected |= UNSUPPORTED_DETECTED;
        }
        self.detected(detected);
        if bit == uncorrectable::POISONED {
            self.or_status(0x8000); // detected parity error
        }
        if bit == uncorrectable::COMPLETER_ABORT {
            self.or_status(0x0800); // signalled target abort
        }
        let aer = self.extended_capability(cap::EXT_AER);
        if let Some(at) = aer {
            self.log_status(at, bit, advisory);
        }
        if advisory && rules.correctable_mask & correctable::ADVISORY != 0 || rules.uncorrectable_mask & bit != 0 {
            return Logged { message: None, unmasked: false };
        }
        if let Some(at) = aer {
            self.log_first(at, bit, error.header);
        }
        let severity = if advisory { Severity::Correctable } else { severity };
        let sends = rules.sends(severity, unsupported);
        Logged { message: sends.then_some(severity), unmasked: !advisory }
    }

    fn log_status(&mut self, at: u16, bit: u32, advisory: bool) {
        // The pointer is looked at before the bit is there.
        let first = self.first_error(at);
        self.or(at + register::UNCORRECTABLE_STATUS, bit);
        if first.is_none() {
            // What is masked must not become the first error by standing where
            // the pointer was left.
            self.point(at, 0);
        }
        if advisory {
            self.or(at + register::CORRECTABLE_STATUS, correctable::ADVISORY);
        }
    }

    /// Records the first error that is not masked; later ones until software
    /// clears its status bit leave no header.
    pub(super) fn log_first(&mut self, at: u16, bit: u32, header: Option<[u32; 4]>) {
        if self.first_error(at).is_some() {
            return;
        }
        self.point(at, bit.trailing_zeros());
        let header = header.unwrap_or_default();
        for (word, offset) in header.into_iter().zip((register::HEADER_LOG..).step_by(4)) {
            self.set(at + offset, 4, word);
        }
    }

    /// The error that the pointer points to, while its status bit is set. Bit 0
    /// is no error since PCI Express 1.1, so a pointer of 0 points nowhere.
    fn first_error(&self, at: u16) -> Option<u32> {
        let bit = 1 << (self.peek(at + register::CONTROL, 4) & 0x1f);
        (bit != 1 && self.peek(at + register::UNCORRECTABLE_STATUS, 4) & bit != 0).then_some(bit)
    }

    fn point(&mut self, at: u16, bit: u32) {
        let control = self.peek(at + register::CONTROL, 4) & !0x1f;
        self.set(at + register::CONTROL, 4, control | bit & 0x1f);
    }

    /// Sets bits of Device Status.
    fn detected(&mut self, bits: u32) {
        if let Some(at) = self.capability(cap::EXPRESS) {
            let status = self.peek(at + 0x0a, 2);
            self.set(at + 0x0a, 2, status | bits);
        }
    }

    pub(super) fn or_status(&mut self, bits: u32) {
        let status = self.peek(cap::STATUS, 2);
        self.set(cap::STATUS, 2, status | bits);
    }

    pub(super) fn or(&mut self, offset: u16, bits: u32) {
        let value = self.peek(offset, 4);
        self.set(offset, 4, value | bits);
    }
}
