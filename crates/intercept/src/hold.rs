// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads of the program that access a mapped BAR while its device cannot be
//! reached wait for it, as in Linux, where the page fault waits (ERR-079).
//!
//! Pages that were taken away raise SIGBUS. So before they are, a thread here
//! (`tracer`) seizes every thread of every process that has them mapped
//! (`PTRACE_SEIZE`, which stops nobody): the signal then stops the thread that
//! made the access, which stays so until the pages are back, and then makes the
//! access again. All other signals pass. The tracer lives only as long as
//! something is held and a moment longer; with its end all are free, and so
//! they are if this process is killed.
//!
//! | what cannot be held | what it does then |
//! |---|---|
//! | a program that is traced already (gdb), or may not be traced | nothing of the device is held: loads give ones, stores are lost |
//! | a system call that is given the address of a BAR | `EFAULT` |
//! | a process that is no descendant of this one | SIGBUS |
//!
//! A thread that blocks SIGBUS has it unblocked, and its process the handler
//! of it reset: the kernel does so when it raises the signal.
//!
//! While the tracer lives, nobody else here may wait for children of the run
//! without naming one that has ended: it would take the tracer's news
//! ([`Hold::waits`]).

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::Waker;
use crate::files::InodeId;
use crate::signals;

mod tracee;
mod tracer;

/// How often the tracer is told again that there is something for it.
const AGAIN: Duration = Duration::from_millis(1);

/// Holds threads of the program. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Hold(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    answered: Condvar,
    /// Held by whoever has an order for the tracer.
    turns: Mutex<()>,
    /// Held by whoever may be told of any child of the run.
    waits: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The program, and who is told that the tracer has gone.
    run: Option<(i32, Waker)>,
    tracer: Option<libc::pthread_t>,
    /// What it is to do, and what came of it.
    order: Option<Order>,
    answer: Option<bool>,
    held: BTreeSet<InodeId>,
}

/// What the tracer is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Seize who maps the file.
    Hold(InodeId),
    /// Let go who waits for it.
    Release(InodeId),
    /// Seize a process that is about to map one.
    Include(i32),
}

impl Hold {
    /// One that holds nobody.
    #[must_use]
    pub fn new() -> Hold {
        Hold::default()
    }

    /// The run whose program is `main`; `over` is used when the tracer ends.
    pub(crate) fn serve(&self, main: i32, over: Waker) {
        self.state().run = Some((main, over));
    }

    /// Whether something is held.
    pub(crate) fn is_active(&self) -> bool {
        !self.state().held.is_empty()
    }

    /// The right to wait for any child; `None` while the tracer lives. To be
    /// asked for with whatever else is locked, so that nobody waits for it who
    /// has it.
    pub(crate) fn waits(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.waits.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// A process maps a device: it is held as the others are.
    pub(crate) fn include(&self, pid: i32) {
        let _turn = self.turn();
        let state = self.state();
        if !state.held.is_empty() && !self.tell(state, Order::Include(pid)) {
            tracing::warn!(target: "vfuse::run", pid, "a mapping of a blocked device cannot be held");
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.turns.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has the tracer do something, and waits until it has.
    fn tell(&self, mut state: MutexGuard<'_, State>, order: Order) -> bool {
        if state.tracer.is_none() && !self.start(&mut state) {
            return false;
        }
        state.order = Some(order);
        state.answer = None;
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            // Its wait for children ends by a signal only, which may come just
            // before it.
            let Some(tracer) = state.tracer else { return false };
            signals::interrupt(tracer);
            state = self.0.answered.wait_timeout(state, AGAIN).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    fn start(&self, state: &mut State) -> bool {
        let Some((main, over)) = state.run.clone() else { return false };
        let hold = self.clone();
        let work = move || tracer::work(&hold, main, &over);
        match std::thread::Builder::new().name("vfuse-hold".into()).spawn(work) {
            Ok(thread) => {
                use std::os::unix::thread::JoinHandleExt;
                state.tracer = Some(thread.as_pthread_t());
                true
            }
            Err(error) => {
                tracing::warn!(target: "vfuse::run", %error, "no thread to hold accesses with");
                false
            }
        }
    }
}

impl sys::window::Holder for Hold {
    fn hold(&self, file: (u64, u64)) -> bool {
        let _turn = self.turn();
        let state = self.state();
        if state.held.contains(&file) {
            return true;
        }
        let works = self.tell(state, Order::Hold(file));
        if works {
            self.state().held.insert(file);
        }
        works
    }

    fn release(&self, file: (u64, u64)) {
        let _turn = self.turn();
        let mut state = self.state();
        if state.held.remove(&file) {
            self.tell(state, Order::Release(file));
        }
    }
}
