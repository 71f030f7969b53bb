// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that a program reads, writes and polls: fault queues, event queues.
//!
//! What the program holds is a pipe in which a byte lies while there is
//! something to read, so that `poll`, `select` and `epoll` are native; nobody
//! reads that byte but us. `read` and `write` have to be caught, and a filter
//! sees no more of them than the descriptor's number. So such descriptors get
//! numbers from a range that no program reaches by itself: the last ones
//! below the limit that it was started with.
//!
//! A duplicate gets a number from the range, too. One that is asked for at a
//! number outside of it (`dup2`, `F_DUPFD` from a number above) is refused, as
//! if the number were beyond the limit: it could not be read. What comes in by
//! `SCM_RIGHTS` gets an ordinary number, which polls and can be duplicated
//! into the range; `read` on it meets the pipe.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use caller::Readiness;
use rustix::io::Errno as Raw;
use rustix::process::Resource;
use uapi::Errno;

use crate::FileKind;
use crate::calls::{Outcome, Transfer};
use crate::files::proc_fd;
use crate::identity::{self, Identity, duplicate};
use crate::listener::{Listener, Notification, to_core};
use crate::processes::{Known, Process};
use crate::state::State;

/// Numbers set aside in each program.
const COUNT: i32 = 256;
/// No number is above: a table of descriptors is as long as its highest
/// number needs.
const HIGHEST: u64 = 16384;

/// The range for programs that are started with this process's limit.
pub(crate) fn range() -> Range<i32> {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(HIGHEST).min(HIGHEST);
    let end = i32::try_from(limit).unwrap_or(0);
    // Programs with a very low limit keep most of it.
    end - COUNT.min(end / 4)..end
}

/// A pipe whose byte says that there is something to read.
#[derive(Debug)]
pub(crate) struct Pipe(Mutex<Arc<OwnedFd>>);

impl Pipe {
    /// An empty one, and a description of it that reads and writes.
    pub(crate) fn new() -> Result<(Pipe, Arc<OwnedFd>), Raw> {
        use rustix::fs::{Mode, OFlags};
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let both = Arc::new(rustix::fs::open(proc_fd(&reader), flags, Mode::empty())?);
        Ok((Pipe(Mutex::new(both.clone())), both))
    }
}

impl Readiness for Pipe {
    fn set_readable(&self, on: bool) {
        let pipe = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut byte = [0; 64];
        match (on, rustix::io::ioctl_fionread(&**pipe)) {
            (true, Ok(1)) => {}
            (true, _) => {
                // Full of what the program wrote: readable as it is.
                let _ = rustix::io::write(&**pipe, &[1]);
            }
            (false, Ok(mut left)) => {
                while left > 0
                    && let Ok(got @ 1..) = rustix::io::read(&**pipe, &mut byte)
                {
                    left = left.saturating_sub(got as u64);
                }
            }
            (false, Err(_)) => {}
        }
    }
}

/// A number of the range, `from` or above, that is free in the process.
pub(crate) fn free_number(process: &Process, tid: i32, queues: &Range<i32>, from: i32) -> Result<i32, Errno> {
    (queues.start.max(from)..queues.end)
        .find(|fd| match duplicate(process, *fd) {
            Ok(_) => false,
            Err(Errno::EBADF) => true,
            Err(_) => std::fs::symlink_metadata(format!("/proc/{tid}/fd/{fd}")).is_err(),
        })
        .ok_or(Errno::EMFILE)
}

impl State {
    /// Answers `read`, `write` and their like on a number of the range.
    /// `None`: it is none of ours.
    pub(crate) fn queue_call(
        &mut self,
        n: &Notification,
        listener: &Listener,
        how: Transfer,
    ) -> Result<Option<Outcome>, Errno> {
        let fd = n.args[0] as i32;
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        // Looking takes three system calls of the eight that answer a read. What
        // puts another file at a number of the range is caught, but for `close`:
        // of several duplicates a closed one can still be read.
        let known = process.known(fd).filter(|known| self.files.is_open(known.file) && self.files.is_queue(known.file));
        if let Some(known) = known {
            return self.transfer_on(n, listener, known, how, 0).map(Some);
        }
        let file = match identity::identify(process, n.tid, fd, &self.files, self.farm.tree()) {
            Ok(Identity::File(file)) if self.files.is_queue(file) => file,
            // Also where it cannot be told: the real kernel knows.
            _ => return Ok(None),
        };
        let kind = self.kernel.kind(file).unwrap_or(FileKind::Other);
        let known = Known { file, kind, device: None };
        process.learn(fd, known);
        self.transfer_on(n, listener, known, how, 0).map(Some)
    }

    /// Answers `dup` and its like on a queue. `None`: the real kernel may do
    /// it.
    pub(crate) fn duplicate_queue(
        &mut self,
        n: &Notification,
        listener: &Listener,
        fd: i32,
        target: Target,
    ) -> Result<Option<Outcome>, Errno> {
        let queues = self.queues.clone();
        if !self.files.has_queues() {
            return Ok(None);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let file = match identity::identify(process, n.tid, fd, &self.files, self.farm.tree()) {
            Ok(Identity::File(file)) if self.files.is_queue(file) => file,
            _ => return Ok(None),
        };
        let (from, cloexec) = match target {
            Target::Exactly(number) if number == fd || queues.contains(&number) => return Ok(None),
            Target::Exactly(number) => {
                tracing::warn!(target: "vfuse::run", tid = n.tid, fd, number, "a queue can be read at the numbers set aside only: dup2 fails with EBADF");
                return Err(Errno::EBADF);
            }
            Target::From(number, cloexec) => (number, cloexec),
        };
        if from < 0 || from >= queues.end {
            return Ok(None);
        }
        let copy = self.files.again(file).map_err(to_core)?;
        let number = free_number(process, n.tid, &queues, from)?;
        listener.replace_fd(n.id, copy.as_fd(), number, cloexec).map_err(to_core)?;
        Ok(Some(Outcome::Done(Ok(number as u64))))
    }
}

/// Where a duplicate is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At this number.
    Exactly(i32),
    /// At the first free number from here on; whether `execve` closes it.
    From(i32, bool),
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn shows(fd: &OwnedFd) -> PollFlags {
        let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents()
    }

    /// FAULT-2.4, IOMMUFD-11.10: what poll shows of a queue that is written
    /// to, and of one that is not.
    #[test]
    fn readiness_comes_and_goes() {
        let (pipe, own) = Pipe::new().unwrap();
        let end = |access| rustix::fs::open(proc_fd(&*own), access | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let (both, reader) = (end(OFlags::RDWR), end(OFlags::RDONLY));
        for _ in 0..3 {
            assert_eq!((shows(&both), shows(&reader)), (PollFlags::OUT, PollFlags::empty()));
            pipe.set_readable(true);
            pipe.set_readable(true);
            assert_eq!((shows(&both), shows(&reader)), (PollFlags::IN | PollFlags::OUT, PollFlags::IN));
            // A program that went by another number took the byte.
            rustix::io::read(&both, &mut [0; 8]).unwrap();
            pipe.set_readable(true);
            assert_eq!(shows(&reader), PollFlags::IN);
            rustix::io::write(&both, &[7; 300]).unwrap();
            pipe.set_readable(false);
        }
    }

    #[test]
    fn a_few_numbers_of_many_are_set_aside() {
        let range = range();
        assert!(range.end as u64 <= HIGHEST && range.start > 0);
        assert!(range.len() as i32 <= COUNT && range.start >= range.len() as i32 * 3);
    }
}
