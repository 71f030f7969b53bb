// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests: from a device to the fault queue of its domain, and the
//! answer back (iommu-faults.md, sections 1 to 3).
//!
//! `inbox` is the IOMMU's own queue, which devices fill at any time; `report`
//! takes requests from there to a fault queue (`queue`), where they wait to be
//! read and, under the names that `names` gives them, to be answered.

mod inbox;
mod names;
mod queue;
mod report;

pub(crate) use inbox::{Connection, Inbox, Port};
pub(crate) use queue::FaultQueue;

/// How answers are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultCookies {
    /// A queue gives no cookie twice before 2^32 others: a late answer never
    /// answers another request.
    #[default]
    Monotonic,
    /// As Linux: the lowest that no unanswered group has (FAULT-1.4).
    LowestFree,
}

/// What becomes of a function's unanswered requests when it is reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultReset {
    /// As Linux, which does nothing: the program can still read and answer
    /// them, and the function drops what comes.
    #[default]
    Keep,
    /// An extension: the reset is their answer, and one that the program gives
    /// later is for nothing.
    Answer,
}

/// What an answer can carry, an extension: as if the queue were that of an
/// emulated IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultTransport {
    /// A cookie of 32 bits.
    #[default]
    Cookie,
    /// The function's group index in bits 8:0, and where the answer must tell
    /// the PASID bit 9 and the PASID in bits 31:12. An answer goes to the
    /// oldest group of that name.
    NineBit,
    /// An index of the queue's own, 0 to 511. One that a program may still
    /// answer although its request is over is not given again (FAULT-5.10).
    Quarantine,
}
