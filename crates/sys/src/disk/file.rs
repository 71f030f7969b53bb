// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in a regular file or a block device.
//!
//! Straight between the page cache and the memory of the program: several
//! transfers by `io_uring` in one call, single ones by `pread` and `pwrite`. An
//! error of the medium, or memory that is gone, comes back as a number. (A
//! mapping of the file would raise SIGBUS for both.) Memory that cannot be
//! addressed goes through a buffer of the thread.
#![allow(unsafe_code)] // pread and pwrite on memory that programs share

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use device::{Disk, DiskError, DiskPart};
use iommu::{MemoryFault, Segment};
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, fdatasync, flock, seek};
use rustix::io::Errno as Raw;
use vm_memory::VolatileSlice;

use super::{check, ring};

/// Size of a thread's buffer.
const BUFFER: usize = 256 << 10;

/// How a file becomes a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Size in bytes. A regular file that is missing or shorter is made this
    /// long; of a longer one only the beginning is used. `None`: its length.
    pub size: Option<u64>,
    /// Nothing is written, and others may use the file as well.
    pub read_only: bool,
    /// Others that share it may use the file as well: the two sides of a
    /// migration.
    pub shared: bool,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// It cannot be opened, or its size not be read or set.
    #[error("cannot open disk file {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: io::Error,
    },
    /// It is no regular file and no block device.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another lab, or another program that locks it, has it.
    #[error("{path} is in use by another program")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It has no byte, and no size was given.
    #[error("{path} is empty; give a size")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is shorter than the size given and cannot be made longer.
    #[error("{path} has {actual} bytes, not the {wanted} asked for, and cannot be made longer")]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        actual: u64,
        /// The size given.
        wanted: u64,
    },
}

/// A disk in a file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
    read_only: bool,
}

impl FileDisk {
    /// Opens or makes the file at `path`, and locks it (`flock`) until dropped.
    pub fn open(path: &Path, options: Options) -> Result<FileDisk, OpenDiskError> {
        let at = || path.to_path_buf();
        let failed = |reason: io::Error| OpenDiskError::Open { path: at(), reason };
        // A FIFO would wait for its other end.
        let kind = std::fs::metadata(path).map(|m| m.file_type());
        if kind.as_ref().is_ok_and(|kind| !kind.is_file() && !kind.is_block_device()) {
            return Err(OpenDiskError::Kind { path: at() });
        }
        let create = options.size.is_some() && !options.read_only;
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .create(create)
            .truncate(false)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)
            .map_err(failed)?;
        let lock = if options.read_only || options.shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(Raw::WOULDBLOCK) => return Err(OpenDiskError::Locked { path: at() }),
            Err(e) => return Err(failed(e.into())),
        }
        let meta = file.metadata().map_err(failed)?;
        let regular = meta.is_file();
        let actual = if regular { meta.size() } else { seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))? };
        let size = options.size.unwrap_or(actual);
        if size > actual {
            if !regular || options.read_only {
                return Err(OpenDiskError::Short { path: at(), actual, wanted: size });
            }
            file.set_len(size).map_err(failed)?;
        }
        if size == 0 {
            return Err(OpenDiskError::Empty { path: at() });
        }
        if kind.is_err() {
            // A new name is durable only when its directory is.
            if let Some(directory) = path.parent() {
                let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
                File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
            }
        }
        Ok(FileDisk { file, size, read_only: options.read_only })
    }

    /// Whether writing is refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn writable(&self) -> Result<(), DiskError> {
        if self.read_only { Err(DiskError::Medium(libc::EROFS)) } else { Ok(()) }
    }

    /// Reads or writes all of `slice` at `offset`, which is inside the disk.
    fn transfer(&self, offset: u64, slice: &VolatileSlice<'_>, write: bool) -> Result<(), DiskError> {
        let guard = slice.ptr_guard_mut();
        let mut done = 0;
        while done < slice.len() {
            let left = slice.len() - done;
            let at = i64::try_from(offset + done as u64).map_err(|_| DiskError::OutOfRange)?;
            // SAFETY: done < len, so the pointer stays inside the slice.
            let part = unsafe { guard.as_ptr().add(done) }.cast::<libc::c_void>();
            let fd = self.file.as_raw_fd();
            // SAFETY: `left` bytes at `part` belong to the slice, which is
            // borrowed; others may change them meanwhile, as a VolatileSlice allows.
            let moved =
                unsafe { if write { libc::pwrite64(fd, part, left, at) } else { libc::pread64(fd, part, left, at) } };
            match (usize::try_from(moved), crate::last_errno().raw()) {
                // Somebody has shortened the file.
                (Ok(0), _) => return Err(DiskError::Medium(libc::EIO)),
                (Ok(moved), _) => done += moved,
                (Err(_), libc::EINTR) => {}
                // The program has truncated its memory.
                (Err(_), libc::EFAULT) => return Err(MemoryFault.into()),
                (Err(_), errno) => return Err(DiskError::Medium(errno)),
            }
        }
        Ok(())
    }

    /// Calls `each` for pieces of a range that fit the thread's buffer.
    fn buffered(
        offset: u64,
        len: usize,
        mut each: impl FnMut(usize, u64, &VolatileSlice<'_>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        thread_local!(static OWN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        OWN.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(len.min(BUFFER)), 0);
            let mut done = 0;
            while done < len {
                let run = (len - done).min(BUFFER);
                each(done, offset + done as u64, &VolatileSlice::from(&mut buffer[..run]))?;
                done += run;
            }
            Ok(())
        })
    }

    /// Reads or writes parts, together where that is possible. Whatever has not
    /// been done so as a whole is done by itself, which gives its error.
    fn transfer_many(&self, parts: &mut [DiskPart<'_>], write: bool) {
        let allowed = |part: &DiskPart<'_>| check(self.size, part.offset, part.segment.len() as u64).is_ok();
        for parts in parts.chunks_mut(ring::MANY) {
            let done = match write && self.read_only {
                true => 0,
                false => ring::transfer(self.file.as_raw_fd(), parts, write, allowed),
            };
            for (number, part) in parts.iter_mut().enumerate() {
                part.result = match (done & 1 << number != 0, write) {
                    (true, _) => Ok(()),
                    (false, false) => self.read(part.offset, &part.segment),
                    (false, true) => self.write(part.offset, &part.segment),
                };
            }
        }
    }

    /// Zeros by deallocating or zeroing the range, else by writing them.
    fn zero(&self, offset: u64, len: u64, ways: &[FallocateFlags]) -> Result<(), DiskError> {
        self.writable()?;
        check(self.size, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        for way in ways {
            match fallocate(&self.file, *way | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(()),
                // Not on this file system, or not at this alignment.
                Err(Raw::OPNOTSUPP | Raw::NOSYS | Raw::INVAL | Raw::NODEV | Raw::PERM | Raw::INTR) => {}
                Err(e) => return Err(DiskError::Medium(e.raw_os_error())),
            }
        }
        let mut zeros = vec![0; usize::try_from(len).unwrap_or(BUFFER).min(BUFFER)];
        let mut at = offset;
        while at < offset + len {
            let run = usize::try_from(offset + len - at).unwrap_or(BUFFER).min(BUFFER);
            self.transfer(at, &VolatileSlice::from(&mut zeros[..run]), true)?;
            at += run as u64;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, to: &Segment<'_>) -> Result<(), DiskError> {
        check(self.size, offset, to.len() as u64)?;
        match to {
            Segment::Direct(slice) => self.transfer(offset, slice, false),
            Segment::Remote { memory, offset: start, len } => Self::buffered(offset, *len, |done, at, part| {
                self.transfer(at, part, false)?;
                Ok(memory.write(start + done as u64, part)?)
            }),
        }
    }

    fn write(&self, offset: u64, from: &Segment<'_>) -> Result<(), DiskError> {
        self.writable()?;
        check(self.size, offset, from.len() as u64)?;
        match from {
            Segment::Direct(slice) => self.transfer(offset, slice, true),
            Segment::Remote { memory, offset: start, len } => Self::buffered(offset, *len, |done, at, part| {
                memory.read(start + done as u64, part)?;
                self.transfer(at, part, true)
            }),
        }
    }

    fn read_many(&self, parts: &mut [DiskPart<'_>]) {
        self.transfer_many(parts, false);
    }

    fn write_many(&self, parts: &mut [DiskPart<'_>]) {
        self.transfer_many(parts, true);
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        fdatasync(&self.file).map_err(|e| DiskError::Medium(e.raw_os_error()))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero(offset, len, &[FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE])
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero(offset, len, &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE])
    }
}
