// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals to the supervisor of a program, which stands between it and the
//! shell.
//!
//! The program is in the supervisor's process group, so what the terminal
//! sends (^C, ^Z, hang-up) reaches both, and is for the program to act upon.
//! What somebody sends to the supervisor alone is passed on. When the program
//! is stopped from the terminal the supervisor stops too, so that the shell
//! sees its job stop.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::launch::Dispositions;
use crate::listener::last_errno;
use crate::supervisor::Shared;

const WATCHED: [c_int; 11] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGCHLD,
];

/// The writing end of the pipe that the handler uses; -1 for none.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// A record in the pipe: signal, how it was sent.
type Record = [c_int; 2];

/// The signals of this process, caught for as long as this lives.
#[derive(Debug)]
pub(crate) struct Signals {
    read: OwnedFd,
    _write: OwnedFd,
    before: Before,
    /// How many times the remaining processes were told to end.
    endings: u32,
    stopped: bool,
    /// Children have had news that nobody was allowed to take.
    owed: bool,
}

struct Before(Dispositions);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(signal, _)| signal)).finish()
    }
}

extern "C" fn caught(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: async-signal-safe calls only; `info` is the kernel's.
    unsafe {
        let errno = *libc::__errno_location();
        let code = if info.is_null() { 0 } else { (*info).si_code };
        let record: Record = [signal, code];
        // A full pipe holds enough of them.
        libc::write(PIPE.load(Ordering::Relaxed), record.as_ptr().cast(), size_of::<Record>());
        *libc::__errno_location() = errno;
    }
}

impl Signals {
    /// Catches the signals. Ignored ones (`nohup`) stay ignored.
    pub(crate) fn catch() -> Result<Signals, Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        PIPE.store(write.as_raw_fd(), Ordering::Relaxed);
        let mut before = Dispositions::new();
        for signal in WATCHED {
            // SAFETY: the structures are valid; the handler is safe in any context.
            unsafe {
                let mut old: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, std::ptr::null(), &raw mut old) != 0 {
                    return Err(last_errno());
                }
                if old.sa_sigaction == libc::SIG_IGN && signal != libc::SIGCHLD {
                    continue;
                }
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = caught as *const () as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                libc::sigfillset(&raw mut new.sa_mask);
                libc::sigaction(signal, &raw const new, std::ptr::null_mut());
                before.push((signal, old));
            }
        }
        // Daemons of the program become ours when their parents end.
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        Ok(Signals { read, _write: write, before: Before(before), endings: 0, stopped: false, owed: false })
    }

    /// What the program must have instead of our handlers.
    pub(crate) fn dispositions(&self) -> Dispositions {
        self.before.0.clone()
    }

    /// Becomes readable when there is something to handle.
    pub(crate) fn pipe(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// Handles what was caught. `status` is that of the program, if it has
    /// ended; the new knowledge of it comes back.
    pub(crate) fn handle(&mut self, main: Pid, mut status: Option<ExitStatus>, shared: &Shared) -> Option<ExitStatus> {
        let mut bytes = [0u8; 16 * size_of::<Record>()];
        let Ok(n) = rustix::io::read(&self.read, &mut bytes) else { return status };
        let (words, _) = bytes.get(..n).unwrap_or_default().as_chunks::<4>();
        let records: BTreeSet<(c_int, c_int)> = words
            .chunks_exact(2)
            .filter_map(|pair| Some((c_int::from_ne_bytes(*pair.first()?), c_int::from_ne_bytes(*pair.get(1)?))))
            .collect();
        for (number, code) in records {
            if number == libc::SIGCHLD {
                status = self.children(main, status, shared);
                continue;
            }
            // SAFETY: the number came from the kernel.
            let signal = unsafe { Signal::from_raw_unchecked(number) };
            let from_terminal = code == libc::SI_KERNEL;
            match (status, number) {
                (Some(_), libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) => self.end_all(signal, shared),
                (Some(_), _) => {}
                (None, libc::SIGCONT) => {
                    if self.stopped {
                        self.stopped = false;
                        let _ = rustix::process::kill_process(main, signal);
                    }
                }
                (None, _) if from_terminal => {}
                (None, _) => {
                    let _ = rustix::process::kill_process(main, signal);
                }
            }
        }
        status
    }

    /// Takes what [`handle`](Self::handle) could not.
    pub(crate) fn catch_up(&mut self, main: Pid, status: Option<ExitStatus>, shared: &Shared) -> Option<ExitStatus> {
        if std::mem::take(&mut self.owed) { self.children(main, status, shared) } else { status }
    }

    fn children(&mut self, main: Pid, mut status: Option<ExitStatus>, shared: &Shared) -> Option<ExitStatus> {
        let mut stopped = None;
        {
            let _state = shared.lock();
            let Some(_waits) = shared.hold.waits() else {
                self.owed = true;
                return status;
            };
            if status.is_none()
                && let Ok(Some((_, news))) = rustix::process::waitpid(
                    Some(main),
                    WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED,
                )
            {
                if news.stopped() {
                    stopped = Some(news.stopping_signal().unwrap_or(libc::SIGSTOP));
                } else if news.continued() {
                    self.stopped = false;
                } else {
                    status = Some(ExitStatus::from_raw(news.as_raw()));
                }
            }
        }
        if let Some(signal) = stopped {
            self.stop_with(main, signal);
        }
        // The lock keeps helpers, which are waited for elsewhere, out of this.
        let _state = shared.lock();
        let Some(_waits) = shared.hold.waits() else {
            self.owed = true;
            return status;
        };
        while let Ok(Some((pid, ended))) = rustix::process::waitpid(None, WaitOptions::NOHANG) {
            if pid == main {
                status = Some(ExitStatus::from_raw(ended.as_raw()));
            }
        }
        status
    }

    /// The program was stopped; so is this process if that was the terminal's
    /// doing.
    fn stop_with(&mut self, main: Pid, signal: c_int) {
        let ours = rustix::process::getpgid(None).ok();
        let job = matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
            && ours.is_some()
            && rustix::process::getpgid(Some(main)).ok() == ours;
        if !job {
            return;
        }
        self.stopped = true;
        // To this thread, so that it does not get beyond the next line before the process stops.
        // SAFETY: takes a number only.
        unsafe { libc::raise(libc::SIGSTOP) };
        // Here again: somebody continued us, and means the program too.
        self.stopped = false;
        let _ = rustix::process::kill_process(main, Signal::CONT);
    }

    /// The program has ended and this process is told to end: so are the
    /// processes that are left, the second time without a choice.
    fn end_all(&mut self, signal: Signal, shared: &Shared) {
        self.endings += 1;
        let signal = if self.endings > 1 { Signal::KILL } else { signal };
        let mut pids: BTreeSet<i32> = shared.lock().processes.pids().into_iter().collect();
        descendants(std::process::id() as i32, &mut pids);
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, action) in &self.before.0 {
            // SAFETY: the disposition is the one that was in force.
            unsafe { libc::sigaction(*signal, action, std::ptr::null_mut()) };
        }
        PIPE.store(-1, Ordering::Relaxed);
    }
}

/// Adds the descendants of a process.
pub(crate) fn descendants(pid: i32, found: &mut BTreeSet<i32>) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for task in tasks.flatten() {
        let Ok(children) = std::fs::read_to_string(task.path().join("children")) else { continue };
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            if found.insert(child) {
                descendants(child, found);
            }
        }
    }
}

/// What the new process must not inherit even if no signal is caught: Rust
/// programs ignore SIGPIPE.
pub(crate) fn default_dispositions() -> Dispositions {
    // SAFETY: all zeros is SIG_DFL without flags.
    vec![(libc::SIGPIPE, unsafe { std::mem::zeroed() })]
}

/// Makes a blocking call of `thread` return, on kernels where the listener
/// does not do that by itself when nobody is left.
pub(crate) fn interrupt(thread: libc::pthread_t) {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: the handler does nothing; the thread lives as long as its run.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize; // no SA_RESTART
        libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut());
        libc::pthread_kill(thread, libc::SIGURG);
    }
}

/// Ends this process as the program ended: with its status, or by the same
/// signal (without another core dump).
pub fn exit_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // SAFETY: plain system calls on valid structures.
        unsafe {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::signal(signal, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            libc::raise(signal);
        }
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(1));
}
