// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that a program gives for devices' use (`IOMMU_IOAS_MAP_FILE`), and
//! the memory of a program for use after its call.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use caller::{Area, ClientFile, FilePart, Mm, Pinned, ProcessId, UserId};
use rustix::fs::FileType;
use uapi::Errno;

use crate::file::{self, Files, MappedFile};
use crate::limits;
use crate::pin::Pinner;
use crate::process::{Process, round_to_pages};

/// A file that a program has opened. Its description stays open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: OwnedFd,
    files: Arc<Files>,
    /// The file as memory, once it was pinned.
    mapped: Mutex<Option<Arc<MappedFile>>>,
}

impl OpenFile {
    pub(crate) fn new(fd: OwnedFd, files: Arc<Files>) -> OpenFile {
        OpenFile { fd, files, mapped: Mutex::default() }
    }

    fn mapped(&self) -> Result<Arc<MappedFile>, Errno> {
        let mut mapped = self.mapped.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(file) = &*mapped {
            return Ok(Arc::clone(file));
        }
        let file = self.files.of_descriptor(&self.fd)?;
        *mapped = Some(Arc::clone(&file));
        Ok(file)
    }
}

impl ClientFile for OpenFile {
    fn pin(&self, start: u64, len: u64) -> Result<Pinned, Errno> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|_| Errno::EINVAL)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !file::is_pinnable(&self.fd) {
            return Err(Errno::EINVAL);
        }
        // Linux compares whole pages with the file's size.
        let end = start.checked_add(len).and_then(round_to_pages).ok_or(Errno::EINVAL)?;
        if end > u64::try_from(stat.st_size).unwrap_or(0) {
            return Err(Errno::EINVAL);
        }
        let window = self.mapped()?.pages(start, len)?;
        let offset = window.offset_of(start);
        Ok(Pinned { memory: window, offset })
    }

    fn foreign_dma_buf(&self) -> Option<u64> {
        file::is_dma_buf(&self.fd).then(|| {
            // Its size is not among what `fstat` tells.
            rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::End(0)).unwrap_or(u64::MAX)
        })
    }
}

/// The memory of a program as Linux's mm, with who pays for it.
#[derive(Debug)]
pub struct ProgramMm {
    process: Arc<Process>,
    pinner: Arc<Pinner>,
    id: ProcessId,
    user: UserId,
    limit: AtomicU64,
}

impl ProgramMm {
    /// The address space `process`, which the core calls `id`.
    #[must_use]
    pub fn new(process: Arc<Process>, pinner: Arc<Pinner>, id: ProcessId) -> ProgramMm {
        let user = UserId(limits::user(process.pid()).unwrap_or(u32::MAX));
        let limit = limits::memlock(process.pid()).unwrap_or(0);
        ProgramMm { process, pinner, id, user, limit: AtomicU64::new(limit) }
    }
}

impl Mm for ProgramMm {
    fn process(&self) -> ProcessId {
        self.id
    }

    fn user(&self) -> UserId {
        self.user
    }

    fn memlock_limit(&self) -> u64 {
        // The pid may mean another program once this one is gone; its last
        // limit counts then.
        match limits::memlock(self.process.pid()) {
            Ok(limit) if self.process.is_alive() => {
                self.limit.store(limit, Ordering::Relaxed);
                limit
            }
            _ => self.limit.load(Ordering::Relaxed),
        }
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.process.read_all(addr, buf)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        self.process.write_all(addr, buf)
    }

    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        self.pinner.pin_pages(&self.process, vaddr, len, write)
    }

    fn area(&self, addr: u64) -> Result<Option<Area>, Errno> {
        Ok(self.process.vma_from(addr)?.map(|vma| vma.area()))
    }

    fn area_with_file(&self, addr: u64, len: u64, write: bool) -> Result<Option<(Area, Option<FilePart>)>, Errno> {
        self.pinner.area(&self.process, addr, len, write)
    }
}

/// Descriptor `fd` of thread `tid`, which waits for the answer to its call, by
/// its name in `/proc`: for programs whose descriptors cannot be duplicated.
/// `EBADF`; `EINVAL` for what cannot be opened so.
pub fn reopen(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags, open};
    let path = format!("/proc/{tid}/fd/{fd}");
    // First without side effects: it may be a device or a FIFO.
    let there = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => Errno::EBADF,
        other => Errno::from_raw(other.raw_os_error()),
    })?;
    let stat = rustix::fs::fstat(&there).map_err(|_| Errno::EBADF)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(there);
    }
    let path = format!("/proc/self/fd/{}", there.as_raw_fd());
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = open(&path, flags | OFlags::RDWR, Mode::empty()).or_else(|_| open(&path, flags, Mode::empty()));
    Ok(opened.unwrap_or(there))
}
