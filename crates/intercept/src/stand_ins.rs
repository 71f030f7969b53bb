// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands in for a node until its first call.
//!
//! Programs compare the device number of an open `/dev/vfio/devices/vfioN` with
//! the one in sysfs (GRP-059), so what they get at first is a character device:
//! `/dev/null`. The first call on a descriptor of it puts the real file in its
//! place. By then the descriptor may have been duplicated, inherited, or sent
//! to another process, and all of them mean one file. So each stand-in is known
//! by a lock on a byte of its own (`fdinfo` shows it); the second descriptor
//! gets the file that the first one got.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use caller::FileId;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Node;
use crate::files::{is_locked_by_other, lock};

/// All that were made and may still be open.
#[derive(Debug, Default)]
pub(crate) struct StandIns {
    all: BTreeMap<u64, StandIn>,
    made: u64,
    /// Our own description of `/dev/null`, for looking at locks.
    null: Option<OwnedFd>,
}

#[derive(Debug)]
struct StandIn {
    node: Node,
    file: Option<FileId>,
}

impl StandIns {
    /// One for `node`, which the program knows as `path`.
    pub(crate) fn make(&mut self, node: Node, path: &str) -> Result<OwnedFd, Errno> {
        let open = |path: &str| rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if self.null.is_none() {
            self.null = Some(open("/dev/null")?);
        }
        self.forget_closed();
        let description = open(path).or_else(|_| open("/dev/null"))?;
        // Other labs lock bytes of the same file.
        let id = u64::from(std::process::id()) << 32 | (self.made & u64::from(u32::MAX));
        self.made += 1;
        lock(&description, FileId(id), libc::F_WRLCK)?;
        self.all.insert(id, StandIn { node, file: None });
        Ok(description)
    }

    /// Which one a description is that has this `fdinfo`.
    pub(crate) fn find(&self, info: impl FnOnce() -> Option<String>) -> Option<(u64, Node, Option<FileId>)> {
        if self.all.is_empty() {
            return None;
        }
        let info = info()?;
        let locks = info.lines().filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"));
        let mut starts = locks.filter_map(|line| line.split_ascii_whitespace().rev().nth(1)?.parse::<u64>().ok());
        starts.find_map(|id| self.all.get(&id).map(|found| (id, found.node, found.file)))
    }

    /// A file has taken its place.
    pub(crate) fn took_place(&mut self, id: u64, file: FileId) {
        if let Some(stand_in) = self.all.get_mut(&id) {
            stand_in.file = Some(file);
        }
    }

    /// Whether a descriptor somewhere still stands in for the file.
    pub(crate) fn keep(&self, file: FileId) -> bool {
        self.all.iter().any(|(id, stand_in)| stand_in.file == Some(file) && self.is_open(*id))
    }

    fn is_open(&self, id: u64) -> bool {
        self.null.as_ref().is_some_and(|null| is_locked_by_other(null.as_fd(), FileId(id)))
    }

    fn forget_closed(&mut self) {
        let closed: Vec<u64> = self.all.keys().copied().filter(|id| !self.is_open(*id)).collect();
        for id in closed {
            self.all.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn each_is_known_by_its_lock() {
        let mut all = StandIns::default();
        let node = Node::VfioCdev;
        let me = std::process::id() as i32;
        let (one, two) = (all.make(node(0), "/dev/null").unwrap(), all.make(node(0), "/nonexistent").unwrap());
        let find = |all: &StandIns, fd: &OwnedFd| all.find(|| crate::identity::fdinfo(me, fd.as_raw_fd()));
        let (first, second) = (find(&all, &one).unwrap(), find(&all, &two).unwrap());
        assert_ne!(first.0, second.0);
        assert_eq!(find(&all, &one.try_clone().unwrap()), Some(first));
        assert_eq!(find(&all, &std::fs::File::open("/dev/null").unwrap().into()), None);
        all.took_place(first.0, FileId(3));
        assert_eq!(find(&all, &one), Some((first.0, node(0), Some(FileId(3)))));
        assert!(all.keep(FileId(3)) && !all.keep(FileId(4)));
        drop(one);
        assert!(!all.keep(FileId(3)));
        let _three = all.make(node(1), "/dev/null").unwrap();
        assert_eq!(all.all.len(), 2, "what is closed is forgotten");
    }
}
