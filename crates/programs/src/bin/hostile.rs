// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that means harm, for the stress test: many threads race on the
//! same descriptors with any request and any pointer, while descriptors are
//! duplicated, passed, closed, memory that devices may use is unmapped, and
//! children come and go.
//!
//! `hostile MILLISECONDS SEED exit|kill` prints what it did and exits, or is
//! killed by itself in the middle of it.

use std::ffi::{CString, c_long};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

const THREADS: u64 = 16;
/// Memory that is handed around: the program never keeps anything of its own in it.
const ARENA: usize = 1 << 20;
const PAGE: usize = 4096;
/// Descriptors that all threads use.
const SLOTS: usize = 12;
/// The first of them: container, group and device of the last handshake.
const ROLES: usize = 3;

/// A system call with any arguments.
fn call(number: c_long, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: pointers come from `Arena::pointer`: they lead to the arena, in
    // which nothing of the program lives, or to where nothing is mapped or
    // writable. Mappings are made and removed inside of the arena only.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Small steps of a generator; each thread has its own.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Addresses: the arena, whose halves are shared and private memory, and a
/// page behind it that only reads.
#[derive(Clone, Copy)]
struct Arena(u64);

impl Arena {
    fn new() -> Arena {
        let whole = map(0, ARENA + 2 * PAGE, libc::PROT_NONE, 0);
        let arena = Arena(whole);
        arena.fill(0, ARENA);
        map(whole + ARENA as u64, PAGE, libc::PROT_READ, libc::MAP_FIXED);
        arena
    }

    /// Fresh memory in a part of the arena.
    fn fill(self, at: usize, len: usize) {
        let kind = if at < ARENA / 2 { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | kind;
        let both = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        call(libc::SYS_mmap, [self.0 + at as u64, len as u64, both, flags as u64, u64::MAX, 0]);
    }

    fn holds(self, at: u64) -> bool {
        (self.0..self.0 + (ARENA + 2 * PAGE) as u64).contains(&at)
    }

    fn pointer(self, rng: &mut Rng) -> u64 {
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
}

fn map(at: u64, len: usize, prot: i32, flags: i32) -> u64 {
    let flags = (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let address = call(libc::SYS_mmap, [at, len as u64, prot as u64, flags, u64::MAX, 0]);
    assert!(address > 0, "no memory: {}", std::io::Error::last_os_error());
    address as u64
}

/// What all threads share.
struct Shared {
    arena: Arena,
    slots: [AtomicI32; SLOTS],
    group: u32,
    stop: AtomicBool,
    calls: AtomicU64,
    children: AtomicU64,
}

fn open(path: &str) -> i32 {
    let path = CString::new(path).unwrap_or_default();
    // SAFETY: a string that ends with NUL.
    unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }
}

fn close(fd: i32) {
    // Standard input and output stay.
    if fd > 2 {
        call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
    }
}

impl Shared {
    fn fd(&self, rng: &mut Rng) -> u64 {
        match rng.below(40) {
            0 => u64::MAX,
            1 => rng.below(64).max(3),
            2..=25 => self.slots[rng.below(ROLES as u64) as usize].load(Ordering::Relaxed) as u64,
            _ => self.slots[rng.below(SLOTS as u64) as usize].load(Ordering::Relaxed) as u64,
        }
    }

    /// Any slot but those of the handshake.
    fn slot(&self, rng: &mut Rng) -> &AtomicI32 {
        &self.slots[ROLES + rng.below((SLOTS - ROLES) as u64) as usize]
    }

    fn put(&self, rng: &mut Rng, fd: i32) {
        if fd >= 0 {
            close(self.slot(rng).swap(fd, Ordering::Relaxed));
        }
    }

    /// Words in the arena that look like a structure.
    fn structure(&self, rng: &mut Rng) -> u64 {
        let at = self.arena.pointer(rng);
        let inside = self.arena.0..self.arena.0 + ARENA as u64 - 256;
        if inside.contains(&at) {
            let page = rng.below(256) << 12;
            let fd = self.fd(rng) as u32;
            let mut words = [0_u32; 16];
            for word in &mut words {
                *word = rng.of(&[0, 0, 1, 2, 3, 4, 5, 6, 8, 32, 36, 48, 4096, page as u32, fd, u32::MAX]);
            }
            words[0] = rng.of(&[8, 16, 20, 24, 32, 40, 48, 64, 96, u32::MAX]);
            if rng.below(3) == 0 {
                // A DMA mapping that may well be accepted.
                let vaddr = self.arena.0 + page;
                (words[0], words[1]) = (32, rng.of(&[1, 2, 3]));
                (words[2], words[3]) = (vaddr as u32, (vaddr >> 32) as u32);
                (words[4], words[5], words[6], words[7]) = (page as u32, 0, rng.of(&[4096, 8192, 65536]), 0);
            }
            // By the kernel, so that a page that is just being replaced is no
            // fault: a pipe would do, but writing to oneself is one call.
            let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: 64 };
            let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: 64 };
            let (local, remote) = ((&raw const local) as u64, (&raw const remote) as u64);
            call(libc::SYS_process_vm_writev, [u64::from(process::id()), local, 1, remote, 1, 0]);
        }
        at
    }

    fn step(&self, rng: &mut Rng) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match rng.below(64) {
            0..=27 => self.ioctl(rng),
            28..=37 => self.access(rng),
            38..=41 => {
                let fd = call(libc::SYS_dup, [self.fd(rng), 0, 0, 0, 0, 0]);
                self.put(rng, fd as i32);
            }
            42..=43 => {
                close(self.slot(rng).swap(-1, Ordering::Relaxed));
            }
            44..=45 => {
                let (from, to) = (self.fd(rng), self.slot(rng).load(Ordering::Relaxed));
                if to > 2 {
                    call(libc::SYS_dup3, [from, to as u64, 0, 0, 0, 0]);
                }
            }
            46 => self.put(rng, open("/dev/vfio/vfio")),
            47 if rng.below(16) == 0 => self.put(rng, open(&format!("/dev/vfio/{}", self.group))),
            48..=50 => {
                let fd = call(libc::SYS_eventfd2, [0, 0, 0, 0, 0, 0]);
                self.put(rng, fd as i32);
            }
            51..=53 => {
                // Memory that a device may be using goes and comes.
                let (at, len) = (rng.below(200) as usize * PAGE, (1 + rng.below(40)) as usize * PAGE);
                if rng.below(2) == 0 {
                    call(libc::SYS_munmap, [self.arena.0 + at as u64, len as u64, 0, 0, 0, 0]);
                } else {
                    self.arena.fill(at, len);
                }
            }
            54..=56 => self.map(rng),
            57..=58 => self.pass(rng),
            59 if rng.below(3) == 0 => self.fork(rng),
            60 if rng.below(8) == 0 => self.handshake(rng),
            _ => {
                let fd = self.fd(rng);
                call(libc::SYS_fcntl, [fd, rng.of(&[1, 2, 3, 4]), rng.below(2), 0, 0, 0]);
            }
        }
    }

    fn ioctl(&self, rng: &mut Rng) {
        let fd = self.fd(rng);
        let request = match rng.below(16) {
            0 => 0x3b00 | rng.below(256),
            1 => 0x3b00 | rng.below(256) | rng.below(1 << 16) << 16,
            2 => 0x3b71 | rng.next() << 32,
            _ => 0x3b64 + rng.below(22),
        };
        let arg = if rng.below(8) == 0 { rng.below(16) } else { self.structure(rng) };
        let new = call(libc::SYS_ioctl, [fd, request, arg, 0, 0, 0]);
        // A device's descriptor.
        if request & 0xffff_ffff == 0x3b6a && new > 2 {
            self.put(rng, new as i32);
        }
    }

    /// Reads and writes of regions, in any length, at any place.
    fn access(&self, rng: &mut Rng) {
        let region = 32 + rng.below(12);
        let position = rng.of(&[0, 4, 0x10, 0x14, 0x1c, 0x44, 0x1000, 0x2000, 0x3ff8, 0x3fff]) + rng.below(8);
        let offset = match rng.below(10) {
            0 => rng.of(&[0, i64::MAX as u64, u64::MAX, 1 << 63, 1 << 45, 7 << 40, u64::MAX >> 1]),
            _ => region << 40 | position,
        };
        let len = rng.of(&[0, 1, 2, 4, 4, 8, 64, 256, 4096, 1 << 31, u64::MAX, u64::MAX >> 1]);
        let buffer = self.arena.pointer(rng);
        let number = match (self.arena.holds(buffer), rng.below(4)) {
            // What lies in the arena could be taken for vectors that lead to the
            // program's own memory.
            (false, 0) => libc::SYS_preadv,
            (false, 1) => libc::SYS_pwritev,
            (_, 2) => libc::SYS_pread64,
            _ => libc::SYS_pwrite64,
        };
        // What is longer could run out of the arena into something else.
        call(number, [self.fd(rng), buffer, len.min(4096), offset, 0, 0]);
    }

    /// Maps a BAR; stores to it are left to children, which may die of them.
    fn map(&self, rng: &mut Rng) {
        let offset = (32 + rng.below(3)) << 40 | rng.below(5) << 12;
        let shared = rng.of(&[libc::MAP_SHARED, libc::MAP_PRIVATE]) as u64;
        let len = rng.of(&[4096_u64, 8192, 16384, 1 << 40]);
        let at = call(libc::SYS_mmap, [0, len, 3, shared, self.fd(rng), offset]);
        if at > 0 {
            call(libc::SYS_munmap, [at as u64, len, 0, 0, 0, 0]);
        }
    }

    /// Sends a descriptor through a socket; it may die on the way.
    fn pass(&self, rng: &mut Rng) {
        let mut pair = [0_i32; 2];
        let kind = libc::SOCK_DGRAM as u64;
        if call(libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, pair.as_mut_ptr() as u64, 0, 0]) != 0 {
            return;
        }
        let mut byte = [0_u8];
        let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        // A control message: length, level, type, descriptor.
        let mut control =
            [20_u64, libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32, self.fd(rng) & 0xffff_ffff];
        // SAFETY: all zeros is a valid message header.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = 24;
        let address = (&raw mut message) as u64;
        let sent = call(libc::SYS_sendmsg, [pair[0] as u64, address, 0, 0, 0, 0]);
        if sent == 1 && rng.below(3) != 0 {
            control = [0; 3];
            message.msg_controllen = 24;
            let flags = libc::MSG_DONTWAIT as u64;
            if call(libc::SYS_recvmsg, [pair[1] as u64, address, flags, 0, 0, 0]) == 1 && message.msg_controllen >= 20 {
                self.put(rng, control[2] as i32);
            }
        }
        close(pair[0]);
        close(pair[1]);
    }

    /// A child that uses what it inherits and ends in one of several ways.
    fn fork(&self, rng: &mut Rng) {
        if self.children.fetch_add(1, Ordering::Relaxed) > 200 {
            return;
        }
        let how = rng.below(5);
        // SAFETY: the child only makes system calls and computes.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
            let mut own = Rng(rng.next() | 1);
            for _ in 0..20 {
                match own.below(3) {
                    0 => self.ioctl(&mut own),
                    1 => self.access(&mut own),
                    _ => self.bar(&mut own),
                }
            }
            match how {
                0 => call(libc::SYS_kill, [u64::from(process::id()), libc::SIGKILL as u64, 0, 0, 0, 0]),
                1 => {
                    let path = c"/bin/true".as_ptr() as u64;
                    let arguments = [path, 0];
                    call(libc::SYS_execve, [path, arguments.as_ptr() as u64, 0, 0, 0, 0])
                }
                _ => 0,
            };
            call(libc::SYS_exit_group, [0; 6]);
        } else if pid > 0 {
            if how == 2 {
                call(libc::SYS_kill, [pid as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
            }
            call(libc::SYS_wait4, [pid as u64, 0, 0, 0, 0, 0]);
        }
    }

    /// Stores to a mapped BAR, by the kernel's hand: no signal where it is off.
    fn bar(&self, rng: &mut Rng) {
        let at = call(libc::SYS_mmap, [0, 8192, 3, libc::MAP_SHARED as u64, self.fd(rng), 32 << 40]);
        if at <= 0 {
            return;
        }
        let mut value = rng.of(&[0_u32, 1, 0x46_0001, 0x1f_001f, u32::MAX]);
        let place = rng.of(&[0x14, 0x24, 0x28, 0x30, 0x84, 0x86, 0x90, 0x1000, 0x1004, 0x1008]);
        let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: 4 };
        let remote = libc::iovec { iov_base: (at as u64 + place) as *mut libc::c_void, iov_len: 4 };
        let (local, remote) = ((&raw const local) as u64, (&raw const remote) as u64);
        call(libc::SYS_process_vm_writev, [u64::from(process::id()), local, 1, remote, 1, 0]);
        call(libc::SYS_munmap, [at as u64, 8192, 0, 0, 0, 0]);
    }

    /// Closes all, under whoever is using it, and does what a good program does
    /// first, so that there is something to break.
    fn handshake(&self, rng: &mut Rng) {
        for slot in &self.slots {
            slot.store(-1, Ordering::Relaxed);
        }
        // Races have left others that are in no slot.
        call(libc::SYS_close_range, [3, u64::from(u32::MAX), 0, 0, 0, 0]);
        let container = open("/dev/vfio/vfio");
        // Children have it for a while.
        let again = || open(&format!("/dev/vfio/{}", self.group));
        let group = (0..40).map(|_| again()).find(|fd| *fd >= 0).unwrap_or(-1);
        let number = container;
        call(libc::SYS_ioctl, [group as u64, 0x3b68, (&raw const number) as u64, 0, 0, 0]);
        call(libc::SYS_ioctl, [container as u64, 0x3b66, rng.of(&[1, 3]), 0, 0, 0]);
        let name = c"0000:01:00.0".as_ptr() as u64;
        let device = call(libc::SYS_ioctl, [group as u64, 0x3b6a, name, 0, 0, 0]);
        let on = 6_u16;
        call(libc::SYS_pwrite64, [device as u64, (&raw const on) as u64, 2, 39 << 40 | 4, 0, 0]);
        let map = [32 | 3 << 32, self.arena.0, 0, ARENA as u64];
        call(libc::SYS_ioctl, [container as u64, 0x3b71, map.as_ptr() as u64, 0, 0, 0]);
        for (slot, fd) in self.slots.iter().zip([container, group, device as i32]) {
            close(slot.swap(fd, Ordering::Relaxed));
        }
    }
}

/// The lab's group: the number in `/dev/vfio`.
fn group() -> u32 {
    let names = fs::read_dir("/dev/vfio").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).min().unwrap_or(0)
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |n: usize| arguments.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
    let (milliseconds, seed) = (number(0), number(1));
    let killed = arguments.get(2).is_some_and(|how| how == "kill");
    let shared = Shared {
        arena: Arena::new(),
        slots: [const { AtomicI32::new(-1) }; SLOTS],
        group: group(),
        stop: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        children: AtomicU64::new(0),
    };
    shared.handshake(&mut Rng(seed | 1));
    let started = Instant::now();
    thread::scope(|scope| {
        for n in 0..THREADS {
            let shared = &shared;
            scope.spawn(move || {
                let mut rng = Rng((seed * 1000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.step(&mut rng);
                }
            });
        }
        while started.elapsed() < Duration::from_millis(milliseconds) {
            thread::sleep(Duration::from_millis(10));
        }
        if killed {
            println!("killed after {} calls", shared.calls.load(Ordering::Relaxed));
            call(libc::SYS_kill, [u64::from(process::id()), libc::SIGKILL as u64, 0, 0, 0, 0]);
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    println!("ended after {} calls", shared.calls.load(Ordering::Relaxed));
}
