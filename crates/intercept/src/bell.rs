// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells at the cost of a load whether anything was closed.
//!
//! What is closed before a call must be closed for that call, so inotify must
//! be asked at each, which costs a system call. Instead an io_uring has a
//! multishot poll on it, and the kernel sets a flag in the ring's shared
//! memory when that poll has something to say.
//!
//! # Why no close is missed
//! - The last step of `close()` and of an unmapping (`__fput`) queues the
//!   event and wakes who polls, before the system call returns to the program;
//!   so before the program's next call.
//! - With `DEFER_TASKRUN` and `TASKRUN_FLAG` the poll's callback sets the flag
//!   itself, in the task that closes. (Without, it would be this task's work
//!   at its next entry to the kernel, and this task would be signalled, which
//!   makes seccomp's requests fail with `EINTR`: tried.) Callbacks run under
//!   the lock of inotify's wait queue: a second close that finds the poll
//!   woken already finds the flag set, too.
//! - The flag is taken back by [`rang`](Bell::rang) entering the ring, and
//!   inotify is read after that: what was queued until then is read, what
//!   comes later sets the flag anew.
//! - inotify merges an event with an equal one that stands last in the queue,
//!   and then wakes nobody; the one who queued that may be about to. Events of
//!   different inodes are never equal, so this takes two closes on one: where
//!   an inode has more than one description, `Files` says so and is read at
//!   each call.
//!
//! Where there is no io_uring (containers, `kernel.io_uring_disabled`), or one
//! before Linux 6.1, it rings always.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, types};

/// A watch on a descriptor. Must be used by the thread that made it.
pub(crate) struct Bell {
    ring: Option<IoUring>,
    watched: types::Fd,
}

impl Bell {
    /// Watches `fd`, which must stay open for as long, for something to read.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> Bell {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        let ring = builder.build(4);
        let mut bell = Bell { ring: ring.ok(), watched: types::Fd(fd.as_raw_fd()) };
        bell.arm();
        tracing::debug!(target: "vfuse::run", io_uring = bell.ring.is_some(), "watches for closes");
        bell
    }

    /// One that rings always.
    #[cfg(test)]
    pub(crate) fn broken() -> Bell {
        Bell { ring: None, watched: types::Fd(-1) }
    }

    /// Whether there may be something to read that was not there, or not read,
    /// when this was asked last. Then it must be read, to its end.
    pub(crate) fn rang(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return true };
        if !ring.submission().taskrun() {
            return false;
        }
        // SAFETY: nothing is submitted and no argument is passed.
        let entered = unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
        if entered.is_err() {
            // Rings again next time if the flag still stands.
            return true;
        }
        let mut armed = true;
        ring.completion().for_each(|event| armed &= cqueue::more(event.flags()));
        if !armed {
            self.arm();
        }
        true
    }

    fn arm(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let poll = opcode::PollAdd::new(self.watched, libc::POLLIN as u32).multi(true).build();
        // SAFETY: the request has no pointers, and the descriptor stays open.
        let pushed = unsafe { ring.submission().push(&poll) };
        if pushed.is_err() || !matches!(ring.submit(), Ok(1)) {
            self.ring = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn it_rings_once_for_what_came_and_never_misses() {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let mut bell = Bell::new(fd.as_fd());
        if bell.ring.is_none() {
            return;
        }
        let take = || rustix::io::read(&fd, &mut [0u8; 8]).is_ok();
        let signal = || rustix::io::write(&fd, &1u64.to_ne_bytes()).unwrap();
        assert!(!bell.rang());
        // More rounds than the completion ring has room for.
        for _ in 0..100 {
            signal();
            signal();
            assert!(bell.rang());
            assert!(take());
            assert!(!bell.rang() || !bell.rang());
        }
        // Read by somebody else meanwhile.
        signal();
        assert!(take());
        signal();
        assert!(bell.rang() && take());
        // From another thread, which says when it has done so.
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(signal).join().unwrap();
                assert!(bell.rang() && take());
            }
        });
    }

    #[test]
    fn without_io_uring_it_rings_always() {
        let mut bell = Bell::broken();
        assert!(bell.rang() && bell.rang());
    }
}
