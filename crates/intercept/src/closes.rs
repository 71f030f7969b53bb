// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Knowing without a system call that nothing was closed.
//!
//! Reading inotify before each call costs a tenth of a call. Instead inotify
//! raises SIGIO on the thread that answers calls (`O_ASYNC`), and the handler
//! sets a flag. Linux queues the signal within the close, so before the same
//! program's next call can be received; and it is handled on the way back from
//! the system call that receives it. So the flag is never late.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::listener::last_errno;

static CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn closed(_: c_int) {
    CLOSED.store(true, Ordering::Release);
}

/// Whether something may have been closed since the last call of this.
pub(crate) fn take() -> bool {
    // A plain load first: the line stays shared while nothing happens.
    CLOSED.load(Ordering::Acquire) && CLOSED.swap(false, Ordering::AcqRel)
}

/// From now on the calling thread is told of events on `inotify`. `false`:
/// SIGIO is ignored here, and stays so.
pub(crate) fn begin(inotify: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: the structures are valid; the handler only stores to a static.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGIO, std::ptr::null(), &raw mut old) != 0 {
            return Err(last_errno());
        }
        if old.sa_sigaction == libc::SIG_IGN {
            return Ok(false);
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = closed as *const () as usize;
        new.sa_flags = libc::SA_RESTART;
        // It stays: a signal that comes late must not end the process.
        if libc::sigaction(libc::SIGIO, &raw const new, std::ptr::null_mut()) != 0 {
            return Err(last_errno());
        }
        let owner = Owner { kind: F_OWNER_TID, tid: libc::gettid() };
        if libc::fcntl(inotify.as_raw_fd(), F_SETOWN_EX, &raw const owner) != 0 {
            return Err(last_errno());
        }
    }
    set_async(inotify, true)?;
    // What was closed before.
    CLOSED.store(true, Ordering::Release);
    Ok(true)
}

/// No thread is told any more.
pub(crate) fn end(inotify: BorrowedFd<'_>) {
    // It fails on a closed descriptor only.
    let _ = set_async(inotify, false);
}

fn set_async(fd: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        let flags = if on { flags | libc::O_ASYNC } else { flags & !libc::O_ASYNC };
        if libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) != 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// `struct f_owner_ex` of `fcntl(2)`.
#[repr(C)]
struct Owner {
    kind: c_int,
    tid: libc::pid_t,
}

const F_OWNER_TID: c_int = 0;
const F_SETOWN_EX: c_int = 15;
