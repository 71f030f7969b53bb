// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a descriptor of the program is: by its inode, since numbers, names
//! and descriptions are the program's to shuffle.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use caller::FileId;
use rustix::process::PidfdGetfdFlags;
use uapi::Errno;

use crate::files::{Files, InodeId, inode_id};
use crate::listener::to_core;
use crate::processes::Process;
use crate::{Entry, NODE_DEVICE, Node, Tree};

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// One of our files.
    File(FileId),
    /// A node that was opened natively: still the stand-in.
    Placeholder(Node),
    /// What was given in the place of a node, by its number.
    StandIn(u64, Node, Option<FileId>),
    /// None of ours, with its inode.
    Foreign(InodeId),
}

/// A duplicate of the program's descriptor: `EBADF`, or `EPERM` where such
/// duplicates are denied.
pub(crate) fn duplicate(process: &Process, fd: i32) -> Result<OwnedFd, Errno> {
    rustix::process::pidfd_getfd(process.pidfd(), fd, PidfdGetfdFlags::empty()).map_err(to_core)
}

/// Looks at descriptor `fd` of thread `tid`: `EBADF` if it is not open.
pub(crate) fn identify(process: &Process, tid: i32, fd: i32, files: &Files, tree: &Tree) -> Result<Identity, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // The process's first thread may be gone while others live on.
    if let Ok(copy) = duplicate(process, fd) {
        if let Some(file) = files.identify(copy.as_fd()) {
            return Ok(Identity::File(file));
        }
        let stat = rustix::fs::fstat(&copy).map_err(to_core)?;
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let standing = (device == NODE_DEVICE).then(|| standing(tid, fd, files, tree)).flatten();
        return Ok(standing.unwrap_or(Identity::Foreign(inode_id(&stat))));
    }
    let meta = match std::fs::metadata(format!("/proc/{tid}/fd/{fd}")) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Errno::EBADF),
        // Undumpable and not ours to look into: never a guess.
        Err(_) => return Err(Errno::EFAULT),
    };
    let inode = (meta.dev(), meta.ino());
    if files.knows(inode) {
        let info = fdinfo(tid, fd).unwrap_or_default();
        return files.identify_by_locks(inode, |file| has_lock(&info, file)).map(Identity::File).ok_or(Errno::EBADF);
    }
    let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let standing = (device == NODE_DEVICE).then(|| standing(tid, fd, files, tree)).flatten();
    Ok(standing.unwrap_or(Identity::Foreign(inode)))
}

/// The node that a `/dev/null` stands for.
fn standing(tid: i32, fd: i32, files: &Files, tree: &Tree) -> Option<Identity> {
    match files.find_stand_in(|| fdinfo(tid, fd)) {
        Some((id, node, file)) => Some(Identity::StandIn(id, node, file)),
        None => placeholder(tid, fd, tree).map(Identity::Placeholder),
    }
}

/// What `/proc/TID/fd/FD` points to.
pub(crate) fn link(tid: i32, fd: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{tid}/fd/{fd}")).ok()
}

fn placeholder(tid: i32, fd: i32, tree: &Tree) -> Option<Node> {
    let path = link(tid, fd)?;
    match tree.entries.get(path.to_str()?) {
        Some(Entry::Device(node)) => Some(*node),
        _ => None,
    }
}

/// `/proc/TID/fdinfo/FD`.
pub(crate) fn fdinfo(tid: i32, fd: i32) -> Option<String> {
    let mut text = String::new();
    File::open(format!("/proc/{tid}/fdinfo/{fd}")).ok()?.take(65536).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Whether a descriptor is closed by `execve`.
pub(crate) fn is_cloexec(tid: i32, fd: i32) -> bool {
    let flags = fdinfo(tid, fd).and_then(|info| {
        let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        i32::from_str_radix(line.trim(), 8).ok()
    });
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Whether the description holds the lock on the byte of `file`:
/// `lock: 1: OFDLCK ADVISORY WRITE -1 00:01:1042 7 7`.
pub(crate) fn has_lock(info: &str, file: FileId) -> bool {
    info.lines()
        .filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"))
        .any(|line| line.split_ascii_whitespace().rev().nth(1).is_some_and(|start| start.parse() == Ok(file.0)))
}

/// The number that tells an eventfd from all others, from its `fdinfo`.
pub(crate) fn eventfd_id(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn fdinfo_tells_locks_and_flags() {
        let files = Files::new().unwrap();
        let fd = files.create(FileId(77), crate::files::Backing::Handle).unwrap();
        let me = std::process::id() as i32;
        let info = fdinfo(me, fd.as_raw_fd()).unwrap();
        assert!(has_lock(&info, FileId(77)), "{info}");
        assert!(!has_lock(&info, FileId(7)));
        assert!(is_cloexec(me, fd.as_raw_fd()));
        assert!(!is_cloexec(me, 2));
    }

    #[test]
    fn eventfds_have_numbers() {
        let me = std::process::id() as i32;
        let id = |fd: &OwnedFd| eventfd_id(&fdinfo(me, fd.as_raw_fd()).unwrap()).unwrap();
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let (a, b) = (rustix::event::eventfd(0, flags).unwrap(), rustix::event::eventfd(0, flags).unwrap());
        assert_ne!(id(&a), id(&b));
        assert_eq!(id(&a), id(&a.try_clone().unwrap()));
    }
}
