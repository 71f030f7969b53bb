// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread whose call is being answered, as the core sees it.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use caller::{Caller, Capability, ClientFile, FileId, Mm, Pinned, ProcessId, Readiness};
use device::Event;
use uapi::Errno;

use crate::Tree;
use crate::events::Events;
use crate::files::{Access, Backing, Files};
use crate::identity::{self, Identity};
use crate::listener::{Listener, to_core};
use crate::mapped;
use crate::processes::Process;
use crate::queues::{self, Pipe};

/// A thread that waits for the answer to its call.
#[derive(Clone, Copy)]
pub(crate) struct Thread<'a> {
    pub(crate) tid: i32,
    pub(crate) process: &'a Process,
    pub(crate) files: &'a Files,
    pub(crate) events: &'a Events,
    pub(crate) pinner: &'a Arc<sys::pin::Pinner>,
    pub(crate) tree: &'a Tree,
    /// Where it gets descriptors from; `None` in calls that give none.
    pub(crate) giver: Option<Giver<'a>>,
}

/// Gives descriptors in the middle of a call.
#[derive(Clone, Copy)]
pub(crate) struct Giver<'a> {
    pub(crate) listener: &'a Listener,
    /// The call.
    pub(crate) id: u64,
    /// Numbers of queues.
    pub(crate) queues: &'a Range<i32>,
}

impl Thread<'_> {
    /// Reads a null-terminated string of less than `max` bytes: `EFAULT`,
    /// `ENAMETOOLONG`.
    pub(crate) fn string(&self, addr: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        let mut at = addr;
        while text.len() < max {
            // Short enough for most paths, and never into the next page.
            let step = (256 - at % 256).min((max - text.len()) as u64) as usize;
            let start = text.len();
            text.resize(start + step, 0);
            self.read(at, text.get_mut(start..).unwrap_or_default())?;
            if let Some(end) = text.iter().skip(start).position(|byte| *byte == 0) {
                text.truncate(start + end);
                return Ok(text);
            }
            at = at.checked_add(step as u64).ok_or(Errno::EFAULT)?;
        }
        Err(Errno::from_raw(libc::ENAMETOOLONG))
    }
}

impl Caller for Thread<'_> {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        match sys::process::read_user(self.tid, addr, buf) {
            Err(Errno::EPERM) => self.process.memory().and_then(|memory| memory.read_user(self.tid, addr, buf)),
            done => done,
        }
        .map_err(|errno| self.denied(errno))
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        match sys::process::write_user(self.tid, addr, buf) {
            Err(Errno::EPERM) => self.process.memory().and_then(|memory| memory.write_user(self.tid, addr, buf)),
            done => done,
        }
        .map_err(|errno| self.denied(errno))
    }

    fn event(&self, fd: i32) -> Result<Arc<dyn Event>, Errno> {
        Ok(self.events.get(self.process, self.tid, fd)?)
    }

    fn file(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        match identity::identify(self.process, self.tid, fd, self.files, self.tree)? {
            Identity::File(file) => Ok(Some(file)),
            Identity::StandIn(_, _, file) => Ok(file),
            Identity::Placeholder(_) | Identity::Foreign(_) => Ok(None),
        }
    }

    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        let memory = self.process.memory().map_err(|errno| self.denied(errno))?;
        self.pinner.pin(&memory, vaddr, len, write)
    }

    fn capable(&self, capability: Capability) -> bool {
        self.process.rights.capable(self.tid, capability)
    }

    fn memlock_limit(&self) -> u64 {
        self.process.rights.memlock(self.process.pid)
    }

    fn memlock_allows(&self, bytes: u64) -> bool {
        self.process.rights.memlock_allows(self.process.pid, bytes)
    }

    fn process(&self) -> ProcessId {
        self.process.id()
    }

    fn mm(&self) -> Result<Arc<dyn Mm>, Errno> {
        Ok(self.process.mm(self.pinner).map_err(|errno| self.denied(errno))?)
    }

    fn client_file(&self, fd: i32) -> Result<Arc<dyn ClientFile>, Errno> {
        if self.file(fd)?.is_some() {
            return Ok(Arc::new(NotMemory));
        }
        let copy = match identity::duplicate(self.process, fd) {
            Err(Errno::EPERM | Errno::ENOSYS) => sys::reopen(self.tid, fd)?,
            copy => copy?,
        };
        Ok(self.pinner.file(copy))
    }

    fn new_handle(&self, file: FileId) -> Result<i32, Errno> {
        let giver = self.giver.ok_or(Errno::EMFILE)?;
        let description = self.files.create(file, Backing::Handle).map_err(to_core)?;
        self.given(file, giver.listener.add_fd(giver.id, description.as_fd(), true).map_err(to_core))
    }

    fn new_event(&self) -> Result<(i32, Arc<dyn Event>), Errno> {
        let giver = self.giver.ok_or(Errno::EMFILE)?;
        let event = sys::event::EventFd::create(0, false, false)?;
        let fd = giver.listener.add_fd(giver.id, event.as_fd(), true).map_err(to_core)?;
        Ok((fd, event))
    }

    fn new_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        self.queue(file, Access::ReadWrite)
    }

    fn new_event_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        self.queue(file, Access::Read)
    }

    fn new_stream(&self, file: FileId, write: bool) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        self.queue(file, if write { Access::WriteStream } else { Access::ReadStream })
    }

    fn close(&self, fd: i32) {
        // Nobody closes descriptors of another process. The number stays, with
        // nothing behind it.
        let Some(giver) = self.giver else { return };
        if let Ok(null) = std::fs::File::open("/dev/null") {
            self.put(giver, null.as_fd(), fd).unwrap_or_else(|errno| {
                tracing::warn!(target: "vfuse::run", tid = self.tid, fd, %errno, "a descriptor stays open");
            });
        }
    }

    fn is_mapped(&self, file: FileId, offset: u64, len: u64) -> bool {
        self.files.inode_of(file).is_some_and(|inode| mapped::anywhere(inode, offset, len))
    }
}

/// A file of ours: no pages of it can be pinned.
#[derive(Debug)]
struct NotMemory;

impl ClientFile for NotMemory {
    fn pin(&self, _start: u64, _len: u64) -> Result<Pinned, Errno> {
        Err(Errno::EINVAL)
    }
}

impl Thread<'_> {
    fn queue(&self, file: FileId, access: Access) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        let giver = self.giver.ok_or(Errno::EMFILE)?;
        let number = queues::free_number(self.process, self.tid, giver.queues, 0)?;
        let (readiness, pipe) = Pipe::new().map_err(to_core)?;
        let description = self.files.create(file, Backing::Queue { pipe, access }).map_err(to_core)?;
        let number = self.given(file, self.put(giver, description.as_fd(), number).map(|()| number))?;
        Ok((number, Arc::new(readiness)))
    }

    fn put(&self, giver: Giver<'_>, fd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
        self.process.forget(number);
        giver.listener.replace_fd(giver.id, fd, number, true).map_err(to_core)
    }

    /// The program has a new number for `file`, or none.
    fn given(&self, file: FileId, number: Result<i32, Errno>) -> Result<i32, Errno> {
        match number {
            Ok(number) => self.process.forget(number),
            Err(_) => self.files.discard(file),
        }
        // The kernel's word for a number beyond the limit.
        number.map_err(|errno| if errno == Errno::EBADF { Errno::EMFILE } else { errno })
    }

    /// A program that may not be looked into gets errors, never wrong data.
    fn denied(&self, errno: Errno) -> Errno {
        if errno != Errno::EFAULT {
            tracing::warn!(
                target: "vfuse::run", tid = self.tid, %errno,
                "the program's memory cannot be reached (PR_SET_DUMPABLE, or ptrace denied): its call fails with EFAULT"
            );
        }
        Errno::EFAULT
    }
}
