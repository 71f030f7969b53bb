// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts the program: forks, sees the new process through its preparations
//! (`child`), and takes its listener.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use libc::sock_filter;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags};

use crate::child::{self, Message, Namespaces, Step};
use crate::listener::{Listener, last_errno};
use crate::mounts::{Mount, Plan};
use crate::program::Program;
use crate::{Error, Isolation};

/// A program that is about to be executed: its `execve` waits for the
/// supervisor.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its process.
    pub(crate) pid: Pid,
    /// The same.
    pub(crate) pidfd: OwnedFd,
    /// Its calls.
    pub(crate) listener: Listener,
    /// Closed by a successful `execve`; else [`Launched::exec_error`] comes.
    pub(crate) socket: OwnedFd,
}

/// The signals whose disposition the program must not inherit from us.
pub(crate) type Dispositions = Vec<(c_int, libc::sigaction)>;

/// Starts `program` in the way of `isolation` (not `Auto`). `fill` gets the
/// root of the tmpfs to put the tree in, when there is one.
pub(crate) fn launch(
    program: &Program,
    isolation: Isolation,
    plan: &Plan,
    filter: &[sock_filter],
    dispositions: &Dispositions,
    fill: &mut dyn FnMut(OwnedFd) -> Result<(), Error>,
) -> Result<Launched, Error> {
    let namespaces = match isolation {
        Isolation::Namespaces => Namespaces::Mount,
        Isolation::Userns => Namespaces::User,
        Isolation::Paths | Isolation::Auto => Namespaces::None,
    };
    if plan.mounts.iter().filter(|mount| matches!(mount, Mount::Open { .. })).count() > child::MAX_DIRS {
        return Err(Error::Os {
            what: "the fake tree touches too many directories of the machine: mounting it",
            source: io::ErrorKind::Other.into(),
        });
    }
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Error::os("socketpair"))?;

    let mut pointers = program.pointers();
    let uid_map = format!("{0} {0} 1", rustix::process::geteuid().as_raw());
    let gid_map = format!("{0} {0} 1", rustix::process::getegid().as_raw());
    let staging = staging();
    // A directory whose view changes is entered anew.
    let cwd = std::env::current_dir()
        .ok()
        .filter(|cwd| ["/dev", "/sys", "/proc"].iter().any(|fake| cwd.starts_with(fake)))
        .and_then(|cwd| CString::new(cwd.into_os_string().into_vec()).ok());
    let blocked = BlockedSignals::new();
    let context = child::Context {
        socket: theirs.as_raw_fd(),
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        namespaces,
        uid_map: uid_map.as_bytes(),
        gid_map: gid_map.as_bytes(),
        mounts: &plan.mounts,
        staging: &staging,
        cwd: cwd.as_deref(),
        filter,
        program,
        pointers: &mut pointers,
        dispositions,
        mask: &blocked.before,
    };
    // SAFETY: the child runs `child::run` alone, which keeps to what is
    // allowed there.
    let pid = match unsafe { libc::fork() } {
        // SAFETY: this is the process just forked.
        0 => unsafe { child::run(context) },
        pid => pid,
    };
    drop(blocked);
    let Some(pid) = Pid::from_raw(pid.max(0)) else {
        return Err(Error::Os { what: "fork", source: io::Error::last_os_error() });
    };
    drop(theirs);
    let mut guard = Unreaped(Some(pid));
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(Error::os("pidfd_open"))?;

    loop {
        match receive(&ours)? {
            (Some(Step::Tree), _, _, Some(root)) => {
                fill(root)?;
                rustix::net::send(&ours, b"g", SendFlags::NOSIGNAL).map_err(Error::os("talking to the new process"))?;
            }
            (Some(Step::Listener), _, _, Some(listener)) => {
                guard.0 = None;
                return Ok(Launched { pid, pidfd, listener: Listener::new(listener), socket: ours });
            }
            (step, errno, detail, _) => return Err(failure(step, errno, detail, isolation, plan)),
        }
    }
}

impl Launched {
    /// What `execve` said, once [`Launched::socket`] has become readable;
    /// `None` if it succeeded.
    pub(crate) fn exec_error(socket: &OwnedFd) -> Option<Errno> {
        match receive(socket) {
            Ok((Some(Step::Exec), errno, ..)) => Some(errno),
            _ => None,
        }
    }
}

fn failure(step: Option<Step>, errno: Errno, detail: u32, isolation: Isolation, plan: &Plan) -> Error {
    let source = io::Error::from(errno);
    let isolation_error =
        |step: String, advice| Error::Isolation { isolation: isolation.name(), step, source: errno.into(), advice };
    match step {
        Some(Step::Filter) if errno == Errno::BUSY => Error::Nested,
        Some(Step::Filter) if errno == Errno::INVAL || errno == Errno::NOSYS => Error::NoNotification { source },
        Some(Step::Filter) => Error::Filter { source },
        Some(Step::Unshare) if isolation == Isolation::Namespaces => {
            isolation_error("making a mount namespace".into(), "run as root, or use 'userns' or 'paths'")
        }
        Some(Step::Unshare | Step::IdMap) => isolation_error(
            "making a user namespace".into(),
            "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or use 'paths'",
        ),
        Some(Step::Propagation | Step::Tmpfs) => isolation_error(
            "mounting a tmpfs in the new namespace".into(),
            "allow mount(2) in user namespaces, or use 'paths'",
        ),
        Some(Step::Mount) => {
            let what = match plan.mounts.get(detail as usize) {
                Some(Mount::Open { path }) => format!("opening {}", path.to_string_lossy()),
                Some(Mount::Fake { target, .. } | Mount::Real { target, .. }) => {
                    format!("mounting over {}", target.to_string_lossy())
                }
                None => "mounting".into(),
            };
            isolation_error(what, "use 'paths'")
        }
        _ => Error::Os { what: "starting the program's process", source },
    }
}

/// A directory that is everywhere and that nothing needs for a moment.
fn staging() -> CString {
    ["/tmp", "/etc", "/var", "/usr"]
        .into_iter()
        .find(|dir| std::path::Path::new(dir).is_dir())
        .and_then(|dir| CString::new(dir).ok())
        .unwrap_or_else(|| c"/".into())
}

type Received = (Option<Step>, Errno, u32, Option<OwnedFd>);

fn receive(socket: &OwnedFd) -> Result<Received, Error> {
    let mut bytes = [0u8; size_of::<Message>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .map_err(Error::os("talking to the new process"))?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if received.bytes != bytes.len() {
        return Ok((None, Errno::PIPE, 0, None));
    }
    let word = |n: usize| bytes.get(4 * n..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b));
    Ok((Step::from_raw(word(0)), Errno::from_raw_os_error((word(1) as i32).clamp(1, 4095)), word(2), fd))
}

/// Kills and reaps a child that did not get far.
struct Unreaped(Option<Pid>);

impl Drop for Unreaped {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            });
        }
    }
}

/// Keeps signals away while the child still has our handlers.
pub(crate) struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    pub(crate) fn new() -> BlockedSignals {
        // SAFETY: a signal set is plain data, filled by the calls.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            BlockedSignals { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that was in force.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

/// Mounts the stand-in for a node at `target` in the namespaces of `pidfd`'s
/// process, or with `None` takes away what is mounted there.
pub(crate) fn mount_node(
    namespaces: &[OwnedFd],
    source: Option<&std::ffi::CStr>,
    target: &std::ffi::CStr,
) -> Result<(), Errno> {
    // A helper process: entering a user namespace wants a single thread.
    // SAFETY: the child makes system calls on prepared data and leaves.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => {
            // SAFETY: numbers and null-terminated strings only.
            let code = unsafe {
                let entered = namespaces.iter().all(|fd| libc::setns(fd.as_fd().as_raw_fd(), 0) == 0);
                let done = entered
                    && match source {
                        Some(source) => {
                            let tree = child::open_tree(libc::AT_FDCWD, source, 0);
                            tree >= 0 && child::attach(tree, target) == 0
                        }
                        None => libc::umount2(target.as_ptr(), libc::MNT_DETACH) == 0,
                    };
                if done { 0 } else { *libc::__errno_location() & 0xff }
            };
            // SAFETY: ends the helper without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: the helper is ours and unreaped.
            while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
                if last_errno() != Errno::INTR {
                    return Err(Errno::CHILD);
                }
            }
            match libc::WEXITSTATUS(status) {
                0 if libc::WIFEXITED(status) => Ok(()),
                code => Err(Errno::from_raw_os_error(code.max(1))),
            }
        }
    }
}
