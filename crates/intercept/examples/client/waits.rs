// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls that the tests' kernel makes wait at its gate.

use std::ffi::c_int;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{JoinHandle, spawn};

use crate::{CONFIG, RESET, child, close, config, device_of, done, errno, group, ioctl_value, wait};

/// Arguments of RESET, as the tests' kernel takes them.
const WAIT: u64 = 0x10;
const OPEN_GATE: u64 = 0x11;
const WAIT_WITH_AN_EAR: u64 = 0x12;
const CLOSE_GATE: u64 = 0x13;
const COUNT: u64 = 0x14;
const WAIT_FOR_CLOSE: u64 = 0x15;
/// A register that waits at the gate, too.
const GATED: u64 = 0xf0;

static CAUGHT: AtomicU32 = AtomicU32::new(0);

/// Until so many calls wait.
fn until_waiting(device: c_int, count: c_int) {
    while ioctl_value(device, RESET, COUNT) != Ok(count) {
        std::thread::yield_now();
    }
}

fn catch(signal: c_int, flags: c_int) {
    extern "C" fn caught(_: c_int) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

fn signal<T>(thread: &JoinHandle<T>, signal: c_int) {
    assert_eq!(unsafe { libc::pthread_kill(thread.as_pthread_t(), signal) }, 0);
}

/// Ioctls and transfers wait, many at once; others are served meanwhile.
fn many(device: c_int) {
    const EACH: c_int = 24;
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let ioctls: Vec<_> = (0..EACH).map(|_| spawn(move || ioctl_value(device, RESET, WAIT))).collect();
    let reads: Vec<_> = (0..EACH).map(|_| spawn(move || config(device, GATED))).collect();
    let lists: Vec<_> = (0..EACH)
        .map(|_| {
            spawn(move || {
                // The first buffer is filled before the second waits.
                let (mut before, mut gated) = ([0u8; 2], [0u8; 4]);
                let buffers = [
                    libc::iovec { iov_base: before.as_mut_ptr().cast(), iov_len: 2 },
                    libc::iovec { iov_base: gated.as_mut_ptr().cast(), iov_len: 4 },
                ];
                let at = (CONFIG + GATED - 2) as i64;
                let read = unsafe { libc::preadv(device, buffers.as_ptr(), 2, at) };
                (done(read as c_int), before, gated)
            })
        })
        .collect();
    until_waiting(device, 3 * EACH);
    for n in 0..1000 {
        assert_eq!(config(device, n % 0xf0), Ok((n % 0xf0) as u8));
    }
    until_waiting(device, 3 * EACH);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(3 * EACH));
    for thread in ioctls {
        assert_eq!(thread.join().unwrap(), Ok(77));
    }
    for thread in reads {
        assert_eq!(thread.join().unwrap(), Ok(GATED as u8));
    }
    for thread in lists {
        assert_eq!(thread.join().unwrap(), (Ok(6), [0xee, 0xef], [0xf0, 0xf1, 0xf2, 0xf3]));
    }
    until_waiting(device, 0);
}

/// Who is killed waits no longer.
fn killed(device: c_int) {
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let pids: Vec<_> = (0..8)
        .map(|n| {
            child(move || {
                // Threads wait too, so that more than the first is dropped.
                spawn(move || ioctl_value(device, RESET, if n % 2 == 0 { WAIT } else { WAIT_WITH_AN_EAR }));
                let _ = config(device, GATED);
            })
        })
        .collect();
    until_waiting(device, 16);
    for pid in pids {
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        assert_eq!(wait(pid), -libc::SIGKILL);
    }
    until_waiting(device, 0);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(0));
}

/// A thread that waits is dropped when another executes a program.
fn executed(device: c_int) {
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let pid = child(move || {
        spawn(move || ioctl_value(device, RESET, WAIT));
        until_waiting(device, 1);
        let program = c"/bin/true".as_ptr();
        unsafe { libc::execv(program, [program, std::ptr::null()].as_ptr()) };
    });
    assert_eq!(wait(pid), 0);
    until_waiting(device, 0);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(0));
}

/// A file stays open for a call that waits on it.
fn closed(device: c_int) {
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let group = group();
    let other = device_of(group).unwrap();
    let thread = spawn(move || ioctl_value(other, RESET, WAIT));
    until_waiting(device, 1);
    close(other);
    // The number means another file by the time the call is made again.
    assert_eq!(unsafe { libc::dup2(group, other) }, other);
    for _ in 0..100 {
        assert_eq!(ioctl_value(device, RESET, COUNT), Ok(1));
    }
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(1));
    assert_eq!(thread.join().unwrap(), Ok(77));
    close(other);

    // A close answers a call that waits for it.
    let other = device_of(group).unwrap();
    let thread = spawn(move || ioctl_value(device, RESET, WAIT_FOR_CLOSE));
    until_waiting(device, 1);
    close(other);
    assert_eq!(thread.join().unwrap(), Ok(55));
    close(group);
}

/// Signals end the waits that they end in Linux, as the handler says.
fn signalled(device: c_int) {
    let caught = || CAUGHT.load(Ordering::Relaxed);
    catch(libc::SIGUSR1, 0);
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let thread = spawn(move || ioctl_value(device, RESET, WAIT_WITH_AN_EAR));
    until_waiting(device, 1);
    signal(&thread, libc::SIGUSR1);
    assert_eq!(thread.join().unwrap(), Err(libc::EINTR));
    assert_eq!(caught(), 1);

    // Made again by the kernel, and waits again.
    catch(libc::SIGUSR1, libc::SA_RESTART);
    let thread = spawn(move || ioctl_value(device, RESET, WAIT_WITH_AN_EAR));
    until_waiting(device, 1);
    signal(&thread, libc::SIGUSR1);
    while caught() < 2 {
        std::thread::yield_now();
    }
    until_waiting(device, 1);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(1));
    assert_eq!(thread.join().unwrap(), Ok(77));

    // Nothing but its event ends this one; then the handler runs.
    catch(libc::SIGUSR1, 0);
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let thread = spawn(move || ioctl_value(device, RESET, WAIT));
    until_waiting(device, 1);
    signal(&thread, libc::SIGUSR1);
    for _ in 0..2000 {
        assert_eq!(ioctl_value(device, RESET, COUNT), Ok(1));
    }
    assert_eq!(caught(), 2);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(1));
    assert_eq!(thread.join().unwrap(), Ok(77));
    assert_eq!(caught(), 3);
}

pub(crate) fn all() {
    let group = group();
    let device = device_of(group).unwrap();
    many(device);
    killed(device);
    executed(device);
    close(group);
    closed(device);
    signalled(device);
    close(device);
}

/// A store to an attribute waits, and its process is killed.
pub(crate) fn store() {
    let group = group();
    let device = device_of(group).unwrap();
    let write = || {
        let path = c"/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        assert!(fd >= 0, "{}", errno());
        let text = b"wait\n";
        let taken = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
        close(fd);
        taken
    };
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let (first, second) = (child(|| assert_eq!(write(), 5)), child(|| assert_eq!(write(), 5)));
    until_waiting(device, 2);
    assert_eq!(unsafe { libc::kill(first, libc::SIGKILL) }, 0);
    assert_eq!(wait(first), -libc::SIGKILL);
    until_waiting(device, 1);
    assert_eq!(ioctl_value(device, RESET, OPEN_GATE), Ok(1));
    assert_eq!(wait(second), 0);
}

/// Leaves a call waiting for ever, for somebody to kill.
pub(crate) fn hang() {
    let device = device_of(group()).unwrap();
    assert_eq!(ioctl_value(device, RESET, CLOSE_GATE), Ok(0));
    let thread = spawn(move || ioctl_value(device, RESET, WAIT));
    until_waiting(device, 1);
    println!("ready {}", std::process::id());
    let _ = thread.join();
}
