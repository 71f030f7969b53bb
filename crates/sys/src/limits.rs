// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program may do: its capabilities and its limit on locked memory.
//!
//! VFIO asks for capabilities in the machine's first user namespace. A program
//! that is root in a namespace of its own (as every program is that a lab
//! without privileges starts) has all bits set and none of the rights, so its
//! namespace counts before its bits do.

#![allow(unsafe_code)] // prlimit without a new value has no safe wrapper

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use caller::Capability;
use rustix::process::Pid;
use uapi::Errno;

use crate::last_errno;

/// Inode number that the kernel gives to its first user namespace
/// (`PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// `RLIMIT_MEMLOCK` of a program in bytes; `u64::MAX` for none. `ESRCH`,
/// `EACCES`.
pub fn memlock(pid: i32) -> Result<u64, Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new value is given; the old one is written to a valid struct.
    let answer = unsafe { libc::prlimit64(pid, libc::RLIMIT_MEMLOCK, std::ptr::null(), &raw mut limit) };
    match answer {
        // RLIM64_INFINITY is all ones as well.
        0 => Ok(limit.rlim_cur),
        _ if last_errno() == Errno::EPERM => memlock_from_text(pid),
        _ => Err(last_errno()),
    }
}

/// The same for a program of another user: `prlimit` asks for more rights than
/// the file does.
fn memlock_from_text(pid: i32) -> Result<u64, Errno> {
    let text = read_small(&format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory")).ok_or(Errno::EIO)?;
    match line.split_ascii_whitespace().next() {
        Some("unlimited") => Ok(u64::MAX),
        Some(number) => number.parse().map_err(|_| Errno::EIO),
        None => Err(Errno::EIO),
    }
}

/// The real user id of a program, as locked memory is counted. `ESRCH`,
/// `EACCES`.
pub fn user(pid: i32) -> Result<u32, Errno> {
    let text = read_small(&format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:")).ok_or(Errno::EIO)?;
    line.split_ascii_whitespace().next().and_then(|uid| uid.parse().ok()).ok_or(Errno::EIO)
}

/// Capabilities of a program, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    effective: u64,
    /// `None`: not asked for, since there are none.
    first_namespace: Option<bool>,
}

impl Capabilities {
    /// Those that thread or process `pid` has now. `ESRCH`, `EACCES`.
    pub fn of(pid: i32) -> Result<Capabilities, Errno> {
        Capabilities::in_namespace(pid, None)
    }

    /// The same where it is known already whether its user namespace is the
    /// machine's first.
    pub fn in_namespace(pid: i32, first: Option<bool>) -> Result<Capabilities, Errno> {
        // One short call, where the text of `status` takes tens of them.
        let name = Pid::from_raw(pid).ok_or(Errno::from_raw(libc::ESRCH))?;
        let sets = rustix::thread::capabilities(Some(name)).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
        let effective = sets.effective.bits();
        if effective == 0 || first.is_some() {
            return Ok(Capabilities { effective, first_namespace: first });
        }
        let first_namespace = match std::fs::metadata(format!("/proc/{pid}/ns/user")) {
            Ok(namespace) => namespace.ino() == FIRST_USER_NAMESPACE,
            // A kernel without user namespaces has one for all.
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        };
        Ok(Capabilities { effective, first_namespace: Some(first_namespace) })
    }

    /// Whether its user namespace is the machine's first, if that was asked.
    #[must_use]
    pub fn first_namespace(&self) -> Option<bool> {
        self.first_namespace
    }

    /// Whether the kernel's `capable()` would say yes.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.first_namespace == Some(true) && self.has_in_own_namespace(capability)
    }

    /// Whether the program's own user namespace grants it.
    #[must_use]
    pub fn has_in_own_namespace(&self, capability: Capability) -> bool {
        let bit = match capability {
            Capability::IpcLock => 14,
            Capability::SysRawio => 17,
            Capability::SysAdmin => 21,
            Capability::SysResource => 24,
        };
        self.effective >> bit & 1 != 0
    }
}

fn read_small(path: &str) -> Result<String, Errno> {
    let errno = |e: std::io::Error| match e.raw_os_error() {
        Some(libc::ENOENT) => Errno::from_raw(libc::ESRCH),
        raw => Errno::from_raw(raw.unwrap_or(libc::EIO)),
    };
    let mut text = String::new();
    File::open(path).map_err(errno)?.take(65536).read_to_string(&mut text).map_err(errno)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn both_ways_to_the_limit_agree() {
        assert_eq!(memlock(me()), memlock_from_text(me()));
        let nobody = Err(Errno::from_raw(libc::ESRCH));
        assert_eq!(memlock(i32::MAX), nobody);
        assert_eq!(memlock_from_text(i32::MAX), nobody);
    }

    #[test]
    fn rights_of_a_user_namespace_are_not_the_machines() {
        let all = Capabilities { effective: u64::MAX, first_namespace: Some(false) };
        assert!(!all.has(Capability::IpcLock));
        assert!(all.has_in_own_namespace(Capability::IpcLock));
        let only_lock = Capabilities { effective: 1 << 14, first_namespace: Some(true) };
        assert!(only_lock.has(Capability::IpcLock));
        assert!(
            !only_lock.has(Capability::SysRawio)
                && !only_lock.has(Capability::SysAdmin)
                && !only_lock.has(Capability::SysResource)
        );
    }

    #[test]
    fn own_capabilities_are_read() {
        let mine = Capabilities::of(me()).unwrap();
        assert_eq!(Capabilities::in_namespace(me(), mine.first_namespace), Ok(mine));
        if rustix::process::geteuid().is_root() && mine.first_namespace == Some(true) {
            assert_eq!(mine.has(Capability::IpcLock), mine.effective >> 14 & 1 == 1);
        }
        assert!(Capabilities::of(i32::MAX).is_err());
    }
}
