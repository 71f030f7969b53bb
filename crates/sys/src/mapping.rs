// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared mappings of files that programs can truncate.
//!
//! Touching a page behind the end of a mapped file raises SIGBUS, and the file
//! is the program's: it may shrink while a device copies. So each [`Mapping`]
//! stands in a table, and a SIGBUS handler that finds the address in it puts a
//! page of zeros there, marks the mapping as broken, and lets the copy go on.
//! Signals for other addresses go on to the handler that was there before.
//!
//! The table is a static array that the handler reads without a lock. A slot
//! is filled before its mapping is used and cleared before it is unmapped, so
//! no fault can come from a slot that is being changed.
#![allow(unsafe_code)] // mmap, and a signal handler

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use vm_memory::VolatileSlice;

/// Most mappings at a time. Linux allows a program 65,530 by default.
const SLOTS: usize = 16384;

struct Slot {
    start: AtomicUsize,
    /// 0: the slot is free.
    end: AtomicUsize,
    page: AtomicUsize,
    broken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; SLOTS];

/// Slots below this have been used.
static USED: AtomicUsize = AtomicUsize::new(0);

fn free_slots() -> MutexGuard<'static, Vec<usize>> {
    static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    FREE.lock().unwrap_or_else(|e| e.into_inner())
}

fn take_slot() -> Option<usize> {
    let mut free = free_slots();
    if let Some(slot) = free.pop() {
        return Some(slot);
    }
    let next = USED.load(Ordering::Relaxed);
    if next == SLOTS {
        return None;
    }
    USED.store(next + 1, Ordering::Release);
    Some(next)
}

/// A range of a file in our own address space, shared.
#[derive(Debug)]
pub(crate) struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    slot: usize,
    offset: u64,
    writable: bool,
    page: u64,
}

// SAFETY: the memory is shared with other programs anyway; it is only given out
// as VolatileSlice, which expects concurrent change, and is unmapped by Drop,
// when nothing borrows it any more.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, both multiples of `page`, the
    /// page size of the file. Behind the end of the file too: it may grow.
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, writable: bool, page: u64) -> io::Result<Mapping> {
        install_handler();
        let slot = take_slot().ok_or(io::ErrorKind::OutOfMemory)?;
        let addr = match map(len, fd, offset, writable, page) {
            Ok(addr) => addr,
            Err(e) => {
                free_slots().push(slot);
                return Err(e);
            }
        };
        let entry = &TABLE[slot];
        let start = addr.as_ptr() as usize;
        entry.start.store(start, Ordering::Relaxed);
        entry.page.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
        entry.broken.store(false, Ordering::Relaxed);
        entry.end.store(start + len, Ordering::Release);
        Ok(Mapping { addr, len, slot, offset, writable, page })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte here.
    pub(crate) fn addr(&self) -> u64 {
        self.addr.as_ptr() as u64
    }

    /// Offset in the file of the first byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether stores are allowed.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// A part of it; `None` if it is not inside.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping (checked), which lives as long as `self`.
        Some(unsafe { VolatileSlice::new(self.addr.as_ptr().add(offset), len) })
    }

    /// Fetches the cache lines of a part of it, to be written if `write`. Never
    /// faults: what is not there is not fetched.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize, len: usize, write: bool) {
        #[cfg(target_arch = "x86_64")]
        {
            const LINE: usize = 64;
            let start = (self.addr.as_ptr() as usize).wrapping_add(offset);
            let (mut line, end) = (start & !(LINE - 1), start.wrapping_add(len));
            while line < end {
                // SAFETY: hints that access nothing, whatever the address. (The
                // intrinsic's hint for writing needs a newer target than ours to
                // be one; a processor that does not know it does nothing.)
                unsafe {
                    match write {
                        true => std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags)),
                        false => std::arch::asm!("prefetcht0 [{}]", in(reg) line, options(nostack, preserves_flags)),
                    }
                }
                line += LINE;
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (offset, len, write);
    }

    /// Whether a page turned out to be missing since the last repair. Some
    /// pages are not those of the file then.
    pub(crate) fn is_broken(&self) -> bool {
        TABLE[self.slot].broken.load(Ordering::Acquire)
    }

    /// Puts the pages of the file back.
    pub(crate) fn repair(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        TABLE[self.slot].broken.store(false, Ordering::Release);
        let repaired = map(self.len, fd, self.offset, self.writable, self.page).and_then(|new| {
            let (new, old) = (new.as_ptr().cast::<libc::c_void>(), self.addr.as_ptr().cast::<libc::c_void>());
            // SAFETY: replaces exactly our own mapping, in one step for whoever
            // uses it meanwhile, by the new one, which nobody knows yet.
            let moved =
                unsafe { libc::mremap(new, self.len, self.len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, old) };
            if moved != libc::MAP_FAILED {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // SAFETY: the new mapping, which nobody knows.
            unsafe { libc::munmap(new, self.len) };
            Err(error)
        });
        if repaired.is_err() {
            TABLE[self.slot].broken.store(true, Ordering::Release);
        }
        repaired
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        TABLE[self.slot].end.store(0, Ordering::Release);
        // SAFETY: our own mapping, and nothing borrows it any more.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
        free_slots().push(self.slot);
    }
}

/// Maps a part of a file where the kernel likes.
fn map(len: usize, fd: BorrowedFd<'_>, offset: u64, writable: bool, page: u64) -> io::Result<NonNull<u8>> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // A writable mapping makes a hugetlbfs file as long as itself; one that
    // becomes writable does not.
    let in_steps = writable && page > crate::page_size();
    let prot = if writable && !in_steps { both } else { libc::PROT_READ };
    // Not reserving: huge pages that the program has not touched are not taken from others.
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: no address is asked for, so nothing existing is replaced.
    let got = unsafe { libc::mmap64(std::ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), offset) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping that was just made.
    if in_steps && unsafe { libc::mprotect(got, len, both) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: as above; nobody knows it yet.
        unsafe { libc::munmap(got, len) };
        return Err(error);
    }
    NonNull::new(got.cast()).ok_or(io::ErrorKind::OutOfMemory.into())
}

/// What SIGBUS did before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install_handler() {
    static DONE: std::sync::Once = std::sync::Once::new();
    DONE.call_once(|| {
        // SAFETY: sigaction is plain old data, all zeros is a value of it.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only reads the present action into a valid struct.
        unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut old) };
        let _ = PREVIOUS.set(old);
        new.sa_sigaction = on_sigbus as *const () as usize;
        // The alternative stack, if a thread has one: the fault may be a stack's.
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and
        // does only what a signal handler may.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const new, std::ptr::null_mut()) };
    });
}

/// Only async-signal-safe steps: atomic loads and stores, `mmap`, `sigaction`.
extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: errno is the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a valid siginfo to an SA_SIGINFO handler.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Codes above 0 are faults; the others were sent by somebody, and have no address.
    if code > 0 && replace_page(addr) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        return;
    }
    pass_on(signal, info, context);
}

/// Puts zeros at `addr` if it is one of ours.
fn replace_page(addr: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    for slot in &TABLE[..used.min(SLOTS)] {
        let end = slot.end.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Acquire);
        // A slot may be changing for another mapping: `end` is written last.
        if addr < start || addr >= end || slot.end.load(Ordering::Acquire) != end {
            continue;
        }
        slot.broken.store(true, Ordering::Release);
        let page = slot.page.load(Ordering::Relaxed).max(1);
        let at = addr - (addr - start) % page;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces one page of a mapping of ours, which cannot go away
        // meanwhile: the access that faulted borrows it.
        let got = unsafe { libc::mmap64(std::ptr::without_provenance_mut(at), page, prot, flags, -1, 0) };
        return got != libc::MAP_FAILED;
    }
    false
}

fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |old| old.sa_sigaction);
    if handler == libc::SIG_IGN || handler == libc::SIG_DFL {
        // SAFETY: sigaction is plain old data; all zeros is SIG_DFL.
        let default: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a valid struct. The access is repeated, or the signal raised
        // again below, and ends the program as it would have without us.
        unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
        // SAFETY: the kernel gives a valid siginfo to an SA_SIGINFO handler.
        if unsafe { (*info).si_code } <= 0 {
            // SAFETY: raise is async-signal-safe.
            unsafe { libc::raise(signal) };
        }
        return;
    }
    if previous.is_some_and(|old| old.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: whoever installed it with SA_SIGINFO gave a function of this type.
        let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = unsafe { std::mem::transmute(handler) };
        call(signal, info, context);
    } else {
        // SAFETY: and without SA_SIGINFO one of this type.
        let call: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
        call(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::Bytes;

    use super::*;

    fn memfd(len: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn a_missing_page_reads_as_zeros_and_marks_the_mapping() {
        let fd = memfd(8192);
        let page = crate::page_size();
        let mapping = Mapping::new(fd.as_fd(), 0, 8192, true, page).unwrap();
        let other = Mapping::new(fd.as_fd(), 0, 4096, true, page).unwrap();
        let all = mapping.slice(0, 8192).unwrap();
        all.write_slice(&[7; 8192], 0).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert!(!mapping.is_broken());
        let mut seen = [1; 8192];
        all.read_slice(&mut seen, 0).unwrap();
        assert!(seen[..4096].iter().all(|&b| b == 7) && seen[4096..].iter().all(|&b| b == 0));
        assert!(mapping.is_broken() && !other.is_broken());
        // The page is private now; repaired, it is the file's again.
        ftruncate(&fd, 8192).unwrap();
        all.write_obj(1u8, 5000).unwrap();
        mapping.repair(fd.as_fd()).unwrap();
        assert_eq!(all.read_obj::<u8>(5000).unwrap(), 0);
        assert!(!mapping.is_broken());
    }

    #[test]
    fn nothing_outside_is_given_out() {
        let fd = memfd(4096);
        let mapping = Mapping::new(fd.as_fd(), 0, 4096, false, crate::page_size()).unwrap();
        assert!(mapping.slice(0, 4096).is_some());
        assert!(mapping.slice(1, 4096).is_none());
        assert!(mapping.slice(usize::MAX, 2).is_none());
    }

    #[test]
    fn slots_are_used_again() {
        let fd = memfd(4096);
        for _ in 0..3 * SLOTS {
            Mapping::new(fd.as_fd(), 0, 4096, true, crate::page_size()).unwrap();
        }
        assert!(USED.load(Ordering::Relaxed) < SLOTS);
    }

    #[test]
    fn other_faults_still_kill() {
        let fd = memfd(4096);
        let _mapping = Mapping::new(fd.as_fd(), 0, 4096, true, crate::page_size()).unwrap();
        // SAFETY: a mapping of the test's own, where the kernel chooses.
        let bare = unsafe {
            libc::mmap64(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd.as_raw_fd(), 4096)
        };
        assert_ne!(bare, libc::MAP_FAILED);
        // SAFETY: the child only reads one byte, behind the end of the file.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: mapped above; the read raises SIGBUS, which is the test.
            unsafe {
                bare.cast::<u8>().read_volatile();
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: the child's pid and a valid status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "status {status:#x}");
    }
}
