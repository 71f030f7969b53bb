// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the core holds on to after a call: a program's memory, a file of its,
//! and whether a queue has something to read.

use std::fmt::Debug;

use uapi::Errno;

use crate::{Pinned, ProcessId};

/// A user, as locked memory is counted: the real user id of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u32);

/// A mapping of a program (a VMA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// A shared mapping of a file whose pages are memory: not private, not
    /// anonymous, not a device's registers.
    pub shared_file: bool,
}

/// A part of a shared file, as a device reaches it.
#[derive(Clone, Debug)]
pub struct FilePart {
    /// Its first byte.
    pub pinned: Pinned,
    /// Whether devices may write.
    pub writable: bool,
}

/// A program's memory, as Linux's reference to an mm. After the program's end
/// or exec every access is `EFAULT`.
pub trait Mm: Send + Sync + Debug {
    /// Whose memory it is.
    fn process(&self) -> ProcessId;

    /// Who pays for it where users are counted.
    fn user(&self) -> UserId;

    /// `RLIMIT_MEMLOCK` of the program in bytes; `u64::MAX` for none.
    fn memlock_limit(&self) -> u64;

    /// Copies from it: `EFAULT`.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Copies to it: `EFAULT`.
    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno>;

    /// Makes `len` bytes at `vaddr` reachable for devices: `EFAULT` if a page
    /// is not mapped, is a device's, or (with `write`) not writable.
    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno>;

    /// The mapping at `addr` or, failing that, the next one above it
    /// (`find_vma`): `EFAULT` if the address space is gone.
    fn area(&self, addr: u64) -> Result<Option<Area>, Errno>;

    /// [`area`](Self::area), and what of `addr..addr + len` is a shared file,
    /// made reachable: with `write` to be written as far as the program may
    /// write there itself. `EFAULT` also for what [`pin`](Self::pin) refuses.
    fn area_with_file(&self, addr: u64, len: u64, write: bool) -> Result<Option<(Area, Option<FilePart>)>, Errno> {
        let Some(area) = self.area(addr)? else { return Ok(None) };
        let Some((start, len)) = area.file_range(addr, len) else { return Ok(Some((area, None))) };
        let (pinned, writable) = match self.pin(start, len, write) {
            Err(Errno::EFAULT) if write => (self.pin(start, len, false)?, false),
            pinned => (pinned?, write),
        };
        Ok(Some((area, Some(FilePart { pinned, writable }))))
    }
}

impl Area {
    /// What of `addr..addr + len` is a shared file: its first address and its
    /// length, if that is not 0.
    #[must_use]
    pub fn file_range(&self, addr: u64, len: u64) -> Option<(u64, u64)> {
        let (start, end) = (self.start.max(addr), self.end.min(addr.saturating_add(len)));
        (self.shared_file && start < end).then(|| (start, end - start))
    }
}

/// A file of a program, as memory for devices. Stays open.
pub trait ClientFile: Send + Sync + Debug {
    /// Makes `len` bytes from `start` on reachable for devices: `EINVAL` if it
    /// is no file in memory (memfd, tmpfs, hugetlbfs) or ends before.
    fn pin(&self, start: u64, len: u64) -> Result<Pinned, Errno>;

    /// The bytes that it has if it is a dma-buf of the real kernel's, whose
    /// memory cannot be asked for.
    fn foreign_dma_buf(&self) -> Option<u64> {
        None
    }
}

/// Whether reading a queue's file gives something; what `poll` shows.
pub trait Readiness: Send + Sync + Debug {
    /// There is something to read, or no more.
    fn set_readable(&self, on: bool);
}
