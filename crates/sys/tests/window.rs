// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device files, seen from both sides.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use common::{Child, RO, RW, fill, map, peek, truncate};
use device::{DeviceFile, DeviceFiles, RegionLayout};
use sys::window::Memfd;
use sys::{MemfdFiles, Pinner};
use uapi::Errno;
use vm_memory::Bytes;

const BASE: u64 = 32 << 40;
const PAGE: u64 = 4096;

fn create(mmap: [u64; 6]) -> (Arc<dyn DeviceFile>, Arc<Memfd>) {
    let file = MemfdFiles.create(&RegionLayout { base: BASE, mmap }).unwrap();
    let memfd = MemfdFiles::of(&file).unwrap();
    (file, memfd)
}

fn offset(bar: u64) -> i64 {
    (BASE + (bar << 40)) as i64
}

#[test]
fn both_sides_see_the_same_pages() {
    let (file, memfd) = create([8192, 0, 4096, 0, 0, 0]);
    let fd = memfd.reopen(libc::O_RDWR).unwrap();
    let mut child = Child::start(|turns| {
        let bar0 = map(0, 8192, RW, libc::MAP_SHARED, fd.as_raw_fd(), offset(0));
        let bar2 = map(0, 4096, RW, libc::MAP_SHARED, fd.as_raw_fd(), offset(2));
        fill(bar0 + 4096, 0x5a, 1);
        turns.give(0);
        turns.give(u64::from(peek(bar2 + 8)));
    });
    child.take();
    assert!(file.window(1).is_none() && file.window(6).is_none());
    assert_eq!(file.window(0).unwrap().slice().len(), 8192);
    assert_eq!(file.window(0).unwrap().slice().read_obj::<u8>(4096).unwrap(), 0x5a);
    file.window(2).unwrap().slice().write_obj(0xa5u8, 8).unwrap();
    child.go();
    assert_eq!(child.take(), 0xa5);
}

/// API-231: accesses raise SIGBUS while memory is off, and work again after.
#[test]
fn accesses_while_off_raise_sigbus_and_contents_survive() {
    let (file, memfd) = create([64 << 20, 0, 0, 0, 4096, 0]);
    let fd = memfd.reopen(libc::O_RDWR).unwrap();
    let touch = || {
        Child::start(|turns| {
            let bar = map(0, 64 << 20, RO, libc::MAP_SHARED, fd.as_raw_fd(), offset(0));
            turns.give(0);
            turns.give(u64::from(peek(bar + (9 << 20))));
            turns.give(u64::from(peek(bar)));
        })
    };
    let window = file.window(0).unwrap();
    // More than a piece of what is put aside, and single pages.
    window.slice().write_slice(&vec![3; 5 << 20], 8 << 20).unwrap();
    window.slice().write_obj(4u8, 0).unwrap();
    file.window(4).unwrap().slice().write_obj(5u8, 4095).unwrap();
    let (mut early, mut late) = (touch(), touch());
    early.take();
    late.take();
    early.go();
    assert_eq!(early.take(), 3);
    file.set_accessible(false);
    file.set_accessible(false);
    early.go();
    early.wait_closed();
    let status = early.reap();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
    let stat = rustix::fs::fstat(memfd.as_fd()).unwrap();
    assert_eq!((stat.st_size as u64, stat.st_blocks), (BASE, 0), "nothing is kept twice");
    file.set_accessible(true);
    late.go();
    assert_eq!(late.take(), 3);
    late.go();
    assert_eq!(late.take(), 4);
    let mut got = vec![0; 5 << 20];
    window.slice().read_slice(&mut got, 8 << 20).unwrap();
    assert!(got.iter().all(|&b| b == 3));
    assert_eq!(file.window(4).unwrap().slice().read_obj::<u8>(4095).unwrap(), 5);
    assert_eq!(window.slice().read_obj::<u8>(13 << 20).unwrap(), 0);
}

/// What a program has stored before its accesses fail is there afterwards.
#[test]
fn no_store_is_lost() {
    // Before a store, the child says what it was before that.
    let told = map(0, 4096, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
    for round in 1..=40u64 {
        let (file, memfd) = create([8192, 0, 0, 0, 0, 0]);
        let fd = memfd.reopen(libc::O_RDWR).unwrap();
        let mut child = Child::start(|turns| {
            let bar = map(0, 8192, RW, libc::MAP_SHARED, fd.as_raw_fd(), offset(0));
            turns.tell(0);
            for n in round << 40.. {
                // SAFETY: both mappings are there, as long as the child is.
                unsafe {
                    std::ptr::write_volatile((bar + 4096) as *mut u64, n);
                    std::ptr::write_volatile(told as *mut u64, n);
                }
            }
        });
        child.take();
        // SAFETY: the mapping stays.
        let stored = || unsafe { std::ptr::read_volatile(told as *const u64) };
        while stored() >> 40 != round {
            std::thread::yield_now();
        }
        file.set_accessible(false);
        child.wait_closed();
        let status = child.reap();
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
        file.set_accessible(true);
        let found = file.window(0).unwrap().slice().read_obj::<u64>(4096).unwrap();
        assert!((stored()..=stored() + 1).contains(&found), "{found:#x} of {:#x}", stored());
    }
}

#[test]
fn a_big_bar_costs_nothing() {
    let (file, memfd) = create([0, 0, 256 << 30, 0, 0, 0]);
    let slice = file.window(2).unwrap();
    slice.slice().write_obj(1u8, (256 << 30) - 1).unwrap();
    for _ in 0..100 {
        file.set_accessible(false);
        file.set_accessible(true);
    }
    assert_eq!(slice.slice().read_obj::<u8>((256 << 30) - 1).unwrap(), 1);
    assert!(rustix::fs::fstat(memfd.as_fd()).unwrap().st_blocks <= 16);
}

#[test]
fn layouts_that_do_not_fit_a_file_are_refused() {
    let refused = |base, mmap| MemfdFiles.create(&RegionLayout { base, mmap }).is_err();
    assert!(refused(u64::MAX, [4096, 0, 0, 0, 0, 0]));
    assert!(refused(i64::MAX as u64, [4096, 0, 0, 0, 0, 0]));
    assert!(refused(BASE, [u64::MAX, 0, 0, 0, 0, 0]));
    assert!(!refused((1 << 62) - (1 << 40), [4096, 0, 0, 0, 0, 4096]));
}

/// A hostile program: it harms its own view only.
#[test]
fn the_program_cannot_keep_memory_on_or_break_us() {
    let (file, memfd) = create([1 << 20, 0, 0, 0, 0, 0]);
    let fd = memfd.reopen(libc::O_RDWR).unwrap();
    let window = file.window(0).unwrap();
    window.slice().write_obj(1u8, 5000).unwrap();
    let mut child = Child::start(|turns| {
        // SAFETY: no memory is involved.
        let sealed = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        truncate(fd.as_raw_fd(), 0);
        turns.give(sealed as u64);
    });
    assert_eq!(child.take() as i32, -1, "no seal can be added");
    window.slice().write_obj(2u8, 5000).unwrap();
    assert_eq!(window.slice().read_obj::<u8>(9000).unwrap(), 0);
    file.set_accessible(false);
    file.set_accessible(true);
    window.slice().write_obj(3u8, 5000).unwrap();
    let bar = map(0, 1 << 20, RO, libc::MAP_SHARED, memfd.as_fd().as_raw_fd(), offset(0));
    assert_eq!(peek(bar + 5000), 3, "one file again");
}

/// A BAR as the target of another device's DMA.
#[test]
fn a_mapped_bar_can_be_pinned() {
    let (file, memfd) = create([1 << 20, 0, 0, 0, 0, 0]);
    let fd = memfd.reopen(libc::O_RDWR).unwrap();
    let mut child = Child::start(|turns| {
        turns.give(map(0, 1 << 20, RW, libc::MAP_SHARED, fd.as_raw_fd(), offset(0)));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    // IOMMUFD-5.6: type1 takes another device's registers, iommufd has no pages of theirs.
    assert_eq!(pinner.pin_pages(&process, addr + PAGE, PAGE, true).unwrap_err(), Errno::EFAULT);
    let pinned = pinner.pin(&process, addr + PAGE, PAGE, true).unwrap();
    let slice = pinned.memory.slice(pinned.offset, 4096).unwrap();
    slice.write_obj(0x42u8, 1).unwrap();
    assert_eq!(file.window(0).unwrap().slice().read_obj::<u8>(4097).unwrap(), 0x42);
    // Memory off: the access fails, as a peer's would; and works again after.
    file.set_accessible(false);
    let _ = slice.read_obj::<u8>(1);
    assert!(common::read(&*pinned.memory, pinned.offset, 1).is_err());
    file.set_accessible(true);
    assert_eq!(common::read(&*pinned.memory, pinned.offset + 1, 1).unwrap(), [0x42]);
}

#[test]
fn each_program_gets_a_description_of_its_own() {
    let (_file, memfd) = create([4096, 0, 0, 0, 0, 0]);
    let one = memfd.reopen(libc::O_RDWR | libc::O_NONBLOCK).unwrap();
    let two = memfd.reopen(libc::O_RDONLY).unwrap();
    for fd in [&one, &two] {
        let stat = rustix::fs::fstat(fd).unwrap();
        assert_eq!((stat.st_dev, stat.st_ino), memfd.id());
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    let flags = |fd: &std::os::fd::OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
    assert!(flags(&one).contains(rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK));
    assert!(!flags(&two).intersects(rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK));
}
