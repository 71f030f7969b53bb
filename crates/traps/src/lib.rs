// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The library that `vfuse run --traps` has preloaded: a program's loads from
//! and stores to the BARs that it maps reach the device one by one, as on
//! hardware.
//!
//! Under `vfuse` a mapped BAR is a shared page at which the device looks now
//! and then. That is good enough for doorbells; it is not for a driver that
//! reads a status nanoseconds after a store, nor for one that stores every
//! descriptor to the same address. With this library the pages are mapped
//! without access: each load or store faults, is read off the instruction and
//! done with `pread` or `pwrite` on the device, and the program goes on behind
//! it. `MOVDIR64B` and `ENQCMD` work so on machines that do not have them, too.
//!
//! `c` is what it uses of libc, `alu`, `decode` and `emulate` are the
//! instructions, `ranges` tells what is mapped where, `handlers` keeps the
//! program's own signal handlers.
//!
//! # What it doesn't do
//! - Instructions other than plain loads and stores of 1 to 16 bytes, the
//!   arithmetic of `or [mem], reg` and the like, exchanges, and those two: the
//!   program gets its signal, as for any stray access.
//! - `ENQCMD` takes the PASID from the descriptor: there is no register for it.
//! - Static programs, system calls made without libc, and threads that block
//!   SIGSEGV or SIGILL.
//! - Only x86-64 and glibc; elsewhere it is empty.
#![cfg(target_arch = "x86_64")]

mod alu;
mod c;
mod decode;
mod emulate;
pub mod handlers;
mod ranges;

use std::ffi::{c_int, c_void};

/// Offsets in a device's file are at least this; those of other files are not.
const DEVICES: i64 = 1 << 45;
/// Copies of descriptors get numbers from here on.
const HIGH: c_int = 512;

/// Stands before libc's `mmap`.
///
/// # Safety
/// As for libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: what the caller asks of libc.
    let at = unsafe { c::syscall(c::SYS_MMAP, addr, len, protection, flags, fd, offset) } as usize;
    if at == c::MAP_FAILED {
        return at as *mut c_void;
    }
    if flags & c::MAP_FIXED != 0 {
        ranges::remove(at, len);
    }
    if fd >= 0 && offset >= DEVICES && flags & c::MAP_SHARED != 0 {
        // SAFETY: the descriptor is open, or it could not have been mapped. The
        // mapping keeps the device open, as on Linux, and so does the copy.
        let copy = unsafe { c::fcntl(fd, c::F_DUPFD_CLOEXEC, HIGH) };
        if copy >= 0 && ranges::add(at, len, copy, offset) {
            // SAFETY: the mapping is new, and its accesses are done by hand.
            unsafe { c::syscall(c::SYS_MPROTECT, at, len, c::PROT_NONE) };
        }
    }
    at as *mut c_void
}

/// The same.
///
/// # Safety
/// As for libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the same.
    unsafe { mmap(addr, len, protection, flags, fd, offset) }
}

/// Stands before libc's `munmap`.
///
/// # Safety
/// As for libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: what the caller asks of libc.
    let done = unsafe { c::syscall(c::SYS_MUNMAP, addr, len) };
    if done == 0 {
        ranges::remove(addr as usize, len);
    }
    done as c_int
}
