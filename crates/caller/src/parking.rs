// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls whose answer must wait for something: the pretend kernel's sleeping
//! tasks.
//!
//! The core has no threads to put to sleep. A call that Linux would make wait
//! is answered with [`Reply::Parked`](crate::Reply::Parked) and a [`Ticket`];
//! the front door leaves its caller waiting and serves others. Whoever knows
//! what the call waits for keeps the ticket, and when it has happened (a file
//! was closed, a deadline has passed) [wakes](Parking::wake) it: with the
//! answer, or so that the call is tried again. A caller that is killed
//! meanwhile is [forgotten](Parking::abandon); what its call has begun goes on.

use std::collections::BTreeMap;

use uapi::Errno;

/// A call that waits. Never reused in a lab's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What may end a wait besides its event and the death of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A signal of the caller's (`wait_event_interruptible`).
    Interruptible,
    /// Nothing (`wait_for_completion`, a mutex). A front door lets SIGKILL end
    /// its caller all the same.
    Uninterruptible,
}

/// How a wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The call is made again, on the same open file with the same arguments.
    Retry,
    /// The call has this result.
    Done(Result<u64, Errno>),
}

/// The calls that wait.
#[derive(Debug, Default)]
pub struct Parking {
    last: u64,
    waiting: BTreeMap<Ticket, Wait>,
    woken: Vec<(Ticket, Wake)>,
}

impl Parking {
    /// Makes the present call wait.
    pub fn park(&mut self, wait: Wait) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.waiting.insert(ticket, wait);
        ticket
    }

    /// Ends a wait. Nothing if its caller is gone.
    pub fn wake(&mut self, ticket: Ticket, wake: Wake) {
        if self.waiting.remove(&ticket).is_some() {
            self.woken.push((ticket, wake));
        }
    }

    /// How a call waits; `None` if it does not.
    #[must_use]
    pub fn wait(&self, ticket: Ticket) -> Option<Wait> {
        self.waiting.get(&ticket).copied()
    }

    /// From now on signals do not end this wait.
    pub fn make_uninterruptible(&mut self, ticket: Ticket) {
        if let Some(wait) = self.waiting.get_mut(&ticket) {
            *wait = Wait::Uninterruptible;
        }
    }

    /// The caller is gone, its call with it.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.woken.retain(|(woken, _)| *woken != ticket);
    }

    /// Takes the calls whose wait is over, in the order in which it ended.
    pub fn take_woken(&mut self) -> Vec<(Ticket, Wake)> {
        std::mem::take(&mut self.woken)
    }

    /// How many calls wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no call waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_once() {
        let mut parking = Parking::default();
        let (a, b) = (parking.park(Wait::Interruptible), parking.park(Wait::Uninterruptible));
        assert_ne!(a, b);
        parking.wake(b, Wake::Done(Ok(3)));
        parking.wake(b, Wake::Retry);
        parking.wake(a, Wake::Retry);
        assert_eq!(parking.take_woken(), [(b, Wake::Done(Ok(3))), (a, Wake::Retry)]);
        assert!(parking.is_empty() && parking.take_woken().is_empty());
    }

    #[test]
    fn a_caller_that_is_gone_is_not_woken() {
        let mut parking = Parking::default();
        let (a, b) = (parking.park(Wait::Interruptible), parking.park(Wait::Interruptible));
        parking.abandon(a);
        parking.wake(a, Wake::Retry);
        parking.wake(b, Wake::Retry);
        parking.abandon(b);
        assert!(parking.take_woken().is_empty());
        assert_eq!(parking.wait(a), None);
    }

    #[test]
    fn a_wait_can_become_uninterruptible() {
        let mut parking = Parking::default();
        let a = parking.park(Wait::Interruptible);
        assert_eq!(parking.wait(a), Some(Wait::Interruptible));
        parking.make_uninterruptible(a);
        assert_eq!((parking.wait(a), parking.len()), (Some(Wait::Uninterruptible), 1));
    }
}
