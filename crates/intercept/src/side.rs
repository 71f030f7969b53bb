// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything that happens besides calls: processes end, files are closed
//! while nobody calls, signals arrive, the waker is used.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::launch::Launched;
use crate::signals::Signals;
use crate::supervisor::Shared;
use crate::{Waker, signals};

/// Marks of the descriptors that are waited for.
const LISTENER: u64 = 1;
const CLOSED: u64 = 2;
const ENDS: u64 = 3;
const MAIN: u64 = 4;
const EXEC: u64 = 5;
const SIGNALS: u64 = 6;
const WAKER: u64 = 7;
const NUDGE: u64 = 8;
const EVENTS: u64 = 9;

/// How the program went.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The program's own status.
    pub(crate) status: Option<ExitStatus>,
    /// What `execve` said, if it failed.
    pub(crate) exec_error: Option<Errno>,
}

/// What the side thread works with.
pub(crate) struct Side<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) ends: Arc<OwnedFd>,
    pub(crate) signals: Option<Signals>,
    pub(crate) waker: Option<Waker>,
    /// Readable while there is something to attend to.
    pub(crate) events: Option<Arc<OwnedFd>>,
    /// The serving thread has something for this one.
    pub(crate) nudge: Waker,
    /// The thread that serves, to be woken on kernels before 6.11.
    pub(crate) server: libc::pthread_t,
}

impl Side<'_> {
    /// Works until nobody is left who could call and the program is reaped.
    pub(crate) fn work(mut self) -> Result<Verdict, Errno> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: &dyn AsFd, mark, flags| epoll::add(&poller, fd.as_fd(), EventData::new_u64(mark), flags);
        let closed = self.shared.lock().files.closed_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        // A hang-up is reported without being asked for.
        add(&self.shared.listener, LISTENER, EventFlags::empty())?;
        add(&closed, CLOSED, EventFlags::IN)?;
        add(&*self.ends, ENDS, EventFlags::IN)?;
        add(&self.pidfd, MAIN, EventFlags::IN)?;
        add(&self.nudge, NUDGE, EventFlags::IN)?;
        if let Some(socket) = &self.socket {
            add(socket, EXEC, EventFlags::IN)?;
        }
        if let Some(signals) = &self.signals {
            add(&signals.pipe(), SIGNALS, EventFlags::IN)?;
        }
        if let Some(waker) = &self.waker {
            add(waker, WAKER, EventFlags::IN)?;
        }
        if let Some(events) = &self.events {
            add(&**events, EVENTS, EventFlags::IN)?;
        }

        let mut verdict = Verdict::default();
        let mut abandoned = false;
        let mut events = Vec::with_capacity(16);
        while !(abandoned && verdict.status.is_some()) {
            let state = self.shared.lock();
            let wait = state.files.settle_pause().into_iter().chain(state.parked.patience()).min();
            let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
            drop(state);
            events.clear();
            match epoll::wait(&poller, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => {
                        abandoned = true;
                        let _ = epoll::delete(&poller, &self.shared.listener);
                    }
                    ENDS => self.take_ends(),
                    NUDGE => {
                        self.nudge.clear();
                        if let Some(signals) = &mut self.signals {
                            verdict.status = signals.catch_up(self.pid, verdict.status, self.shared);
                        }
                    }
                    MAIN => {
                        verdict.status = self.reap_main(verdict.status);
                        if verdict.status.is_some() {
                            let _ = epoll::delete(&poller, &self.pidfd);
                        }
                    }
                    EXEC => {
                        if let Some(socket) = self.socket.take() {
                            let _ = epoll::delete(&poller, &socket);
                            verdict.exec_error = Launched::exec_error(&socket);
                        }
                    }
                    SIGNALS => {
                        if let Some(signals) = &mut self.signals {
                            verdict.status = signals.handle(self.pid, verdict.status, self.shared);
                        }
                    }
                    mark @ (WAKER | EVENTS) => {
                        if let Some(waker) = self.waker.as_ref().filter(|_| mark == WAKER) {
                            waker.clear();
                        }
                        let mut state = self.shared.lock();
                        state.kernel.attend();
                        state.refresh_tree();
                    }
                    _ => {}
                }
            }
            let mut state = self.shared.lock();
            state.release_closed();
            state.refresh_tree();
            state.look_after_parked(&self.shared.listener);
        }
        self.shared.over.store(true, Ordering::Release);
        // Newer kernels have woken the server themselves.
        while !self.shared.served.load(Ordering::Acquire) {
            signals::interrupt(self.server);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(verdict)
    }

    fn take_ends(&self) {
        let mut events = Vec::with_capacity(64);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&*self.ends, rustix::buffer::spare_capacity(&mut events), Some(&now)).is_err() {
            return;
        }
        let mut state = self.shared.lock();
        for event in &events {
            let data = event.data.u64();
            if let Ok(tid) = i32::try_from(data) {
                state.ended(tid);
            }
        }
    }

    fn reap_main(&self, known: Option<ExitStatus>) -> Option<ExitStatus> {
        if known.is_some() {
            return known;
        }
        match rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(ExitStatus::from_raw(status.as_raw())),
            Ok(None) => None,
            // Somebody else reaped it: how it ended is not known.
            Err(_) => Some(ExitStatus::from_raw(1 << 8)),
        }
    }
}

impl std::fmt::Debug for Side<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Side").field("pid", &self.pid).field("pidfd", &self.pidfd.as_raw_fd()).finish_non_exhaustive()
    }
}
