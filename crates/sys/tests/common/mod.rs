// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Real child processes for tests. A child shares no lock with the test: it
//! makes system calls only, and the two take turns through pipes.
#![allow(dead_code)] // each test binary uses some of it

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use vm_memory::VolatileSlice;

/// A child of the test; killed and reaped when dropped.
pub(crate) struct Child {
    pub(crate) pid: i32,
    from: std::fs::File,
    to: std::fs::File,
}

/// The child's end.
pub(crate) struct Turns {
    out: i32,
    inward: i32,
}

impl Turns {
    /// Gives a number to the test and waits for its turn. Ends the child when
    /// the test is gone.
    pub(crate) fn give(&self, value: u64) {
        self.tell(value);
        self.wait();
    }

    /// Gives a number to the test.
    pub(crate) fn tell(&self, value: u64) {
        let bytes = value.to_ne_bytes();
        // SAFETY: eight valid bytes; the pipe is the child's own.
        unsafe { libc::write(self.out, bytes.as_ptr().cast(), 8) };
    }

    /// Waits for the test.
    pub(crate) fn wait(&self) {
        let mut byte = 0u8;
        // SAFETY: one valid byte; the pipe is the child's own.
        if unsafe { libc::read(self.inward, (&raw mut byte).cast(), 1) } != 1 {
            exit(0);
        }
    }
}

/// Ends a child at once.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(code) }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: two valid descriptors' places.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: both were just made and belong to nobody else.
    unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) }
}

impl Child {
    /// Starts a child that runs `body`, which may only make system calls.
    pub(crate) fn start(body: impl FnOnce(&Turns)) -> Child {
        // SAFETY: the child only runs `body` and exits.
        Child::start_with(|| unsafe { libc::fork() }, body)
    }

    /// The same with a fork of the caller's own.
    pub(crate) fn start_with(fork: impl FnOnce() -> i32, body: impl FnOnce(&Turns)) -> Child {
        use std::os::fd::AsRawFd;
        let (from, out) = pipe();
        let (inward, to) = pipe();
        let turns = Turns { out: out.as_raw_fd(), inward: inward.as_raw_fd() };
        let pid = fork();
        if pid == 0 {
            // The test's ends must not stay open here.
            // SAFETY: descriptors of the child, which nothing else of it uses.
            unsafe {
                libc::close(from.as_raw_fd());
                libc::close(to.as_raw_fd());
            }
            body(&turns);
            exit(0);
        }
        assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        Child { pid, from: from.into(), to: to.into() }
    }

    /// The next number that the child gives.
    pub(crate) fn take(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// Gives the child its turn.
    pub(crate) fn go(&mut self) {
        self.to.write_all(&[1]).unwrap();
    }

    /// Waits until the child has no end of the pipe any more (exec, death).
    pub(crate) fn wait_closed(&mut self) {
        assert_eq!(self.from.read(&mut [0]).unwrap(), 0);
    }

    /// Kills and reaps it.
    pub(crate) fn kill(&self) {
        // SAFETY: a child of ours that is not reaped yet, or an error.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap();
    }

    /// Its exit status.
    pub(crate) fn reap(&self) -> i32 {
        let mut status = 0;
        // SAFETY: a valid status.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        status
    }

    pub(crate) fn process(&self) -> Arc<sys::Process> {
        sys::Process::open(self.pid).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Maps memory: `fd` -1 for anonymous.
pub(crate) fn map(addr: u64, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> u64 {
    let fixed = if addr == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: fixed addresses are those that the test has set aside.
    let got = unsafe { libc::mmap(addr as *mut libc::c_void, len, prot, flags | fixed, fd, offset) };
    if got == libc::MAP_FAILED {
        eprintln!("mmap: {}", std::io::Error::last_os_error());
        exit(99);
    }
    got as u64
}

pub(crate) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub(crate) const RO: i32 = libc::PROT_READ;
pub(crate) const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Fills memory of this process.
pub(crate) fn fill(addr: u64, value: u8, len: usize) {
    // SAFETY: the test has mapped it so long.
    unsafe { std::ptr::write_bytes(addr as *mut u8, value, len) };
}

/// A byte of this process.
pub(crate) fn peek(addr: u64) -> u8 {
    // SAFETY: the test has mapped it.
    unsafe { (addr as *const u8).read_volatile() }
}

/// A memfd of `len` bytes.
pub(crate) fn memfd(len: i64) -> i32 {
    // SAFETY: a valid name; the file is the caller's own.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert_eq!(libc::ftruncate(fd, len), 0);
        fd
    }
}

/// Sets the length of a file.
pub(crate) fn truncate(fd: i32, len: i64) {
    // SAFETY: no memory is involved.
    unsafe { libc::ftruncate(fd, len) };
}

/// Reads `len` bytes of a memory.
pub(crate) fn read(memory: &dyn iommu::Memory, offset: u64, len: usize) -> Result<Vec<u8>, iommu::MemoryFault> {
    let mut bytes = vec![0xee; len];
    memory.read(offset, &VolatileSlice::from(&mut bytes[..]))?;
    Ok(bytes)
}

/// Writes `len` bytes of `value` to a memory.
pub(crate) fn write(memory: &dyn iommu::Memory, offset: u64, value: u8, len: usize) -> Result<(), iommu::MemoryFault> {
    memory.write(offset, &VolatileSlice::from(&mut vec![value; len][..]))
}
