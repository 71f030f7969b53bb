// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program whose threads load from a mapped BAR without end, while its device
//! is recovered (`held error`: the lab plans the error) or reset (`held reset`),
//! and meanwhile get signals and wait for events. It tells what they saw.
//!
//! `held storm` has one error after the other; `held killed` kills itself while they wait; `held traced` is traced by its
//! parent; `held forks` has a child that maps the BAR meanwhile.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, ptr, thread};

const PAGE: usize = 4096;
/// More than until the first error.
const CALLS: usize = 20;
/// Version of an NVMe controller: 1.4.
const VERSION: (usize, u32) = (8, 0x1_0400);

static STOP: AtomicBool = AtomicBool::new(false);
/// Threads that have begun to load.
static LOADING: AtomicU64 = AtomicU64::new(0);
static ALARMS: AtomicU64 = AtomicU64::new(0);

fn ioctl(fd: &OwnedFd, request: u64, words: *mut u32) -> i32 {
    // SAFETY: no request used here writes more than its structure, which is
    // what the words are.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, words) };
    assert!(result >= 0, "request {request:#x}: {}", std::io::Error::last_os_error());
    result
}

/// The device, what keeps it open, and where its regions lie.
struct Device {
    device: OwnedFd,
    _group: OwnedFd,
    _container: OwnedFd,
}

impl Device {
    fn open() -> Device {
        let link = fs::read_link("/sys/bus/pci/devices/0000:01:00.0/iommu_group").expect("a group");
        let node = |path: &str| OwnedFd::from(fs::File::options().read(true).write(true).open(path).expect("a node"));
        let container = node("/dev/vfio/vfio");
        let group = node(&format!("/dev/vfio/{}", link.file_name().expect("a number").display()));
        ioctl(&group, 0x3b68, &mut (container.as_raw_fd() as u32));
        // SAFETY: the argument is a number.
        assert_eq!(unsafe { libc::ioctl(container.as_raw_fd(), 0x3b66, 3) }, 0, "SET_IOMMU");
        let fd = ioctl(&group, 0x3b6a, c"0000:01:00.0".as_ptr().cast_mut().cast());
        // SAFETY: the call has just made the descriptor for us alone.
        let device = unsafe { OwnedFd::from_raw_fd(fd) };
        Device { device, _group: group, _container: container }
    }

    fn region(&self, index: u32) -> u64 {
        let mut info = [32, 0, index, 0, 0, 0, 0, 0];
        ioctl(&self.device, 0x3b6c, info.as_mut_ptr());
        u64::from(info[6]) | u64::from(info[7]) << 32
    }

    /// An eventfd that tells of errors.
    fn errors(&self) -> OwnedFd {
        // SAFETY: takes numbers; the descriptor is ours alone.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        // DATA_EVENTFD, ACTION_TRIGGER, the index of errors, vector 0.
        let mut set = [24, 4 | 32, 3, 0, 1, event.as_raw_fd() as u32];
        ioctl(&self.device, 0x3b6e, set.as_mut_ptr());
        event
    }

    fn map(&self) -> usize {
        let offset = self.region(0) as i64;
        let fd = self.device.as_raw_fd();
        // SAFETY: a new mapping, which stays.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, offset)
        };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        at as usize
    }
}

/// Loads until it is told to stop: values that are not the register's, and the
/// longest load.
fn load(bar: usize) -> (u64, Duration) {
    let (mut wrong, mut longest, mut last, mut first) = (0, Duration::ZERO, Instant::now(), true);
    while !STOP.load(Ordering::Relaxed) {
        // SAFETY: the mapping stays.
        let value = unsafe { ptr::read_volatile((bar + VERSION.0) as *const u32) };
        wrong += u64::from(value != VERSION.1);
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if first {
            LOADING.fetch_add(1, Ordering::Relaxed);
            first = false;
        }
    }
    (wrong, longest)
}

/// Waits for events that do not come: how often that was interrupted.
fn wait() -> u64 {
    let mut interrupted = 0;
    // SAFETY: plain calls on valid structures.
    unsafe {
        let epoll = libc::epoll_create1(0);
        let mut event: libc::epoll_event = std::mem::zeroed();
        while !STOP.load(Ordering::Relaxed) {
            interrupted += u64::from(libc::epoll_wait(epoll, &raw mut event, 1, 50) < 0);
        }
    }
    interrupted
}

extern "C" fn alarm(_: libc::c_int) {
    ALARMS.fetch_add(1, Ordering::Relaxed);
}

/// Signals for the thread that calls this, and for no other, a hundred a second.
fn alarms() {
    // SAFETY: the handler counts; the structures are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = alarm as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut());
        let every = libc::timeval { tv_sec: 0, tv_usec: 10_000 };
        libc::setitimer(libc::ITIMER_REAL, &libc::itimerval { it_interval: every, it_value: every }, ptr::null_mut());
    }
    while !STOP.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

fn block_alarms() {
    // SAFETY: the structures are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Until something is so that another thread brings about.
fn until(is: impl Fn() -> bool) {
    while !is() {
        thread::yield_now();
    }
}

/// Waits for the error, which is told when the device is blocked.
fn wait_for_error(errors: &OwnedFd) {
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(errors, &mut count), Ok(8), "eventfd");
}

/// Does what the lab counts until it plans its error, then waits for the end
/// of that as a call does.
fn recover(device: &Device, calls: usize) {
    let config = device.region(7);
    for _ in 0..calls {
        let mut word = [0u8; 4];
        rustix::io::pread(&device.device, &mut word, config).expect("configuration space");
    }
}

fn main() {
    let how = env::args().nth(1).unwrap_or_default();
    if how == "traced" {
        traced();
    }
    block_alarms();
    let device = Device::open();
    rustix::io::pwrite(&device.device, &6_u16.to_le_bytes(), device.region(7) + 4).expect("configuration space");
    let bar = device.map();
    let loaders: Vec<_> = (0..2).map(|_| thread::spawn(move || load(bar))).collect();
    let waiter = thread::spawn(wait);
    let ticker = thread::spawn(alarms);
    let errors = device.errors();
    until(|| LOADING.load(Ordering::Relaxed) == 2 && ALARMS.load(Ordering::Relaxed) > 0);
    let start = Instant::now();
    let mut child = 0;
    match &*how {
        "killed" => {
            thread::spawn(move || {
                wait_for_error(&errors);
                // SAFETY: takes numbers.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            });
            recover(&device, CALLS);
        }
        "reset" => drop(ioctl(&device.device, 0x3b6f, ptr::null_mut())),
        "forks" => {
            let shared = &device;
            thread::scope(|scope| {
                scope.spawn(|| recover(shared, CALLS));
                wait_for_error(&errors);
                // SAFETY: the child maps, loads and exits.
                child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: the mapping was made just now.
                    let value = unsafe { ptr::read_volatile((shared.map() + VERSION.0) as *const u32) };
                    // SAFETY: no destructors are wanted here.
                    unsafe { libc::_exit(if value == VERSION.1 { 7 } else { 8 }) };
                }
            });
        }
        "storm" => recover(&device, 40 * CALLS),
        _ => recover(&device, CALLS),
    }
    println!("blocked for {} ms", start.elapsed().as_millis());
    // Signals come again, to a thread that never waited.
    let before = ALARMS.load(Ordering::Relaxed);
    until(|| ALARMS.load(Ordering::Relaxed) > before + 10);
    let alarms = ALARMS.load(Ordering::Relaxed);
    STOP.store(true, Ordering::Relaxed);
    for loader in loaders {
        let (wrong, longest) = loader.join().expect("a loader");
        println!("wrong {wrong}, longest {} ms", longest.as_millis());
    }
    println!("interrupted {}, alarms {}", waiter.join().expect("a waiter"), alarms > 20);
    ticker.join().expect("a ticker");
    if child > 0 {
        let mut status = 0;
        // SAFETY: the word is valid for the call.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        println!("child {}", status >> 8);
    }
}

/// Forks; the child goes on, traced by its parent as by a debugger.
fn traced() {
    // SAFETY: there is one thread, and the calls take numbers.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::raise(libc::SIGSTOP);
            return;
        }
        let options = libc::PTRACE_O_TRACECLONE as usize;
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, child, 0, options), 0, "the child can be traced");
        libc::kill(child, libc::SIGCONT);
        let mut status = 0;
        loop {
            let tid = libc::waitpid(-1, &raw mut status, libc::__WALL);
            if tid == child && !libc::WIFSTOPPED(status) {
                process::exit(libc::WEXITSTATUS(status));
            }
            if libc::WIFSTOPPED(status) {
                let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
                libc::ptrace(libc::PTRACE_CONT, tid, 0, if signal == libc::SIGSTOP { 0 } else { signal as usize });
            }
        }
    }
}
