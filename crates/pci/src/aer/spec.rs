// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Advanced Error Reporting: registers, error bits and their names
//! (vfio-error-recovery.md section 3).

use std::fmt;

/// Registers of the capability, as offsets in it.
pub mod register {
    /// Uncorrectable status, RW1C.
    pub const UNCORRECTABLE_STATUS: u16 = 0x04;
    /// Uncorrectable mask.
    pub const UNCORRECTABLE_MASK: u16 = 0x08;
    /// Uncorrectable severity: 1 is fatal.
    pub const SEVERITY: u16 = 0x0c;
    /// Correctable status, RW1C.
    pub const CORRECTABLE_STATUS: u16 = 0x10;
    /// Correctable mask.
    pub const CORRECTABLE_MASK: u16 = 0x14;
    /// Capabilities and control; bits 4:0 point to the first error.
    pub const CONTROL: u16 = 0x18;
    /// Four words of TLP header.
    pub const HEADER_LOG: u16 = 0x1c;
    /// Root command: interrupts for correctable, non-fatal, fatal.
    pub const ROOT_COMMAND: u16 = 0x2c;
    /// Root status, RW1C.
    pub const ROOT_STATUS: u16 = 0x30;
    /// Requester ids: correctable low, uncorrectable high.
    pub const SOURCE: u16 = 0x34;
}

/// Bits of the root status.
pub mod root {
    /// A correctable error was received.
    pub const COR: u32 = 0x01;
    /// Another one before the first was cleared.
    pub const MULTI_COR: u32 = 0x02;
    /// An uncorrectable error was received.
    pub const UNCOR: u32 = 0x04;
    /// Another one before the first was cleared.
    pub const MULTI_UNCOR: u32 = 0x08;
    /// The first uncorrectable one was fatal.
    pub const FIRST_FATAL: u32 = 0x10;
    /// A non-fatal one was received.
    pub const NONFATAL: u32 = 0x20;
    /// A fatal one was received.
    pub const FATAL: u32 = 0x40;
}

/// Bits of uncorrectable errors.
pub mod uncorrectable {
    /// Data link protocol.
    pub const DATA_LINK: u32 = 1 << 4;
    /// Surprise down.
    pub const SURPRISE_DOWN: u32 = 1 << 5;
    /// Poisoned TLP received.
    pub const POISONED: u32 = 1 << 12;
    /// Completion timeout.
    pub const COMPLETION_TIMEOUT: u32 = 1 << 14;
    /// Completer abort.
    pub const COMPLETER_ABORT: u32 = 1 << 15;
    /// Unexpected completion.
    pub const UNEXPECTED_COMPLETION: u32 = 1 << 16;
    /// Malformed TLP.
    pub const MALFORMED: u32 = 1 << 18;
    /// ECRC check failed.
    pub const ECRC: u32 = 1 << 19;
    /// Unsupported request.
    pub const UNSUPPORTED: u32 = 1 << 20;
}

/// Bits of correctable errors.
pub mod correctable {
    /// Receiver error.
    pub const RECEIVER: u32 = 1 << 0;
    /// Bad TLP.
    pub const BAD_TLP: u32 = 1 << 6;
    /// Bad DLLP.
    pub const BAD_DLLP: u32 = 1 << 7;
    /// Advisory non-fatal error.
    pub const ADVISORY: u32 = 1 << 13;
}

/// Uncorrectable errors that a function can log.
pub const UNCORRECTABLE: u32 = 0x07ff_f030;
/// Correctable errors that a function can log (ERR-052).
pub const CORRECTABLE: u32 = 0x0000_f1c1;
/// Which of them are fatal unless software says otherwise (ERR-051).
pub const DEFAULT_SEVERITY: u32 = 0x0046_2030;

/// Uncorrectable errors: bit, name in Linux's counters (ERR-057).
pub const UNCORRECTABLE_NAMES: [(u8, &str); 23] = [
    (0, "Undefined"),
    (4, "DLP"),
    (5, "SDES"),
    (12, "TLP"),
    (13, "FCP"),
    (14, "CmpltTO"),
    (15, "CmpltAbrt"),
    (16, "UnxCmplt"),
    (17, "RxOF"),
    (18, "MalfTLP"),
    (19, "ECRC"),
    (20, "UnsupReq"),
    (21, "ACSViol"),
    (22, "UncorrIntErr"),
    (23, "BlockedTLP"),
    (24, "AtomicOpBlocked"),
    (25, "TLPBlockedErr"),
    (26, "PoisonTLPBlocked"),
    (27, "DMWrReqBlocked"),
    (28, "IDECheck"),
    (29, "MisIDETLP"),
    (30, "PCRC_CHECK"),
    (31, "TLPXlatBlocked"),
];

/// Correctable errors: bit, name in Linux's counters (ERR-057).
pub const CORRECTABLE_NAMES: [(u8, &str); 8] = [
    (0, "RxErr"),
    (6, "BadTLP"),
    (7, "BadDLLP"),
    (8, "Rollover"),
    (12, "Timeout"),
    (13, "NonFatalErr"),
    (14, "CorrIntErr"),
    (15, "HeaderOF"),
];

/// How bad an error is; which message tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// ERR_COR.
    Correctable,
    /// ERR_NONFATAL.
    NonFatal,
    /// ERR_FATAL.
    Fatal,
}

impl Severity {
    /// Its bit in Device Control, Device Status, Root Control and Root
    /// Command: 1, 2, 4.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Correctable => "correctable",
            Severity::NonFatal => "non-fatal",
            Severity::Fatal => "fatal",
        })
    }
}
