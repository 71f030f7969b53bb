// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What any attack does besides its own calls: descriptors come, go and are
//! passed, memory that devices may use is unmapped, children come and go.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crate::memory::{Arena, PAGE, Rng, call, close, open};

/// Descriptors that all threads use.
const SLOTS: usize = 12;

/// One subsystem under attack.
pub(crate) trait Attack: Sync {
    /// What all threads share.
    fn shared(&self) -> &Shared;

    /// Any request.
    fn ioctl(&self, rng: &mut Rng);

    /// Reads and writes.
    fn access(&self, rng: &mut Rng);

    /// Maps and unmaps a descriptor.
    fn map(&self, rng: &mut Rng);

    /// A file that may be opened at any time.
    fn path(&self, rng: &mut Rng) -> String;

    /// Closes all, under whoever is using it, and does what a good program does
    /// first, so that there is something to break.
    fn handshake(&self, rng: &mut Rng);
}

/// What all threads share.
pub(crate) struct Shared {
    pub(crate) arena: Arena,
    slots: [AtomicI32; SLOTS],
    /// How many of the slots, the first ones, are the handshake's.
    roles: usize,
    pub(crate) stop: AtomicBool,
    pub(crate) calls: AtomicU64,
    children: AtomicU64,
}

/// One step of a thread.
pub(crate) fn step(attack: &dyn Attack, rng: &mut Rng) {
    let shared = attack.shared();
    shared.calls.fetch_add(1, Ordering::Relaxed);
    match rng.below(64) {
        0..=27 => attack.ioctl(rng),
        28..=37 => attack.access(rng),
        38..=41 => {
            let fd = call(libc::SYS_dup, [shared.fd(rng), 0, 0, 0, 0, 0]);
            shared.put(rng, fd as i32);
        }
        42..=43 => {
            close(shared.slot(rng).swap(-1, Ordering::Relaxed));
        }
        44..=45 => {
            let (from, to) = (shared.fd(rng), shared.slot(rng).load(Ordering::Relaxed));
            if to > 2 {
                call(libc::SYS_dup3, [from, to as u64, 0, 0, 0, 0]);
            }
        }
        46 => {
            let fd = open(&attack.path(rng));
            shared.put(rng, fd);
        }
        48..=50 => {
            // Nobody reads what waits.
            let fd = call(libc::SYS_eventfd2, [0, libc::EFD_NONBLOCK as u64, 0, 0, 0, 0]);
            shared.put(rng, fd as i32);
        }
        51..=53 => {
            // Memory that a device may be using goes and comes.
            let (at, len) = (rng.below(200) as usize * PAGE, (1 + rng.below(40)) as usize * PAGE);
            if rng.below(2) == 0 {
                call(libc::SYS_munmap, [shared.arena.0 + at as u64, len as u64, 0, 0, 0, 0]);
            } else {
                shared.arena.fill(at, len);
            }
        }
        54..=56 => attack.map(rng),
        57..=58 => shared.pass(rng),
        59 if rng.below(3) == 0 => fork(attack, rng),
        60 if rng.below(8) == 0 => attack.handshake(rng),
        _ => {
            let fd = shared.fd(rng);
            // Never without O_NONBLOCK: nobody would wake who reads.
            let (what, value) = rng.of(&[(1, 0), (2, 0), (2, 1), (3, 0), (4, libc::O_NONBLOCK as u64)]);
            call(libc::SYS_fcntl, [fd, what, value, 0, 0, 0]);
        }
    }
}

impl Shared {
    pub(crate) fn new(roles: usize) -> Shared {
        Shared {
            arena: Arena::new(),
            slots: [const { AtomicI32::new(-1) }; SLOTS],
            roles,
            stop: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            children: AtomicU64::new(0),
        }
    }

    /// A descriptor, most often one of the handshake's.
    pub(crate) fn fd(&self, rng: &mut Rng) -> u64 {
        match rng.below(40) {
            0 => u64::MAX,
            1 => rng.below(64).max(3),
            2..=25 => self.role(rng.below(self.roles as u64) as usize),
            _ => self.slots[rng.below(SLOTS as u64) as usize].load(Ordering::Relaxed) as u64,
        }
    }

    /// One of the handshake's descriptors.
    pub(crate) fn role(&self, n: usize) -> u64 {
        self.slots[n].load(Ordering::Relaxed) as u64
    }

    /// Any slot but those of the handshake.
    fn slot(&self, rng: &mut Rng) -> &AtomicI32 {
        &self.slots[self.roles + rng.below((SLOTS - self.roles) as u64) as usize]
    }

    pub(crate) fn put(&self, rng: &mut Rng, fd: i32) {
        if fd > 2 {
            close(self.slot(rng).swap(fd, Ordering::Relaxed));
        }
    }

    /// Closes everything.
    pub(crate) fn forget(&self) {
        for slot in &self.slots {
            slot.store(-1, Ordering::Relaxed);
        }
        // Races have left others that are in no slot.
        call(libc::SYS_close_range, [3, u64::from(u32::MAX), 0, 0, 0, 0]);
    }

    /// Makes these the handshake's.
    pub(crate) fn play(&self, fds: &[i32]) {
        for (slot, fd) in self.slots.iter().zip(fds) {
            close(slot.swap(*fd, Ordering::Relaxed));
        }
    }

    /// Sends a descriptor through a socket; it may die on the way.
    fn pass(&self, rng: &mut Rng) {
        let mut pair = [0_i32; 2];
        let kind = (libc::SOCK_DGRAM | libc::SOCK_NONBLOCK) as u64;
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
}

/// A child that uses what it inherits and ends in one of several ways.
fn fork(attack: &dyn Attack, rng: &mut Rng) {
    if attack.shared().children.fetch_add(1, Ordering::Relaxed) > 200 {
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
                0 => attack.ioctl(&mut own),
                1 => attack.access(&mut own),
                _ => attack.map(&mut own),
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
