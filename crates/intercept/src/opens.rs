// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opens of nodes and attributes, and stores to attributes.
//!
//! With namespaces, opens for reading never come here: the program reads real
//! files of a tmpfs. Opens for writing do, since they may have to fail as
//! Linux's would.

use std::os::unix::ffi::OsStrExt;

use caller::{Caller, Reply};
use rustix::fs::{Mode, OFlags};
use uapi::Errno;

use crate::calls::{Outcome, thread};
use crate::files::inode_id;
use crate::filter::ATTRIBUTE_MAX;
use crate::identity;
use crate::listener::{Listener, Notification, to_core};
use crate::parked::On;
use crate::processes::Known;
use crate::resolve::{Target, resolve};
use crate::state::State;
use crate::thread::Thread;
use crate::{Entry, Isolation, Node};

/// The arguments of an open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    /// The directory descriptor.
    pub(crate) dir: i32,
    /// Address of the path.
    pub(crate) path: u64,
    /// `O_*` flags.
    pub(crate) flags: i32,
}

impl Open {
    /// The arguments of `open`, `openat`, `openat2` or `creat`.
    pub(crate) fn of(n: &Notification, thread: &Thread<'_>) -> Result<Open, Errno> {
        let [a, b, c, ..] = n.args;
        Ok(match libc::c_long::from(n.nr) {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => Open { dir: libc::AT_FDCWD, path: a, flags: b as i32 },
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat => {
                Open { dir: libc::AT_FDCWD, path: a, flags: libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC }
            }
            libc::SYS_openat2 => {
                let mut flags = [0u8; 8];
                thread.read(c, &mut flags)?;
                Open { dir: a as i32, path: b, flags: u64::from_le_bytes(flags) as i32 }
            }
            _ => Open { dir: a as i32, path: b, flags: c as i32 },
        })
    }
}

impl State {
    /// Answers an open.
    pub(crate) fn open(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        let open = Open::of(n, &thread)?;
        // What cannot be read here is the real kernel's to refuse.
        let Ok(path) = thread.string(open.path, libc::PATH_MAX as usize) else { return Ok(Outcome::GoOn) };
        let pid = process.pid;
        let Some(path) = self.absolute(n.tid, pid, open.dir, &path) else { return Ok(Outcome::GoOn) };
        if self.process_figures && open.flags & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDONLY {
            let status = self.open_status(n.tid, pid, &path, open.flags)?;
            if !matches!(status, Outcome::GoOn) {
                return Ok(status);
            }
        }
        let follow = open.flags & libc::O_NOFOLLOW == 0;
        let found = match resolve(self.farm.tree(), &path, follow) {
            Target::Fake(found) => found,
            Target::Machine => return Ok(Outcome::GoOn),
            Target::Beyond(path) if self.isolation == Isolation::Paths => return Self::open_beyond(&path, open.flags),
            Target::Beyond(_) => return Ok(Outcome::GoOn),
            Target::Error(errno) => {
                return Ok(if self.isolation == Isolation::Paths { errno.into() } else { Outcome::GoOn });
            }
        };
        let exclusive = libc::O_CREAT | libc::O_EXCL;
        if open.flags & exclusive == exclusive {
            return Err(Errno::EEXIST);
        }
        match self.farm.tree().entries.get(&found) {
            Some(Entry::Device(node)) if open.flags & (libc::O_PATH | libc::O_DIRECTORY) == 0 => {
                let node = *node;
                self.open_node(n, listener, node, open.flags)
            }
            Some(Entry::File { mode, .. })
                if open.flags & libc::O_ACCMODE != libc::O_RDONLY && open.flags & libc::O_PATH == 0 =>
            {
                let mode = *mode;
                self.open_attribute(found, mode, open.flags)
            }
            _ if self.isolation == Isolation::Paths => self.open_in_farm(&found, open.flags),
            _ => Ok(Outcome::GoOn),
        }
    }

    fn open_node(&mut self, n: &Notification, listener: &Listener, node: Node, flags: i32) -> Result<Outcome, Errno> {
        tracing::debug!(target: "vfuse::call", tid = n.tid, %node, "opens");
        let cloexec = flags & libc::O_CLOEXEC != 0;
        // Opened late, at its first request: programs compare the device number of
        // the open file with the one in sysfs (GRP-059), so it must stay a
        // character device until then.
        if matches!(node, Node::VfioCdev(_)) {
            // The program's own name for it, where it has one.
            let path = match self.isolation {
                Isolation::Paths => "/dev/null".to_owned(),
                _ => format!("/proc/{}/root/dev/{}", n.tid, node),
            };
            let fd = self.files.stand_in(node, &path).map_err(to_core)?;
            return Ok(Outcome::NewFd { fd, cloexec, known: None });
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        let file = self.kernel.open(node, &thread)?;
        let (fd, kind) = self.describe(file)?;
        Ok(Outcome::NewFd { fd, cloexec, known: Some(Known { file, kind, device: None }) })
    }

    fn open_attribute(&mut self, path: String, mode: u16, flags: i32) -> Result<Outcome, Errno> {
        if mode & 0o222 == 0 {
            // Linux refuses this to root too: the attribute has no store.
            return Err(Errno::EACCES);
        }
        if !self.sysfs_writable {
            tracing::warn!(
                target: "vfuse::run", path,
                "the program wants to write to sysfs and gets EACCES; --sysfs-writable allows it"
            );
            return Err(Errno::EACCES);
        }
        let access = if flags & libc::O_ACCMODE == libc::O_RDWR { OFlags::RDWR } else { OFlags::WRONLY };
        let root = self.farm.root();
        let fd = rustix::fs::openat(root, path.trim_start_matches('/'), access | OFlags::CLOEXEC, Mode::empty())
            .map_err(to_core)?;
        let inode = inode_id(&rustix::fs::fstat(&fd).map_err(to_core)?);
        self.attributes.insert(inode, path);
        Ok(Outcome::NewFd { fd, cloexec: flags & libc::O_CLOEXEC != 0, known: None })
    }

    /// Answers a short `write`, which may be to an attribute.
    pub(crate) fn write_call(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let [fd, buf, len, ..] = n.args;
        if self.attributes.is_empty() {
            return Ok(Outcome::GoOn);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let inode = match identity::identify(process, n.tid, fd as i32, &self.files, self.farm.tree())? {
            identity::Identity::Foreign(inode) => inode,
            _ => return Ok(Outcome::GoOn),
        };
        let Some(path) = self.attributes.get(&inode).cloned() else { return Ok(Outcome::GoOn) };
        let thread = thread!(self, process, n.tid);
        let mut data = vec![0u8; len.min(u64::from(ATTRIBUTE_MAX)) as usize];
        thread.read(buf, &mut data)?;
        self.kernel.may_write_attribute(&path, &thread)?;
        self.store(path, data)
    }

    /// Answers a store to an attribute.
    pub(crate) fn store(&mut self, path: String, data: Vec<u8>) -> Result<Outcome, Errno> {
        match self.kernel.write_attribute(&path, &data)? {
            Reply::Value(taken) => Ok(Outcome::Done(Ok(taken))),
            Reply::Parked(ticket) => Ok(Outcome::Parked(ticket, On::Store { path, data })),
            Reply::NewFile(_) => Err(Errno::EIO),
        }
    }

    /// The absolute path that a call means; `None` if it cannot lead to the
    /// fake tree, or is not text.
    pub(crate) fn absolute(&mut self, tid: i32, pid: i32, dir: i32, path: &[u8]) -> Option<String> {
        let path = std::str::from_utf8(path).ok()?;
        if path.is_empty() {
            return None;
        }
        if path.starts_with('/') {
            return may_be_fake(path).then(|| path.to_owned());
        }
        let base = if dir == libc::AT_FDCWD {
            match self.directory(pid) {
                Some(base) => base,
                None => std::fs::read_link(format!("/proc/{tid}/cwd")).ok()?.to_str()?.to_owned(),
            }
        } else {
            identity::link(tid, dir)?.to_str()?.to_owned()
        };
        let base = self.in_farm(&base).unwrap_or(&base);
        let whole = format!("{base}/{path}");
        may_be_fake(&whole).then_some(whole)
    }
}

/// Whether a path can lead to the fake tree, going by its text.
pub(crate) fn may_be_fake(path: &str) -> bool {
    let bytes = std::ffi::OsStr::new(path).as_bytes();
    [b"/dev".as_slice(), b"/sys", b"/proc"].iter().any(|top| bytes.starts_with(top))
        || path.contains("..")
        || path.starts_with("//")
        || path.starts_with("/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_paths_are_none_of_ours() {
        assert!(may_be_fake("/dev/vfio/vfio"));
        assert!(may_be_fake("/usr/../sys/bus"));
        assert!(may_be_fake("//sys"));
        assert!(!may_be_fake("/usr/lib/libc.so.6"));
        assert!(!may_be_fake("/home/me/dev"));
    }
}
