// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux does about an error: from the interrupt of a root port to
//! functions that work again, or are given up
//! (vfio-error-recovery.md section 2).
//!
//! [`ErrorService`] is Linux's error service: it takes [`Signal`]s, reads what
//! ports and functions have logged, reports, and runs one [`Recovery`] at a
//! time for each root port. Both are stepped: a step is one driver's callback
//! or one piece of hardware work, and tells when the next is due. Nothing here
//! waits; whoever owns the clock calls again.
//!
//! Drivers and all else of the kernel are behind [`Kernel`].
//!
//! Linux runs the threads of a root port's error service and of containment
//! at ports below it side by side, held apart by device locks. Here what
//! concerns the same root port goes one after the other.

mod link;
mod machine;
mod ratelimit;
mod service;
mod sources;
mod vote;

pub use link::Reset;
pub use machine::{Outcome, Recovery};
pub use service::{Counters, ErrorService, Report, RootCounters};
pub use vote::{Channel, Vote};

use crate::{Address, Fabric, Signal};

/// A time in nanoseconds.
pub type Nanos = u64;

/// Whether an error's function has a driver, and what it can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handlers {
    /// `error_detected`; without it the driver has no part in recovery.
    pub error_detected: bool,
    /// `mmio_enabled`.
    pub mmio_enabled: bool,
    /// `slot_reset`.
    pub slot_reset: bool,
    /// `resume`.
    pub resume: bool,
    /// `cor_error_detected`.
    pub cor_error_detected: bool,
}

/// A callback of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// An error was detected; the function's channel is in this state.
    ErrorDetected(Channel),
    /// Registers may be accessed; DMA not yet.
    MmioEnabled,
    /// The link was reset.
    SlotReset,
    /// All is well again.
    Resume,
    /// A correctable error was logged.
    CorErrorDetected,
}

/// What user space is told of a function (ERR-032).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Uevent {
    /// `ERROR_EVENT=BEGIN_RECOVERY`, `DEVICE_ONLINE=0`.
    Begin,
    /// `ERROR_EVENT=SUCCESSFUL_RECOVERY`, `DEVICE_ONLINE=1`.
    Success,
    /// `ERROR_EVENT=FAILED_RECOVERY`, `DEVICE_ONLINE=0`.
    Failed,
}

impl Uevent {
    /// The variables of the event.
    #[must_use]
    pub const fn variables(self) -> [&'static str; 2] {
        match self {
            Uevent::Begin => ["ERROR_EVENT=BEGIN_RECOVERY", "DEVICE_ONLINE=0"],
            Uevent::Success => ["ERROR_EVENT=SUCCESSFUL_RECOVERY", "DEVICE_ONLINE=1"],
            Uevent::Failed => ["ERROR_EVENT=FAILED_RECOVERY", "DEVICE_ONLINE=0"],
        }
    }
}

/// Who resets the link of a frozen scope that a user may reset itself
/// (extension, ERR-084).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserReset {
    /// The host does.
    No,
    /// The user does, and is waited for until then.
    Until(Nanos),
    /// The user has.
    Done,
}

/// The rest of the kernel, as recovery needs it.
pub trait Kernel {
    /// What the function's driver handles; nothing without a driver.
    fn handlers(&self, address: Address) -> Handlers;

    /// Calls a driver. Only what [`handlers`](Kernel::handlers) has is called;
    /// the answer of `Resume` and `CorErrorDetected` does not count. Errors
    /// that the driver's work sets off come with the fabric's next signals.
    fn call(&mut self, fabric: &mut Fabric, address: Address, call: Call) -> Vote;

    /// The fabric has reset functions: their models follow.
    fn follow(&mut self, fabric: &mut Fabric) {
        let _ = fabric.take_resets();
    }

    /// The function is kept in D0 (`true`) until recovery is over (`false`)
    /// (ERR-017).
    fn hold(&mut self, fabric: &mut Fabric, address: Address, on: bool) {
        let _ = (fabric, address, on);
    }

    /// Whether somebody who waits holds the function's device lock: recovery
    /// waits for it before each callback (ERR-018) and before it takes the
    /// lock itself.
    fn is_locked(&self, address: Address) -> bool {
        let _ = address;
        false
    }

    /// Recovery takes a function's device lock for the reset of a link, or
    /// lets it go: meanwhile nobody else resets, binds or unbinds it.
    fn lock(&mut self, address: Address, on: bool) {
        let _ = (address, on);
    }

    /// How far the user of these functions is with the reset of their link.
    /// Asked before the host resets a frozen scope whose drivers all went on,
    /// and after [`UserReset::Until`] again.
    fn user_resets(&mut self, fabric: &mut Fabric, scope: &[Address]) -> UserReset {
        let _ = (fabric, scope);
        UserReset::No
    }

    /// An event for user space.
    fn uevent(&mut self, address: Address, event: Uevent) {
        let _ = (address, event);
    }

    /// A line of the kernel log.
    fn report(&mut self, report: &Report) {
        let _ = report;
    }

    /// The devices behind a hot-plug port have gone; their drivers are to let
    /// them go.
    fn removed(&mut self, fabric: &mut Fabric, functions: &[Address]) {
        let _ = (fabric, functions);
    }
}

/// When the next step is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// There is more to do now.
    Now,
    /// Nothing before this time.
    At(Nanos),
    /// Nothing until there is another signal.
    Idle,
}

/// The port whose error service takes a signal.
fn lane(fabric: &Fabric, signal: Signal) -> Option<Address> {
    match signal {
        Signal::RootError(port) => Some(port),
        Signal::Contained(port) | Signal::Removed(port) => fabric.error_root(port).or(Some(port)),
        Signal::SystemError(_) => None,
    }
}
