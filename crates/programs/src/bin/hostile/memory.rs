// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls with any arguments, and memory in which nothing of the program
//! lives.

use std::ffi::{CString, c_long};
use std::process;

/// Memory that is handed around: the program never keeps anything of its own in it.
pub(crate) const ARENA: usize = 1 << 20;
pub(crate) const PAGE: usize = 4096;
/// Nothing is behind the arena, so that what a device is led to by mixed up
/// lengths and addresses is nothing of the program.
const GUARD: usize = 8 << 30;

/// A system call with any arguments.
pub(crate) fn call(number: c_long, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: pointers come from `Arena::pointer`: they lead to the arena, in
    // which nothing of the program lives, or to where nothing is mapped or
    // writable. Mappings are made and removed inside of the arena only.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Small steps of a generator; each thread has its own.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Addresses: the arena, whose halves are shared and private memory, and a
/// page behind it that only reads.
#[derive(Clone, Copy)]
pub(crate) struct Arena(pub(crate) u64);

impl Arena {
    pub(crate) fn new() -> Arena {
        let whole = map(0, ARENA + PAGE + GUARD, libc::PROT_NONE, libc::MAP_NORESERVE);
        let arena = Arena(whole);
        arena.fill(0, ARENA);
        map(whole + ARENA as u64, PAGE, libc::PROT_READ, libc::MAP_FIXED);
        arena
    }

    /// Fresh memory in a part of the arena.
    pub(crate) fn fill(self, at: usize, len: usize) {
        let kind = if at < ARENA / 2 { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | kind;
        let both = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        call(libc::SYS_mmap, [self.0 + at as u64, len as u64, both, flags as u64, u64::MAX, 0]);
    }

    pub(crate) fn holds(self, at: u64) -> bool {
        (self.0..self.0 + (ARENA + 2 * PAGE) as u64).contains(&at)
    }

    pub(crate) fn pointer(self, rng: &mut Rng) -> u64 {
        let end = self.0 + ARENA as u64;
        match rng.below(12) {
            0 => 0,
            1 => rng.of(&[1, 8, 0xfff, 1 << 46, 0x7fff_ffff_f000, u64::MAX, u64::MAX - 4095, 1 << 63]),
            2 => 0xffff_8000_0000_0000 | rng.below(1 << 40),
            3 => end - rng.below(64),                   // straddles what only reads
            4 => end + PAGE as u64 - 1 - rng.below(64), // straddles what is not there
            5 => end + PAGE as u64,
            _ => self.0 + rng.below(ARENA as u64 - 4096),
        }
    }

    /// Stores words by the kernel's hand, so that a page that is just being
    /// replaced is no fault. What leads out of the arena is left alone.
    pub(crate) fn store(self, at: u64, words: &[u32]) {
        if self.has(at, size_of_val(words)) {
            copy(libc::SYS_process_vm_writev, words.as_ptr() as u64, at, size_of_val(words));
        }
    }

    /// A word of the arena, or 0.
    pub(crate) fn word(self, at: u64) -> u32 {
        let mut word = 0_u32;
        if self.has(at, 4) {
            copy(libc::SYS_process_vm_readv, (&raw mut word) as u64, at, 4);
        }
        word
    }

    fn has(self, at: u64, len: usize) -> bool {
        (self.0..self.0 + (ARENA - len) as u64).contains(&at)
    }
}

/// One of the two calls that copy between processes, on the program itself.
pub(crate) fn copy(number: c_long, here: u64, there: u64, len: usize) {
    let local = libc::iovec { iov_base: here as *mut libc::c_void, iov_len: len };
    let remote = libc::iovec { iov_base: there as *mut libc::c_void, iov_len: len };
    let (local, remote) = ((&raw const local) as u64, (&raw const remote) as u64);
    call(number, [u64::from(process::id()), local, 1, remote, 1, 0]);
}

fn map(at: u64, len: usize, prot: i32, flags: i32) -> u64 {
    let flags = (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let address = call(libc::SYS_mmap, [at, len as u64, prot as u64, flags, u64::MAX, 0]);
    assert!(address > 0, "no memory: {}", std::io::Error::last_os_error());
    address as u64
}

pub(crate) fn open(path: &str) -> i32 {
    let path = CString::new(path).unwrap_or_default();
    // SAFETY: a string that ends with NUL.
    unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }
}

pub(crate) fn close(fd: i32) {
    // Standard input and output stay.
    if fd > 2 {
        call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
    }
}
