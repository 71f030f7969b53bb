// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open files of the pretend kernel as the program holds them.
//!
//! Each is a memfd: a tiny one for a handle, the device's own for a device; or
//! a pipe for a queue (`queues`).
//! What the program gets is an open file description of its own, re-opened
//! through /proc/self/fd, so that inotify tells when its last descriptor and
//! its last mapping are gone.
//!
//! Several files may share one device's memfd. To tell them apart each
//! description holds an OFD lock on one byte, at the file's id: such a lock
//! belongs to the description, is seen by others, and goes with it. So the
//! lock also says whether a file is still open, however inotify merged its
//! events.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use caller::FileId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, Stat};
use rustix::io::Errno;

use crate::Node;
use crate::ints::IntSet;
use crate::listener::last_errno;
use crate::stand_ins::StandIns;

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
    /// Files are made in the middle of calls, too, which hold on to the rest.
    table: RefCell<Table>,
}

#[derive(Debug, Default)]
struct Table {
    inodes: HashMap<InodeId, Inode>,
    watches: HashMap<i32, InodeId>,
    open: IntSet<FileId>,
    /// Inodes on which something was closed whose lock was not gone yet:
    /// Linux queues the event a moment before it drops the lock.
    settling: Vec<InodeId>,
    /// How often they were looked at since the last event.
    looks: u32,
    /// There has been a queue.
    queues: bool,
    stand_ins: StandIns,
    /// Inodes that may have more than one description.
    shared: usize,
}

#[derive(Debug)]
struct Inode {
    watch: i32,
    /// Our own description, for looking at locks.
    own: Arc<OwnedFd>,
    files: Vec<FileId>,
    /// How it is opened once more; `None`: not at all.
    access: Option<OFlags>,
    queue: bool,
    /// There is more than the first description: by [`Files::again`], or of the
    /// program's making (`/proc/self/fd`).
    reopened: bool,
}

impl Inode {
    fn is_shared(&self) -> bool {
        self.files.len() > 1 || self.reopened
    }
}

/// What a file is made of.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// A memfd without pages, of its own.
    Handle,
    /// A device's memfd.
    Device(Arc<OwnedFd>),
    /// A memfd that only this file has, of which more descriptions may be made.
    Own(Arc<OwnedFd>),
    /// A pipe, by a description that reads and writes. `writable`: the
    /// program's descriptions are ready to write.
    Queue {
        /// The pipe.
        pipe: Arc<OwnedFd>,
        /// How the program may use it; one that is not written is not shown
        /// writable by `poll`.
        access: Access,
    },
}

/// How a program may use a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Both, as a fault queue.
    ReadWrite,
    /// Reading, as an event queue.
    Read,
    /// Reading, and that it waits is left to the call.
    ReadStream,
    /// Writing. By a description that could read, too, since only such ones
    /// can be told apart by the locks on them; a read is refused.
    WriteStream,
}

impl Access {
    fn flags(self) -> OFlags {
        match self {
            Access::ReadWrite => OFlags::RDWR | OFlags::NONBLOCK,
            Access::Read => OFlags::RDONLY | OFlags::NONBLOCK,
            Access::ReadStream => OFlags::RDONLY,
            Access::WriteStream => OFlags::RDWR,
        }
    }
}

impl Files {
    /// No open files.
    pub(crate) fn new() -> Result<Files, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Files { inotify, table: RefCell::default() })
    }

    /// Becomes readable when something was closed.
    pub(crate) fn closed_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Makes the description that the program is to hold for `file`.
    pub(crate) fn create(&self, file: FileId, backing: Backing) -> Result<OwnedFd, Errno> {
        let rdwr = OFlags::RDWR;
        let (own, access, queue) = match backing {
            Backing::Handle => (Arc::new(handle()?), None, false),
            Backing::Device(memfd) => (memfd, None, false),
            Backing::Own(memfd) => (memfd, Some(rdwr), false),
            Backing::Queue { pipe, access } => (pipe, Some(access.flags()), true),
        };
        let path = proc_fd(&*own);
        let description = match access {
            None => {
                let description = rustix::fs::open(&path, rdwr | OFlags::CLOEXEC, Mode::empty())?;
                lock(&description, file, libc::F_WRLCK)?;
                description
            }
            Some(access) => one_more(&own, access, file)?,
        };
        let id = inode_id(&rustix::fs::fstat(&*own)?);
        let table = &mut *self.table.borrow_mut();
        match table.inodes.get_mut(&id) {
            Some(inode) => {
                table.shared += usize::from(!inode.is_shared());
                inode.files.push(file);
            }
            None => {
                let watch = inotify::add_watch(&self.inotify, &path, WATCHED)?;
                table.watches.insert(watch, id);
                let inode = Inode { watch, own, files: vec![file], access, queue, reopened: false };
                table.shared += usize::from(inode.is_shared());
                table.inodes.insert(id, inode);
            }
        }
        table.open.insert(file);
        table.queues |= queue;
        Ok(description)
    }

    /// Forgets a file whose description no program got: nobody is told of its
    /// end.
    pub(crate) fn discard(&self, file: FileId) {
        let table = &mut *self.table.borrow_mut();
        table.open.remove(&file);
        let Some((id, inode)) = table.inodes.iter_mut().find(|(_, inode)| inode.files.contains(&file)) else { return };
        let (id, shared) = (*id, inode.is_shared());
        inode.files.retain(|other| *other != file);
        if shared && (inode.files.is_empty() || !inode.is_shared()) {
            table.shared -= 1;
        }
        if inode.files.is_empty() {
            table.forget(id, &self.inotify);
        }
    }

    /// Whether a file is not closed yet, as far as events have been taken.
    pub(crate) fn is_open(&self, file: FileId) -> bool {
        self.table.borrow().open.contains(&file)
    }

    /// Whether the inode is one of ours.
    pub(crate) fn knows(&self, inode: InodeId) -> bool {
        self.table.borrow().inodes.contains_key(&inode)
    }

    /// Whether there has been a queue.
    pub(crate) fn has_queues(&self) -> bool {
        self.table.borrow().queues
    }

    /// Whether a file is a queue.
    pub(crate) fn is_queue(&self, file: FileId) -> bool {
        self.table.borrow().inodes.values().any(|inode| inode.queue && inode.files.contains(&file))
    }

    /// One more description of a queue or a file with a memfd of its own.
    pub(crate) fn again(&self, file: FileId) -> Result<OwnedFd, Errno> {
        let table = &mut *self.table.borrow_mut();
        let inode = table.inodes.values_mut().find(|inode| inode.files.contains(&file)).ok_or(Errno::BADF)?;
        let description = one_more(&inode.own, inode.access.ok_or(Errno::BADF)?, file)?;
        table.shared += usize::from(!inode.is_shared());
        inode.reopened = true;
        Ok(description)
    }

    /// What stands in for a node until its first call.
    pub(crate) fn stand_in(&self, node: Node, path: &str) -> Result<OwnedFd, Errno> {
        self.table.borrow_mut().stand_ins.make(node, path)
    }

    /// Which of them a description is, by its `fdinfo`, and the file that has
    /// taken its place elsewhere.
    pub(crate) fn find_stand_in(&self, info: impl FnOnce() -> Option<String>) -> Option<(u64, Node, Option<FileId>)> {
        let table = self.table.borrow();
        let (id, node, file) = table.stand_ins.find(info)?;
        Some((id, node, file.filter(|file| table.open.contains(file))))
    }

    /// A file has taken the place of a stand-in.
    pub(crate) fn took_place(&self, stand_in: u64, file: FileId) {
        self.table.borrow_mut().stand_ins.took_place(stand_in, file);
    }

    /// The inode behind a file.
    pub(crate) fn inode_of(&self, file: FileId) -> Option<InodeId> {
        let table = self.table.borrow();
        table.inodes.iter().find(|(_, inode)| inode.files.contains(&file)).map(|(id, _)| *id)
    }

    /// The file behind a description of the program's (or a duplicate of it).
    pub(crate) fn identify(&self, description: BorrowedFd<'_>) -> Option<FileId> {
        let stat = rustix::fs::fstat(description).ok()?;
        let table = self.table.borrow();
        match table.inodes.get(&inode_id(&stat))?.files.as_slice() {
            [file] => Some(*file),
            // Its own lock is the one that it does not see.
            many => many.iter().copied().find(|file| !is_locked_by_other(description, *file)),
        }
    }

    /// The file with this inode whose id is among `locked` (see `fdinfo`), or
    /// the only one there is.
    pub(crate) fn identify_by_locks(&self, inode: InodeId, locked: impl Fn(FileId) -> bool) -> Option<FileId> {
        match self.table.borrow().inodes.get(&inode)?.files.as_slice() {
            [file] => Some(*file),
            many => many.iter().copied().find(|file| locked(*file)),
        }
    }

    /// Takes the files that were closed since the last call. Cheap when there
    /// are none: one `read`.
    pub(crate) fn take_closed(&mut self) -> Vec<FileId> {
        let table = self.table.get_mut();
        let mut look = std::mem::take(&mut table.settling);
        let settling = look.len();
        let mut all = false;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                all = true;
            } else if let Some(id) = table.watches.get(&event.wd()) {
                if !event.events().contains(ReadFlags::OPEN) {
                    look.push(*id);
                } else if let Some(inode) = table.inodes.get_mut(id) {
                    table.shared += usize::from(!inode.is_shared());
                    inode.reopened = true;
                }
            }
        }
        if all {
            look = table.inodes.keys().copied().collect();
        }
        table.looks = if look.len() == settling { table.looks.saturating_add(1) } else { 0 };
        if look.is_empty() {
            return Vec::new();
        }
        look.sort_unstable();
        look.dedup();
        let mut closed = Vec::new();
        for id in look {
            let Some(inode) = table.inodes.get_mut(&id) else { continue };
            let (before, shared) = (closed.len(), inode.is_shared());
            inode.files.retain(|file| {
                let open = is_locked_by_other(inode.own.as_fd(), *file) || table.stand_ins.keep(*file);
                if !open {
                    closed.push(*file);
                }
                open
            });
            if shared && (inode.files.is_empty() || !inode.is_shared()) {
                table.shared -= 1;
            }
            if inode.files.is_empty() {
                table.forget(id, &self.inotify);
            } else if closed.len() == before && !all {
                table.settling.push(id);
            }
        }
        for file in &closed {
            table.open.remove(file);
        }
        closed
    }

    /// Whether [`take_closed`](Self::take_closed) must be asked even if
    /// inotify woke nobody (see `bell`), or an event came before its lock was
    /// gone.
    pub(crate) fn must_look(&self) -> bool {
        let table = self.table.borrow();
        table.shared > 0 || !table.settling.is_empty()
    }

    /// An event came before its lock was gone: when to look again. Soon, then
    /// ever later, for the event may have been that of a description which was
    /// opened again (`/proc/self/fd`), after which no lock goes.
    pub(crate) fn settle_pause(&self) -> Option<Duration> {
        let table = self.table.borrow();
        (!table.settling.is_empty()).then(|| Duration::from_millis(1 << table.looks.min(6)))
    }

    /// Every file that is still open.
    pub(crate) fn all(&self) -> Vec<FileId> {
        self.table.borrow().inodes.values().flat_map(|inode| inode.files.iter().copied()).collect()
    }
}

/// A description for a program. Several of a file hold its lock together;
/// whoever asks for a write lock sees each.
fn one_more(own: &OwnedFd, access: OFlags, file: FileId) -> Result<OwnedFd, Errno> {
    let description = rustix::fs::open(proc_fd(own), access | OFlags::CLOEXEC, Mode::empty())?;
    lock(&description, file, libc::F_RDLCK)?;
    Ok(description)
}

impl Table {
    /// Nobody has a file with this inode any more.
    fn forget(&mut self, id: InodeId, inotify: &OwnedFd) {
        if let Some(inode) = self.inodes.remove(&id) {
            let _ = inotify::remove_watch(inotify, inode.watch);
            self.watches.remove(&inode.watch);
        }
    }
}

/// What is told of an inode.
const WATCHED: WatchFlags = WatchFlags::CLOSE_WRITE.union(WatchFlags::CLOSE_NOWRITE).union(WatchFlags::OPEN);

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
pub(crate) fn lock(description: &OwnedFd, file: FileId, kind: i32) -> Result<(), Errno> {
    let region = byte_of(file, kind);
    // SAFETY: `region` is a valid flock structure for the call.
    match unsafe { libc::fcntl(description.as_raw_fd(), libc::F_OFD_SETLK, &raw const region) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}

#[allow(unsafe_code)] // rustix has whole-file locks only
pub(crate) fn is_locked_by_other(description: BorrowedFd<'_>, file: FileId) -> bool {
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
        let description = files.create(FileId(1), Backing::Handle).unwrap();
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
            (0..5).map(|n| (FileId(n), files.create(FileId(n), Backing::Device(device.clone())).unwrap())).collect();
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
        assert!(files.must_look(), "two are left");
        drop(open);
        assert_eq!(files.take_closed().len(), 2);
        assert!(!files.must_look());
    }

    #[test]
    fn opening_the_description_again_and_closing_it_changes_nothing() {
        let mut files = Files::new().unwrap();
        let description = files.create(FileId(9), Backing::Handle).unwrap();
        assert!(!files.must_look());
        drop(std::fs::File::open(proc_fd(&description)).unwrap());
        assert!(files.take_closed().is_empty());
        assert!(files.settle_pause() == Some(Duration::from_millis(1)) && files.must_look());
        for _ in 0..10 {
            assert!(files.take_closed().is_empty());
        }
        assert_eq!(files.settle_pause(), Some(Duration::from_millis(64)), "an idle program costs little");
        assert!(files.must_look(), "inotify may merge its events");
        drop(description);
        assert_eq!(files.take_closed(), [FileId(9)]);
        assert!(!files.must_look());
    }

    // API-271
    #[test]
    fn a_mapping_keeps_a_device_open() {
        let mut files = Files::new().unwrap();
        let device = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&device, 4096).unwrap();
        let description = files.create(FileId(3), Backing::Device(Arc::new(device))).unwrap();
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

    #[test]
    fn a_queue_is_closed_with_its_last_description() {
        for access in [Access::ReadWrite, Access::Read, Access::ReadStream, Access::WriteStream] {
            let mut files = Files::new().unwrap();
            let (_, pipe) = crate::queues::Pipe::new().unwrap();
            let first = files.create(FileId(4), Backing::Queue { pipe, access }).unwrap();
            assert!(files.is_queue(FileId(4)) && files.has_queues());
            assert_eq!(files.identify(first.as_fd()), Some(FileId(4)));
            assert!(!files.must_look(), "one description, one event");
            let second = files.again(FileId(4)).unwrap();
            assert!(files.must_look());
            assert_eq!(files.identify(second.as_fd()), Some(FileId(4)));
            drop(first);
            assert!(files.take_closed().is_empty());
            drop(second);
            assert_eq!(files.take_closed(), [FileId(4)]);
            assert!(files.again(FileId(4)).is_err());
            assert!(!files.must_look());
        }
    }

    #[test]
    fn nobody_is_told_of_what_nobody_got() {
        let mut files = Files::new().unwrap();
        let description = files.create(FileId(5), Backing::Handle).unwrap();
        files.discard(FileId(5));
        drop(description);
        assert!(files.take_closed().is_empty() && files.all().is_empty());
    }
}
