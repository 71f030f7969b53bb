// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread whose call is being answered, as the core sees it.

use std::sync::Arc;

use caller::{Caller, Capability, FileId, Pinned, ProcessId};
use device::Event;
use uapi::Errno;

use crate::Tree;
use crate::events::Events;
use crate::files::Files;
use crate::identity::{self, Identity};
use crate::processes::Process;

/// A thread that waits for the answer to its call.
#[derive(Clone, Copy)]
pub(crate) struct Thread<'a> {
    pub(crate) tid: i32,
    pub(crate) process: &'a Process,
    pub(crate) files: &'a Files,
    pub(crate) events: &'a Events,
    pub(crate) pinner: &'a sys::pin::Pinner,
    pub(crate) tree: &'a Tree,
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
            Identity::Placeholder(_) | Identity::Foreign(_) => Ok(None),
        }
    }

    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        let memory = self.process.memory().map_err(|errno| self.denied(errno))?;
        self.pinner.pin(&memory, vaddr, len, write)
    }

    fn capable(&self, capability: Capability) -> bool {
        sys::limits::Capabilities::of(self.tid).is_ok_and(|all| all.has(capability))
    }

    fn memlock_limit(&self) -> u64 {
        // A limit that cannot be read is the strictest.
        sys::limits::memlock(self.process.pid).unwrap_or(0)
    }

    fn process(&self) -> ProcessId {
        self.process.id()
    }

    fn mm(&self) -> Result<Arc<dyn caller::Mm>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn client_file(&self, _fd: i32) -> Result<Arc<dyn caller::ClientFile>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn new_handle(&self, _file: FileId) -> Result<i32, Errno> {
        Err(Errno::ENOSYS)
    }

    fn new_queue(&self, _file: FileId) -> Result<(i32, Arc<dyn caller::Readiness>), Errno> {
        Err(Errno::ENOSYS)
    }

    fn close(&self, _fd: i32) {}

    fn is_mapped(&self, _file: FileId, _offset: u64, _len: u64) -> bool {
        false
    }
}

impl Thread<'_> {
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
