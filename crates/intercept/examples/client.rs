// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs for the tests, one a subcommand: each uses VFIO as a program does
//! and ends with a panic if something is not as Linux has it.
// A program in the manner of C: every call gets pointers to its own locals, or
// bad ones on purpose.
#![allow(clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used)] // a test in an executable of its own

#[path = "client/iommu.rs"]
mod iommu;
#[path = "client/waits.rs"]
mod waits;

use std::ffi::{CString, c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const GET_API_VERSION: u64 = 0x3b64;
const CHECK_EXTENSION: u64 = 0x3b65;
const GROUP_GET_STATUS: u64 = 0x3b67;
const SET_CONTAINER: u64 = 0x3b68;
const GET_DEVICE_FD: u64 = 0x3b6a;
const DEVICE_GET_INFO: u64 = 0x3b6b;
const SET_IRQS: u64 = 0x3b6e;
const RESET: u64 = 0x3b6f;
const MAP_DMA: u64 = 0x3b71;
const UNMAP_DMA: u64 = 0x3b72;

/// File offset of configuration space of the tests' device.
const CONFIG: u64 = 39 << 40;
/// File offset of its BAR 0.
const BAR: u64 = 32 << 40;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("basic") => basic(),
        Some("bench") => bench(),
        Some("fds") => fds(),
        Some("limits") => limits(),
        Some("fork") => fork(),
        Some("exec") => exec(),
        Some("exec-child") => exec_child(&args[1..]),
        Some("threads") => threads(),
        Some("scm") => scm(),
        Some("daemon") => daemon(),
        Some("undumpable") => undumpable(),
        Some("vectored") => vectored(),
        Some("eventfd") => eventfd(),
        Some("signals") => signals(),
        Some("cdev") => cdev(),
        Some("hostile") => hostile(),
        Some("many") => many(args[1].parse().unwrap()),
        Some("handles") => iommu::handles(),
        Some("passing") => iommu::passing(),
        Some("exec-passed") => iommu::exec_passed(&args[1..]),
        Some("queues") => iommu::queues(),
        Some("exec-queue") => iommu::exec_queue(args[1].parse().unwrap()),
        Some("outlives") => iommu::outlives(),
        Some("reuse") => reuse(),
        Some("rights") => rights(),
        Some("hang") => hang(),
        Some("waits") => waits::all(),
        Some("store-waits") => waits::store(),
        Some("hang-waiting") => waits::hang(),
        Some("exit") => exit(args[1].parse().unwrap()),
        other => panic!("no client {other:?}"),
    }
}

fn done(value: c_int) -> Result<c_int, c_int> {
    if value < 0 { Err(errno()) } else { Ok(value) }
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn open(path: &str, flags: c_int) -> Result<c_int, c_int> {
    let path = CString::new(path).unwrap();
    done(unsafe { libc::open(path.as_ptr(), flags) })
}

fn close(fd: c_int) {
    assert_eq!(unsafe { libc::close(fd) }, 0);
}

fn ioctl<T>(fd: c_int, request: u64, arg: *mut T) -> Result<c_int, c_int> {
    done(unsafe { libc::ioctl(fd, request, arg) })
}

fn ioctl_value(fd: c_int, request: u64, arg: u64) -> Result<c_int, c_int> {
    done(unsafe { libc::ioctl(fd, request, arg) })
}

fn container() -> c_int {
    open("/dev/vfio/vfio", libc::O_RDWR | libc::O_CLOEXEC).unwrap()
}

fn group() -> c_int {
    open("/dev/vfio/7", libc::O_RDWR | libc::O_CLOEXEC).unwrap()
}

fn device_of(group: c_int) -> Result<c_int, c_int> {
    let mut name = *b"0000:01:00.0\0";
    ioctl(group, GET_DEVICE_FD, name.as_mut_ptr())
}

fn config(device: c_int, at: u64) -> Result<u8, c_int> {
    let mut byte = [0u8];
    let n = unsafe { libc::pread(device, byte.as_mut_ptr().cast(), 1, (CONFIG + at) as i64) };
    done(n as c_int).map(|n| {
        assert_eq!(n, 1);
        byte[0]
    })
}

fn store(device: c_int, at: u64, value: u8) -> Result<c_int, c_int> {
    done(unsafe { libc::pwrite(device, (&raw const value).cast(), 1, (CONFIG + at) as i64) as c_int })
}

fn has_status(group: c_int) -> bool {
    let mut status = [8u32, 0];
    ioctl(group, GROUP_GET_STATUS, status.as_mut_ptr()).map(|_| status[1]) == Ok(1)
}

fn map_dma(container: c_int) -> Result<c_int, c_int> {
    let mut map = [32u64 | 3 << 32, 0, 0, 0];
    ioctl(container, MAP_DMA, map.as_mut_ptr())
}

fn is_cloexec(fd: c_int) -> bool {
    unsafe { libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
}

/// Waits for a child; its exit status, or minus the signal.
fn wait(pid: c_int) -> c_int {
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

/// Runs `work` in a forked process.
fn child(work: impl FnOnce()) -> c_int {
    match unsafe { libc::fork() } {
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => pid,
    }
}

fn basic() {
    let container = container();
    assert_eq!(ioctl_value(container, GET_API_VERSION, 0), Ok(0));
    assert_eq!(ioctl_value(container, CHECK_EXTENSION, 1), Ok(1));
    assert_eq!(ioctl_value(container, CHECK_EXTENSION, 2), Ok(0));
    assert_eq!(ioctl_value(container, 0x3bff, 0), Err(libc::ENOTTY));
    let mut group = group();
    let device = device_of(group).unwrap();
    assert!(is_cloexec(device), "as Linux gives it"); // API-052
    assert_eq!(open("/dev/vfio/7", libc::O_RDWR), Err(libc::EBUSY)); // API-035
    assert!(has_status(group));
    let mut fd = container;
    assert_eq!(ioctl(group, SET_CONTAINER, &raw mut fd), Ok(0));
    assert_eq!(ioctl(group, SET_CONTAINER, &raw mut group), Err(libc::EBADFD));
    let mut info = [16u32, 0, 0, 0];
    assert_eq!(ioctl(device, DEVICE_GET_INFO, info.as_mut_ptr()), Ok(0));
    assert_eq!(info[2..], [9, 5]);
    assert_eq!(ioctl::<u32>(device, DEVICE_GET_INFO, std::ptr::null_mut()), Err(libc::EFAULT));
    for at in [0, 3, 255] {
        assert_eq!(config(device, at), Ok(at as u8));
    }
    assert_eq!(store(device, 4, 99), Ok(1));
    assert_eq!(config(device, 4), Ok(99));
    let null = open("/dev/null", libc::O_RDWR).unwrap();
    assert_eq!(ioctl_value(null, GET_API_VERSION, 0), Err(libc::ENOTTY), "not one of ours");
    assert_eq!(ioctl_value(999, GET_API_VERSION, 0), Err(libc::EBADF));
    assert_eq!(ioctl_value(-1, GET_API_VERSION, 0), Err(libc::EBADF));
    assert_eq!(config(container, 0), Err(libc::EINVAL)); // API-018
    unsafe {
        let map = |kind, len| {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, kind, device, BAR as i64)
        };
        let bar = map(libc::MAP_SHARED, 8192);
        assert_ne!(bar, libc::MAP_FAILED);
        bar.cast::<u32>().write_volatile(7);
        assert_eq!(bar.cast::<u32>().read_volatile(), 7);
        assert_eq!(map(libc::MAP_PRIVATE, 8192), libc::MAP_FAILED); // API-228
        assert_eq!(map(libc::MAP_SHARED, 16384), libc::MAP_FAILED);
        assert_eq!((libc::ftruncate(device, 0), errno()), (-1, libc::EINVAL));
        assert_eq!((libc::fallocate(device, 0, 0, 1), errno()), (-1, libc::ENODEV));
    }
    close(group);
    assert_eq!(open("/dev/vfio/7", libc::O_RDWR).map(drop), Ok(()), "what was closed before is closed");
}

fn bench() {
    let device = device_of(group()).unwrap();
    let container = container();
    let median = |name: &str, call: &dyn Fn()| {
        let mut results: Vec<f64> = (0..7)
            .map(|_| {
                let rounds = 20_000;
                let start = Instant::now();
                (0..rounds).for_each(|_| call());
                start.elapsed().as_nanos() as f64 / f64::from(rounds)
            })
            .collect();
        results.sort_by(f64::total_cmp);
        println!("{name} {:.0}", results[results.len() / 2]);
    };
    median("ioctl", &|| assert_eq!(ioctl_value(device, RESET, 0), Ok(0)));
    median("ioctl-stateless", &|| assert_eq!(ioctl_value(container, CHECK_EXTENSION, 1), Ok(1)));
    median("ioctl-readv", &|| assert_eq!(map_dma(container), Ok(0)));
    median("config-read", &|| assert_eq!(config(device, 8), Ok(8)));
    median("getppid", &|| assert!(unsafe { libc::syscall(libc::SYS_getppid) } >= 0));
    let file = open("/bin/sh", libc::O_RDONLY).unwrap();
    let mut byte = 0u8;
    let byte = &raw mut byte;
    median("pread-ordinary", &|| assert_eq!(unsafe { libc::pread(file, byte.cast(), 1, 0) }, 1));
    median("ioctl-ordinary", &|| assert_eq!(ioctl_value(file, 0x5401, 0), Err(libc::ENOTTY)));
}

/// Limits and rights count as they are at each call, whoever changed them.
fn rights() {
    const HIGH: u64 = 4 << 20;
    const LOW: u64 = 1 << 20;
    let container = container();
    let mark = |iova: u64, size: u64| {
        let mut map = [32u64 | 3 << 32, 0, iova, size];
        ioctl(container, MAP_DMA, map.as_mut_ptr())
    };
    let allows = |bytes: u64| match mark(0xa110c, bytes) {
        Ok(0) => true,
        Err(libc::ENOMEM) => false,
        other => panic!("{other:?}"),
    };
    let soft = |bytes: u64| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        unsafe {
            assert_eq!(libc::getrlimit64(libc::RLIMIT_MEMLOCK, &raw mut limit), 0);
            limit.rlim_cur = bytes;
            assert_eq!(libc::setrlimit64(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        }
    };
    let of = |pid: c_int, bytes: u64| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        unsafe {
            assert_eq!(libc::prlimit64(pid, libc::RLIMIT_MEMLOCK, std::ptr::null(), &raw mut limit), 0);
            limit.rlim_cur = bytes;
            assert_eq!(libc::prlimit64(pid, libc::RLIMIT_MEMLOCK, &raw const limit, std::ptr::null_mut()), 0);
        }
    };
    // Asked twice: the second time it may be remembered.
    let is = |limit: u64| {
        for _ in 0..2 {
            assert!(allows(limit) && !allows(limit + 1));
        }
    };
    let own = unsafe { libc::getpid() };
    for change in [&soft as &dyn Fn(u64), &|bytes| of(0, bytes)] {
        for bytes in [HIGH, LOW, HIGH] {
            change(bytes);
            is(bytes);
        }
    }
    // A child's is its own; then it changes ours.
    let pid = child(|| {
        is(HIGH);
        soft(LOW);
        is(LOW);
    });
    assert_eq!(wait(pid), 0);
    is(HIGH);
    let pid = child(|| of(own, LOW));
    assert_eq!(wait(pid), 0);
    is(LOW);

    // A user namespace of its own takes the machine's rights.
    let capable = || mark(0xcab1e, 0) == Ok(0);
    let before = capable();
    assert_eq!(capable(), before);
    // Each thread has its own, and a program that is another user's has none.
    for change in [drop_lock as fn() -> bool, || unsafe { libc::setresuid(65534, 65534, 65534) == 0 }] {
        let pid = child(|| {
            assert_eq!(capable(), before);
            assert_eq!(capable(), before);
            if change() {
                assert!(!capable() && !capable());
            }
        });
        assert_eq!(wait(pid), 0);
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(|| !drop_lock() || !capable() && !capable());
        assert!(other.join().unwrap());
    });
    assert_eq!(capable(), before);
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0 {
        assert!(!capable() && !capable());
    }
}

/// The calling thread gives `CAP_IPC_LOCK` away; whether it could.
fn drop_lock() -> bool {
    const LOCK: u32 = 1 << 14;
    let head = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6];
    unsafe {
        if libc::syscall(libc::SYS_capget, head.as_ptr(), sets.as_mut_ptr()) != 0 {
            return false;
        }
        sets[0] &= !LOCK;
        libc::syscall(libc::SYS_capset, head.as_ptr(), sets.as_ptr()) == 0
    }
}

/// Numbers that mean another file right after a close, in many processes. No
/// call that is looked at says so: only the close does.
fn reuse() {
    let children: Vec<_> = (0..8)
        .map(|_| {
            child(|| {
                for _ in 0..200 {
                    let container = container();
                    assert_eq!(ioctl_value(container, CHECK_EXTENSION, 1), Ok(1));
                    close(container);
                    let ordinary = open("/bin/sh", libc::O_RDONLY | libc::O_CLOEXEC).unwrap();
                    assert_eq!(ordinary, container, "the lowest free number");
                    assert_eq!(ioctl_value(ordinary, CHECK_EXTENSION, 1), Err(libc::ENOTTY));
                    close(ordinary);
                }
            })
        })
        .collect();
    for pid in children {
        assert_eq!(wait(pid), 0);
    }
}

fn fds() {
    let group = group();
    let device = device_of(group).unwrap();
    let container = container();
    unsafe {
        // Any number, any way to it.
        let high = libc::fcntl(device, libc::F_DUPFD_CLOEXEC, 200);
        assert!(high >= 200);
        assert_eq!(config(high, 5), Ok(5));
        let twin = libc::dup(device);
        close(device);
        assert_eq!(config(twin, 6), Ok(6));
        assert_eq!(config(device, 6), Err(libc::EBADF));

        // A number that comes to mean another file, also while the old one lives on.
        assert_eq!(ioctl_value(container, CHECK_EXTENSION, 1), Ok(1));
        assert_eq!(map_dma(container), Ok(0));
        let spare = libc::dup(container);
        assert_eq!(libc::dup2(group, container), container);
        assert!(has_status(container));
        assert_eq!(map_dma(container), Err(libc::ENOTTY));
        assert_eq!(libc::dup3(twin, container, libc::O_CLOEXEC), container);
        assert_eq!(map_dma(container), Err(libc::ENOTTY), "that of the device is another request");
        assert_eq!(config(container, 7), Ok(7));
        assert_eq!(map_dma(spare), Ok(0));
        let file = open("/bin/sh", libc::O_RDONLY).unwrap();
        assert_eq!(libc::dup2(file, spare), spare);
        assert_eq!(map_dma(spare), Err(libc::ENOTTY));
        close(container);
        close(twin);
        close(high);
    }
    // The device's last descriptor is gone, then the group's.
    close(group);
    let again = open("/dev/vfio/7", libc::O_RDWR).unwrap();
    // Two descriptions of one device, told apart by their closing.
    let (first, second) = (device_of(again).unwrap(), device_of(again).unwrap());
    close(first);
    assert_eq!(config(second, 9), Ok(9));
    assert_eq!(ioctl_value(second, RESET, 0), Ok(0));
    close(second);
    assert!(!is_cloexec(again), "as it was opened");
    let closing = open("/dev/vfio/vfio", libc::O_RDWR | libc::O_CLOEXEC).unwrap();
    assert!(is_cloexec(closing));
}

fn limits() {
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let group = group();
        let device = device_of(group).unwrap();
        let high = libc::fcntl(device, libc::F_DUPFD, 300);
        limit.rlim_cur = 20;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        let mut open_now = Vec::new();
        let error = loop {
            match open("/dev/vfio/vfio", libc::O_RDWR) {
                Ok(fd) => open_now.push(fd),
                Err(error) => break error,
            }
        };
        assert_eq!(error, libc::EMFILE);
        assert_eq!(device_of(group), Err(libc::EMFILE));
        assert_eq!(config(high, 1), Ok(1), "above the limit, but open");
        close(open_now.pop().unwrap());
        assert!(device_of(group).is_ok());
    }
}

fn fork() {
    let group = group();
    let device = device_of(group).unwrap();
    assert_eq!(config(device, 1), Ok(1));
    // A child of a child that outlives both.
    let pid = child(|| {
        assert_eq!(config(device, 2), Ok(2));
        let pid = child(|| {
            assert_eq!(config(device, 3), Ok(3));
            assert!(has_status(group));
            close(device);
        });
        assert_eq!(wait(pid), 0);
        assert_eq!(config(device, 4), Ok(4), "closed in another process only");
        let own = container();
        assert_eq!(map_dma(own), Ok(0));
    });
    assert_eq!(wait(pid), 0);
    assert_eq!(config(device, 4), Ok(4));
    let children: Vec<c_int> = (0..20)
        .map(|_| {
            child(|| {
                let container = container();
                for _ in 0..50 {
                    assert_eq!(map_dma(container), Ok(0));
                    assert_eq!(config(device, 9), Ok(9));
                }
            })
        })
        .collect();
    for pid in children {
        assert_eq!(wait(pid), 0);
    }
    // The group closes with the last process that has it.
    let (mut ready, mut go) = ([0; 2], [0; 2]);
    unsafe {
        libc::pipe(ready.as_mut_ptr());
        libc::pipe(go.as_mut_ptr());
    }
    let pid = child(|| unsafe {
        let mut byte = 0u8;
        libc::write(ready[1], (&raw const byte).cast(), 1);
        libc::read(go[0], (&raw mut byte).cast(), 1);
    });
    unsafe {
        let mut byte = 0u8;
        libc::read(ready[0], (&raw mut byte).cast(), 1);
        close(device);
        close(group);
        assert_eq!(open("/dev/vfio/7", libc::O_RDWR), Err(libc::EBUSY));
        libc::write(go[1], (&raw const byte).cast(), 1);
    }
    assert_eq!(wait(pid), 0);
    assert!(open("/dev/vfio/7", libc::O_RDWR).is_ok());
}

fn exec() {
    let group = group();
    let device = device_of(group).unwrap();
    let kept = unsafe { libc::dup(device) };
    assert_eq!(config(device, 1), Ok(1));
    let me = std::env::current_exe().unwrap();
    let missing = Command::new("/nonexistent").spawn();
    assert!(missing.is_err());
    assert_eq!(config(device, 2), Ok(2));
    let status = Command::new(me).args(["exec-child", &device.to_string(), &kept.to_string()]).status().unwrap();
    assert!(status.success());
    assert_eq!(config(device, 3), Ok(3));
}

fn exec_child(args: &[String]) {
    let (closed, kept): (c_int, c_int) = (args[0].parse().unwrap(), args[1].parse().unwrap());
    assert_eq!(config(closed, 1), Err(libc::EBADF), "close-on-exec");
    assert_eq!(config(kept, 1), Ok(1));
    assert_eq!(ioctl_value(kept, RESET, 0), Ok(0));
    let container = container();
    assert_eq!(map_dma(container), Ok(0));
}

fn threads() {
    let group = group();
    let device = device_of(group).unwrap();
    let container = container();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for n in 0..32u64 {
            let done = &done;
            scope.spawn(move || {
                for round in 0..300 {
                    let at = 64 + n;
                    assert_eq!(store(device, at, round as u8), Ok(1));
                    assert_eq!(config(device, at), Ok(round as u8));
                    assert_eq!(map_dma(container), Ok(0));
                    assert!(has_status(group));
                    let own = device_of(group).unwrap();
                    assert_eq!(config(own, at), Ok(round as u8));
                    close(own);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Threads that come and go.
        for _ in 0..200 {
            std::thread::spawn(move || assert_eq!(config(device, 1), Ok(1))).join().unwrap();
        }
    });
    println!("maps={}", done.load(Ordering::Relaxed));
}

fn scm() {
    let mut pair = [0; 2];
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
    let pid = child(|| {
        let device = receive_fd(pair[1]);
        assert_eq!(config(device, 11), Ok(11));
        let other = receive_fd(pair[1]);
        assert!(has_status(other));
    });
    let group = group();
    let device = device_of(group).unwrap();
    send_fd(pair[0], device);
    close(device);
    send_fd(pair[0], group);
    close(group);
    assert_eq!(wait(pid), 0);
    assert!(open("/dev/vfio/7", libc::O_RDWR).is_ok(), "the last descriptor was in the child");
}

fn send_fd(socket: c_int, fd: c_int) {
    unsafe {
        let mut byte = 0u8;
        let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut space = [0u64; 4];
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let control = libc::CMSG_FIRSTHDR(&raw const header);
        (*control).cmsg_level = libc::SOL_SOCKET;
        (*control).cmsg_type = libc::SCM_RIGHTS;
        (*control).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(control).cast::<c_int>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(socket, &raw const header, 0), 1);
    }
}

fn receive_fd(socket: c_int) -> c_int {
    unsafe {
        let mut byte = 0u8;
        let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut space = [0u64; 4];
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = 32;
        assert_eq!(libc::recvmsg(socket, &raw mut header, 0), 1);
        libc::CMSG_DATA(libc::CMSG_FIRSTHDR(&raw const header)).cast::<c_int>().read_unaligned()
    }
}

/// Detaches as a daemon does, and goes on using the device after the main
/// program has ended.
fn daemon() {
    let group = group();
    let device = device_of(group).unwrap();
    let mut pipe = [0; 2];
    unsafe { libc::pipe(pipe.as_mut_ptr()) };
    let pid = child(|| {
        unsafe { libc::setsid() };
        child(|| {
            close(pipe[1]);
            // Ends when the main program has: nobody else holds the other end.
            let mut byte = 0u8;
            unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
            for _ in 0..100 {
                assert_eq!(config(device, 12), Ok(12));
            }
            let container = container();
            assert_eq!(map_dma(container), Ok(0));
            println!("daemon done");
        });
    });
    assert_eq!(wait(pid), 0);
    exit(3);
}

fn undumpable() {
    let group = group();
    let device = device_of(group).unwrap();
    assert_eq!(config(device, 13), Ok(13));
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    // It works, or it fails with an error; never a made-up byte.
    match config(device, 14) {
        Ok(byte) => assert_eq!(byte, 14),
        Err(error) => assert!([libc::EFAULT, libc::EBADF].contains(&error), "{error}"),
    }
    let mut info = [16u32, 0, 0, 0];
    match ioctl(device, DEVICE_GET_INFO, info.as_mut_ptr()) {
        Ok(_) => assert_eq!(info[2], 9),
        Err(error) => assert!([libc::EFAULT, libc::EBADF].contains(&error), "{error}"),
    }
}

fn vectored() {
    let device = device_of(group()).unwrap();
    let (mut a, mut b) = ([0u8; 3], [0u8; 5]);
    let iov = [
        libc::iovec { iov_base: a.as_mut_ptr().cast(), iov_len: 3 },
        libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 5 },
    ];
    let at = |n: u64| (CONFIG + n) as i64;
    unsafe {
        assert_eq!(libc::preadv(device, iov.as_ptr(), 2, at(16)), 8);
        assert_eq!((a, b), ([16, 17, 18], [19, 20, 21, 22, 23]));
        assert_eq!(libc::preadv2(device, iov.as_ptr(), 1, at(32), 0), 3);
        assert_eq!(a, [32, 33, 34]);
        a = [1, 2, 3];
        b = [4, 5, 6, 7, 8];
        assert_eq!(libc::pwritev(device, iov.as_ptr(), 2, at(64)), 8);
        assert_eq!(config(device, 71), Ok(8));
        assert_eq!(libc::preadv(device, iov.as_ptr(), 2, at(253)), 3, "short at the end");
        assert_eq!((libc::preadv(device, iov.as_ptr(), 5000, at(0)), errno()), (-1, libc::EINVAL));
        assert_eq!((libc::preadv(device, std::ptr::null(), 2, at(0)), errno()), (-1, libc::EFAULT));
        assert_eq!((a, b).0.len(), 3);
    }
}

fn eventfd() {
    let device = device_of(group()).unwrap();
    let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) };
    assert!(is_cloexec(event.as_raw_fd()));
    let set = |fd: c_int| {
        let mut set = [24u32, 0, 0, 0, 1, fd as u32];
        ioctl(device, SET_IRQS, set.as_mut_ptr())
    };
    for _ in 0..3 {
        assert_eq!(set(event.as_raw_fd()), Ok(0));
    }
    let mut count = 0u64;
    assert_eq!(unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) }, 8);
    assert_eq!(count, 3);
    assert_eq!(set(device), Err(libc::EINVAL));
    assert_eq!(set(999), Err(libc::EBADF));
    assert_eq!(set(-1), Err(libc::EBADF));
}

/// Calls under a storm of signals: none may run twice.
fn signals() {
    extern "C" fn nothing(_: c_int) {}
    let container = container();
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let period = libc::timeval { tv_sec: 0, tv_usec: 50 };
        let timer = libc::itimerval { it_interval: period, it_value: period };
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    let mut maps = 0;
    for _ in 0..20_000 {
        match map_dma(container) {
            Ok(_) => maps += 1,
            Err(error) => assert_eq!(error, libc::EINTR),
        }
    }
    unsafe {
        let off: libc::itimerval = std::mem::zeroed();
        libc::setitimer(libc::ITIMER_REAL, &raw const off, std::ptr::null_mut());
    }
    println!("maps={maps}");
}

// GRP-059: the open file is a character device with the number in sysfs.
fn cdev() {
    let text = std::fs::read_to_string("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev").unwrap();
    let device = open("/dev/vfio/devices/vfio0", libc::O_RDWR | libc::O_CLOEXEC).unwrap();
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(device, &raw mut stat), 0);
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!(text, format!("{}:{}\n", libc::major(stat.st_rdev), libc::minor(stat.st_rdev)));
    }
    assert_eq!(ioctl_value(device, RESET, 0), Ok(0));
    assert!(is_cloexec(device), "kept when the file takes its place");
    assert_eq!(config(device, 15), Ok(15));
    let other = open("/dev/vfio/devices/vfio0", libc::O_RDWR).unwrap();
    assert_eq!(config(other, 16), Ok(16), "an access takes its place too");
    assert!(!is_cloexec(other));
    let iommu = open("/dev/iommu", libc::O_RDWR).unwrap();
    assert_eq!(ioctl_value(iommu, 0x3b81, 0), Ok(5));
}

/// Everything wrong that a program can do with a call.
fn hostile() {
    let group = group();
    let device = device_of(group).unwrap();
    let container = container();
    for fd in [group, device, container, 0, -1, i32::MAX, i32::MIN] {
        for request in 0x3b00..0x3c00u64 {
            for arg in [0, 1, 8, 0xfff, 1 << 46, 0x7fff_ffff_f000, u64::MAX, i64::MAX as u64, i64::MIN as u64] {
                // A group that is open or a device that is asked for gives a descriptor.
                if let (Ok(new), GET_DEVICE_FD) = (ioctl_value(fd, request, arg), request) {
                    close(new);
                }
            }
        }
    }
    unsafe {
        for offset in [BAR as i64, CONFIG as i64, i64::MAX, i64::MAX - 4095, i64::MIN, -1, 1 << 45, (1 << 45) - 1] {
            for len in [0usize, 1, 4096, 1 << 31, usize::MAX, usize::MAX / 2] {
                for addr in [0usize, 1, 0xffff_8000_0000_0000, usize::MAX] {
                    for fd in [device, container, group, -5] {
                        libc::pread(fd, addr as *mut c_void, len, offset);
                        libc::pwrite(fd, addr as *const c_void, len, offset);
                        libc::preadv(fd, addr as *const libc::iovec, len as c_int, offset);
                    }
                }
            }
            libc::mmap(std::ptr::null_mut(), usize::MAX, 1, libc::MAP_SHARED, device, offset & !4095);
        }
        for path in [0usize, 1, usize::MAX, 0xffff_8000_0000_0000] {
            assert_eq!(libc::open(path as *const i8, libc::O_RDWR), -1);
            libc::syscall(libc::SYS_openat2, -100, path, path, path);
        }
        // Unterminated up to the end of the mapping.
        let page = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        std::slice::from_raw_parts_mut(page.cast::<u8>(), 4096).fill(b'/');
        assert_eq!(libc::open(page.cast(), libc::O_RDWR), -1);
        // Descriptors that close while they are used.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(fd) = open("/dev/vfio/vfio", libc::O_RDWR) {
                            libc::close(fd);
                        }
                    }
                });
                scope.spawn(|| {
                    for n in 0..2000u64 {
                        let fd = (n % 30) as c_int + 3;
                        if fd != group && fd != device && fd != container {
                            let _ = ioctl_value(fd, MAP_DMA, 0);
                            let _ = ioctl_value(fd, UNMAP_DMA, 0);
                            let mut byte = 0u8;
                            libc::pread(fd, (&raw mut byte).cast(), 1, CONFIG as i64);
                        }
                    }
                });
            }
        });
    }
    assert_eq!(ioctl_value(device, RESET, 0xbad), Err(libc::EIO), "the kernel made a mistake");
    assert_eq!(config(device, 17), Ok(17), "still there");
}

/// Opens as many files as it is told, uses each, closes them.
fn many(count: usize) {
    let fds: Vec<c_int> = (0..count).map(|_| container()).collect();
    for fd in &fds {
        assert_eq!(map_dma(*fd), Ok(0));
    }
    for fd in fds {
        close(fd);
    }
    assert!(open("/dev/vfio/vfio", libc::O_RDWR).is_ok());
}

/// Says that it is ready, then waits for its end.
fn hang() {
    let _device = device_of(group()).unwrap();
    println!("ready {}", std::process::id());
    loop {
        unsafe { libc::pause() };
    }
}
