// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processes that make calls, and what is known of each: its memory and
//! which of its descriptor numbers were seen to mean which file.
//!
//! A notification names a thread. Entries live until a pidfd says that the
//! thread or its process has ended, so a number that comes again is looked up
//! again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use caller::{FileId, ProcessId};
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags};
use uapi::Errno;

use crate::FileKind;
use crate::ints::IntMap;
use crate::listener::to_core;
use crate::rights::Rights;

/// Most descriptor numbers remembered for one process.
const MAX_KNOWN: usize = 65536;

/// What a descriptor number was seen to mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The file.
    pub(crate) file: FileId,
    /// Its kind.
    pub(crate) kind: FileKind,
    /// Device number in offsets that were accepted for it.
    pub(crate) device: Option<u32>,
}

/// A process that has made a call.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid.
    pub(crate) pid: i32,
    /// What it may do.
    pub(crate) rights: Rights,
    pidfd: OwnedFd,
    id: ProcessId,
    memory: Option<Arc<sys::process::Process>>,
    exec_seen: bool,
    threads: Vec<i32>,
    /// What its mappings in an IOAS hold on to.
    mm: RefCell<Option<Arc<sys::ProgramMm>>>,
    known: RefCell<IntMap<i32, Known>>,
}

impl Process {
    /// Its pidfd.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Which address space it has.
    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// Its memory, opened at first use. `EACCES` or `EPERM` if it may not be
    /// looked into.
    pub(crate) fn memory(&self) -> Result<Arc<sys::process::Process>, Errno> {
        match &self.memory {
            Some(memory) => Ok(memory.clone()),
            None => sys::process::Process::open_as(self.pid, self.id.0),
        }
    }

    /// Its memory for after the call. `EACCES` or `EPERM` as
    /// [`memory`](Self::memory). Its user is who it was at first.
    pub(crate) fn mm(&self, pinner: &Arc<sys::Pinner>) -> Result<Arc<sys::ProgramMm>, Errno> {
        let mut mm = self.mm.borrow_mut();
        if let Some(mm) = &*mm {
            return Ok(mm.clone());
        }
        let new = Arc::new(sys::ProgramMm::new(self.memory()?, pinner.clone(), self.id));
        *mm = Some(new.clone());
        Ok(new)
    }

    /// What `fd` meant when it was last looked at.
    pub(crate) fn known(&self, fd: i32) -> Option<Known> {
        self.known.borrow().get(&fd).copied()
    }

    /// Remembers what `fd` means.
    pub(crate) fn learn(&self, fd: i32, known: Known) {
        let mut all = self.known.borrow_mut();
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(fd, known);
    }

    /// `fd` may mean something else from now on.
    pub(crate) fn forget(&self, fd: i32) {
        self.known.borrow_mut().remove(&fd);
    }

    /// Any number may mean something else from now on.
    pub(crate) fn forget_all(&self) {
        self.known.borrow_mut().clear();
    }

    /// It is about to call `execve`, which may fail.
    pub(crate) fn before_exec(&mut self) {
        self.forget_all();
        self.rights.change_capabilities();
        self.exec_seen = true;
        if self.memory.is_none() {
            // Undumpable processes give nothing: then every exec counts as a success.
            self.memory = sys::process::Process::open_as(self.pid, self.id.0).ok();
        }
        if let Some(memory) = &self.memory {
            memory.before_exec();
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Index into `processes`.
    threads: IntMap<i32, usize>,
    processes: Vec<Option<Process>>,
    /// Pidfds of threads other than the first of a process.
    thread_fds: HashMap<i32, OwnedFd>,
    last: Option<(i32, usize)>,
    next_id: u64,
    /// Processes change the limits of others.
    limits_change: bool,
    /// Where ends of processes are reported, with the thread id as data.
    ends: Arc<OwnedFd>,
}

impl Processes {
    /// None yet. Their ends become events of the epoll instance `ends`.
    pub(crate) fn new(ends: Arc<OwnedFd>) -> Processes {
        Processes {
            threads: IntMap::default(),
            processes: Vec::new(),
            thread_fds: HashMap::new(),
            last: None,
            next_id: 1,
            limits_change: false,
            ends,
        }
    }

    /// The process of a thread. `still_there` says whether the thread still
    /// waits for its answer, so that what was looked up is its own.
    pub(crate) fn of_thread(&mut self, tid: i32, still_there: impl Fn() -> bool) -> Result<&mut Process, Errno> {
        let index = match self.last {
            Some((last, index)) if last == tid => index,
            _ => match self.threads.get(&tid) {
                Some(index) => *index,
                None => self.add(tid, still_there)?,
            },
        };
        self.last = Some((tid, index));
        let next_id = &mut self.next_id;
        let process = self.processes.get_mut(index).and_then(Option::as_mut).ok_or(Errno::EIO)?;
        if process.exec_seen {
            process.exec_seen = false;
            if !process.memory.as_ref().is_some_and(|memory| memory.is_alive()) {
                process.id = ProcessId(*next_id);
                *next_id += 1;
                process.rights = Rights::new(self.limits_change);
            }
            // Also after an exec that failed: the old handle has become slow.
            process.memory = None;
            process.mm.take();
        }
        if process.memory.is_none() {
            process.memory = sys::process::Process::open_as(process.pid, process.id.0).ok();
        }
        Ok(process)
    }

    fn add(&mut self, tid: i32, still_there: impl Fn() -> bool) -> Result<usize, Errno> {
        let pid = group_of(tid).ok_or(Errno::EIO)?;
        if let Some(index) = self.threads.get(&pid).copied() {
            self.watch_thread(tid);
            self.threads.insert(tid, index);
            if let Some(Some(process)) = self.processes.get_mut(index) {
                process.threads.push(tid);
            }
            return Ok(index);
        }
        let name = Pid::from_raw(pid).ok_or(Errno::EIO)?;
        let pidfd = rustix::process::pidfd_open(name, PidfdFlags::empty()).map_err(to_core)?;
        if !still_there() {
            return Err(Errno::EIO);
        }
        self.watch_end(pidfd.as_fd(), pid);
        let process = Process {
            pid,
            rights: Rights::new(self.limits_change),
            pidfd,
            id: ProcessId(self.next_id),
            memory: None,
            exec_seen: false,
            threads: vec![pid],
            mm: RefCell::default(),
            known: RefCell::default(),
        };
        self.next_id += 1;
        let index = match self.processes.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.processes.push(None);
                self.processes.len() - 1
            }
        };
        if let Some(slot) = self.processes.get_mut(index) {
            *slot = Some(process);
        }
        self.threads.insert(pid, index);
        if tid != pid {
            self.add(tid, still_there)?;
        }
        Ok(index)
    }

    /// A thread can end and its number come again while its process lives.
    fn watch_thread(&mut self, tid: i32) {
        const PIDFD_THREAD: u32 = rustix::fs::OFlags::EXCL.bits(); // Linux 6.9
        let Some(name) = Pid::from_raw(tid) else { return };
        if let Ok(fd) = rustix::process::pidfd_open(name, PidfdFlags::from_bits_retain(PIDFD_THREAD)) {
            self.watch_end(fd.as_fd(), tid);
            self.thread_fds.insert(tid, fd);
        }
    }

    fn watch_end(&self, pidfd: BorrowedFd<'_>, tid: i32) {
        let data = epoll::EventData::new_u64(u64::from(tid.unsigned_abs()));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        if let Err(errno) = epoll::add(&*self.ends, pidfd, data, flags) {
            tracing::warn!(target: "vfuse::run", tid, %errno, "cannot watch for the end of a thread");
        }
    }

    /// A thread, or a whole process if it is the first one, has ended.
    pub(crate) fn ended(&mut self, tid: i32) {
        self.last = None;
        self.thread_fds.remove(&tid);
        let Some(index) = self.threads.remove(&tid) else { return };
        let Some(slot) = self.processes.get_mut(index) else { return };
        if let Some(process) = slot {
            if process.pid != tid {
                process.threads.retain(|thread| *thread != tid);
                return;
            }
            for thread in std::mem::take(&mut process.threads) {
                self.threads.remove(&thread);
                self.thread_fds.remove(&thread);
            }
        }
        *slot = None;
    }

    /// The address space of a process that has made a call.
    pub(crate) fn id_of(&self, pid: i32) -> Option<ProcessId> {
        self.processes.iter().flatten().find(|process| process.pid == pid).map(Process::id)
    }

    /// The limits of any process may change.
    pub(crate) fn limits_change(&mut self) {
        // Those that come are not known to be spared, either.
        self.limits_change = true;
        for process in self.processes.iter().flatten() {
            process.rights.change();
        }
    }

    /// Pids of those that live.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.processes.iter().flatten().map(|process| process.pid).collect()
    }
}

/// The process that a thread belongs to.
fn group_of(tid: i32) -> Option<i32> {
    status_field(tid, "Tgid:")
}

/// The process that started it.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    status_field(pid, "PPid:")
}

/// `/proc/TID/status`.
pub(crate) fn status(tid: i32) -> Option<String> {
    let mut text = String::new();
    File::open(format!("/proc/{tid}/status")).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

fn status_field(tid: i32, name: &str) -> Option<i32> {
    let text = status(tid)?;
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes() -> Processes {
        Processes::new(Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()))
    }

    #[test]
    fn threads_of_a_process_share_its_entry() {
        let mut all = processes();
        let me = std::process::id() as i32;
        let first = all.of_thread(me, || true).unwrap().id();
        let tid = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get());
        // The id of a thread that is joined may be gone; use our own instead.
        drop(tid.join());
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(all.of_thread(own, || true).unwrap().id(), first);
        all.ended(me);
        assert_ne!(all.of_thread(me, || true).unwrap().id(), first, "a pid that comes again is another process");
    }

    #[test]
    fn nothing_is_kept_of_a_thread_that_went_away_meanwhile() {
        let mut all = processes();
        assert!(all.of_thread(std::process::id() as i32, || false).is_err());
        assert!(all.of_thread(i32::MAX, || true).is_err());
        assert!(all.pids().is_empty());
    }

    #[test]
    fn a_failed_exec_keeps_the_address_space() {
        let mut all = processes();
        let me = std::process::id() as i32;
        let process = all.of_thread(me, || true).unwrap();
        let id = process.id();
        process.learn(5, Known { file: FileId(1), kind: FileKind::Group, device: None });
        process.before_exec();
        assert!(process.known(5).is_none());
        assert_eq!(all.of_thread(me, || true).unwrap().id(), id);
    }
}
