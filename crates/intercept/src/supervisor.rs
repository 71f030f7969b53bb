// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The loop that receives calls and answers them.
//!
//! One thread, blocked in the listener: with `SYNC_WAKE_UP` caller and
//! supervisor take turns on one core, which is faster than two cores that
//! wake each other, and much faster than spinning. Everything that is not a
//! call (ends of processes, closes while nobody calls, signals) belongs to
//! another thread (`side`).

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as Raw;
use uapi::Errno;

use crate::Isolation;
use crate::bell::Bell;
use crate::calls::{Outcome, Transfer};
use crate::hold::Hold;
use crate::listener::{Listener, Notification, to_core};
use crate::state::State;
use crate::trace::{Request, Shown, call_name};

/// What both threads of the front door share.
pub(crate) struct Shared {
    /// The program's calls.
    pub(crate) listener: Listener,
    /// Everything else.
    pub(crate) state: Mutex<State>,
    /// Threads that wait at mapped BARs.
    pub(crate) hold: Hold,
    /// Nobody is left who could call.
    pub(crate) over: AtomicBool,
    /// The loop has ended.
    pub(crate) served: AtomicBool,
}

impl Shared {
    /// The state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Answers calls until nobody is left.
    pub(crate) fn serve(&self) {
        let inotify = self.lock().files.closed_fd().try_clone_to_owned();
        let Ok(inotify) = inotify else {
            tracing::error!(target: "vfuse::run", "no descriptor left for watching closes");
            return;
        };
        let mut bell = Bell::new(inotify.as_fd());
        while !self.over.load(Ordering::Acquire) {
            match self.listener.receive() {
                Ok(notification) => {
                    // A mistake in the core costs one call, not the program's whole run.
                    let handled = catch_unwind(AssertUnwindSafe(|| self.handle(&notification, &mut bell)));
                    if handled.is_err() {
                        tracing::error!(target: "vfuse::run", call = call_name(notification.nr), "internal error: the call fails with EIO");
                        let _ = self.listener.answer(notification.id, Err(Errno::EIO));
                    }
                }
                // The caller died before we looked, or all have.
                Err(Raw::NOENT) => {
                    if self.is_abandoned() {
                        return;
                    }
                }
                Err(Raw::INTR) => {}
                Err(errno) => {
                    tracing::error!(target: "vfuse::run", %errno, "no more calls can be received");
                    return;
                }
            }
        }
    }

    /// Whether no process is left with our filter.
    pub(crate) fn is_abandoned(&self) -> bool {
        let mut fds = [PollFd::new(&self.listener, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::HUP)
    }

    fn handle(&self, n: &Notification, bell: &mut Bell) {
        let asked = Asked::now(*n);
        let mut state = self.lock();
        let transfer = transfer_of(n.nr);
        // A file closed before this call is closed for this call. (Transfers
        // that name their device by offset need not ask.)
        if transfer.is_none_or(|how| how.plain) && (bell.rang() || state.files.must_look()) {
            state.release_closed();
        }
        let outcome = match transfer {
            Some(how) => state.transfer(n, &self.listener, how),
            None => state.dispatch(n, &self.listener),
        };
        state.refresh_tree();
        state.finish(asked, outcome.unwrap_or_else(Outcome::from), &self.listener);
        state.answer_woken(&self.listener);
    }
}

/// A call, and when it came.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The call.
    pub(crate) n: Notification,
    /// Only if somebody watches.
    start: Option<Instant>,
}

impl Asked {
    fn now(n: Notification) -> Asked {
        let watched = tracing::enabled!(target: "vfuse::call", tracing::Level::DEBUG);
        Asked { n, start: watched.then(Instant::now) }
    }
}

impl State {
    /// Gives a call its answer, or has it wait.
    pub(crate) fn finish(&mut self, asked: Asked, outcome: Outcome, listener: &Listener) {
        let n = &asked.n;
        let result = match outcome {
            Outcome::GoOn => {
                let _ = listener.go_on(n.id);
                return;
            }
            Outcome::Parked(ticket, on) => return self.park(asked, ticket, on),
            Outcome::Done(result) => {
                // ENOENT: the caller was killed meanwhile.
                let _ = listener.answer(n.id, result);
                result
            }
            Outcome::NewFd { fd, cloexec, known } => match listener.answer_fd(n.id, fd.as_fd(), cloexec) {
                Ok(number) => {
                    self.given(n, number, known);
                    Ok(number as u64)
                }
                // The description closes with `fd`, and its file with that.
                Err(errno) => {
                    let result = Err(to_core(errno));
                    let _ = listener.answer(n.id, result);
                    result
                }
            },
        };
        if let Some(start) = asked.start {
            self.show(n, result, start);
        }
    }

    /// Tells of a call that was answered.
    fn show(&mut self, n: &Notification, result: Result<u64, Errno>, start: Instant) {
        let file = self.file_of(n, n.args[0] as i32).map(|file| file.0);
        let pid = self.processes.of_thread(n.tid, || true).map_or(0, |process| process.pid);
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let [a, b, c, d, ..] = n.args;
        if libc::c_long::from(n.nr) == libc::SYS_ioctl {
            let request = Request(b as u32);
            tracing::debug!(
                target: "vfuse::call", pid, tid = n.tid, call = "ioctl", fd = a as i32, file, %request,
                arg = format_args!("{c:#x}"), result = %Shown(result), nanos
            );
        } else {
            tracing::debug!(
                target: "vfuse::call", pid, tid = n.tid, call = call_name(n.nr), fd = a as i32, file,
                args = format_args!("{b:#x} {c:#x} {d:#x}"), result = %Shown(result), nanos
            );
        }
    }

    fn dispatch(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        match libc::c_long::from(n.nr) {
            libc::SYS_ioctl => self.ioctl(n, listener),
            libc::SYS_mmap => self.mmap(n, listener),
            libc::SYS_openat | libc::SYS_openat2 => self.open(n, listener),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open | libc::SYS_creat => self.open(n, listener),
            libc::SYS_execve | libc::SYS_execveat => self.exec(n, listener),
            libc::SYS_dup | libc::SYS_dup3 | libc::SYS_fcntl => self.duplicated(n, listener),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => self.duplicated(n, listener),
            libc::SYS_setrlimit | libc::SYS_unshare | libc::SYS_setns => self.rights_change(n, listener, false),
            libc::SYS_prlimit64 => self.rights_change(n, listener, n.args[0] as i32 != 0),
            libc::SYS_capset | libc::SYS_setuid | libc::SYS_setreuid | libc::SYS_setresuid => {
                self.capabilities_change(n, listener)
            }
            libc::SYS_ftruncate => self.resize(n, listener, Errno::EINVAL),
            libc::SYS_fallocate => self.resize(n, listener, Errno::ENODEV),
            _ if self.isolation == Isolation::Paths => self.path_call(n, listener),
            _ => Ok(Outcome::GoOn),
        }
    }
}

pub(crate) fn transfer_of(nr: i32) -> Option<Transfer> {
    let how = |write, vectored, flags| Some(Transfer { write, vectored, flags, plain: false });
    let plain = |write, vectored| Some(Transfer { write, vectored, flags: false, plain: true });
    match libc::c_long::from(nr) {
        libc::SYS_pread64 => how(false, false, false),
        libc::SYS_pwrite64 => how(true, false, false),
        libc::SYS_preadv => how(false, true, false),
        libc::SYS_pwritev => how(true, true, false),
        libc::SYS_preadv2 => how(false, true, true),
        libc::SYS_pwritev2 => how(true, true, true),
        libc::SYS_read => plain(false, false),
        libc::SYS_write => plain(true, false),
        libc::SYS_readv => plain(false, true),
        libc::SYS_writev => plain(true, true),
        _ => None,
    }
}
