// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds that the program hands over.
//!
//! Usually a duplicate is taken with `pidfd_getfd`. Where that is denied, the
//! supervisor makes every eventfd itself (paths mode answers `eventfd2`) and
//! finds it again by the id that the kernel shows in `fdinfo`.

use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use sys::event::EventFd;
use uapi::Errno;

use crate::identity::{duplicate, eventfd_id, fdinfo};
use crate::listener::to_core;
use crate::processes::Process;

/// Eventfds that were made for the program.
#[derive(Debug, Default)]
pub(crate) struct Events {
    made: HashMap<u64, OwnedFd>,
    /// Number of those at which to look for ones that nobody has any more.
    sweep_at: usize,
    /// Whether they must be made here, once that is known.
    needed: Option<bool>,
}

impl Events {
    /// The program's eventfd `fd`: `EBADF`, or `EINVAL` for another file.
    pub(crate) fn get(&self, process: &Process, tid: i32, fd: i32) -> Result<Arc<EventFd>, Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        match duplicate(process, fd) {
            Ok(copy) => EventFd::new(copy),
            Err(errno) => {
                let Some(info) = fdinfo(tid, fd) else { return Err(Errno::EBADF) };
                let Some(id) = eventfd_id(&info) else { return Err(Errno::EINVAL) };
                match self.made.get(&id) {
                    Some(made) => EventFd::new(made.try_clone().map_err(|_| Errno::ENFILE)?),
                    None => Err(errno),
                }
            }
        }
    }

    /// Whether eventfds must be made here, because those of the program cannot
    /// be taken.
    pub(crate) fn needed(&mut self, process: &Process) -> bool {
        *self.needed.get_or_insert_with(|| !matches!(duplicate(process, 0), Ok(_) | Err(Errno::EBADF)))
    }

    /// Makes one for the program: `EINVAL` for unknown flags.
    pub(crate) fn make(&mut self, initial: u32, flags: u32, users: &[i32]) -> Result<OwnedFd, Errno> {
        let flags = EventfdFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        if self.made.len() >= self.sweep_at.max(64) {
            self.sweep(users);
            self.sweep_at = self.made.len() * 2;
        }
        let fd = rustix::event::eventfd(initial, flags | EventfdFlags::CLOEXEC).map_err(to_core)?;
        let info = fdinfo(std::process::id() as i32, fd.as_raw_fd()).ok_or(Errno::ENFILE)?;
        let id = eventfd_id(&info).ok_or(Errno::ENOSYS)?;
        let copy = fd.try_clone().map_err(|_| Errno::EMFILE)?;
        self.made.insert(id, fd);
        Ok(copy)
    }

    /// Drops those that no process of `users` has open.
    fn sweep(&mut self, users: &[i32]) {
        let mut used = HashSet::new();
        for pid in users {
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                let number = entry.file_name().to_string_lossy().parse::<i32>();
                let is_event =
                    std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]");
                if let (Ok(fd), true) = (number, is_event)
                    && let Some(id) = fdinfo(*pid, fd).as_deref().and_then(eventfd_id)
                {
                    used.insert(id);
                }
            }
        }
        self.made.retain(|id, _| used.contains(id));
    }
}
