// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A user of VFIO's migration protocol by plain system calls, as a test of a
//! migration driver is: it knows nothing of vfuse.
//!
//! `mover rows TABLE COMBINATION ADDRESS BROKEN-ADDRESS` goes through the rows
//! of migration-fsm.csv of a combination; the device at the second address
//! fails to leave RUNNING. `mover streams ADDRESS` does to data descriptors what
//! programs do that mean no good, `mover values ADDRESS` sets every value with
//! every size and flag, `mover fails ADDRESS` goes to STOP_COPY and back until
//! that has failed and works again. `mover leave HOW DIRECTORY ADDRESS` stops an
//! accelerator with work under way and saves it, `mover arrive DIRECTORY ADDRESS`
//! goes on with it.
#![allow(unsafe_code)] // plain system calls

mod accelerator;
mod dsa;
mod raw;

use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use raw::{
    Device, ERROR, GET, NAMES, PRE_COPY, PRECOPY_INFO, PROBE, RESUMING, RUNNING, SET, STATE, STOP, STOP_COPY, drain,
    errno, fill, ioctl, name, number, read, write,
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let open = |address: &str| Device::open(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    match words[..] {
        ["rows", table, combination, address, broken] => rows(table, combination, &open(address), &open(broken)),
        ["streams", address] => streams(&open(address)),
        ["values", address] => values(&open(address)),
        ["fails", address] => fails(&open(address)),
        ["leave", how, place, address] => dsa::leave(how, place.as_ref(), address),
        ["arrive", place, address] => dsa::arrive(place.as_ref(), address),
        _ => panic!("what to do? {words:?}"),
    }
}

/// Every row: what SET returns, what GET says then, whether a descriptor comes.
fn rows(table: &str, combination: &str, good: &Device, broken: &Device) {
    let text = std::fs::read_to_string(table).unwrap_or_else(|e| panic!("{table}: {e}"));
    let state = good.save();
    let mut count = 0;
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [combo, from, to, _, path, new_fd] = fields[..] else { panic!("{line}") };
        if combo != combination {
            continue;
        }
        count += 1;
        let (from, to) = (number(from), number(to));
        let device = if from == ERROR { broken } else { good };
        device.reset().unwrap_or_else(|e| panic!("reset: errno {e}"));
        assert_eq!(device.get(), RUNNING, "after a reset");
        let mut kept = None;
        match device.set(from) {
            _ if from == ERROR => {
                assert_eq!(device.set(STOP).err(), Some(libc::EIO), "{line}");
                assert_eq!(device.get(), ERROR, "{line}");
            }
            Err(errno) => {
                // A state that there is not.
                assert_eq!((errno, path, device.get()), (libc::EINVAL, "", RUNNING), "{line}");
                continue;
            }
            Ok(stream) => kept = stream,
        }
        if from == RESUMING && to != RESUMING {
            fill(kept.as_ref().unwrap_or_else(|| panic!("{line}")).as_raw_fd(), &state);
        }
        match device.set(to) {
            Err(errno) => assert_eq!((errno, path, device.get()), (libc::EINVAL, "", from), "{line}"),
            Ok(stream) => {
                assert_ne!(path, "", "{line}");
                assert_eq!((stream.is_some(), device.get()), (new_fd == "yes", to), "{line}");
            }
        }
    }
    println!("rows={count}");
}

/// An errno by its name, for messages.
#[track_caller]
fn refuses<T: std::fmt::Debug>(what: &str, result: raw::Result<T>, wanted: i32) {
    assert_eq!(result.map(drop), Err(wanted), "{what}");
}

/// Data descriptors: their direction, their end, copies of them, threads.
fn streams(device: &Device) {
    let whole = device.save();

    // A direction and no positions.
    let saving = device.stream(STOP_COPY);
    let fd = saving.as_raw_fd();
    let flags = |fd: i32| (errno_of(|| unsafe_fcntl(fd, libc::F_GETFD)), errno_of(|| unsafe_fcntl(fd, libc::F_GETFL)));
    let (descriptor, description) = flags(fd);
    assert_eq!(descriptor.map(|flags| flags & libc::FD_CLOEXEC), Ok(libc::FD_CLOEXEC));
    assert_eq!(description.map(|flags| flags & libc::O_ACCMODE), Ok(libc::O_RDONLY));
    refuses("write to a saving stream", write(fd, &[1]), libc::EBADF);
    // SAFETY: numbers only.
    assert_eq!((unsafe { libc::lseek(fd, 0, libc::SEEK_SET) }, errno()), (-1, libc::ESPIPE));
    let mut byte = [0];
    // SAFETY: one byte, which is there.
    assert_eq!((unsafe { libc::pread(fd, byte.as_mut_ptr().cast(), 1, 1) }, errno()), (-1, libc::ESPIPE));
    let mut info = [0_u32; 6];
    info[0] = 24;
    refuses("PRECOPY_INFO in STOP_COPY", ioctl(fd, PRECOPY_INFO, info.as_mut_ptr().cast()), libc::EINVAL);
    refuses("another request", ioctl(fd, PRECOPY_INFO + 1, info.as_mut_ptr().cast()), libc::ENOTTY);

    // What is read through a copy is read; the original may go.
    let copy = saving.try_clone().unwrap_or_else(|e| panic!("dup: {e}"));
    let mut first = vec![0; 5000];
    assert_eq!(read(fd, &mut first), Ok(5000));
    drop(saving);
    let rest = drain(copy.as_raw_fd());
    // Not the same bytes: time has passed.
    assert_eq!(first.len() + rest.len(), whole.len(), "a copy goes on where the original was");
    assert_eq!(read(copy.as_raw_fd(), &mut first), Ok(0), "the end stays");

    // After its session a stream is dead, whatever comes next.
    for next in [STOP, STOP_COPY] {
        assert!(device.set(STOP).is_ok() && device.set(next).is_ok());
        refuses("read after the session", read(copy.as_raw_fd(), &mut first), libc::ENODEV);
    }
    assert!(device.set(RUNNING).is_ok());

    let resuming = device.stream(RESUMING);
    let fd = resuming.as_raw_fd();
    refuses("read of a resuming stream", read(fd, &mut first), libc::EBADF);
    refuses("PRECOPY_INFO of a resuming one", ioctl(fd, PRECOPY_INFO, info.as_mut_ptr().cast()), libc::ENOTTY);
    fill(fd, &whole[..100]);
    refuses("half a state", device.set(RUNNING).map(drop), libc::EINVAL);
    assert_eq!(device.get(), RESUMING);
    assert!(device.reset().is_ok());
    refuses("write after a reset", write(fd, &whole[100..200]), libc::ENODEV);
    assert_eq!(device.get(), RUNNING);

    // Two threads read one stream: every byte goes to one of them.
    let saving = device.stream(STOP_COPY);
    let fd = saving.as_raw_fd();
    let counts: Vec<usize> = thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(move || drain(fd).len())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a reader"))).collect()
    });
    assert_eq!(counts.iter().sum::<usize>(), whole.len());
    assert!(device.set(RUNNING).is_ok());

    // A session that ends under its readers.
    for _ in 0..20 {
        let saving = device.stream(STOP_COPY);
        let fd = saving.as_raw_fd();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    let mut piece = vec![0; 3000];
                    let end = loop {
                        match read(fd, &mut piece) {
                            Ok(0) => break Ok(0),
                            Ok(_) => {}
                            end => break end,
                        }
                    };
                    assert!(matches!(end, Ok(0) | Err(libc::ENODEV)), "{end:?}");
                });
            }
            assert!(device.set(RUNNING).is_ok());
        });
    }

    // Closed while the device changes its state, by another thread.
    let (number, over) = (AtomicI32::new(-1), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let fd = number.swap(-1, Ordering::SeqCst);
                if fd >= 0 {
                    // SAFETY: the other thread has given it away.
                    unsafe { libc::close(fd) };
                }
                thread::yield_now();
            }
        });
        for n in 0..200 {
            let stream = device.stream(if n % 2 == 0 { STOP_COPY } else { PRE_COPY });
            number.store(std::os::fd::IntoRawFd::into_raw_fd(stream), Ordering::SeqCst);
            assert!(device.set(RUNNING).is_ok_and(|fd| fd.is_none()));
            assert_eq!(device.get(), RUNNING);
            let left = number.swap(-1, Ordering::SeqCst);
            if left >= 0 {
                // SAFETY: the other thread has not taken it.
                unsafe { libc::close(left) };
            }
        }
        over.store(true, Ordering::SeqCst);
    });

    // It is none the worse for it.
    assert_eq!(device.save().len(), whole.len());
    let resuming = device.stream(RESUMING);
    fill(resuming.as_fd().as_raw_fd(), &whole);
    assert!(device.set(RUNNING).is_ok_and(|fd| fd.is_none()));
    println!("streams=ok");
}

fn unsafe_fcntl(fd: i32, command: i32) -> i32 {
    // SAFETY: numbers only.
    unsafe { libc::fcntl(fd, command) }
}

fn errno_of(call: impl FnOnce() -> i32) -> raw::Result<i32> {
    match call() {
        -1 => Err(errno()),
        value => Ok(value),
    }
}

/// What Linux answers to a feature of these flags and size with 8 bytes of
/// data, of which GET and SET are supported; `Ok(true)`: it is done.
fn checked(argsz: u32, flags: u32) -> raw::Result<bool> {
    let (get, set, probe) = (flags & GET != 0, flags & SET != 0, flags & PROBE != 0);
    if argsz < 8 || flags & !(0xffff | GET | SET | PROBE) != 0 || get && set && !probe {
        return Err(libc::EINVAL);
    }
    if probe {
        return Ok(false);
    }
    if !(get || set) || argsz < 16 {
        return Err(libc::EINVAL);
    }
    Ok(true)
}

fn values(device: &Device) {
    let mut count = 0;
    let bits = [GET, SET, PROBE, 1 << 19, 1 << 31];
    for combination in 0..1_u32 << bits.len() {
        let flags =
            (0..).zip(bits).filter(|(n, _)| combination >> n & 1 != 0).fold(STATE, |flags, (_, bit)| flags | bit);
        for argsz in (0..=24).chain([4096, u32::MAX]) {
            for value in [RUNNING, STOP, 99] {
                count += 1;
                let (result, words) = device.feature(argsz, flags, [value, 99]);
                let wanted = checked(argsz, flags).and_then(|done| match done {
                    true if flags & SET != 0 && value == 99 => Err(libc::EINVAL),
                    _ => Ok(done),
                });
                let what = format!("argsz {argsz}, flags {flags:#x}, value {value}: {words:?}");
                assert_eq!(result, wanted.map(drop), "{what}");
                if wanted == Ok(true) {
                    assert_eq!(words[1] as i32, -1, "{what}");
                }
                let state = if wanted == Ok(true) && flags & SET != 0 { value } else { RUNNING };
                assert_eq!(device.get(), state, "{what}");
                assert!(device.set(RUNNING).is_ok());
            }
        }
    }
    for from in [RUNNING, STOP] {
        let odd = (8..64).chain((3..32).map(|bit| 1 << bit)).chain([u32::MAX, ERROR, 1 << 31 | RUNNING]);
        for value in odd {
            count += 1;
            assert!(device.set(from).is_ok());
            let result = device.set(value).map(drop);
            assert_eq!((result, device.get()), (Err(libc::EINVAL), from), "{value:#x}");
        }
    }
    let all: Vec<String> = (0..NAMES.len() as u32).map(name).collect();
    println!("values={count} of {}", all.join(" "));
}

/// To STOP_COPY and back, as what happens says, until it has failed and works.
fn fails(device: &Device) {
    let mut failed = false;
    for _ in 0..1000 {
        let result: raw::Result<Option<OwnedFd>> = device.set(STOP_COPY);
        let end = result.map(|stream| stream.map(|stream| drain_or(stream.as_raw_fd())));
        match end {
            Err(errno) if !failed => {
                println!("failed errno={errno} in {}", name(device.get()));
                failed = true;
            }
            Ok(Some(Err(errno))) if !failed => {
                println!("broken errno={errno}");
                failed = true;
            }
            Ok(Some(Ok(bytes))) if failed => {
                println!("works bytes={bytes}");
                return;
            }
            _ => {}
        }
        if device.set(RUNNING).is_err() {
            assert!(device.reset().is_ok());
        }
        // Whoever has it fail needs time to do so.
        thread::sleep(Duration::from_millis(20));
    }
    panic!("it never failed, or for ever");
}

fn drain_or(fd: i32) -> raw::Result<usize> {
    let (mut total, mut piece) = (0, vec![0; 10_000]);
    loop {
        match read(fd, &mut piece)? {
            0 => return Ok(total),
            got => total += got,
        }
    }
}
