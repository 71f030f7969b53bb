// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that programs map shared, mapped here as well: zero-copy DMA.
//!
//! A file is known by the device and inode number that the kernel gives for
//! the program's mapping. It is opened once, and mapped in windows: the whole
//! file where that is at most 64 GiB, else chunks of that size. Windows reach
//! beyond the end of the file, so that a file which grows needs few of them.
//! A [`FileMemory`] is one window; when the last mapping that uses it goes, it
//! is unmapped.
//!
//! When a program truncates its file under DMA, the window is broken (see
//! `mapping`): from then on it is copied by system calls, which notice a
//! missing page, and mappings made later get a fresh window.
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use iommu::{Access, Memory, MemoryFault, PageId};
use uapi::Errno;
use vm_memory::VolatileSlice;

use crate::mapping::Mapping;
use crate::process::{Direction, Process, copied, file_page, transfer};
use crate::vma::{self, Vma};
use crate::window::Memfd;

/// Windows are this long at most, unless one range is longer.
const CHUNK: u64 = 64 << 30;
/// Address space that all windows may take together.
const BUDGET: u64 = 16 << 40;
/// Descriptors of a program that are looked at to find a file.
const MAX_DESCRIPTORS: usize = 4096;
/// Files held open at most.
const MAX_FILES: usize = 4096;
/// Times that a file which could not be opened is not looked for again.
const PATIENCE: u32 = 256;

/// A file, as the kernel's memory management knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    dev: (u32, u32),
    inode: u64,
    writable: bool,
}

impl Key {
    pub(crate) fn of(vma: &Vma, writable: bool) -> Key {
        Key { dev: vma.dev, inode: vma.inode, writable }
    }
}

/// Whether a file system keeps track of written pages. Linux does not let
/// devices write to files of one that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// tmpfs (with memfds and System V memory), ramfs, hugetlbfs.
    Memory,
    /// A disk file system whose numbers name files uniquely.
    Tracked,
    /// Any other: their numbers may name several files.
    Unknown,
}

/// A file that programs have mapped.
#[derive(Debug)]
pub(crate) struct MappedFile {
    key: Key,
    fd: Arc<OwnedFd>,
    kind: Kind,
    page: u64,
    /// Size when last looked at, in bytes.
    size: AtomicU64,
    windows: Mutex<Vec<Weak<FileMemory>>>,
}

/// A window on a file. Offsets count from the start of the window.
#[derive(Debug)]
pub struct FileMemory {
    mapping: Mapping,
    file: Arc<MappedFile>,
    /// The file has been shorter than a device thought: copy with care.
    careful: AtomicBool,
    repairing: Mutex<()>,
}

static TAKEN: AtomicU64 = AtomicU64::new(0);

impl FileMemory {
    /// Window offset of the byte at `offset` of the file.
    pub(crate) fn offset_of(&self, offset: u64) -> u64 {
        offset - self.mapping.offset()
    }

    fn covers(&self, offset: u64, len: u64) -> bool {
        let first = self.mapping.offset();
        let inside =
            offset >= first && offset.checked_add(len).is_some_and(|end| end <= first + self.mapping.len() as u64);
        inside && !self.mapping.is_broken() && !self.careful.load(Ordering::Relaxed)
    }

    /// `EFAULT` if the file ends before `end`.
    fn check_size(&self, end: u64) -> Result<(), Errno> {
        self.file.check_size(end)
    }

    fn part(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.mapping.slice(usize::try_from(offset).ok()?, len)
    }

    fn is_careful(&self) -> bool {
        self.careful.load(Ordering::Acquire) || self.mapping.is_broken()
    }

    /// Copies through the kernel, which answers where a load or store would
    /// raise a signal.
    fn copy_carefully(&self, offset: u64, own: &VolatileSlice<'_>, way: Direction) -> Result<(), MemoryFault> {
        copied(own.len());
        self.careful.store(true, Ordering::Release);
        if self.mapping.is_broken() {
            let _one = self.repairing.lock().unwrap_or_else(|e| e.into_inner());
            if self.mapping.is_broken() {
                self.mapping.repair(self.file.fd.as_fd()).map_err(|_| MemoryFault)?;
            }
        }
        self.part(offset, own.len()).ok_or(MemoryFault)?;
        let moved = transfer(own_pid(), self.mapping.addr() + offset, own, way);
        if moved == Ok(own.len()) && !self.mapping.is_broken() { Ok(()) } else { Err(MemoryFault) }
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

impl Memory for FileMemory {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        if self.is_careful() {
            return None;
        }
        self.part(offset, len)
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if !self.is_careful() {
            self.part(offset, to.len()).ok_or(MemoryFault)?.copy_to_volatile_slice(*to);
            if !self.mapping.is_broken() {
                return Ok(());
            }
        }
        self.copy_carefully(offset, to, Direction::From)
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if !self.mapping.writable() {
            return Err(MemoryFault);
        }
        if !self.is_careful() {
            from.copy_to_volatile_slice(self.part(offset, from.len()).ok_or(MemoryFault)?);
            if !self.mapping.is_broken() {
                return Ok(());
            }
        }
        self.copy_carefully(offset, from, Direction::To)
    }

    fn prefetch(&self, offset: u64, len: usize, access: Access) {
        self.mapping.prefetch(offset as usize, len, access == Access::Write);
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        let Key { dev, inode, .. } = self.file.key;
        Some(file_page(dev, inode, self.mapping.offset().checked_add(offset)?))
    }
}

impl Drop for FileMemory {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.mapping.len() as u64, Ordering::Relaxed);
    }
}

impl MappedFile {
    fn windows(&self) -> MutexGuard<'_, Vec<Weak<FileMemory>>> {
        self.windows.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn check_size(&self, end: u64) -> Result<(), Errno> {
        if end <= self.size.load(Ordering::Relaxed) {
            return Ok(());
        }
        let size = rustix::fs::fstat(&*self.fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        let size = size.next_multiple_of(self.page);
        self.size.store(size, Ordering::Relaxed);
        if end <= size { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// A window on `len` bytes from `start`, which the file has: `ENOMEM`.
    pub(crate) fn pages(self: &Arc<Self>, start: u64, len: u64) -> Result<Arc<FileMemory>, Errno> {
        self.size.store(0, Ordering::Relaxed);
        self.check_size(start.checked_add(len).ok_or(Errno::EINVAL)?)?;
        self.window(start, len).ok_or(Errno::ENOMEM)
    }

    /// A sound window that covers the range; `None` if there is no room for one.
    fn window(self: &Arc<Self>, offset: u64, len: u64) -> Option<Arc<FileMemory>> {
        let mut windows = self.windows();
        windows.retain(|window| window.strong_count() > 0);
        if let Some(window) = windows.iter().rev().filter_map(Weak::upgrade).find(|w| w.covers(offset, len)) {
            return Some(window);
        }
        let (start, end) = self.place(offset, offset.checked_add(len)?)?;
        let length = usize::try_from(end - start).ok()?;
        if TAKEN.fetch_add(end - start, Ordering::Relaxed) > BUDGET {
            TAKEN.fetch_sub(end - start, Ordering::Relaxed);
            return None;
        }
        let mapping = match Mapping::new(self.fd.as_fd(), start, length, self.key.writable, self.page) {
            Ok(mapping) => mapping,
            Err(_) => {
                TAKEN.fetch_sub(end - start, Ordering::Relaxed);
                return None;
            }
        };
        let window = FileMemory {
            mapping,
            file: Arc::clone(self),
            careful: AtomicBool::new(false),
            repairing: Mutex::default(),
        };
        // Only the kernel can say that this is the file which the program has.
        let here = own_maps().and_then(|maps| vma::at(maps, window.mapping.addr()).ok()?)?;
        if (here.dev, here.inode) != (self.key.dev, self.key.inode) {
            return None;
        }
        let window = Arc::new(window);
        windows.push(Arc::downgrade(&window));
        Some(window)
    }

    /// Where a window for the range starts and ends.
    fn place(&self, offset: u64, end: u64) -> Option<(u64, u64)> {
        let size = self.size.load(Ordering::Relaxed).max(end);
        let (start, end) = if size <= CHUNK {
            // Twice as long each time that the file outgrows its windows.
            (0, size.checked_next_power_of_two()?)
        } else {
            (offset / CHUNK * CHUNK, end.checked_next_multiple_of(CHUNK)?)
        };
        let last = (i64::MAX as u64 + 1) - crate::page_size();
        Some((start, end.min(last)))
    }
}

fn own_maps() -> Option<&'static File> {
    static MAPS: OnceLock<Option<File>> = OnceLock::new();
    MAPS.get_or_init(|| File::open("/proc/self/maps").ok()).as_ref()
}

/// What a process's own pins remember of files.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// Windows used last, kept for a while: programs map and unmap in turns.
    windows: Vec<(bool, Arc<FileMemory>)>,
    /// Files that could not be opened, and how often not to try again.
    unreachable: HashMap<Key, u32>,
}

const RECENT_WINDOWS: usize = 4;
const RECENT_UNREACHABLE: usize = 64;

impl Recent {
    fn find(&mut self, key: &Key, offset: u64, len: u64) -> Option<Arc<FileMemory>> {
        let fits = |window: &FileMemory| {
            let has = &window.file.key;
            has.dev == key.dev
                && has.inode == key.inode
                && (has.writable || !key.writable)
                && window.covers(offset, len)
        };
        let (used, window) = self.windows.iter_mut().find(|(_, window)| fits(window))?;
        *used = true;
        Some(Arc::clone(window))
    }

    fn keep(&mut self, window: &Arc<FileMemory>) {
        if self.windows.len() >= RECENT_WINDOWS {
            self.windows.remove(0);
        }
        self.windows.push((true, Arc::clone(window)));
    }

    fn is_unreachable(&mut self, key: &Key) -> bool {
        match self.unreachable.get_mut(key) {
            Some(0) => {
                self.unreachable.remove(key);
                false
            }
            Some(times) => {
                *times -= 1;
                true
            }
            None => false,
        }
    }

    fn set_unreachable(&mut self, key: Key) {
        if self.unreachable.len() >= RECENT_UNREACHABLE {
            self.unreachable.clear();
        }
        self.unreachable.insert(key, PATIENCE);
    }
}

impl Process {
    /// Lets go of files that the program has not mapped for DMA since the last
    /// call. To be called now and then (every second, or when it closes a
    /// file): until then up to four files are kept open for the next mapping.
    pub fn trim(&self) {
        let mut recent = self.recent();
        recent.windows.retain_mut(|(used, window)| std::mem::take(used) || Arc::strong_count(window) > 1);
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The files that programs have mapped, shared by all pins.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: Mutex<HashMap<Key, Weak<MappedFile>>>,
}

impl Files {
    /// The memory of `len` bytes at `offset` of the file that `vma` maps.
    /// `Ok(None)`: reach it through the process. `EFAULT`: the file is shorter,
    /// or its file system does not let devices write.
    pub(crate) fn memory(
        &self,
        process: &Process,
        vma: &Vma,
        offset: u64,
        len: u64,
        write: bool,
    ) -> Result<Option<Arc<FileMemory>>, Errno> {
        if write && vma.dev.0 != 0 {
            // A file system on a disk (GUP refuses long-term writes to them).
            return Err(Errno::EFAULT);
        }
        let key = Key::of(vma, write);
        let end = offset.checked_add(len).ok_or(Errno::EFAULT)?;
        let mut recent = process.recent();
        if let Some(window) = recent.find(&key, offset, len) {
            window.check_size(end)?;
            return Ok(Some(window));
        }
        if recent.is_unreachable(&key) {
            return Ok(None);
        }
        let Some(file) = self.file(process, vma, key) else {
            recent.set_unreachable(key);
            return Ok(None);
        };
        match file.kind {
            Kind::Memory => {}
            _ if write => return Err(Errno::EFAULT),
            Kind::Tracked => {}
            Kind::Unknown => {
                recent.set_unreachable(key);
                return Ok(None);
            }
        }
        // It may be shorter than it was.
        file.size.store(0, Ordering::Relaxed);
        file.check_size(end)?;
        match file.window(offset, len) {
            Some(window) => {
                recent.keep(&window);
                Ok(Some(window))
            }
            None => {
                recent.set_unreachable(key);
                Ok(None)
            }
        }
    }

    /// The file behind a descriptor of a program: `EINVAL` if nothing of it
    /// can be mapped, `ENFILE`.
    pub(crate) fn of_descriptor(&self, fd: &OwnedFd) -> Result<Arc<MappedFile>, Errno> {
        let stat = rustix::fs::fstat(fd).map_err(|_| Errno::EINVAL)?;
        let dev = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        open.retain(|_, file| file.strong_count() > 0);
        // A file that may only be read is pinned all the same (IOMMUFD-5.10).
        for writable in [true, false] {
            let key = Key { dev, inode: stat.st_ino, writable };
            if let Some(file) = open.get(&key).and_then(Weak::upgrade) {
                return Ok(file);
            }
            if open.len() >= max_files() {
                return Err(Errno::ENFILE);
            }
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let again = || OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path);
            let Some(fd) = own_file(&key).or_else(|| Some(Arc::new(OwnedFd::from(again().ok()?)))) else { continue };
            let (kind, page) = kind(&fd);
            // Sealed files can be opened for writing and not be mapped so.
            let length = usize::try_from(page).map_err(|_| Errno::EINVAL)?;
            if Mapping::new(fd.as_fd(), 0, length, writable, page).is_err() {
                continue;
            }
            let file = MappedFile { key, fd, kind, page, size: AtomicU64::new(0), windows: Mutex::default() };
            let file = Arc::new(file);
            open.insert(key, Arc::downgrade(&file));
            return Ok(file);
        }
        Err(Errno::EINVAL)
    }

    /// The file of a mapping, opened once.
    fn file(&self, process: &Process, vma: &Vma, key: Key) -> Option<Arc<MappedFile>> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(file) = open.get(&key).and_then(Weak::upgrade) {
            return Some(file);
        }
        open.retain(|_, file| file.strong_count() > 0);
        if open.len() >= max_files() {
            return None;
        }
        let fd = own_file(&key).or_else(|| find(process.pid(), vma, key.writable).map(Arc::new))?;
        let (kind, page) = kind(&fd);
        let file = MappedFile { key, fd, kind, page, size: AtomicU64::new(0), windows: Mutex::default() };
        let file = Arc::new(file);
        open.insert(key, Arc::downgrade(&file));
        Some(file)
    }
}

/// Whether Linux pins pages of such a file by its descriptor: of tmpfs and
/// hugetlbfs only.
pub(crate) fn is_pinnable(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|fs| matches!(fs.f_type as u64 & 0xffff_ffff, TMPFS | HUGETLBFS))
}

/// Whether it is a dma-buf of the real kernel's.
pub(crate) fn is_dma_buf(fd: &OwnedFd) -> bool {
    const DMA_BUF: u64 = 0x444d_4142;
    rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == DMA_BUF)
}

const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

/// The file system, and the page size that mappings of it have.
fn kind(fd: &OwnedFd) -> (Kind, u64) {
    const RAMFS: u64 = 0x8584_58f6;
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const F2FS: u64 = 0xf2f5_2010;
    let machine = crate::page_size();
    let Ok(fs) = rustix::fs::fstatfs(fd) else { return (Kind::Unknown, machine) };
    match fs.f_type as u64 & 0xffff_ffff {
        TMPFS | RAMFS => (Kind::Memory, machine),
        HUGETLBFS => (Kind::Memory, u64::try_from(fs.f_bsize).unwrap_or(0).max(machine)),
        EXT | XFS | F2FS => (Kind::Tracked, machine),
        _ => (Kind::Unknown, machine),
    }
}

/// Opens the file that a program has mapped: through its mapping where we may,
/// else through a descriptor of the program that has the same inode.
fn find(pid: i32, vma: &Vma, writable: bool) -> Option<OwnedFd> {
    let mut options = OpenOptions::new();
    // Not blocking: by the time it is opened it may be a FIFO.
    options.read(true).write(writable).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY);
    let same = |path: &str| std::fs::metadata(path).is_ok_and(|m| m.ino() == vma.inode && m.is_file());
    let open = |path: &str| {
        let file = options.open(path).ok()?;
        let right = file.metadata().is_ok_and(|m| m.ino() == vma.inode && m.is_file());
        right.then(|| file.into())
    };
    let mapped = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
    if let Some(fd) = open(&mapped) {
        return Some(fd);
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    descriptors
        .take(MAX_DESCRIPTORS)
        .flatten()
        .filter_map(|entry| Some(format!("/proc/{pid}/fd/{}", entry.file_name().to_str()?)))
        .filter(|path| same(path))
        .find_map(|path| open(&path))
}

/// Most files to hold open: a quarter of the descriptors that we may have, so
/// that a program with very many files leaves enough for everything else.
fn max_files() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(limit / 4).unwrap_or(MAX_FILES).clamp(16, MAX_FILES)
    })
}

type Own = HashMap<((u32, u32), u64), Weak<Memfd>>;

fn own_files() -> MutexGuard<'static, Own> {
    static OWN: OnceLock<Mutex<Own>> = OnceLock::new();
    OWN.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner())
}

/// A file of ours that a program may map: its descriptor is used, and none
/// opened, whose closing others would see.
fn own_file(key: &Key) -> Option<Arc<OwnedFd>> {
    own_files().get(&(key.dev, key.inode))?.upgrade().map(|memfd| Arc::clone(memfd.descriptor()))
}

/// The device file whose registers a mapping is of.
pub(crate) fn device(vma: &Vma) -> Option<Arc<Memfd>> {
    own_files().get(&(vma.dev, vma.inode))?.upgrade()
}

/// Whether a mapping is of a device's registers.
pub(crate) fn is_device(vma: &Vma) -> bool {
    device(vma).is_some()
}

/// Makes a file of ours known.
pub(crate) fn register(memfd: &Arc<Memfd>) {
    let (dev, inode) = memfd.id();
    let mut own = own_files();
    own.retain(|_, memfd| memfd.strong_count() > 0);
    own.insert(((rustix::fs::major(dev), rustix::fs::minor(dev)), inode), Arc::downgrade(memfd));
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn vma_of(mapping: &Mapping) -> Vma {
        vma::at(own_maps().unwrap(), mapping.addr()).unwrap().unwrap()
    }

    /// Without the right to look at `map_files`, by its descriptors.
    #[test]
    fn a_file_is_found_among_the_descriptors() {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let mapping = Mapping::new(fd.as_fd(), 0, 4096, true, crate::page_size()).unwrap();
        let mut vma = vma_of(&mapping);
        // No mapping has these ends, so that way is closed to root as well.
        vma.end += 1;
        let found = find(own_pid(), &vma, true).unwrap();
        assert_eq!(rustix::fs::fstat(&found).unwrap().st_ino, rustix::fs::fstat(&fd).unwrap().st_ino);
        drop(fd);
        drop(found);
        assert!(find(own_pid(), &vma, true).is_none());
    }

    /// What cannot be opened is not looked for each time, but again some day.
    #[test]
    fn patience_ends() {
        let mut recent = Recent::default();
        let key = Key { dev: (0, 1), inode: 5, writable: true };
        assert!(!recent.is_unreachable(&key));
        recent.set_unreachable(key);
        assert_eq!((0..1000).take_while(|_| recent.is_unreachable(&key)).count(), PATIENCE as usize);
        for inode in 0..10_000 {
            recent.set_unreachable(Key { inode, ..key });
        }
        assert!(recent.unreachable.len() <= RECENT_UNREACHABLE);
    }

    #[test]
    fn windows_grow_with_the_file_and_stay_inside_what_a_file_can_be() {
        let machine = crate::page_size();
        let file = |size, page| MappedFile {
            key: Key { dev: (0, 1), inode: 1, writable: true },
            fd: Arc::new(memfd_create("test", MemfdFlags::CLOEXEC).unwrap()),
            kind: Kind::Memory,
            page,
            size: AtomicU64::new(size),
            windows: Mutex::default(),
        };
        assert_eq!(file(5 << 20, machine).place(0, 4096), Some((0, 8 << 20)));
        assert_eq!(file(64 << 30, machine).place(1 << 30, 2 << 30), Some((0, 64 << 30)));
        assert_eq!(file(65 << 30, machine).place(1 << 30, 2 << 30), Some((0, 64 << 30)));
        assert_eq!(file(32 << 40, machine).place(32 << 40, (32 << 40) + 4096), Some((32 << 40, (32 << 40) + CHUNK)));
        let end = (1 << 63) - machine;
        assert_eq!(file(end, machine).place(end - 4096, end), Some(((1 << 63) - CHUNK, end)));
    }
}
