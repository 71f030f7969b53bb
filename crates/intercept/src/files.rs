// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open files of the pretend kernel as the program holds them.
//!
//! Each is a memfd: a tiny one for a handle, the device's own for a device.
//! What the program gets is an open file description of its own, re-opened
//! through /proc/self/fd, so that inotify tells when its last descriptor and
//! its last mapping are gone.
//!
//! Several files may share one device's memfd. To tell them apart each
//! description holds an OFD lock on one byte, at the file's id: such a lock
//! belongs to the description, is seen by others, and goes with it. So the
//! lock also says whether a file is still open, however inotify merged its
//! events.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use caller::FileId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, Stat};
use rustix::io::Errno;

use crate::ints::IntSet;
use crate::listener::last_errno;

/// What an inode is known by.
pub(crate) type InodeId = (u64, u64);

/// Device and inode number of a `stat` result.
pub(crate) fn inode_id(stat: &Stat) -> InodeId {
    (stat.st_dev, stat.st_ino)
}

/// All open files.
#[derive(Debug)]
pub(crate) struct Files {
    inotify: OwnedFd,
    inodes: HashMap<InodeId, Inode>,
    watches: HashMap<i32, InodeId>,
    open: IntSet<FileId>,
    /// Inodes on which something was closed whose lock was not gone yet:
    /// Linux queues the event a moment before it drops the lock.
    settling: Vec<InodeId>,
}

#[derive(Debug)]
struct Inode {
    watch: i32,
    /// Our own description, for looking at locks.
    own: Arc<OwnedFd>,
    files: Vec<FileId>,
}

impl Files {
    /// No open files.
    pub(crate) fn new() -> Result<Files, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Files {
            inotify,
            inodes: HashMap::new(),
            watches: HashMap::new(),
            open: IntSet::default(),
            settling: Vec::new(),
        })
    }

    /// Becomes readable when something was closed.
    pub(crate) fn closed_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Makes the description that the program is to hold for `file`: on the
    /// device's memfd, or on one of its own.
    pub(crate) fn create(&mut self, file: FileId, device: Option<Arc<OwnedFd>>) -> Result<OwnedFd, Errno> {
        let own = match device {
            Some(fd) => fd,
            None => Arc::new(handle()?),
        };
        let path = proc_fd(&*own);
        let description = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        lock(&description, file)?;
        let id = inode_id(&rustix::fs::fstat(&*own)?);
        match self.inodes.get_mut(&id) {
            Some(inode) => inode.files.push(file),
            None => {
                let watch =
                    inotify::add_watch(&self.inotify, &path, WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE)?;
                self.watches.insert(watch, id);
                self.inodes.insert(id, Inode { watch, own, files: vec![file] });
            }
        }
        self.open.insert(file);
        Ok(description)
    }

    /// Whether a file is not closed yet, as far as events have been taken.
    pub(crate) fn is_open(&self, file: FileId) -> bool {
        self.open.contains(&file)
    }

    /// Whether the inode is one of ours.
    pub(crate) fn knows(&self, inode: InodeId) -> bool {
        self.inodes.contains_key(&inode)
    }

    /// The file behind a description of the program's (or a duplicate of it).
    pub(crate) fn identify(&self, description: BorrowedFd<'_>) -> Option<FileId> {
        let stat = rustix::fs::fstat(description).ok()?;
        let files = &self.inodes.get(&inode_id(&stat))?.files;
        match files.as_slice() {
            [file] => Some(*file),
            // Its own lock is the one that it does not see.
            many => many.iter().copied().find(|file| !is_locked_by_other(description, *file)),
        }
    }

    /// The file with this inode whose id is among `locked` (see `fdinfo`), or
    /// the only one there is.
    pub(crate) fn identify_by_locks(&self, inode: InodeId, locked: impl Fn(FileId) -> bool) -> Option<FileId> {
        match self.inodes.get(&inode)?.files.as_slice() {
            [file] => Some(*file),
            many => many.iter().copied().find(|file| locked(*file)),
        }
    }

    /// Takes the files that were closed since the last call. Cheap when there
    /// are none: one `read`.
    pub(crate) fn take_closed(&mut self) -> Vec<FileId> {
        let mut look = std::mem::take(&mut self.settling);
        let mut all = false;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                all = true;
            } else if let Some(id) = self.watches.get(&event.wd()) {
                look.push(*id);
            }
        }
        if all {
            look = self.inodes.keys().copied().collect();
        }
        if look.is_empty() {
            return Vec::new();
        }
        look.sort_unstable();
        look.dedup();
        let mut closed = Vec::new();
        for id in look {
            let Some(inode) = self.inodes.get_mut(&id) else { continue };
            let before = closed.len();
            inode.files.retain(|file| {
                let open = is_locked_by_other(inode.own.as_fd(), *file);
                if !open {
                    closed.push(*file);
                }
                open
            });
            if inode.files.is_empty() {
                let _ = inotify::remove_watch(&self.inotify, inode.watch);
                self.watches.remove(&inode.watch);
                self.inodes.remove(&id);
            } else if closed.len() == before && !all {
                self.settling.push(id);
            }
        }
        for file in &closed {
            self.open.remove(file);
        }
        closed
    }

    /// Whether an event came before its lock was gone: look again soon.
    pub(crate) fn is_settling(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Every file that is still open.
    pub(crate) fn all(&self) -> Vec<FileId> {
        self.inodes.values().flat_map(|inode| inode.files.iter().copied()).collect()
    }
}

/// An empty memfd that cannot grow.
fn handle() -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create(c"vfuse", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// The name under which this process can open a descriptor again.
pub(crate) fn proc_fd(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn byte_of(file: FileId, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: file.0 as i64 & i64::MAX,
        l_len: 1,
        l_pid: 0,
    }
}

#[allow(unsafe_code)] // rustix has whole-file locks only
fn lock(description: &OwnedFd, file: FileId) -> Result<(), Errno> {
    let region = byte_of(file, libc::F_WRLCK);
    // SAFETY: `region` is a valid flock structure for the call.
    match unsafe { libc::fcntl(description.as_raw_fd(), libc::F_OFD_SETLK, &raw const region) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

#[allow(unsafe_code)] // rustix has whole-file locks only
fn is_locked_by_other(description: BorrowedFd<'_>, file: FileId) -> bool {
    let mut region = byte_of(file, libc::F_WRLCK);
    // SAFETY: `region` is a valid flock structure that the call may change.
    let result = unsafe { libc::fcntl(description.as_raw_fd(), libc::F_OFD_GETLK, &raw mut region) };
    result == 0 && i32::from(region.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_handle_is_reported_once() {
        let mut files = Files::new().unwrap();
        let description = files.create(FileId(1), None).unwrap();
        assert_eq!(files.identify(description.as_fd()), Some(FileId(1)));
        let twin = description.try_clone().unwrap();
        drop(description);
        assert!(files.take_closed().is_empty());
        assert_eq!(files.identify(twin.as_fd()), Some(FileId(1)));
        drop(twin);
        assert_eq!(files.take_closed(), [FileId(1)]);
        assert!(files.take_closed().is_empty());
        assert!(files.all().is_empty());
    }

    #[test]
    fn files_of_one_device_are_told_apart() {
        let mut files = Files::new().unwrap();
        let device = Arc::new(handle().unwrap());
        let mut open: Vec<_> =
            (0..5).map(|n| (FileId(n), files.create(FileId(n), Some(device.clone())).unwrap())).collect();
        for (id, fd) in &open {
            assert_eq!(files.identify(fd.as_fd()), Some(*id));
        }
        // Events of one inode merge; the count is right all the same.
        let gone: Vec<_> = open.drain(1..4).collect();
        drop(gone);
        let mut closed = files.take_closed();
        closed.sort();
        assert_eq!(closed, [FileId(1), FileId(2), FileId(3)]);
        assert_eq!(files.identify(open[1].1.as_fd()), Some(FileId(4)));
    }

    #[test]
    fn opening_the_description_again_and_closing_it_changes_nothing() {
        let mut files = Files::new().unwrap();
        let description = files.create(FileId(9), None).unwrap();
        drop(std::fs::File::open(proc_fd(&description)).unwrap());
        assert!(files.take_closed().is_empty());
        assert!(files.is_settling());
        drop(description);
        assert_eq!(files.take_closed(), [FileId(9)]);
    }

    #[test]
    fn a_mapping_keeps_a_device_open() {
        let mut files = Files::new().unwrap();
        let device = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&device, 4096).unwrap();
        let description = files.create(FileId(3), Some(Arc::new(device))).unwrap();
        // SAFETY: a fresh mapping that nothing else uses.
        #[allow(unsafe_code)]
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::SHARED,
                &description,
                0,
            )
        }
        .unwrap();
        drop(description);
        assert!(files.take_closed().is_empty());
        // SAFETY: the mapping made above.
        #[allow(unsafe_code)]
        unsafe { rustix::mm::munmap(map, 4096) }.unwrap();
        assert_eq!(files.take_closed(), [FileId(3)]);
    }
}
