// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address space of a program.
//!
//! [`Process`] is one address space, not one pid: it holds `/proc/PID/mem` and
//! `/proc/PID/maps` open, and the kernel binds these to the memory that the
//! program had at the time. After `exec` or death they give nothing any more,
//! whoever has the pid then. They also keep working when the program makes
//! itself undumpable.
//!
//! Two ways to copy. `/proc/PID/mem` is bound to the address space and faster
//! up to 8 KiB (1.4 µs against 1.9 µs for 64 bytes on the same machine, which
//! was loaded). `process_vm_readv` and `process_vm_writev` are twice as fast
//! from 64 KiB on, but go by pid; so a read is believed only if the address
//! space is alive *after* it, and a write starts only if it is alive *before*.
//! What is left is a program that execs while a long write is under way; a
//! front door that sees `exec` coming calls [`Process::before_exec`] and closes
//! that gap too. Many pieces go by pid too, in one call: 0.6 µs for a page
//! instead of 1.7.
#![allow(unsafe_code)] // copies between address spaces, into memory that programs share

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use iommu::{Memory, MemoryFault, PageId};
use uapi::Errno;
use vm_memory::VolatileSlice;

use crate::file::Recent;
use crate::vma::{self, Vma};
use crate::{last_errno, page_size};

/// Longest copy that goes through `/proc/PID/mem`.
const SMALL: usize = 8192;

/// Fewest pieces that go by pid in one call; fewer are no slower one by one.
const FEW: usize = 3;
/// Most pieces in one call (`IOV_MAX`).
const PIECES: usize = 1024;

/// Pieces of a program's memory and of our own, as one call copies them.
type Parts<'a, 'b> = &'a [(u64, VolatileSlice<'b>)];

/// An address space of a program. As [`Memory`], an offset is a virtual
/// address.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    space: u64,
    mem: File,
    maps: File,
    /// Only `mem` may be used: the pid is about to mean another program.
    exact: AtomicBool,
    /// Held for reading while a copy goes by pid.
    by_pid: RwLock<()>,
    /// Files that it has mapped, for [`crate::pin`].
    pub(crate) recent: Mutex<Recent>,
}

impl Process {
    /// The address space that `pid` has now. `ESRCH`, or `EACCES` and `EPERM`
    /// if the program may not be looked into.
    pub fn open(pid: i32) -> Result<Arc<Process>, Errno> {
        // Apart from the numbers that callers of `open_as` count.
        static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
        Process::open_as(pid, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The same, known as address space `space`: pages of all that were opened
    /// with one number are told to be the same.
    pub fn open_as(pid: i32, space: u64) -> Result<Arc<Process>, Errno> {
        let errno = |e: std::io::Error| match e.raw_os_error() {
            Some(libc::ENOENT) => Errno::from_raw(libc::ESRCH),
            raw => Errno::from_raw(raw.unwrap_or(libc::EIO)),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        for _ in 0..16 {
            let mem = options.open(format!("/proc/{pid}/mem")).map_err(errno)?;
            let maps = File::open(format!("/proc/{pid}/maps")).map_err(errno)?;
            let process = Process {
                pid,
                space,
                mem,
                maps,
                exact: AtomicBool::new(false),
                by_pid: RwLock::new(()),
                recent: Mutex::default(),
            };
            // An exec between the two opens: they are of different programs.
            // The first one's address space is gone then.
            if process.mem_alive() && process.is_alive() {
                return Ok(Arc::new(process));
            }
        }
        Err(Errno::from_raw(libc::ESRCH))
    }

    /// The pid that the program had when this was opened.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether somebody still runs in this address space.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        vma::at(&self.maps, 0) != Err(Errno::from_raw(libc::ESRCH))
    }

    /// The program is about to exec: from the return on, nothing is reached by
    /// pid, and no such copy is under way. Copies get slower, never wrong. May
    /// be called for an exec that fails then.
    pub fn before_exec(&self) {
        self.exact.store(true, Ordering::SeqCst);
        drop(self.by_pid.write().unwrap_or_else(|e| e.into_inner()));
    }

    /// Copies `buf.len()` bytes from `addr`, with the rights of thread `tid`,
    /// which belongs to the program and is waiting for the answer to a call:
    /// `EFAULT`.
    pub fn read_user(&self, tid: i32, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        match read_user(tid, addr, buf) {
            // Undumpable since: the file that was opened before still works.
            Err(Errno::EPERM) => self.through_mem(addr, &VolatileSlice::from(buf), Direction::From),
            done => return done,
        }
        .map_err(|MemoryFault| Errno::EFAULT)
    }

    /// Copies `buf` to `addr`, as [`read_user`](Self::read_user) does the
    /// other way: `EFAULT`.
    pub fn write_user(&self, tid: i32, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        match write_user(tid, addr, buf) {
            Err(Errno::EPERM) => self.write_all(addr, buf),
            done => done,
        }
    }

    /// Copies `buf.len()` bytes from `addr`, with the rights of the program:
    /// `EFAULT`. Nobody need wait for it.
    pub fn read_all(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.check_rights(addr, buf.len(), |vma| vma.read)?;
        self.through_mem(addr, &VolatileSlice::from(buf), Direction::From).map_err(|MemoryFault| Errno::EFAULT)
    }

    /// Copies `buf` to `addr`, as [`read_all`](Self::read_all) does the other
    /// way: `EFAULT`.
    pub fn write_all(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        self.check_rights(addr, buf.len(), |vma| vma.write)?;
        let mut copy = buf.to_vec();
        self.through_mem(addr, &VolatileSlice::from(&mut copy[..]), Direction::To).map_err(|MemoryFault| Errno::EFAULT)
    }

    /// `/proc/PID/mem` reaches pages that the program itself may not use.
    fn check_rights(&self, addr: u64, len: usize, may: impl Fn(&Vma) -> bool) -> Result<(), Errno> {
        let end = addr.checked_add(len as u64).ok_or(Errno::EFAULT)?;
        let mut at = addr;
        while at < end {
            at = self.vma(at)?.filter(&may).ok_or(Errno::EFAULT)?.end;
        }
        Ok(())
    }

    /// What is mapped at `addr`: `EFAULT` if the address space is gone.
    pub(crate) fn vma(&self, addr: u64) -> Result<Option<Vma>, Errno> {
        vma::at(&self.maps, addr).map_err(|_| Errno::EFAULT)
    }

    /// What is mapped at `addr` or next above it: `EFAULT` if the address space
    /// is gone.
    pub(crate) fn vma_from(&self, addr: u64) -> Result<Option<Vma>, Errno> {
        vma::from(&self.maps, addr).map_err(|_| Errno::EFAULT)
    }

    /// Reading at an address that is never mapped tells a dead address space
    /// (nothing read) from a live one (`EIO`).
    fn mem_alive(&self) -> bool {
        let mut byte = [0u8];
        // SAFETY: one byte of buffer, which is valid.
        let got = unsafe { libc::pread(self.mem.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 0) };
        got != 0
    }

    fn copy(&self, addr: u64, own: &VolatileSlice<'_>, direction: Direction) -> Result<(), MemoryFault> {
        if own.len() > SMALL && !self.exact.load(Ordering::Relaxed) && self.through_pid(addr, own, direction) {
            return Ok(());
        }
        self.through_mem(addr, own, direction)
    }

    /// Copies by pid; whether that was possible and is to be believed.
    fn through_pid(&self, addr: u64, own: &VolatileSlice<'_>, direction: Direction) -> bool {
        let _going = self.by_pid.read().unwrap_or_else(|e| e.into_inner());
        if self.exact.load(Ordering::SeqCst) {
            return false;
        }
        match direction {
            Direction::From => transfer(self.pid, addr, own, direction) == Ok(own.len()) && self.is_alive(),
            Direction::To => self.is_alive() && transfer(self.pid, addr, own, direction) == Ok(own.len()),
        }
    }

    /// Copies many pieces, in order.
    fn copy_many(&self, parts: Parts<'_, '_>, direction: Direction) -> Result<(), MemoryFault> {
        parts.chunks(PIECES).try_for_each(|parts| {
            if parts.len() >= FEW && !self.exact.load(Ordering::Relaxed) && self.many_through_pid(parts, direction) {
                return Ok(());
            }
            parts.iter().try_for_each(|(addr, own)| self.copy(*addr, own, direction))
        })
    }

    /// [`through_pid`](Self::through_pid) for up to [`PIECES`] pieces.
    fn many_through_pid(&self, parts: Parts<'_, '_>, direction: Direction) -> bool {
        let _going = self.by_pid.read().unwrap_or_else(|e| e.into_inner());
        if self.exact.load(Ordering::SeqCst) {
            return false;
        }
        match direction {
            Direction::From => transfer_many(self.pid, parts, direction) && self.is_alive(),
            Direction::To => self.is_alive() && transfer_many(self.pid, parts, direction),
        }
    }

    /// Copies through the file that is bound to the address space.
    fn through_mem(&self, addr: u64, own: &VolatileSlice<'_>, direction: Direction) -> Result<(), MemoryFault> {
        let (fd, len) = (self.mem.as_raw_fd(), own.len());
        let mut done = 0;
        while done < len {
            let at = addr.checked_add(done as u64).ok_or(MemoryFault)?;
            let at = i64::try_from(at).map_err(|_| MemoryFault)?;
            let guard = own.ptr_guard_mut();
            // SAFETY: done < len, so the pointer stays inside the slice.
            let part = unsafe { guard.as_ptr().add(done) }.cast::<libc::c_void>();
            // SAFETY: the slice has len - done bytes at `part`, valid while
            // `own` is borrowed; the kernel may race with other writers of it,
            // which is what a VolatileSlice allows.
            let moved = unsafe {
                match direction {
                    Direction::From => libc::pread(fd, part, len - done, at),
                    Direction::To => libc::pwrite(fd, part, len - done, at),
                }
            };
            match usize::try_from(moved) {
                // Nothing: the address space is gone.
                Ok(0) => return Err(MemoryFault),
                Ok(moved) => done += moved,
                Err(_) if last_errno() == Errno::EINTR => {}
                Err(_) => return Err(MemoryFault),
            }
        }
        Ok(())
    }
}

impl Memory for Process {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        copied(to.len());
        self.copy(offset, to, Direction::From)
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        copied(from.len());
        self.copy(offset, from, Direction::To)
    }

    fn read_many(&self, parts: Parts<'_, '_>) -> Result<(), MemoryFault> {
        parts.iter().for_each(|(_, own)| copied(own.len()));
        self.copy_many(parts, Direction::From)
    }

    fn write_many(&self, parts: Parts<'_, '_>) -> Result<(), MemoryFault> {
        parts.iter().for_each(|(_, own)| copied(own.len()));
        self.copy_many(parts, Direction::To)
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        match self.vma(offset) {
            Ok(Some(vma)) if vma.shared && vma.inode != 0 => {
                Some(file_page(vma.dev, vma.inode, vma.offset + (offset - vma.start)))
            }
            _ => Some(PageId { object: 1 << 127 | u128::from(self.space), offset }),
        }
    }
}

/// A byte of a file, which no address space is taken for.
pub(crate) fn file_page((major, minor): (u32, u32), inode: u64, offset: u64) -> PageId {
    let dev = u64::from(major & i32::MAX as u32) << 32 | u64::from(minor);
    PageId { object: u128::from(dev) << 64 | u128::from(inode), offset }
}

/// A device's access that the kernel has to copy: none of these in a trace,
/// and all DMA went to the very pages.
pub(crate) fn copied(bytes: usize) {
    tracing::event!(name: "copied", target: "vfuse::dma", tracing::Level::TRACE, bytes);
}

/// Which way a copy goes, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the other address space.
    From,
    /// To the other address space.
    To,
}

/// Copies between `own` and `addr` of whoever has pid or thread id `pid`; the
/// bytes done.
pub(crate) fn transfer(pid: i32, addr: u64, own: &VolatileSlice<'_>, direction: Direction) -> Result<usize, Errno> {
    let addr = usize::try_from(addr).map_err(|_| Errno::EFAULT)?;
    let guard = own.ptr_guard_mut();
    let local = libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: own.len() };
    // SAFETY: `local` is the slice, borrowed for the call; see `remote_copy`.
    unsafe { remote_copy(pid, addr, local, direction) }
}

/// Copies many pieces between ourselves and whoever has `pid`, in order;
/// whether all of it was copied.
fn transfer_many(pid: i32, parts: Parts<'_, '_>, direction: Direction) -> bool {
    let mut local = Vec::with_capacity(parts.len());
    let mut remote: Vec<libc::iovec> = Vec::with_capacity(parts.len());
    let mut guards = Vec::with_capacity(parts.len());
    let (mut total, mut end, page) = (0, None, page_size());
    for (addr, own) in parts {
        let (addr, len, guard) = (*addr, own.len(), own.ptr_guard_mut());
        let Ok(at) = usize::try_from(addr) else { return false };
        local.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: len });
        guards.push(guard);
        match remote.last_mut() {
            // Joined, the kernel looks up many pages at a time. It copies page
            // by page, so where a page begins they stay in order.
            Some(last) if end == Some(addr) && addr % page == 0 => last.iov_len += len,
            _ => remote.push(libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: len }),
        }
        total += len;
        end = addr.checked_add(len as u64);
    }
    let (locals, remotes) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
    // SAFETY: the local pieces are the slices, borrowed for the call; others
    // may change them meanwhile, as a VolatileSlice allows. The remote ones are
    // addresses of another program, which the kernel checks.
    let moved = unsafe {
        match direction {
            Direction::From => libc::process_vm_readv(pid, local.as_ptr(), locals, remote.as_ptr(), remotes, 0),
            Direction::To => libc::process_vm_writev(pid, local.as_ptr(), locals, remote.as_ptr(), remotes, 0),
        }
    };
    usize::try_from(moved) == Ok(total)
}

/// # Safety
/// `local` must be valid for the call: for writing if `direction` is `From`,
/// for reading if it is `To`.
unsafe fn remote_copy(pid: i32, addr: usize, local: libc::iovec, direction: Direction) -> Result<usize, Errno> {
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(addr), iov_len: local.iov_len };
    // SAFETY: one iovec on each side; the remote one is an address of another
    // program, which the kernel checks and this one never follows.
    let moved = unsafe {
        match direction {
            Direction::From => libc::process_vm_readv(pid, &local, 1, &remote, 1, 0),
            Direction::To => libc::process_vm_writev(pid, &local, 1, &remote, 1, 0),
        }
    };
    usize::try_from(moved).map_err(|_| last_errno())
}

/// Copies `buf.len()` bytes from `addr` of the program that thread `tid`
/// belongs to, which is waiting for the answer to a call. `EFAULT` if not all
/// of it can be read; `EPERM` if the program may not be looked into.
pub fn read_user(tid: i32, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
    whole(buf.len(), transfer(tid, addr, &VolatileSlice::from(&mut *buf), Direction::From))
}

/// Copies `buf` to `addr` of that program. `EFAULT` if not all of it can be
/// written, some of it may have been; `EPERM` as for [`read_user`].
pub fn write_user(tid: i32, addr: u64, buf: &[u8]) -> Result<(), Errno> {
    let addr = usize::try_from(addr).map_err(|_| Errno::EFAULT)?;
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: the kernel only reads `buf` for a copy `To` the program.
    whole(buf.len(), unsafe { remote_copy(tid, addr, local, Direction::To) })
}

fn whole(len: usize, moved: Result<usize, Errno>) -> Result<(), Errno> {
    match moved {
        Ok(moved) if moved == len => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        Err(e) => Err(e),
    }
}

/// Smallest multiple of the page size that is not below `len`.
pub(crate) fn round_to_pages(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(page_size())
}
