// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an executor gives turns to.

use std::fmt::Debug;
use std::sync::Arc;

use crate::Nanos;

/// What a device wants after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until a register changes.
    Idle,
    /// It did something, or there is more to do now.
    Busy,
    /// Nothing to do before this time unless a register changes.
    Until(Nanos),
}

/// How an endpoint tells the executor that it may have work.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Whether a program has the device open; only then does it need turns.
    fn set_active(&self, on: bool);

    /// Something was done to the device: give it a turn soon.
    fn kick(&self);
}

/// Something that does a bounded piece of work when it is given a turn.
pub trait Steppable: Send + Sync + Debug {
    /// Gives the device a turn. `None`: somebody else is using it just now.
    fn turn(&self, now: Nanos) -> Option<Turn>;

    /// Whom to tell of work; the first call counts.
    fn set_wake(&self, wake: Arc<dyn Wake>);
}
