// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and address spaces that outlive the call that named them.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use caller::{Mm, ProcessId};
use common::{Child, PRIVATE, RO, RW, fill, map, memfd, peek, read, write};
use iommu::PageId;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use sys::{Pinner, ProgramMm};
use uapi::Errno;

const PAGE: u64 = 4096;
const SHARED: i32 = libc::MAP_SHARED;
const EINVAL: Result<(), Errno> = Err(Errno::EINVAL);

fn file(size: u64) -> OwnedFd {
    let fd = memfd_create("client", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

/// IOMMUFD-5.10, IOMMUFD-5.12: only what lies in a file in memory is pinned,
/// and the file lives on.
#[test]
fn a_file_in_memory_is_its_pages() {
    let fd = file(3 * PAGE);
    let pinner = Pinner::new();
    let held = pinner.file(fd.try_clone().unwrap());
    let pin = |start, len| held.pin(start, len).map(drop);
    assert_eq!(pin(PAGE, 2 * PAGE), Ok(()));
    assert_eq!(pin(PAGE, 3 * PAGE), EINVAL);
    assert_eq!(pin(u64::MAX - PAGE + 1, PAGE), EINVAL);
    let pinned = held.pin(PAGE, PAGE).unwrap();
    write(&*pinned.memory, pinned.offset, 0x5a, 8).unwrap();
    let mut seen = [0; 2];
    rustix::io::pread(&fd, &mut seen, PAGE + 7).unwrap();
    assert_eq!(seen, [0x5a, 0]);
    assert!(pinned.memory.slice(pinned.offset, PAGE as usize).is_some(), "no copies");
    drop((fd, held));
    assert_eq!(read(&*pinned.memory, pinned.offset, 2).unwrap(), [0x5a; 2]);
}

/// IOMMUFD-5.12: a file that is given again is the same, however it was opened;
/// others are not, and it can be forgotten.
#[test]
fn a_file_is_held_once() {
    let pinner = Pinner::new();
    let (one, other) = (file(PAGE), file(PAGE));
    let again = std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&one))).unwrap();
    let [first, second] = [one.try_clone().unwrap(), again.into()].map(|fd| pinner.file(fd));
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!Arc::ptr_eq(&first, &pinner.file(other)));
    drop((first, second));
    let held = pinner.file(one);
    assert_eq!(held.pin(0, PAGE).map(drop), Ok(()));
    // Descriptors without a file of their own share an inode and nothing else.
    let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    assert!(!Arc::ptr_eq(&pinner.file(eventfd()), &pinner.file(eventfd())));
}

/// IOMMUFD-5.10
#[test]
fn other_files_are_refused_when_they_are_pinned() {
    let pinner = Pinner::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let on_disk = OwnedFd::from(std::fs::File::open(std::env::current_exe().unwrap()).unwrap());
    let directory = OwnedFd::from(std::fs::File::open("/dev/shm").unwrap());
    for fd in [reader.into(), eventfd, on_disk, directory] {
        assert_eq!(pinner.file(fd).pin(0, PAGE).map(drop), EINVAL);
    }
    // One without a whole page, and one that grows.
    let fd = file(100);
    let held = pinner.file(fd.try_clone().unwrap());
    assert_eq!(held.pin(0, 100).map(drop), EINVAL);
    ftruncate(&fd, PAGE).unwrap();
    assert_eq!(held.pin(0, 100).map(drop), Ok(()));
}

/// IOMMUFD-5.10: writes go to a file that was opened for reading, none to one
/// that is sealed.
#[test]
fn a_read_only_descriptor_is_enough() {
    let pinner = Pinner::new();
    let fd = file(PAGE);
    let read_only = OwnedFd::from(std::fs::File::open(format!("/proc/self/fd/{}", raw(&fd))).unwrap());
    let pinned = pinner.file(read_only).pin(0, PAGE).unwrap();
    write(&*pinned.memory, pinned.offset, 7, 1).unwrap();
    let sealed = file(PAGE);
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let pinned = pinner.file(sealed).pin(0, PAGE).unwrap();
    assert!(read(&*pinned.memory, pinned.offset, 1).is_ok());
    assert!(write(&*pinned.memory, pinned.offset, 7, 1).is_err());
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())
}

/// IOMMUFD-5.8: pins are made in the program's memory, and no more once it is
/// gone; pages that were pinned stay.
#[test]
fn an_address_space_outlives_its_calls() {
    let mut child = Child::start(|turns| {
        let addr = map(0, 1 << 16, RW, PRIVATE, -1, 0);
        map(addr + PAGE, 4096, RO, PRIVATE, -1, 0);
        let shared = map(0, 1 << 16, RW, SHARED | libc::MAP_ANONYMOUS, -1, 0);
        fill(addr, 3, 4096);
        fill(shared, 4, 1 << 16);
        turns.tell(shared);
        turns.give(addr);
        turns.give(u64::from(peek(addr)));
    });
    let (shared, addr) = (child.take(), child.take());
    let mm = ProgramMm::new(child.process(), Arc::new(Pinner::new()), ProcessId(5));
    assert_eq!(mm.process(), ProcessId(5));
    assert_eq!(mm.user().0, rustix::process::getuid().as_raw());
    assert_eq!(Ok(mm.memlock_limit()), sys::limits::memlock(child.pid));
    let mut bytes = [0; 4];
    mm.read(addr, &mut bytes).unwrap();
    assert_eq!(bytes, [3; 4]);
    mm.write(addr, &[9]).unwrap();
    assert_eq!(mm.write(addr + PAGE, &[9]), Err(Errno::EFAULT), "read-only");
    assert_eq!(mm.read(addr + (1 << 40), &mut bytes), Err(Errno::EFAULT));
    let lasting = mm.pin(shared, PAGE, true).unwrap();
    child.go();
    assert_eq!(child.take(), 9);
    let limit = mm.memlock_limit();
    child.kill();
    assert_eq!(mm.pin(shared, PAGE, true).map(drop), Err(Errno::EFAULT));
    assert_eq!(mm.read(addr, &mut bytes), Err(Errno::EFAULT));
    assert_eq!(mm.memlock_limit(), limit, "its last one");
    if lasting.memory.slice(lasting.offset, 1).is_some() {
        assert_eq!(read(&*lasting.memory, lasting.offset, 4).unwrap(), [4; 4]);
    } else {
        assert!(!rustix::process::geteuid().is_root(), "a privileged lab reaches anonymous shared memory");
    }
}

/// One page has one identity, through every mapping and descriptor of it; a
/// private page is known by its address (SELF-5).
#[test]
fn a_page_is_known_by_what_it_is() {
    let mut child = Child::start(|turns| {
        let fd = memfd(1 << 20);
        turns.tell(fd as u64);
        turns.tell(map(0, 1 << 20, RW, SHARED, fd, 0));
        turns.tell(map(0, 1 << 19, RW, SHARED, fd, 1 << 19));
        turns.tell(map(0, 1 << 20, RW, SHARED | libc::MAP_ANONYMOUS, -1, 0));
        turns.give(map(0, 1 << 20, RW, PRIVATE, -1, 0));
    });
    let (pinner, process) = (Pinner::new(), child.process());
    let [fd, whole, half, anonymous, private] = [(); 5].map(|()| child.take());
    let id = |vaddr: u64, len: u64, at: u64| {
        let pinned = pinner.pin(&process, vaddr, len, true).unwrap();
        pinned.memory.identity(pinned.offset + at).unwrap()
    };
    let same = id(whole, 1 << 20, (1 << 19) + PAGE + 5);
    assert_eq!(same, id(half, 1 << 19, PAGE + 5));
    assert_eq!(same, id(half + PAGE, PAGE, 5));
    assert_eq!(same.offset, (1 << 19) + PAGE + 5);
    let held = pinner.file(sys::reopen(child.pid, fd as i32).unwrap());
    let pinned = held.pin(1 << 19, 2 * PAGE).unwrap();
    assert_eq!(pinned.memory.identity(pinned.offset + PAGE + 5), Some(same));
    // Reached through the process, as where it may not be opened.
    use iommu::Memory;
    assert_eq!(process.identity(half + PAGE + 5), Some(same));
    assert_eq!(process.identity(anonymous + 9), Some(id(anonymous, PAGE, 9)));
    assert_ne!(id(anonymous, PAGE, 0).object, same.object);

    let own = id(private, PAGE, 9);
    assert_eq!(own, PageId { offset: private + 9, ..own });
    assert_eq!(own.object, id(private + PAGE, PAGE, 0).object);
    let again = sys::Process::open_as(child.pid, 77).unwrap();
    let twice = sys::Process::open_as(child.pid, 77).unwrap();
    assert_eq!(again.identity(private), twice.identity(private));
    assert_ne!(again.identity(private), process.identity(private));
}

/// IOMMUFD-5.10
#[test]
fn a_number_that_is_not_open_is_refused() {
    assert_eq!(sys::reopen(std::process::id() as i32, 1 << 20).unwrap_err(), Errno::EBADF);
}
