// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program's memory: reached while it lives, and never another's after that.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use common::{Child, PRIVATE, RO, RW, exit, fill, map, peek, read, write};
use iommu::{Memory, MemoryFault};
use sys::process::{read_user, write_user};
use uapi::Errno;
use vm_memory::VolatileSlice;

/// On both sides of the length from which copies go by pid.
const LENGTHS: [usize; 5] = [1, 4096, 8192, 8193, 1 << 20];
const LEN: usize = 1 << 20;

/// A child with `LEN` bytes of `value` at an address that it gives.
fn holder(value: u8) -> (Child, u64) {
    let mut child = Child::start(|turns| {
        let addr = map(0, LEN, RW, PRIVATE, -1, 0);
        fill(addr, value, LEN);
        turns.give(addr);
        turns.give(u64::from(peek(addr)) << 8 | u64::from(peek(addr + LEN as u64 - 1)));
        exec_sleep();
    });
    let addr = child.take();
    (child, addr)
}

fn exec_sleep() {
    let args = [c"/bin/sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null()];
    // SAFETY: a null-terminated list of null-terminated strings.
    unsafe { libc::execv(args[0], args.as_ptr()) };
    exit(98);
}

#[test]
fn copies_both_ways_at_every_length() {
    let (mut child, addr) = holder(7);
    let process = child.process();
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len).unwrap(), vec![7; len]);
        write(&*process, addr, 9, len).unwrap();
        assert_eq!(read(&*process, addr, len).unwrap(), vec![9; len]);
        write(&*process, addr, 7, len).unwrap();
    }
    assert!(iommu::Memory::slice(&*process, addr, 1).is_none());
    write(&*process, addr, 3, 1).unwrap();
    write(&*process, addr + LEN as u64 - 9000, 4, 9000).unwrap();
    child.go();
    assert_eq!(child.take(), 0x304);
}

/// Pieces of `own` for places that are 8 KiB apart, across a page's end.
fn pieces<'a>(addr: u64, own: &'a mut [u8], each: usize) -> Vec<(u64, VolatileSlice<'a>)> {
    let places = (0..).map(|i| addr + i * 8192 % (LEN as u64 - 8192) + 4096 - each as u64 / 2);
    places.zip(own.chunks_mut(each).map(VolatileSlice::from)).collect()
}

/// Pieces in one call, fewer and more than the system takes at a time.
#[test]
fn many_pieces_both_ways() {
    let (mut child, addr) = holder(7);
    let process = child.process();
    for (count, each) in [(1, 64), (2, 4), (32, 4096), (100, 64), (126, 4096)] {
        let mut own: Vec<u8> = (0..count * each).map(|i| (i / each + i) as u8).collect();
        let want = own.clone();
        process.write_many(&pieces(addr, &mut own, each)).unwrap();
        own.fill(0);
        process.read_many(&pieces(addr, &mut own, each)).unwrap();
        assert_eq!(own, want, "{count} pieces");
    }
    let mut own = vec![1; 3000];
    process.write_many(&pieces(addr, &mut own, 1)).unwrap();
    // The last of several for one byte counts, also where pieces adjoin.
    let (mut a, mut b, mut c) = ([3; 4096], [4; 4096], [5; 8]);
    let slice = |bytes| VolatileSlice::from(bytes);
    let parts = [(addr, slice(&mut a[..])), (addr + 4096, slice(&mut b[..])), (addr + 4092, slice(&mut c[..]))];
    process.write_many(&parts).unwrap();
    let seen = read(&*process, addr, 8192).unwrap();
    assert_eq!((seen[4091], &seen[4092..4100], seen[4100], seen[8191]), (3, &[5; 8][..], 4, 4));
    process.write_many(&[]).unwrap();
    // And as well when the program is about to exec.
    process.before_exec();
    let mut own = vec![9; 64];
    process.write_many(&pieces(addr, &mut own, 8)).unwrap();
    own.fill(0);
    process.read_many(&pieces(addr, &mut own, 8)).unwrap();
    assert_eq!(own, [9; 64]);
    write(&*process, addr, 3, 1).unwrap();
    child.go();
    assert_eq!(child.take() >> 8, 3);
}

/// A piece that is not mapped, first, in the middle and last; a program that
/// has died.
#[test]
fn many_pieces_with_a_fault() {
    let (child, addr) = holder(7);
    let process = child.process();
    for at in [0, 3, 7] {
        for bad in [0, addr + LEN as u64 + (1 << 30), u64::MAX, 1 << 63] {
            let mut own = [0; 64];
            let mut parts = pieces(addr, &mut own, 8);
            parts[at].0 = bad;
            assert_eq!(process.read_many(&parts), Err(MemoryFault));
            assert_eq!(process.write_many(&parts), Err(MemoryFault));
        }
    }
    child.kill();
    let mut own = [0; 64];
    let parts = pieces(addr, &mut own, 8);
    assert_eq!(process.read_many(&parts), Err(MemoryFault));
    assert_eq!(process.write_many(&parts), Err(MemoryFault));
}

#[test]
fn what_is_not_mapped_faults() {
    let (child, addr) = holder(7);
    let process = child.process();
    for at in [0, addr + LEN as u64 + (1 << 30), u64::MAX, u64::MAX - 4096, 1 << 63] {
        for len in [1, 8193] {
            assert_eq!(read(&*process, at, len), Err(MemoryFault), "{at:#x}");
            assert_eq!(write(&*process, at, 1, len), Err(MemoryFault), "{at:#x}");
        }
    }
}

#[test]
fn a_dead_program_faults() {
    let (child, addr) = holder(7);
    let process = child.process();
    assert!(process.is_alive());
    child.kill();
    assert!(!process.is_alive());
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len), Err(MemoryFault));
        assert_eq!(write(&*process, addr, 1, len), Err(MemoryFault));
    }
    assert_eq!(sys::Process::open(child.pid).unwrap_err(), Errno::from_raw(libc::ESRCH));
}

#[test]
fn after_exec_the_old_memory_faults_and_the_new_is_another() {
    let (mut child, addr) = holder(7);
    let process = child.process();
    child.go();
    child.take();
    child.go();
    child.wait_closed();
    assert!(!process.is_alive());
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len), Err(MemoryFault));
        assert_eq!(write(&*process, addr, 1, len), Err(MemoryFault));
    }
    assert!(child.process().is_alive());
}

/// A thread-like child keeps the old address space alive while the pid means a
/// new program: only the announcement of the exec tells them apart in advance.
#[test]
fn an_announced_exec_never_leads_to_the_new_program() {
    let mut child = Child::start(|turns| {
        let addr = map(0, LEN, RW, PRIVATE, -1, 0);
        fill(addr, 7, LEN);
        // SAFETY: the new process runs on a copy of the stack page that it
        // waits in: without a stack of its own only system calls are made.
        let other = unsafe {
            let stack = map(0, 1 << 16, RW, PRIVATE, -1, 0) + (1 << 16);
            libc::clone(wait_for_ever, stack as *mut libc::c_void, libc::CLONE_VM, std::ptr::null_mut())
        };
        turns.tell(other as u64);
        turns.give(addr);
        exec_sleep();
    });
    extern "C" fn wait_for_ever(_: *mut libc::c_void) -> i32 {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let (other, addr) = (child.take() as i32, child.take());
    let process = child.process();
    process.before_exec();
    child.go();
    let comm = format!("/proc/{}/comm", child.pid);
    while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
        std::thread::yield_now();
    }
    assert!(process.is_alive(), "the other one still runs in it");
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len).unwrap(), vec![7; len]);
        write(&*process, addr, 7, len).unwrap();
    }
    // SAFETY: a process that the child has made and nobody reaps meanwhile.
    unsafe { libc::kill(other, libc::SIGKILL) };
    while process.is_alive() {
        std::thread::yield_now();
    }
    assert_eq!(read(&*process, addr, 8193), Err(MemoryFault));
}

/// `struct clone_args` up to `set_tid_size`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

#[test]
fn a_pid_that_comes_again_is_another_program() {
    let (first, addr) = holder(7);
    let pid = first.pid;
    let process = first.process();
    first.kill();
    let wanted = [pid];
    let fork = || {
        let args = CloneArgs {
            exit_signal: libc::SIGCHLD as u64,
            set_tid: wanted.as_ptr() as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        // SAFETY: clone3 without flags is fork; the struct has the size given.
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) as i32 }
    };
    // SAFETY: asks for the user id.
    if unsafe { libc::geteuid() } != 0 {
        // Only root chooses pids. What can be had without is in the tests above.
        return;
    }
    let mut second = Child::start_with(fork, |turns| {
        map(addr, LEN, RW, PRIVATE, -1, 0);
        fill(addr, 8, LEN);
        turns.give(0);
        turns.give(u64::from(peek(addr)));
    });
    assert_eq!(second.pid, pid);
    second.take();
    assert_eq!(read(&*second.process(), addr, 8193).unwrap(), vec![8; 8193]);
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len), Err(MemoryFault));
        assert_eq!(write(&*process, addr, 1, len), Err(MemoryFault));
    }
    second.go();
    assert_eq!(second.take(), 8, "untouched");
    // `first` would kill the second one by its pid.
    std::mem::forget(first);
}

/// Arguments of calls: rights are those of the program, unlike a device's.
#[test]
fn arguments_follow_the_rights_of_the_program() {
    let mut child = Child::start(|turns| {
        let addr = map(0, 3 * 4096, RW, PRIVATE, -1, 0);
        fill(addr, 5, 3 * 4096);
        map(addr + 4096, 4096, RO, PRIVATE, -1, 0);
        map(addr + 8192, 4096, libc::PROT_NONE, PRIVATE, -1, 0);
        turns.give(addr);
    });
    let (addr, pid) = (child.take(), child.pid);
    let process = child.process();
    let mut buf = [0; 16];
    for through in [false, true] {
        let read = |at, buf: &mut [u8]| {
            if through { process.read_user(pid, at, buf) } else { read_user(pid, at, buf) }
        };
        let write = |at, buf: &[u8]| if through { process.write_user(pid, at, buf) } else { write_user(pid, at, buf) };
        assert_eq!(read(addr + 4080, &mut buf), Ok(()));
        assert_eq!(buf, [5; 16]);
        assert_eq!(read(addr + 4088, &mut buf), Ok(()), "into the page that it may read");
        assert_eq!(read(addr + 8184, &mut buf), Err(Errno::EFAULT), "into the page that it may not");
        assert_eq!(write(addr + 4080, &[5; 16]), Ok(()));
        assert_eq!(write(addr + 4088, &[5; 16]), Err(Errno::EFAULT));
        assert_eq!(read(0, &mut buf), Err(Errno::EFAULT));
        assert_eq!(read(u64::MAX - 3, &mut buf), Err(Errno::EFAULT));
        assert_eq!(write(u64::MAX, &[1]), Err(Errno::EFAULT));
        assert_eq!(read(addr, &mut []), Ok(()));
    }
}

/// An undumpable program: the handle that was opened before still works for a
/// device, and a new one is refused instead of giving zeros.
#[test]
fn undumpable_programs_give_an_error_or_the_truth() {
    let mut child = Child::start(|turns| {
        let addr = map(0, LEN, RW, PRIVATE, -1, 0);
        fill(addr, 7, LEN);
        turns.give(addr);
        // SAFETY: no memory is involved. Not root, else nothing is refused.
        unsafe {
            libc::setresuid(65534, 65534, 65534);
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
        }
        turns.give(0);
    });
    let addr = child.take();
    let process = child.process();
    child.go();
    child.take();
    for len in LENGTHS {
        assert_eq!(read(&*process, addr, len).unwrap(), vec![7; len]);
    }
    let mut buf = [0; 4];
    assert_eq!(process.read_user(child.pid, addr, &mut buf), Ok(()));
    assert_eq!(buf, [7; 4]);
}
