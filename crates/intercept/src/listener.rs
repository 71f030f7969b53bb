// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The descriptor through which the kernel hands us the program's calls.
#![allow(unsafe_code)] // the ioctls have no safe wrapper

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_ulong;
use rustix::io::Errno;

const RECV: c_ulong = 0xc050_2100;
const SEND: c_ulong = 0xc018_2101;
const ID_VALID: c_ulong = 0x4008_2102;
const ADDFD: c_ulong = 0x4018_2103;
const SET_FLAGS: c_ulong = 0x4008_2104;

const FLAG_CONTINUE: u32 = 1;
const ADDFD_SETFD: u32 = 1;
const ADDFD_SEND: u32 = 2;
const SYNC_WAKE_UP: u64 = 1;

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notification {
    /// The answer goes to this.
    pub(crate) id: u64,
    /// The thread, as this process numbers it.
    pub(crate) tid: i32,
    /// Number of the system call.
    pub(crate) nr: i32,
    /// Its arguments.
    pub(crate) args: [u64; 6],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawNotification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

/// Where the kernel stores a notification; it may have grown since, and says
/// so by `SECCOMP_GET_NOTIF_SIZES` only to those who ask.
#[repr(C)]
struct Buffer {
    raw: RawNotification,
    spare: [u64; 32],
}

#[repr(C)]
struct RawAnswer {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
    spare: [u64; 8],
}

#[repr(C)]
struct RawAddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

/// The listener.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Takes the listener of a program that has just installed its filter.
    pub(crate) fn new(fd: OwnedFd) -> Listener {
        let listener = Listener(fd);
        // Linux 6.6: lets caller and supervisor share a core, which saves a
        // third of the round trip. Older kernels refuse; nothing else changes.
        // SAFETY: SET_FLAGS takes its argument by value.
        let _ = unsafe { libc::ioctl(listener.0.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        listener
    }

    /// Waits for a call. `ENOENT`: the caller died meanwhile, or nobody is
    /// left; `EINTR`: a signal came.
    pub(crate) fn receive(&self) -> Result<Notification, Errno> {
        let mut buffer = Buffer { raw: RawNotification::default(), spare: [0; 32] };
        self.ioctl(RECV, &raw mut buffer)?;
        let raw = buffer.raw;
        Ok(Notification { id: raw.id, tid: raw.pid as i32, nr: raw.nr, args: raw.args })
    }

    /// Answers with a value, or with a positive error number.
    pub(crate) fn answer(&self, id: u64, result: Result<u64, uapi::Errno>) -> Result<(), Errno> {
        let (val, error) = match result {
            Ok(value) => (value as i64, 0),
            Err(errno) => (0, -errno.raw()),
        };
        self.send(RawAnswer { id, val, error, flags: 0, spare: [0; 8] })
    }

    /// Lets the kernel do the call.
    pub(crate) fn go_on(&self, id: u64) -> Result<(), Errno> {
        self.send(RawAnswer { id, val: 0, error: 0, flags: FLAG_CONTINUE, spare: [0; 8] })
    }

    /// Answers with a new descriptor for `fd`, in one step: either the program
    /// has both number and file, or the call still waits.
    pub(crate) fn answer_fd(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
        self.send_fd(id, fd, cloexec, ADDFD_SEND, 0)
    }

    /// Gives the program a new descriptor for `fd`. The call still waits for
    /// its answer.
    pub(crate) fn add_fd(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
        self.send_fd(id, fd, cloexec, 0, 0)
    }

    /// Puts `fd` in the place of the program's descriptor `number`. The call
    /// still waits for its answer.
    pub(crate) fn replace_fd(&self, id: u64, fd: BorrowedFd<'_>, number: i32, cloexec: bool) -> Result<(), Errno> {
        self.send_fd(id, fd, cloexec, ADDFD_SETFD, number).map(drop)
    }

    /// Whether the call still waits: what was looked up by its thread id since
    /// then belongs to that thread.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        let mut id = id;
        self.ioctl(ID_VALID, &raw mut id).is_ok()
    }

    fn send_fd(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool, flags: u32, newfd: i32) -> Result<i32, Errno> {
        let mut raw = RawAddFd {
            id,
            flags,
            srcfd: fd.as_raw_fd() as u32,
            newfd: newfd as u32,
            newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        self.ioctl(ADDFD, &raw mut raw)
    }

    fn send(&self, mut answer: RawAnswer) -> Result<(), Errno> {
        self.ioctl(SEND, &raw mut answer).map(drop)
    }

    fn ioctl<T>(&self, request: c_ulong, arg: *mut T) -> Result<i32, Errno> {
        // SAFETY: each request is paired above with a structure that is at
        // least as long as the kernel's, and lives for the call.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, arg) } {
            -1 => Err(last_errno()),
            value => Ok(value),
        }
    }
}

/// The error of the last libc call.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The same number in the core's type.
pub(crate) fn to_core(errno: Errno) -> uapi::Errno {
    uapi::Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_in_the_request_numbers() {
        assert_eq!(size_of::<RawNotification>(), (RECV as usize >> 16) & 0x3fff);
        assert_eq!(std::mem::offset_of!(RawAnswer, spare), (SEND as usize >> 16) & 0x3fff);
        assert_eq!(size_of::<RawAddFd>(), (ADDFD as usize >> 16) & 0x3fff);
    }
}
