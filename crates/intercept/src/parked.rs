// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls whose answer waits, as [`Reply::Parked`](caller::Reply::Parked) says.
//!
//! Nothing is done for such a call but to remember its notification: the
//! caller sleeps in the kernel until the answer is sent, everybody else is
//! served. Its file stays open here even if the program closes it meanwhile,
//! as it does in Linux while a call is under way. SIGKILL ends the sleep (the
//! filter has `WAIT_KILLABLE_RECV`); the ends of threads tell of that. Other
//! signals do not: where Linux's wait is interruptible, the side thread looks
//! from time to time whether the caller has one pending, and tells the kernel.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use caller::{FileId, Ticket, Wait, Wake};
use uapi::Errno;

use crate::calls::{Outcome, Transfer};
use crate::listener::{Listener, Notification};
use crate::processes::{Known, status};
use crate::state::State;
use crate::supervisor::Asked;

/// How often callers with an ear for signals are looked at.
const LISTEN_EVERY: Duration = Duration::from_millis(20);
/// How often callers are looked for of whose end nobody told: threads of a
/// process that lives on, before Linux 6.9.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What a call is made on again.
#[derive(Debug)]
pub(crate) enum On {
    /// `ioctl` on this file.
    Ioctl(FileId),
    /// A transfer of which so many bytes are done.
    Transfer { known: Known, how: Transfer, done: u64 },
    /// A store of this to an attribute.
    Store { path: String, data: Vec<u8> },
}

impl On {
    fn file(&self) -> Option<FileId> {
        match self {
            On::Ioctl(file) => Some(*file),
            On::Transfer { known, .. } => Some(known.file),
            On::Store { .. } => None,
        }
    }
}

/// A call that waits.
#[derive(Debug)]
struct Call {
    asked: Asked,
    on: On,
    /// Signals end the wait.
    interruptible: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    calls: BTreeMap<Ticket, Call>,
    /// Files with calls that wait: how many, and whether the program has
    /// closed it.
    held: BTreeMap<FileId, (u32, bool)>,
}

impl Parked {
    /// Whether a file that was closed has calls under way; then it is released
    /// with the last of them.
    pub(crate) fn defers(&mut self, file: FileId) -> bool {
        self.held.get_mut(&file).map(|(_, closed)| *closed = true).is_some()
    }

    /// When to [look](State::look_after_parked) at the latest.
    pub(crate) fn patience(&self) -> Option<Duration> {
        if self.calls.is_empty() {
            None
        } else if self.calls.values().any(|call| call.interruptible) {
            Some(LISTEN_EVERY)
        } else {
            Some(SWEEP_EVERY)
        }
    }
}

impl State {
    /// The call waits.
    pub(crate) fn park(&mut self, asked: Asked, ticket: Ticket, on: On) {
        if let Some(file) = on.file() {
            self.parked.held.entry(file).or_default().0 += 1;
        }
        let interruptible = self.kernel.wait(ticket) == Some(Wait::Interruptible);
        tracing::debug!(target: "vfuse::call", tid = asked.n.tid, interruptible, "waits");
        if self.parked.calls.is_empty() || interruptible {
            self.nudge.wake();
        }
        self.parked.calls.insert(ticket, Call { asked, on, interruptible });
    }

    /// Answers the calls whose wait is over; some may wait again.
    pub(crate) fn answer_woken(&mut self, listener: &Listener) {
        loop {
            let woken = self.kernel.take_woken();
            if woken.is_empty() {
                return;
            }
            self.refresh_tree();
            for (ticket, wake) in woken {
                let Some(call) = self.parked.calls.remove(&ticket) else { continue };
                let file = call.on.file();
                if listener.is_waiting(call.asked.n.id) {
                    let outcome = match wake {
                        Wake::Done(Err(Errno::ERESTARTSYS)) => Outcome::from(restart(call.asked.n.tid)),
                        Wake::Done(result) => Outcome::Done(result),
                        // A mistake in the core costs one call.
                        Wake::Retry => catch_unwind(AssertUnwindSafe(|| self.again(&call.asked.n, call.on, listener)))
                            .unwrap_or(Err(Errno::EIO))
                            .unwrap_or_else(Outcome::from),
                    };
                    self.finish(call.asked, outcome, listener);
                }
                self.let_go(file);
            }
        }
    }

    fn again(&mut self, n: &Notification, on: On, listener: &Listener) -> Result<Outcome, Errno> {
        match on {
            On::Ioctl(file) => self.ioctl_on(n, listener, file),
            On::Transfer { known, how, done } => self.transfer_on(n, listener, known, how, done),
            On::Store { path, data } => self.store(path, data),
        }
    }

    /// A call on a file is over.
    fn let_go(&mut self, file: Option<FileId>) {
        let Some(file) = file else { return };
        let Some((calls, closed)) = self.parked.held.get_mut(&file) else { return };
        *calls -= 1;
        if *calls > 0 {
            return;
        }
        let closed = *closed;
        self.parked.held.remove(&file);
        if closed {
            self.release(file);
        }
    }

    /// Drops the calls whose callers are gone, and passes signals on.
    pub(crate) fn look_after_parked(&mut self, listener: &Listener) {
        let gone: Vec<Ticket> = self
            .parked
            .calls
            .iter()
            .filter(|(_, call)| !listener.is_waiting(call.asked.n.id))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in gone {
            self.kernel.abandon(ticket);
            if let Some(call) = self.parked.calls.remove(&ticket) {
                tracing::debug!(target: "vfuse::call", tid = call.asked.n.tid, "its caller is gone");
                self.let_go(call.on.file());
            }
        }
        let mut signalled = Vec::new();
        for (ticket, call) in &mut self.parked.calls {
            if call.interruptible && pending(call.asked.n.tid).is_some() {
                call.interruptible = false;
                signalled.push(*ticket);
            }
        }
        for ticket in signalled {
            self.kernel.interrupted(ticket);
        }
        self.answer_woken(listener);
    }

    /// Everything is over: no call waits any more.
    pub(crate) fn drop_parked(&mut self) {
        for (ticket, call) in std::mem::take(&mut self.parked.calls) {
            self.kernel.abandon(ticket);
            self.let_go(call.on.file());
        }
    }
}

/// Signals that a thread has pending and not blocked.
struct Pending {
    /// Some are its own, or it is alone: nobody else can take them.
    own: bool,
}

fn pending(tid: i32) -> Option<Pending> {
    let status = status(tid)?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask = |name| field(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let blocked = mask("SigBlk:");
    if (mask("SigPnd:") | mask("ShdPnd:")) & 1 << (libc::SIGKILL - 1) != 0 {
        // It ends without our doing.
        return None;
    }
    let own = mask("SigPnd:") & !blocked != 0;
    let shared = mask("ShdPnd:") & !blocked != 0;
    (own || shared).then(|| Pending { own: own || field("Threads:") == Some("1") })
}

/// How a call ends that a signal has interrupted. The real kernel restarts it
/// or makes it `EINTR` as the handler says, but only on its way to a signal:
/// if another thread may take that first, the program must not see the number.
fn restart(tid: i32) -> Errno {
    match pending(tid) {
        Some(Pending { own: true }) => Errno::ERESTARTSYS,
        _ => Errno::EINTR,
    }
}
