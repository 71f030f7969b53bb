// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a notified call costs at the least on this machine: a child calls,
//! a loop with nothing in it answers. Prints nanoseconds a call: `bare`, and
//! `writev` with one `process_vm_writev` of 4 bytes each.
//!
//! `client bench` under `runner` is to be compared with these in the same run.

use std::mem::zeroed;
use std::time::Instant;

const RECV: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const SET_FLAGS: libc::c_ulong = 0x4008_2104;
const ROUNDS: u32 = 40_000;

fn main() {
    for (name, write) in [("bare", false), ("writev", true)] {
        let mut results: Vec<f64> = (0..7).map(|_| measure(write)).collect();
        results.sort_by(f64::total_cmp);
        println!("{name} {:.0}", results[results.len() / 2]);
    }
}

fn measure(write: bool) -> f64 {
    let mut pair = [0i32; 2];
    let mut pipe = [0i32; 2];
    let mut word = 0u32;
    let target = &raw mut word;
    // SAFETY: a benchmark of raw calls; each gets valid pointers, and the
    // child runs nothing but system calls and the clock.
    unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        libc::pipe(pipe.as_mut_ptr());
        let pid = libc::fork();
        if pid == 0 {
            let filter = [
                libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
                libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_getppid as u32 },
                libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
                libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
            ];
            let prog = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let listener = libc::syscall(libc::SYS_seccomp, 1, (1u64 << 3) | (1 << 5), &raw const prog) as i32;
            libc::write(pair[1], (&raw const listener).cast(), 4);
            let mut go = 0u8;
            libc::read(pair[1], (&raw mut go).cast(), 1);
            for _ in 0..1000 {
                libc::syscall(libc::SYS_getppid);
            }
            let start = Instant::now();
            for _ in 0..ROUNDS {
                libc::syscall(libc::SYS_getppid);
            }
            let nanos = start.elapsed().as_nanos() as u64;
            libc::write(pipe[1], (&raw const nanos).cast(), 8);
            libc::_exit(0);
        }
        let mut number = 0i32;
        libc::read(pair[0], (&raw mut number).cast(), 4);
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        let listener = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) as i32;
        libc::ioctl(listener, SET_FLAGS, 1u64);
        libc::write(pair[0], c"g".as_ptr().cast(), 1);
        for _ in 0..ROUNDS + 1000 {
            let mut n: libc::seccomp_notif = zeroed();
            libc::ioctl(listener, RECV, &raw mut n);
            if write {
                let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 4 };
                let remote = libc::iovec { iov_base: target.cast(), iov_len: 4 };
                libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0);
            }
            let mut answer = libc::seccomp_notif_resp { id: n.id, val: 0, error: 0, flags: 0 };
            libc::ioctl(listener, SEND, &raw mut answer);
        }
        let mut nanos = 0u64;
        libc::read(pipe[0], (&raw mut nanos).cast(), 8);
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        for fd in [pair[0], pair[1], pipe[0], pipe[1], pidfd, listener] {
            libc::close(fd);
        }
        nanos as f64 / f64::from(ROUNDS)
    }
}
