// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the new process does between `fork` and `execve`: its namespaces, the
//! mounts, the filter. Other threads of the parent may hold any lock, so this
//! is system calls on prepared data only: no allocation, no panic.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long};

use libc::sock_filter;

use crate::mounts::Mount;
use crate::program::{Pointers, Program};

/// What a message to the parent is about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The root of the tmpfs comes with the message; wait for the answer.
    Tree = 1,
    /// The listener comes with the message.
    Listener,
    /// `unshare` failed.
    Unshare,
    /// Writing the user or group map failed.
    IdMap,
    /// Making the mounts private failed.
    Propagation,
    /// Making the tmpfs failed.
    Tmpfs,
    /// A mount failed; the number says which.
    Mount,
    /// The filter was refused.
    Filter,
    /// `execve` failed.
    Exec,
}

impl Step {
    /// The step with this number.
    pub(crate) fn from_raw(raw: u32) -> Option<Step> {
        [
            Step::Tree,
            Step::Listener,
            Step::Unshare,
            Step::IdMap,
            Step::Propagation,
            Step::Tmpfs,
            Step::Mount,
            Step::Filter,
            Step::Exec,
        ]
        .into_iter()
        .find(|step| *step as u32 == raw)
    }
}

/// A message: step, error number, detail.
pub(crate) type Message = [u32; 3];

/// Directories of the machine that can be held open at a time.
pub(crate) const MAX_DIRS: usize = 64;

/// The namespaces to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// None.
    None,
    /// Mounts.
    Mount,
    /// Users and mounts.
    User,
}

/// Everything prepared.
pub(crate) struct Context<'a> {
    pub(crate) socket: c_int,
    pub(crate) parent: libc::pid_t,
    pub(crate) namespaces: Namespaces,
    pub(crate) uid_map: &'a [u8],
    pub(crate) gid_map: &'a [u8],
    pub(crate) mounts: &'a [Mount],
    /// A directory over which the tmpfs is mounted while it is being spread.
    pub(crate) staging: &'a CStr,
    pub(crate) cwd: Option<&'a CStr>,
    pub(crate) filter: &'a [sock_filter],
    pub(crate) program: &'a Program,
    pub(crate) pointers: &'a mut Pointers,
    pub(crate) dispositions: &'a [(c_int, libc::sigaction)],
    pub(crate) mask: &'a libc::sigset_t,
}

fn errno() -> u32 {
    // SAFETY: the location is this thread's.
    unsafe { *libc::__errno_location() as u32 }
}

/// # Safety
/// Only in a process just forked, which has this thread alone.
pub(crate) unsafe fn run(mut context: Context<'_>) -> ! {
    // SAFETY: as the caller promises.
    let (step, detail) = unsafe { prepare_and_exec(&mut context) };
    let error = errno();
    send(context.socket, [step as u32, error, detail], None);
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

/// Returns the step that failed, with `errno` set.
unsafe fn prepare_and_exec(context: &mut Context<'_>) -> (Step, u32) {
    // SAFETY: all calls below take pointers to prepared, null-terminated or
    // sized data that outlives them, and descriptors of this process.
    unsafe {
        // The program dies with its supervisor: its devices are gone. The
        // setting is lost when credentials change, so it comes again below.
        die_with(context.parent);
        let flags = match context.namespaces {
            Namespaces::None => 0,
            Namespaces::Mount => libc::CLONE_NEWNS,
            Namespaces::User => libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
        };
        if flags != 0 {
            if libc::unshare(flags) != 0 {
                return (Step::Unshare, 0);
            }
            if context.namespaces == Namespaces::User
                && !(write_file(c"/proc/self/setgroups", b"deny")
                    && write_file(c"/proc/self/uid_map", context.uid_map)
                    && write_file(c"/proc/self/gid_map", context.gid_map))
            {
                return (Step::IdMap, 0);
            }
            die_with(context.parent);
            if let Err(failed) = mount_all(context) {
                return failed;
            }
        }

        for (signal, action) in context.dispositions {
            libc::sigaction(*signal, action, std::ptr::null_mut());
        }
        let listener = install(context.filter);
        if listener < 0 {
            return (Step::Filter, 0);
        }
        if !send(context.socket, [Step::Listener as u32, 0, 0], Some(listener)) {
            return (Step::Listener, 0);
        }
        libc::close(listener);
        libc::sigprocmask(libc::SIG_SETMASK, context.mask, std::ptr::null_mut());
        exec(context.program, context.pointers);
        (Step::Exec, 0)
    }
}

unsafe fn die_with(parent: libc::pid_t) {
    // SAFETY: takes numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != parent {
            libc::_exit(127);
        }
    }
}

unsafe fn mount_all(context: &Context<'_>) -> Result<(), (Step, u32)> {
    // SAFETY: see prepare_and_exec.
    unsafe {
        // What the host mounts later still arrives; what is mounted here does not get out.
        let propagation = libc::MS_REC | libc::MS_SLAVE;
        if libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), propagation, std::ptr::null()) != 0 {
            return Err((Step::Propagation, 0));
        }
        let tmpfs = tmpfs();
        if tmpfs < 0 || attach(tmpfs, context.staging) != 0 {
            return Err((Step::Tmpfs, 0));
        }
        let mut go = 0u8;
        if !send(context.socket, [Step::Tree as u32, 0, 0], Some(tmpfs))
            || libc::recv(context.socket, (&raw mut go).cast(), 1, 0) != 1
        {
            libc::_exit(127); // the parent gave up
        }
        let mut dirs = [-1; MAX_DIRS];
        let mut opened = 0;
        for (number, mount) in context.mounts.iter().enumerate() {
            let failed = Err((Step::Mount, number as u32));
            match mount {
                Mount::Open { path } => {
                    let Some(slot) = dirs.get_mut(opened) else { return failed };
                    *slot = libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC);
                    if *slot < 0 {
                        return failed;
                    }
                    opened += 1;
                }
                Mount::Fake { source, target } => {
                    let tree = open_tree(tmpfs, source, 0);
                    if tree < 0 || read_only(tree) != 0 || attach(tree, target) != 0 {
                        return failed;
                    }
                    libc::close(tree);
                }
                Mount::Real { dir, name, target } => {
                    // An entry may have gone since the plan was made: then its place stays empty.
                    let tree = open_tree(dirs.get(*dir).copied().unwrap_or(-1), name, libc::AT_RECURSIVE);
                    if tree >= 0 {
                        attach(tree, target);
                        libc::close(tree);
                    }
                }
            }
        }
        libc::umount2(context.staging.as_ptr(), libc::MNT_DETACH);
        if let Some(cwd) = context.cwd {
            libc::chdir(cwd.as_ptr());
        }
        Ok(())
    }
}

unsafe fn tmpfs() -> c_int {
    const FSCONFIG_SET_STRING: c_long = 1;
    const FSCONFIG_CMD_CREATE: c_long = 6;
    // SAFETY: see prepare_and_exec.
    unsafe {
        let fs = libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1 /* FSOPEN_CLOEXEC */) as c_int;
        if fs < 0 {
            return -1;
        }
        for (key, value) in [(c"mode", c"0755"), (c"source", c"vfuse")] {
            libc::syscall(libc::SYS_fsconfig, fs, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0);
        }
        let null = std::ptr::null::<c_char>();
        if libc::syscall(libc::SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, null, null, 0) != 0 {
            return -1;
        }
        libc::syscall(libc::SYS_fsmount, fs, 1 /* FSMOUNT_CLOEXEC */, 0) as c_int
    }
}

/// A copy of what is mounted at `name` below `dir`.
pub(crate) unsafe fn open_tree(dir: c_int, name: &CStr, flags: c_int) -> c_int {
    const OPEN_TREE_CLONE: c_int = 1;
    let flags = flags | OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is null-terminated.
    unsafe { libc::syscall(libc::SYS_open_tree, dir, name.as_ptr(), flags) as c_int }
}

/// Mounts `tree` over `target`.
pub(crate) unsafe fn attach(tree: c_int, target: &CStr) -> c_int {
    const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
    // SAFETY: the paths are null-terminated.
    unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        ) as c_int
    }
}

/// The program gets the tree read-only; the supervisor changes it from outside.
unsafe fn read_only(tree: c_int) -> c_int {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attr = MountAttr { set: 1 /* MOUNT_ATTR_RDONLY */, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: `attr` is a mount_attr structure of the size passed.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        ) as c_int
    }
}

unsafe fn write_file(path: &CStr, data: &[u8]) -> bool {
    // SAFETY: see prepare_and_exec.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        let done = libc::write(fd, data.as_ptr().cast(), data.len());
        let error = *libc::__errno_location();
        libc::close(fd);
        *libc::__errno_location() = error;
        done == data.len() as isize
    }
}

/// Installs the filter; its listener, or -1.
unsafe fn install(filter: &[sock_filter]) -> c_int {
    const NEW_LISTENER: u64 = 1 << 3;
    // Without it a signal that comes while the supervisor works would make
    // the program repeat a call that has had its effect.
    const WAIT_KILLABLE_RECV: u64 = 1 << 5;
    let prog = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `prog` describes `filter`, which the kernel only reads.
    unsafe {
        let seccomp = || {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                NEW_LISTENER | WAIT_KILLABLE_RECV,
                &raw const prog,
            ) as c_int
        };
        let listener = seccomp();
        if listener >= 0 || errno() != libc::EACCES as u32 {
            return listener;
        }
        // No right to filter set-user-ID programs, so there must be none.
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        seccomp()
    }
}

/// What `execvp` does, without allocating.
unsafe fn exec(program: &Program, pointers: &mut Pointers) {
    let mut denied = false;
    // SAFETY: the arrays end in null pointers; the strings are null-terminated.
    unsafe {
        *libc::__errno_location() = libc::ENOENT;
        for file in &program.candidates {
            libc::execve(file.as_ptr(), pointers.argv.as_ptr(), pointers.envp.as_ptr());
            match errno() as c_int {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                libc::ENOEXEC => {
                    // A script without a first line for the kernel.
                    if let Some(slot) = pointers.shell_argv.get_mut(1) {
                        *slot = file.as_ptr();
                    }
                    libc::execve(c"/bin/sh".as_ptr(), pointers.shell_argv.as_ptr(), pointers.envp.as_ptr());
                    return;
                }
                _ => return,
            }
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
    }
}

/// Sends a message, with a descriptor if there is one.
fn send(socket: c_int, message: Message, fd: Option<c_int>) -> bool {
    #[repr(C, align(8))]
    struct Control {
        header: libc::cmsghdr,
        fd: c_int,
        pad: c_int,
    }
    let mut iov = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: size_of::<Message>() };
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: (size_of::<libc::cmsghdr>() + size_of::<c_int>()) as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fd: fd.unwrap_or(-1),
        pad: 0,
    };
    // SAFETY: all zeros is a msghdr without address and control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if fd.is_some() {
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = size_of::<Control>() as _;
    }
    // SAFETY: the header's pointers lead to locals that live for the call.
    unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) >= 0 }
}
