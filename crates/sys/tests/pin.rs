// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which memory a range of a program's addresses is.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use caller::Pinned;
use common::{Child, PRIVATE, RO, RW, fill, map, memfd, peek, read, truncate, write};
use iommu::{Memory, MemoryFault};
use sys::Pinner;
use uapi::Errno;
use vm_memory::{Bytes, VolatileSlice};

const PAGE: u64 = 4096;
const SHARED: i32 = libc::MAP_SHARED;

fn direct(pinned: &Pinned, len: usize) -> Option<VolatileSlice<'_>> {
    pinned.memory.slice(pinned.offset, len)
}

fn bytes(pinned: &Pinned, at: u64, len: usize) -> Result<Vec<u8>, MemoryFault> {
    read(&*pinned.memory, pinned.offset + at, len)
}

/// API-075: holes and missing rights.
#[test]
fn a_range_needs_pages_and_rights() {
    let mut child = Child::start(|turns| {
        let addr = map(0, 8 * 4096, RW, PRIVATE, -1, 0);
        map(addr + PAGE, 4096, RO, PRIVATE, -1, 0);
        map(addr + 2 * PAGE, 4096, libc::PROT_NONE, PRIVATE, -1, 0);
        // SAFETY: a page of the range above.
        unsafe { libc::munmap((addr + 4 * PAGE) as *mut libc::c_void, 4096) };
        turns.give(addr);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pin = |page: u64, pages: u64, write| {
        pinner.pin(&process, addr + page * PAGE, pages * PAGE, write).map(|_| ()).map_err(|e| e.raw())
    };
    assert_eq!(pin(0, 1, true), Ok(()));
    assert_eq!(pin(0, 2, false), Ok(()));
    assert_eq!(pin(0, 2, true), Err(libc::EFAULT), "a page that is read-only");
    assert_eq!(pin(2, 1, false), Err(libc::EFAULT), "PROT_NONE");
    assert_eq!(pin(3, 1, true), Ok(()));
    assert_eq!(pin(3, 2, true), Err(libc::EFAULT), "a hole at the end");
    assert_eq!(pin(4, 1, false), Err(libc::EFAULT), "a hole");
    assert_eq!(pin(5, 3, true), Ok(()));
    let whole = pinner.pin(&process, u64::MAX - PAGE + 1, PAGE, false);
    assert_eq!(whole.unwrap_err(), Errno::EFAULT);
    assert_eq!(pinner.pin(&process, u64::MAX, 2, false).unwrap_err(), Errno::EFAULT);
    child.kill();
    assert_eq!(pin(0, 1, true), Err(libc::EFAULT), "nobody is there");
}

#[test]
fn private_memory_is_copied_and_shared_memory_is_the_same() {
    let mut child = Child::start(|turns| {
        let fd = memfd(1 << 20);
        let private = map(0, 1 << 20, RW, PRIVATE, -1, 0);
        let shared = map(0, 1 << 19, RW, SHARED, fd, 1 << 19);
        let copied = map(0, 1 << 20, RW, libc::MAP_PRIVATE, fd, 0);
        fill(private, 1, 1 << 20);
        fill(shared, 2, 1 << 19);
        fill(copied, 3, 1 << 20);
        turns.tell(private);
        turns.tell(shared);
        turns.give(copied);
        turns.give(u64::from(peek(private)) << 16 | u64::from(peek(shared)) << 8 | u64::from(peek(copied)));
    });
    let (pinner, process) = (Pinner::new(), child.process());
    let [private, shared, copied] = [(); 3].map(|()| child.take());
    for (at, value, is_direct) in [(private, 1, false), (shared, 2, true), (copied, 3, false)] {
        let pinned = pinner.pin(&process, at, 1 << 19, true).unwrap();
        assert_eq!(direct(&pinned, 1 << 19).is_some(), is_direct);
        assert_eq!(bytes(&pinned, 0, 1 << 19).unwrap(), vec![value; 1 << 19]);
        write(&*pinned.memory, pinned.offset, value + 10, 100).unwrap();
    }
    // Through the slice, too, and in the middle of the file's part.
    let page = pinner.pin(&process, shared + 5 * PAGE, PAGE, true).unwrap();
    direct(&page, 4096).unwrap().write_obj(0x77u8, 9).unwrap();
    assert_eq!(read(&*process, shared + 5 * PAGE + 9, 1).unwrap(), [0x77]);
    child.go();
    assert_eq!(child.take(), 0x0b_0c_0d);
}

#[test]
fn many_maps_share_one_window_and_the_last_lets_go() {
    let mut child = Child::start(|turns| {
        let fd = memfd(64 << 20);
        turns.give(map(0, 64 << 20, RW, SHARED, fd, 0));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pins: Vec<Pinned> =
        (0..16384).map(|page| pinner.pin(&process, addr + page * PAGE, PAGE, true).unwrap()).collect();
    assert!(pins.windows(2).all(|w| std::ptr::addr_eq(Arc::as_ptr(&w[0].memory), Arc::as_ptr(&w[1].memory))));
    let memory = Arc::downgrade(&pins[0].memory);
    drop(pins);
    assert!(memory.upgrade().is_some(), "kept for the next mapping");
    process.trim();
    process.trim();
    assert!(memory.upgrade().is_none(), "nobody has mapped it since");
}

#[test]
fn a_range_over_several_mappings_is_one_memory() {
    const PART: u64 = 1 << 20;
    let mut child = Child::start(|turns| {
        let (one, two) = (memfd(2 << 20), memfd(1 << 20));
        let addr = map(0, 5 << 20, RW, PRIVATE, -1, 0);
        map(addr, 1 << 20, RW, SHARED, one, 0);
        map(addr + PART, 1 << 20, RW, SHARED, one, 1 << 20);
        map(addr + 2 * PART, 1 << 20, RW, SHARED, two, 0);
        for part in 0..5 {
            fill(addr + part * PART, part as u8 + 1, 1 << 20);
        }
        turns.give(addr);
        turns.give((0..5).fold(0, |sum, part| sum << 8 | u64::from(peek(addr + part * PART + 7))));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let all = pinner.pin(&process, addr, 5 * PART, true).unwrap();
    let want: Vec<u8> = (0..5).flat_map(|part| vec![part + 1; PART as usize]).collect();
    assert!(bytes(&all, 0, 5 << 20).unwrap() == want);
    assert!(bytes(&all, 1000, (4 << 20) + 5).unwrap() == want[1000..(4 << 20) + 1005]);
    assert!(direct(&all, 1 << 20).is_some());
    assert!(direct(&all, 2 << 20).is_some(), "the two halves of a file are one");
    assert!(direct(&all, (2 << 20) + 1).is_none());
    assert!(all.memory.slice(all.offset + 3 * PART, 1).is_none(), "private");
    assert_eq!(bytes(&all, 5 * PART - 1, 2), Err(MemoryFault));
    assert_eq!(bytes(&all, u64::MAX - all.offset, 2), Err(MemoryFault));
    for part in 0..5 {
        write(&*all.memory, all.offset + part * PART + 5, part as u8 + 0x11, 4).unwrap();
    }
    child.go();
    assert_eq!(child.take(), 0x11_1213_1415);
    // Too many small parts: through the process.
    let mixed = pinner.pin(&process, addr + 2 * PART - PAGE, 2 * PAGE, true).unwrap();
    assert!(direct(&mixed, 1).is_none());
    assert_eq!(bytes(&mixed, 0, 8192).unwrap()[4095..4097], [2, 3]);
}

#[test]
fn read_only_mappings_are_read() {
    let mut child = Child::start(|turns| {
        let fd = memfd(1 << 16);
        let rw = map(0, 1 << 16, RW, SHARED, fd, 0);
        fill(rw, 6, 1 << 16);
        turns.give(map(0, 1 << 16, RO, SHARED, fd, 0));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pinned = pinner.pin(&process, addr, PAGE, false).unwrap();
    assert!(direct(&pinned, 4096).is_some());
    assert_eq!(bytes(&pinned, 0, 4096).unwrap(), [6; 4096]);
    assert_eq!(write(&*pinned.memory, pinned.offset, 1, 1), Err(MemoryFault));
    assert_eq!(pinner.pin(&process, addr, PAGE, true).unwrap_err(), Errno::EFAULT);
}

/// The program makes its file shorter while devices use it.
#[test]
fn truncation_under_dma_faults_and_heals() {
    const LEN: usize = 1 << 20;
    let mut child = Child::start(|turns| {
        let fd = memfd(LEN as i64);
        let addr = map(0, LEN, RW, SHARED, fd, 0);
        fill(addr, 7, LEN);
        turns.give(addr);
        truncate(fd, PAGE as i64);
        turns.give(0);
        truncate(fd, LEN as i64);
        turns.give(0);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pinned = pinner.pin(&process, addr, LEN as u64, true).unwrap();
    let before = direct(&pinned, LEN).unwrap();
    child.go();
    child.take();
    // A transfer that had begun goes on (what it reads is nobody's).
    let mut got = vec![1; LEN];
    before.read_slice(&mut got, 0).unwrap();
    assert!(got[..4096].iter().all(|&b| b == 7));
    assert!(direct(&pinned, LEN).is_none());
    assert_eq!(bytes(&pinned, 0, 4096).unwrap(), [7; 4096], "what is left is left");
    assert_eq!(bytes(&pinned, PAGE, 1), Err(MemoryFault));
    assert_eq!(bytes(&pinned, 0, 8192), Err(MemoryFault));
    assert_eq!(write(&*pinned.memory, pinned.offset + PAGE, 1, 1), Err(MemoryFault));
    // The same transfer once more, after the repair.
    before.write_slice(&got, 0).unwrap();
    assert_eq!(bytes(&pinned, PAGE, 1), Err(MemoryFault));
    // The kernel would find no page there either.
    assert_eq!(pinner.pin(&process, addr, LEN as u64, true).unwrap_err(), Errno::EFAULT);
    child.go();
    child.take();
    let again = pinner.pin(&process, addr, LEN as u64, true).unwrap();
    assert!(direct(&again, LEN).is_some());
    assert!(bytes(&again, 0, LEN).unwrap()[4096..].iter().all(|&b| b == 0));
    write(&*pinned.memory, pinned.offset + 3 * PAGE, 9, 4).unwrap();
    assert_eq!(bytes(&again, 3 * PAGE, 4).unwrap(), [9; 4], "the old mapping reaches the new pages");
}

#[test]
fn a_file_that_changes_its_length_all_the_time_harms_nobody() {
    const LEN: usize = 1 << 18;
    let mut child = Child::start(|turns| {
        let fd = memfd(LEN as i64);
        turns.give(map(0, LEN, RW, SHARED, fd, 0));
        for _ in 0..3000 {
            truncate(fd, 0);
            truncate(fd, LEN as i64);
        }
        turns.give(1);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let done = AtomicBool::new(false);
    let copies = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| {
            scope.spawn(|| {
                let (mut own, mut copies) = (vec![1; LEN], 0);
                while !done.load(Ordering::Relaxed) {
                    let Ok(pinned) = pinner.pin(&process, addr, LEN as u64, true) else { continue };
                    for _ in 0..8 {
                        let own = VolatileSlice::from(&mut own[..]);
                        match direct(&pinned, LEN) {
                            Some(slice) => own.copy_to_volatile_slice(slice),
                            None => drop(pinned.memory.write(pinned.offset, &own)),
                        }
                        copies += 1;
                    }
                }
                copies
            })
        });
        child.go();
        child.take();
        done.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(copies.iter().all(|&n| n > 0));
}

#[test]
fn a_file_that_grows_is_followed() {
    let mut child = Child::start(|turns| {
        let fd = memfd(PAGE as i64);
        let addr = map(0, 1 << 30, RW, SHARED, fd, 0);
        for shift in 12..30 {
            truncate(fd, 1 << shift);
            fill(addr + (1 << shift) - 1, shift as u8, 1);
            turns.give(addr);
        }
    });
    let (pinner, process) = (Pinner::new(), child.process());
    for shift in 12..30 {
        let addr = child.take();
        let pinned = pinner.pin(&process, addr, 1 << shift, true).unwrap();
        assert!(direct(&pinned, 1 << shift).is_some());
        assert_eq!(bytes(&pinned, (1 << shift) - 1, 1).unwrap(), [shift as u8]);
        assert_eq!(pinner.pin(&process, addr, 2 << shift, true).unwrap_err(), Errno::EFAULT);
        child.go();
    }
}

/// Linux pins no page for writing that its file system must know to be dirty
/// (`writable_file_mapping_allowed`), and any page for reading.
#[test]
fn files_on_disk_are_read_but_not_written() {
    let path = std::env::temp_dir().join(format!("vfuse-sys-pin-{}", std::process::id()));
    std::fs::write(&path, [9; 8192]).unwrap();
    let on_disk = {
        use std::os::unix::fs::MetadataExt;
        let dev = std::fs::metadata(&path).unwrap().dev();
        rustix::fs::major(dev) != 0
    };
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut child = Child::start(|turns| {
        turns.give(map(0, 8192, RW, SHARED, fd, 0));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    std::fs::remove_file(&path).unwrap();
    let pinned = pinner.pin(&process, addr, 8192, false).unwrap();
    assert_eq!(bytes(&pinned, 0, 8192).unwrap(), [9; 8192]);
    assert_eq!(pinner.pin(&process, addr, 8192, true).is_err(), on_disk);
}

/// A dead program's files stay usable: the device had them pinned.
#[test]
fn shared_memory_outlives_the_program() {
    let mut child = Child::start(|turns| {
        let addr = map(0, 1 << 16, RW, SHARED, memfd(1 << 16), 0);
        fill(addr, 4, 1 << 16);
        turns.give(addr);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pinned = pinner.pin(&process, addr, PAGE, true).unwrap();
    child.kill();
    assert_eq!(bytes(&pinned, 0, 4096).unwrap(), [4; 4096]);
    assert_eq!(pinner.pin(&process, addr, PAGE, true).unwrap_err(), Errno::EFAULT);
}

#[test]
fn shared_anonymous_memory_works_whichever_way_it_is_reached() {
    let mut child = Child::start(|turns| {
        let addr = map(0, 1 << 16, RW, SHARED | libc::MAP_ANONYMOUS, -1, 0);
        fill(addr, 4, 1 << 16);
        turns.give(addr);
        turns.give(u64::from(peek(addr)));
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pinned = pinner.pin(&process, addr, 1 << 16, true).unwrap();
    assert_eq!(bytes(&pinned, 0, 1 << 16).unwrap(), vec![4; 1 << 16]);
    write(&*pinned.memory, pinned.offset, 5, 1).unwrap();
    child.go();
    assert_eq!(child.take(), 5);
    assert!(pinned.memory.slice(pinned.offset, (1 << 16) + (1 << 20)).is_none());
    let _: Arc<dyn Memory> = pinned.memory;
}

/// Programs with thousands of files do not take our descriptors.
#[test]
fn very_many_files_are_reached_without_holding_them_all() {
    const FILES: u64 = 6000;
    let mut child = Child::start(|turns| {
        // One descriptor at a time; the mappings keep the files.
        let addr = map(0, FILES as usize * 4096, RW, PRIVATE, -1, 0);
        for file in 0..FILES {
            let fd = memfd(4096);
            map(addr + file * PAGE, 4096, RW, SHARED, fd, 0);
            // SAFETY: a descriptor of the child's own.
            unsafe { libc::close(fd) };
            fill(addr + file * PAGE, file as u8, 1);
        }
        turns.give(addr);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    let pins: Vec<Pinned> =
        (0..FILES).map(|file| pinner.pin(&process, addr + file * PAGE, PAGE, true).unwrap()).collect();
    for (file, pinned) in pins.iter().enumerate() {
        assert_eq!(bytes(pinned, 0, 1).unwrap(), [file as u8]);
    }
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < 5000);
}

/// Huge pages, where the machine has some to spare.
#[test]
fn huge_pages_are_shared_too() {
    const HUGE: usize = 2 << 20;
    let mut child = Child::start(|turns| {
        // SAFETY: a valid name; the file is the child's own.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_HUGETLB) };
        if fd < 0 {
            turns.give(0);
        }
        truncate(fd, 3 * HUGE as i64);
        // SAFETY: no address is asked for.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), 2 * HUGE, RW, SHARED, fd, HUGE as i64) };
        if addr == libc::MAP_FAILED {
            turns.give(0);
        }
        fill(addr as u64, 7, 2 * HUGE);
        turns.give(addr as u64);
        truncate(fd, HUGE as i64);
        turns.give(0);
    });
    let (addr, pinner, process) = (child.take(), Pinner::new(), child.process());
    if addr == 0 {
        return;
    }
    let pinned = pinner.pin(&process, addr + PAGE, 2 * HUGE as u64 - PAGE, true).unwrap();
    let slice = direct(&pinned, 2 * HUGE - PAGE as usize).unwrap();
    assert_eq!(slice.read_obj::<u8>(HUGE).unwrap(), 7);
    child.go();
    child.take();
    let _ = slice.read_obj::<u8>(HUGE);
    assert_eq!(bytes(&pinned, HUGE as u64, 1), Err(MemoryFault));
}
