// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls with paths, where there is no namespace to show the fake tree in.
//!
//! A path that leads to the fake tree is looked up here; the call is made
//! here, on the real directory that holds the tree, and its result copied to
//! the program. What an open gives is a real descriptor, so that reading and
//! listing need nothing more. A working directory inside the fake tree is
//! remembered here, since nobody can change it for another process; calls
//! that are not intercepted (`mkdir`, `unlink`, `execve` of a relative path)
//! still see the one before.
#![allow(unsafe_code)] // statx and statfs are written to the program as they are

use std::os::fd::{AsFd, AsRawFd};

use caller::Caller;
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use uapi::Errno;

use crate::calls::{Outcome, thread};
use crate::listener::{Listener, Notification, last_errno, to_core};
use crate::processes::parent_of;
use crate::resolve::{Target, is_owned, resolve};
use crate::state::State;
use crate::{Entry, Isolation, NODE_DEVICE, identity};

/// `f_type` of sysfs.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Where a call's path leads.
enum Place {
    /// To this entry of the fake tree.
    Farm(String),
    /// Through the fake tree to this path of the machine.
    Machine(String),
}

/// A decoded call.
struct Call {
    dir: i32,
    path: u64,
    follow: bool,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Stat(u64),
    Statx { mask: u32, buf: u64 },
    Access(u32),
    Readlink { buf: u64, len: u64 },
    Chdir,
    Watch { inotify: i32, mask: u32 },
    Statfs(u64),
    Xattr,
}

/// Whether a call names a file.
pub(crate) fn is_path_call(n: &Notification) -> bool {
    decode(n).is_some()
}

fn decode(n: &Notification) -> Option<Call> {
    const CWD: i32 = libc::AT_FDCWD;
    let [a, b, c, d, e, _] = n.args;
    let nofollow = |flags: u64| flags as i32 & libc::AT_SYMLINK_NOFOLLOW == 0;
    let call = |dir: i32, path, follow, what| Some(Call { dir, path, follow, what });
    match libc::c_long::from(n.nr) {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat => call(CWD, a, true, What::Stat(b)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat => call(CWD, a, false, What::Stat(b)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access => call(CWD, a, true, What::Access(b as u32)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink => call(CWD, a, false, What::Readlink { buf: b, len: c }),
        libc::SYS_newfstatat => call(a as i32, b, nofollow(d), What::Stat(c)),
        libc::SYS_statx => call(a as i32, b, nofollow(c), What::Statx { mask: d as u32, buf: e }),
        libc::SYS_faccessat => call(a as i32, b, true, What::Access(c as u32)),
        libc::SYS_faccessat2 => call(a as i32, b, nofollow(d), What::Access(c as u32)),
        libc::SYS_readlinkat => call(a as i32, b, false, What::Readlink { buf: c, len: d }),
        libc::SYS_chdir => call(CWD, a, true, What::Chdir),
        libc::SYS_inotify_add_watch => {
            let follow = c as u32 & libc::IN_DONT_FOLLOW == 0;
            call(CWD, b, follow, What::Watch { inotify: a as i32, mask: c as u32 })
        }
        libc::SYS_statfs => call(CWD, a, true, What::Statfs(b)),
        libc::SYS_getxattr | libc::SYS_listxattr => call(CWD, a, true, What::Xattr),
        libc::SYS_lgetxattr | libc::SYS_llistxattr => call(CWD, a, false, What::Xattr),
        _ => None,
    }
}

impl State {
    /// Answers a call that names a file, or makes an eventfd.
    pub(crate) fn path_call(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let nr = libc::c_long::from(n.nr);
        #[cfg(target_arch = "x86_64")]
        if nr == libc::SYS_eventfd {
            return self.eventfd(n, listener, 0);
        }
        match nr {
            libc::SYS_eventfd2 => return self.eventfd(n, listener, n.args[1] as u32),
            libc::SYS_getcwd => return self.getcwd(n, listener),
            libc::SYS_fchdir => {
                let pid = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.pid;
                self.set_directory(pid, None);
                return Ok(Outcome::GoOn);
            }
            _ => {}
        }
        let Some(call) = decode(n) else { return Ok(Outcome::GoOn) };
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let pid = process.pid;
        let thread = thread!(self, process, n.tid);
        let Ok(path) = thread.string(call.path, libc::PATH_MAX as usize) else { return Ok(Outcome::GoOn) };
        let Some(path) = self.absolute(n.tid, pid, call.dir, &path) else {
            if matches!(call.what, What::Chdir) {
                self.set_directory(pid, None);
            }
            return Ok(Outcome::GoOn);
        };
        let place = match resolve(self.farm.tree(), &path, call.follow) {
            Target::Fake(found) if self.is_machines_dir(&found) => return self.chdir_out(pid, &call, &found),
            Target::Fake(found) => Place::Farm(found),
            Target::Machine => {
                if let What::Readlink { buf, len } = call.what {
                    return self.readlink_of_process(n, listener, &path, buf, len);
                }
                return self.chdir_out(pid, &call, &path);
            }
            Target::Beyond(path) => Place::Machine(path),
            Target::Error(errno) => return Err(errno),
        };
        self.answer(n, listener, &call, &place)
    }

    fn answer(&mut self, n: &Notification, listener: &Listener, call: &Call, place: &Place) -> Result<Outcome, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let pid = process.pid;
        let thread = thread!(self, process, n.tid);
        let (dir, path) = match place {
            Place::Farm(path) => (self.farm.root().as_fd(), path.trim_start_matches('/')),
            Place::Machine(path) => (rustix::fs::CWD, path.as_str()),
        };
        let entry = match place {
            Place::Farm(path) => self.farm.tree().entries.get(path),
            Place::Machine(_) => None,
        };
        // A path of the farm is followed to its end already.
        let follow = call.follow && matches!(place, Place::Machine(_));
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let (major, minor) = NODE_DEVICE;
        match call.what {
            What::Stat(buf) => {
                let mut stat = rustix::fs::statat(dir, path, flags).map_err(to_core)?;
                if let Some(Entry::Device(_)) = entry {
                    stat.st_mode = libc::S_IFCHR | 0o666;
                    stat.st_rdev = rustix::fs::makedev(major, minor);
                }
                // SAFETY: the kernel filled the whole structure, padding included.
                thread.write(buf, unsafe { bytes_of(&stat) })?;
            }
            What::Statx { mask, buf } => {
                let name = std::ffi::CString::new(path).map_err(|_| Errno::ENOENT)?;
                // SAFETY: all zeros is a statx structure, filled by the call.
                let mut statx: libc::statx = unsafe { std::mem::zeroed() };
                // SAFETY: the name is null-terminated and `statx` is writable.
                let done =
                    unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags.bits() as i32, mask, &raw mut statx) };
                if done != 0 {
                    return Err(to_core(last_errno()));
                }
                if let Some(Entry::Device(_)) = entry {
                    statx.stx_mode = (libc::S_IFCHR | 0o666) as u16;
                    (statx.stx_rdev_major, statx.stx_rdev_minor) = (major, minor);
                }
                // SAFETY: zeroed, then filled: every byte is initialised.
                thread.write(buf, unsafe { bytes_of(&statx) })?;
            }
            What::Access(mode) => {
                if !matches!(entry, Some(Entry::Device(_) | Entry::Link(_))) {
                    let access = Access::from_bits(mode).ok_or(Errno::EINVAL)?;
                    rustix::fs::accessat(dir, path, access, AtFlags::empty()).map_err(to_core)?;
                }
            }
            What::Readlink { buf, len } => {
                let target = match entry {
                    Some(Entry::Link(target)) => target.clone().into_bytes(),
                    Some(_) => return Err(Errno::EINVAL),
                    None => rustix::fs::readlinkat(dir, path, Vec::new()).map_err(to_core)?.into_bytes(),
                };
                return give_link(&thread, &target, buf, len);
            }
            What::Chdir => {
                let stat = rustix::fs::statat(dir, path, flags).map_err(to_core)?;
                if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
                    return Err(Errno::ENOTDIR);
                }
                let (Place::Farm(path) | Place::Machine(path)) = place;
                let path = path.clone();
                self.set_directory(pid, Some(path));
            }
            What::Watch { inotify, mask } => {
                let whole = match place {
                    Place::Farm(path) => format!("{}{path}", self.farm_path),
                    Place::Machine(path) => path.clone(),
                };
                let inotify = identity::duplicate(process, inotify)?;
                let mask = rustix::fs::inotify::WatchFlags::from_bits_retain(mask);
                let watch = rustix::fs::inotify::add_watch(&inotify, whole, mask).map_err(to_core)?;
                return Ok(Outcome::Done(Ok(watch as u64)));
            }
            What::Statfs(buf) => {
                let fd =
                    rustix::fs::openat(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(to_core)?;
                let mut statfs = rustix::fs::fstatfs(&fd).map_err(to_core)?;
                if matches!(place, Place::Farm(path) if path.starts_with("/sys")) {
                    statfs.f_type = SYSFS_MAGIC;
                }
                // SAFETY: the kernel filled the whole structure, which has no padding.
                thread.write(buf, unsafe { bytes_of(&statfs) })?;
            }
            What::Xattr => return Err(Errno::EOPNOTSUPP),
        }
        Ok(Outcome::Done(Ok(0)))
    }

    /// Opens an entry of the fake tree that is neither node nor store.
    pub(crate) fn open_in_farm(&mut self, path: &str, flags: i32) -> Result<Outcome, Errno> {
        if self.is_machines_dir(path) {
            return Ok(Outcome::GoOn);
        }
        if let Some(Entry::Link(_)) = self.farm.tree().entries.get(path) {
            // O_NOFOLLOW. (A descriptor of a link itself cannot be handed over.)
            return Err(Errno::from_raw(libc::ELOOP));
        }
        open_for(self.farm.root(), path.trim_start_matches('/'), flags)
    }

    /// Opens what a link of the fake tree leads to on the machine.
    pub(crate) fn open_beyond(path: &str, flags: i32) -> Result<Outcome, Errno> {
        open_for(rustix::fs::CWD, path, flags)
    }

    /// Whether a directory of the fake tree is the machine's too and has no
    /// names but the machine's: then that one is as good.
    fn is_machines_dir(&self, path: &str) -> bool {
        let listed = self.farm.tree().entries.get(path);
        matches!(listed, None | Some(Entry::Directory { own: false }))
            && !is_owned(self.farm.tree(), path)
            && !self.composed.iter().any(|dir| dir == path)
            && std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
    }

    /// The path's text without the place that the fake tree has on the
    /// machine, if it lies there.
    pub(crate) fn in_farm<'p>(&self, path: &'p str) -> Option<&'p str> {
        if self.isolation != Isolation::Paths || self.farm_path.is_empty() {
            return None;
        }
        path.strip_prefix(self.farm_path.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The working directory of a process, if it is remembered here.
    pub(crate) fn directory(&mut self, pid: i32) -> Option<String> {
        if self.directories.is_empty() {
            return None;
        }
        if let Some(known) = self.directories.get(&pid) {
            return known.clone();
        }
        // A new process has its parent's.
        let inherited =
            parent_of(pid).filter(|parent| *parent > 1 && *parent != pid).and_then(|parent| self.directory(parent));
        self.directories.insert(pid, inherited.clone());
        inherited
    }

    fn set_directory(&mut self, pid: i32, path: Option<String>) {
        if path.is_some() || !self.directories.is_empty() {
            self.directories.insert(pid, path);
        }
    }

    /// The machine does the call; a `chdir` to there ends what was remembered.
    fn chdir_out(&mut self, pid: i32, call: &Call, path: &str) -> Result<Outcome, Errno> {
        if !matches!(call.what, What::Chdir) || self.directory(pid).is_none() {
            return Ok(Outcome::GoOn);
        }
        // Relative to a directory that the machine does not know: remember the new one as well.
        std::fs::read_dir(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOENT)))?;
        self.set_directory(pid, Some(path.to_owned()));
        Ok(Outcome::Done(Ok(0)))
    }

    /// `/proc/self/fd/N` and `/proc/self/cwd` show where the fake tree really
    /// is; the program is not to see that.
    fn readlink_of_process(
        &mut self,
        n: &Notification,
        listener: &Listener,
        path: &str,
        buf: u64,
        len: u64,
    ) -> Result<Outcome, Errno> {
        let Some(rest) = path.strip_prefix("/proc/") else { return Ok(Outcome::GoOn) };
        let (who, name) = rest.split_once('/').unwrap_or((rest, ""));
        if !(name.starts_with("fd/") || name == "cwd") {
            return Ok(Outcome::GoOn);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let pid = if who == "self" || who == "thread-self" { process.pid } else { who.parse().unwrap_or(0) };
        let link = std::fs::read_link(format!("/proc/{pid}/{name}"))
            .ok()
            .and_then(|link| link.into_os_string().into_string().ok());
        let Some(link) = link else { return Ok(Outcome::GoOn) };
        let Some(shown) = self.in_farm(&link) else { return Ok(Outcome::GoOn) };
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        give_link(&thread, shown.as_bytes(), buf, len)
    }

    fn getcwd(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let [buf, len, ..] = n.args;
        let pid = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.pid;
        let directory = match self.directory(pid) {
            Some(directory) => directory,
            None => {
                let link = std::fs::read_link(format!("/proc/{}/cwd", n.tid)).ok();
                let Some(link) = link.as_deref().and_then(|link| link.to_str()) else { return Ok(Outcome::GoOn) };
                match self.in_farm(link) {
                    Some(directory) => directory.to_owned(),
                    None => return Ok(Outcome::GoOn),
                }
            }
        };
        let mut text = directory.into_bytes();
        text.push(0);
        if len < text.len() as u64 {
            return Err(Errno::ERANGE);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        thread!(self, process, n.tid).write(buf, &text)?;
        Ok(Outcome::Done(Ok(text.len() as u64)))
    }

    fn eventfd(&mut self, n: &Notification, listener: &Listener, flags: u32) -> Result<Outcome, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        if !self.events.needed(process) {
            return Ok(Outcome::GoOn);
        }
        let users = self.processes.pids();
        let fd = self.events.make(n.args[0] as u32, flags, &users)?;
        Ok(Outcome::NewFd { fd, cloexec: flags & libc::EFD_CLOEXEC as u32 != 0, known: None })
    }
}

fn open_for(dir: impl AsFd, path: &str, flags: i32) -> Result<Outcome, Errno> {
    let kept = libc::O_ACCMODE | libc::O_DIRECTORY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_APPEND;
    // O_PATH descriptors cannot be handed over; one for reading does all that they do.
    let kept = if flags & libc::O_PATH != 0 { libc::O_DIRECTORY | libc::O_NOFOLLOW } else { kept };
    let open = OFlags::from_bits_retain((flags & kept) as u32) | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::openat(dir, path, open, Mode::empty()).map_err(to_core)?;
    Ok(Outcome::NewFd { fd, cloexec: flags & libc::O_CLOEXEC != 0, known: None })
}

fn give_link(thread: &impl Caller, target: &[u8], buf: u64, len: u64) -> Result<Outcome, Errno> {
    // The length is an int.
    if len as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let part = target.get(..target.len().min(len as usize)).unwrap_or_default();
    thread.write(buf, part)?;
    Ok(Outcome::Done(Ok(part.len() as u64)))
}

/// # Safety
/// Every byte of `value` is initialised.
unsafe fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: the slice covers the value, which the caller says is initialised.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}
