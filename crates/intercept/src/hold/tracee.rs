// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One thread of the program, as `ptrace` and `/proc` show it.
#![allow(unsafe_code)] // ptrace and waitid

use std::ptr;

use rustix::io::Errno;

use crate::files::InodeId;
use crate::listener::last_errno;
use crate::mapped;
use crate::processes::status;

/// New threads and processes are seized, too.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;

/// What is told of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It has ended.
    Ended,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It was stopped, with the others of its process, by a signal.
    Stopped,
    /// It goes on at once.
    Passing,
}

/// Traces a thread from now on, and leaves it running.
pub(super) fn seize(tid: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    call(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, ptr::null_mut::<libc::c_void>(), OPTIONS as usize) })
}

/// Lets a stopped thread go on, with a signal or (0) without.
pub(super) fn go_on(tid: i32, signal: i32) {
    // SAFETY: takes numbers only. It fails if the thread was killed meanwhile.
    unsafe { libc::ptrace(libc::PTRACE_CONT, tid, ptr::null_mut::<libc::c_void>(), signal as usize) };
}

/// Leaves a thread stopped that a stop signal has stopped.
pub(super) fn stay_stopped(tid: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) };
}

/// The address of the access for which a thread stopped in front of a SIGBUS;
/// `None` if somebody has sent the signal.
pub(super) fn bad_access(tid: i32) -> Option<u64> {
    // SAFETY: all zeros is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for the call.
    let got = unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGINFO,
            tid,
            ptr::null_mut::<libc::c_void>(),
            (&raw mut info).cast::<libc::c_void>(),
        )
    };
    call(got).ok()?;
    // SAFETY: such a signal has an address.
    (info.si_code == libc::BUS_ADRERR).then(|| unsafe { info.si_addr() } as u64)
}

/// Waits until there is news of any thread that the calling one traces, and
/// leaves it to be taken: its id, and whether it has ended. `CHILD`: there is none.
pub(super) fn next(block: bool) -> Result<Option<(i32, bool)>, Errno> {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    let flags = if block { flags } else { flags | libc::WNOHANG };
    // SAFETY: all zeros is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        return Err(last_errno());
    }
    // SAFETY: `waitid` fills in a child's news, or leaves zeros.
    let tid = unsafe { info.si_pid() };
    let ended = matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED);
    Ok((tid != 0).then_some((tid, ended)))
}

/// Takes the news of a thread.
pub(super) fn take(tid: i32) -> Option<News> {
    let mut status = 0;
    // SAFETY: the word is valid for the call.
    let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
    if got != tid {
        return None;
    }
    if !libc::WIFSTOPPED(status) {
        return Some(News::Ended);
    }
    let signal = libc::WSTOPSIG(status);
    Some(match status >> 16 {
        0 => News::Signal(signal),
        libc::PTRACE_EVENT_STOP if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => {
            News::Stopped
        }
        _ => News::Passing,
    })
}

/// The file that a process has mapped at an address.
pub(super) fn mapped_at(tid: i32, address: u64) -> Option<InodeId> {
    mapped::maps(tid.unsigned_abs())?.lines().find_map(|line| mapped::file_at(line, address))
}

/// Whether a process maps a file.
pub(super) fn maps(pid: i32, file: InodeId) -> bool {
    mapped::maps(pid.unsigned_abs())
        .is_some_and(|text| text.lines().any(|line| mapped::touches(line, file, 0, u64::MAX)))
}

/// Whether a thread has ended, as far as anybody but its parent is concerned.
pub(super) fn is_dead(tid: i32) -> bool {
    status(tid)
        .is_none_or(|text| matches!(field(&text, "State:").and_then(|s| s.chars().next()), Some('Z' | 'X') | None))
}

/// Whether a thread may still have a SIGBUS coming that is older than
/// `ran`, its time on a processor when it was last asked.
pub(super) fn may_owe(tid: i32, ran: u64) -> bool {
    let Some(text) = status(tid) else { return false };
    let pending = field(&text, "SigPnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    // Between the fault and the signal a thread sleeps for a lock at most, and
    // not where a signal would wake it. One that has stopped has news that is
    // to be taken: the end of the tracer would deliver the signal.
    let state = field(&text, "State:").and_then(|state| state.chars().next());
    if state == Some('t') {
        return true;
    }
    let runs = matches!(state, Some('R' | 'D'));
    pending & 1 << (libc::SIGBUS - 1) != 0 || runs && on_cpu(tid).saturating_sub(ran) < SOON
}

/// More than it takes from a fault to its signal, in nanoseconds: half a
/// millisecond, and a tick of the slowest clock there is (`CONFIG_HZ=100`),
/// for so much of what a thread has run before may be counted only afterwards.
const SOON: u64 = 10_500_000;

/// A thread's time on a processor, in nanoseconds, as of the last tick or
/// switch.
pub(super) fn on_cpu(tid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn call(result: libc::c_long) -> Result<(), Errno> {
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}
