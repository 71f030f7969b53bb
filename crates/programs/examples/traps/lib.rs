// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `LD_PRELOAD=libtraps.so`: a program's loads from and stores to the BARs
//! that it maps reach the device one by one, as on hardware.
//!
//! Under `vfuse` a mapped BAR is a shared page at which the device looks now
//! and then. That is good enough for doorbells; it is not for a driver that
//! reads a status nanoseconds after a store, nor for one that stores every
//! descriptor to the same address. With this library the pages are mapped
//! without access: each load or store faults, is read off the instruction and
//! done with `pread` or `pwrite` on the device, and the program goes on behind
//! it. `MOVDIR64B` and `ENQCMD` work so on machines that do not have them, too.
//!
//! # What it doesn't do
//! - Instructions other than plain loads and stores of 1 to 16 bytes, the
//!   arithmetic of `or [mem], reg` and the like, exchanges, and those two: the
//!   program dies of its signal, as it would of any stray access.
//! - `ENQCMD` takes the PASID from the descriptor: there is no register for it.
//! - Static programs, and threads that block SIGSEGV or SIGILL.
//! - Only x86-64; elsewhere it does nothing.
#![cfg(target_arch = "x86_64")]

mod alu;
mod decode;
mod emulate;
mod ranges;

use std::ffi::{c_int, c_long, c_void};

/// The handlers are there before `main`.
// SAFETY: the section holds pointers to functions that take no arguments they
// look at, which is what the dynamic linker calls.
#[unsafe(link_section = ".init_array")]
#[used]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    for signal in [libc::SIGSEGV, libc::SIGILL] {
        // SAFETY: an all-zero sigaction is a valid one, and `fault` has the
        // type that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn fault(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler installed with SA_SIGINFO a ucontext
    // that is its own until it returns.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    if !emulate::step(context) {
        // Not ours: the same happens again, with the usual end.
        // SAFETY: SIG_DFL is a disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: errno is this thread's.
    unsafe { *libc::__errno_location() = errno };
}

/// Offsets in a device's file are at least this; those of other files are not.
const DEVICES: i64 = 1 << 45;

/// Stands before libc's `mmap`.
///
/// # Safety
/// As for libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: what the caller asks of libc.
    let at = unsafe { libc::syscall(libc::SYS_mmap, addr, len, protection, flags, fd, offset) } as usize;
    if at == libc::MAP_FAILED as usize {
        return libc::MAP_FAILED;
    }
    if flags & libc::MAP_FIXED != 0 {
        ranges::remove(at, len);
    }
    if fd >= 0 && offset >= DEVICES && flags & libc::MAP_SHARED != 0 {
        // SAFETY: the descriptor is open, or it could not have been mapped. The
        // mapping keeps the device open, as on Linux, and so does the copy.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 512) };
        if copy >= 0 && ranges::add(at, len, copy, offset) {
            // SAFETY: the mapping is new, and its accesses are done by hand.
            unsafe { libc::syscall(libc::SYS_mprotect, at, len, libc::PROT_NONE) };
        }
    }
    at as *mut c_void
}

/// The same.
///
/// # Safety
/// As for libc's.
#[unsafe(no_mangle)]
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
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: what the caller asks of libc.
    let done: c_long = unsafe { libc::syscall(libc::SYS_munmap, addr, len) };
    if done == 0 {
        ranges::remove(addr as usize, len);
    }
    done as c_int
}
