// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of libc as is needed. `vfuse`'s build script compiles this library
//! by a bare compiler, which knows no other crate.

use std::ffi::{c_int, c_long, c_void};

pub(crate) const SIGILL: c_int = 4;
pub(crate) const SIGSEGV: c_int = 11;
pub(crate) const SIG_DFL: usize = 0;
pub(crate) const SIG_IGN: usize = 1;
pub(crate) const SA_SIGINFO: c_int = 4;
pub(crate) const SA_ONSTACK: c_int = 0x0800_0000;
pub(crate) const SA_NODEFER: c_int = 0x4000_0000;
pub(crate) const MAP_SHARED: c_int = 1;
pub(crate) const MAP_FIXED: c_int = 16;
pub(crate) const MAP_FAILED: usize = usize::MAX;
pub(crate) const PROT_NONE: c_int = 0;
pub(crate) const F_DUPFD_CLOEXEC: c_int = 1030;
pub(crate) const SYS_MMAP: c_long = 9;
pub(crate) const SYS_MPROTECT: c_long = 10;
pub(crate) const SYS_MUNMAP: c_long = 11;

/// `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SigAction {
    pub(crate) handler: usize,
    pub(crate) mask: [u64; 16],
    pub(crate) flags: c_int,
    pub(crate) restorer: usize,
}

/// `ucontext_t`, as far as the pointer to the vector unit's state.
#[repr(C)]
pub(crate) struct Context {
    flags: u64,
    link: *mut c_void,
    stack: *mut c_void,
    stack_flags: c_int,
    stack_size: usize,
    /// By the numbers below.
    pub(crate) registers: [i64; 23],
    pub(crate) vectors: *mut Vectors,
}

/// What FXSAVE stores, as far as the vector registers.
#[repr(C)]
pub(crate) struct Vectors {
    before: [u8; 160],
    pub(crate) xmm: [[u32; 4]; 16],
}

/// Indexes of `registers`, in the order of the registers' numbers: RAX, RCX,
/// RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
pub(crate) const GENERAL: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
pub(crate) const RIP: usize = 16;
pub(crate) const FLAGS: usize = 17;

unsafe extern "C" {
    pub(crate) fn syscall(number: c_long, ...) -> c_long;
    pub(crate) fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    pub(crate) fn pread64(fd: c_int, buf: *mut c_void, count: usize, offset: i64) -> isize;
    pub(crate) fn pwrite64(fd: c_int, buf: *const c_void, count: usize, offset: i64) -> isize;
    pub(crate) fn close(fd: c_int) -> c_int;
    pub(crate) fn __errno_location() -> *mut c_int;
    /// libc's `sigaction` by its other name.
    pub(crate) fn __sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
}
