// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that outlives its parent for a moment, to remove a directory
//! that the parent can no longer remove because it was killed.
//!
//! It is a fork of the parent, in a session of its own so that what ends the
//! parent's job does not end it, with nothing open but a pipe and the
//! directory's parent. The end of the pipe says that the parent is gone,
//! however it went. A parent that ends in good order has removed the directory
//! by then.
#![allow(unsafe_code)] // what a fork of a process with threads does is system calls

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use crate::files::{InodeId, inode_id};
use crate::launch::BlockedSignals;
use crate::listener::last_errno;

/// Waits for the end of this process.
#[derive(Debug)]
pub(crate) struct Janitor {
    pid: Pid,
    /// Its end is the message.
    pipe: Option<OwnedFd>,
}

impl Janitor {
    /// Starts one that removes the directory `name` in `parent`, which is
    /// `stat`, and nothing else of that name.
    pub(crate) fn start(parent: &OwnedFd, name: CString, stat: &Stat) -> Result<Janitor, Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let inode = inode_id(stat);
        // They stay blocked in the new process, which has our handlers.
        let _signals = BlockedSignals::new();
        // SAFETY: the child makes system calls on prepared data and leaves.
        match unsafe { libc::fork() } {
            -1 => Err(last_errno()),
            0 => work(read.as_raw_fd(), parent.as_raw_fd(), &name, inode),
            pid => Ok(Janitor { pid: Pid::from_raw(pid).ok_or(Errno::CHILD)?, pipe: Some(write) }),
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

/// The janitor's life. Nothing here allocates or takes a lock: other threads
/// of the parent may have held one.
fn work(pipe: i32, parent: i32, name: &CStr, inode: InodeId) -> ! {
    const PIPE: i32 = 0;
    const PARENT: i32 = 1;
    // SAFETY: numbers, and pointers to what lives for the calls. The copies
    // are made above both descriptors, so that neither overwrites the other.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"vfuse-janitor".as_ptr());
        let pipe = libc::fcntl(pipe, libc::F_DUPFD, 16);
        let parent = libc::fcntl(parent, libc::F_DUPFD, 16);
        if pipe < 0 || parent < 0 || libc::dup2(pipe, PIPE) < 0 || libc::dup2(parent, PARENT) < 0 {
            libc::_exit(1);
        }
        libc::syscall(libc::SYS_close_range, 2u32, u32::MAX, 0u32);
        libc::chdir(c"/".as_ptr());
        let mut byte = 0u8;
        while libc::read(PIPE, (&raw mut byte).cast(), 1) != 0 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(1);
            }
        }
        let dir = libc::openat(PARENT, name.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW);
        let mut stat: libc::stat = std::mem::zeroed();
        if dir >= 0 && libc::fstat(dir, &raw mut stat) == 0 && (stat.st_dev, stat.st_ino) == inode {
            empty(dir, 0);
            libc::unlinkat(PARENT, name.as_ptr(), libc::AT_REMOVEDIR);
        }
        libc::_exit(0)
    }
}

/// Deeper than any tree that a lab has.
const DEEPEST: u32 = 64;

/// Removes what is in a directory.
fn empty(dir: i32, depth: u32) {
    if depth >= DEEPEST {
        return;
    }
    let mut buffer = [0u64; 128];
    // SAFETY: the kernel fills the buffer with whole records, each with its
    // length and a name that ends with a null; lengths are checked all the
    // same. The other calls take numbers and that name.
    unsafe {
        libc::fchmod(dir, 0o700);
        loop {
            let mut removed = false;
            libc::lseek(dir, 0, libc::SEEK_SET);
            loop {
                let filled = libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), size_of_val(&buffer));
                if filled <= 0 {
                    break;
                }
                let start: *const u8 = buffer.as_ptr().cast();
                let (mut at, end) = (0usize, filled as usize);
                while at + 19 < end {
                    let length = usize::from(start.add(at + 16).cast::<u16>().read_unaligned());
                    if length < 20 || at + length > end {
                        break;
                    }
                    let name = start.add(at + 19).cast::<libc::c_char>();
                    at += length;
                    if *name == b'.' as libc::c_char
                        && (*name.add(1) == 0 || *name.add(1) == b'.' as libc::c_char && *name.add(2) == 0)
                    {
                        continue;
                    }
                    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
                    let below = libc::openat(dir, name, flags);
                    if below >= 0 {
                        empty(below, depth + 1);
                        libc::close(below);
                        removed |= libc::unlinkat(dir, name, libc::AT_REMOVEDIR) == 0;
                    } else {
                        removed |= libc::unlinkat(dir, name, 0) == 0;
                    }
                }
            }
            // What was removed while it was read may have hidden others.
            if !removed {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn removes_a_tree_of_any_shape_but_only_its_own() {
        let parent = std::env::temp_dir().join(format!("intercept-janitor-{}", std::process::id()));
        let dir = parent.join("dir");
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        for n in 0..500 {
            std::fs::write(dir.join(format!("a/file-{n:0100}")), "x").unwrap();
        }
        std::os::unix::fs::symlink(&parent, dir.join("a/link")).unwrap();
        std::fs::write(parent.join("other"), "x").unwrap();
        rustix::fs::chmod(dir.join("a/b"), Mode::RUSR | Mode::XUSR).unwrap();
        let stat = rustix::fs::stat(&dir).unwrap();
        let janitor = || Janitor::start(&open(&parent), c"dir".to_owned(), &stat).unwrap();
        drop(janitor());
        assert!(!dir.exists());
        assert!(parent.join("other").exists());
        // Nothing there, and another of the same name.
        drop(janitor());
        let waits = janitor();
        std::fs::create_dir(&dir).unwrap();
        if rustix::fs::stat(&dir).unwrap().st_ino != stat.st_ino {
            drop(waits);
            assert!(dir.exists());
        }
        std::fs::remove_dir_all(parent).unwrap();
    }
}
