// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks: the same rules for RAM and files, and what only files can do wrong.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Child, PRIVATE, RW, fill, map, memfd, truncate};
use device::{Disk, DiskError, DiskPart};
use iommu::{Memory, MemoryFault, Segment};
use sys::disk::{FileDisk, Options, RamDisk};
use vm_memory::VolatileSlice;

const SIZE: u64 = 1 << 20;

/// A path in the temporary directory, removed when dropped.
struct Path(PathBuf);

impl Path {
    fn new(name: &str) -> Path {
        Path(std::env::temp_dir().join(format!("vfuse-sys-disk-{}-{name}", std::process::id())))
    }

    fn open(&self, size: u64) -> FileDisk {
        FileDisk::open(&self.0, Options { size: Some(size), ..Options::default() }).unwrap()
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn each(name: &str, test: impl Fn(&dyn Disk)) {
    test(&RamDisk::new(SIZE).unwrap());
    let path = Path::new(name);
    test(&path.open(SIZE));
}

fn read(disk: &dyn Disk, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
    let mut bytes = vec![0xee; len];
    disk.read(offset, &Segment::Direct(VolatileSlice::from(&mut bytes[..])))?;
    Ok(bytes)
}

fn write(disk: &dyn Disk, offset: u64, value: u8, len: usize) -> Result<(), DiskError> {
    disk.write(offset, &Segment::Direct(VolatileSlice::from(&mut vec![value; len][..])))
}

/// Parts of two programs' memory, of our own, beyond the disk and beyond the
/// memory: each has its own result, and the others are done.
#[test]
fn many_parts_have_a_result_each() {
    let holder = || {
        let mut child = Child::start(|turns| {
            let addr = map(0, 1 << 20, RW, PRIVATE, -1, 0);
            turns.give(addr);
        });
        let addr = child.take();
        (child, addr)
    };
    let ((one, first), (two, second)) = (holder(), holder());
    let (near, far) = (one.process(), two.process());
    each("many", |disk| {
        for i in 0..20 {
            write(disk, i * 4096, i as u8 + 1, 4096).unwrap();
        }
        let mut own = vec![0; 4096];
        let slice = VolatileSlice::from(&mut own[..]);
        let remote = |memory, offset| Segment::Remote { memory, offset, len: 4096 };
        let parts = |whole: u64| {
            vec![
                DiskPart::new(0, remote(&*near, first)),
                DiskPart::new(3 * 4096, remote(&*near, first + 4096)),
                DiskPart::new(4 * 4096, remote(&*near, 4096)),
                DiskPart::new(5 * 4096, remote(&*near, first + 8192)),
                DiskPart::new(whole, remote(&*near, first)),
                DiskPart::new(6 * 4096, Segment::Direct(slice)),
                DiskPart::new(7 * 4096, remote(&*near, first + 3 * 4096)),
                DiskPart::new(8 * 4096, remote(&*far, second)),
                DiskPart::new(9 * 4096, remote(&*far, second + 4096)),
                DiskPart::new(u64::MAX, remote(&*far, second)),
            ]
        };
        let results = |parts: Vec<DiskPart<'_>>| parts.iter().map(|part| part.result).collect::<Vec<_>>();
        let gone = Err(DiskError::Memory(MemoryFault));
        let outside = Err(DiskError::OutOfRange);
        let good = Ok(());
        let want = [good, good, gone, good, outside, good, good, good, good, outside];
        let mut all = parts(SIZE - 1);
        disk.read_many(&mut all);
        assert_eq!(results(all), want);
        let holds = |memory: &sys::Process, at, value| {
            assert_eq!(common::read(memory, at, 4096).unwrap(), vec![value; 4096]);
        };
        holds(&near, first, 1);
        holds(&near, first + 4096, 4);
        holds(&near, first + 8192, 6);
        holds(&near, first + 3 * 4096, 8);
        holds(&far, second, 9);
        holds(&far, second + 4096, 10);
        let mut byte = [0u8];
        slice.copy_to(&mut byte[..]);
        assert_eq!(byte, [7]);

        common::write(&*near, first + 8192, 0x66, 4096).unwrap();
        common::write(&*far, second, 0x77, 4096).unwrap();
        let mut all = parts(SIZE - 1);
        disk.write_many(&mut all);
        assert_eq!(results(all), want);
        assert_eq!(read(disk, 5 * 4096, 4096).unwrap(), vec![0x66; 4096]);
        assert_eq!(read(disk, 8 * 4096, 4096).unwrap(), vec![0x77; 4096]);
        assert_eq!(read(disk, 0, 1).unwrap(), [1]);
        disk.read_many(&mut []);
    });
    // One of the two dies.
    one.kill();
    let disk = RamDisk::new(SIZE).unwrap();
    let remote = |memory, offset| Segment::Remote { memory, offset, len: 4096 };
    let mut parts = [&*near, &*near, &*far, &*far].map(|memory| {
        let offset = if std::ptr::addr_eq(memory, &*far) { second } else { first };
        DiskPart::new(0, remote(memory, offset))
    });
    disk.read_many(&mut parts);
    assert_eq!(parts.map(|part| part.result.is_ok()), [false, false, true, true]);
}

/// More than go together at a time, of every length, some of them not inside;
/// a file that ends early; memory that is gone: each has a result of its own.
#[test]
fn many_parts_of_addressable_memory() {
    const PARTS: usize = 150;
    let mut own: Vec<Vec<u8>> = (0..PARTS).map(|i| vec![i as u8 + 1; 1 + i * 37 % 5000]).collect();
    let offset = |i: usize| if i % 10 == 7 { SIZE - 1 + i as u64 } else { i as u64 * 5000 };
    let results = |disk: &dyn Disk, own: &mut [Vec<u8>], write: bool| {
        let own = own.iter_mut().enumerate();
        let mut parts: Vec<_> =
            own.map(|(i, bytes)| DiskPart::new(offset(i), Segment::Direct((&mut bytes[..]).into()))).collect();
        if write {
            disk.write_many(&mut parts)
        } else {
            disk.read_many(&mut parts)
        }
        parts.iter().map(|part| part.result).collect::<Vec<_>>()
    };
    let inside = |i: usize| i % 10 != 7;
    each("direct", |disk| {
        let wanted: Vec<_> = (0..PARTS).map(|i| if inside(i) { Ok(()) } else { Err(DiskError::OutOfRange) }).collect();
        assert_eq!(results(disk, &mut own.clone(), true), wanted);
        let mut got: Vec<Vec<u8>> = own.iter().map(|bytes| vec![0; bytes.len()]).collect();
        assert_eq!(results(disk, &mut got, false), wanted);
        assert!((0..PARTS).all(|i| !inside(i) || got[i] == own[i]));
    });
    let path = Path::new("direct-short");
    let disk = path.open(SIZE);
    let file = std::fs::OpenOptions::new().write(true).open(&path.0).unwrap();
    file.set_len(100 * 5000 + 100).unwrap();
    let short = results(&disk, &mut own, false);
    for (i, result) in short.iter().enumerate().filter(|(i, _)| inside(*i)) {
        let ends_before = i * 5000 + own[i].len() <= 100 * 5000 + 100;
        assert_eq!(*result, if ends_before { Ok(()) } else { Err(DiskError::Medium(libc::EIO)) }, "part {i}");
    }
    file.set_len(SIZE).unwrap();
    let gone = map(0, 1 << 16, RW, libc::MAP_SHARED, memfd(0), 0);
    // SAFETY: a mapping of the test's own; nobody but the kernel touches it.
    let gone = unsafe { VolatileSlice::new(std::ptr::with_exposed_provenance_mut(gone as usize), 4096) };
    let mut good = vec![1; 4096];
    let good = VolatileSlice::from(&mut good[..]);
    let mut parts = [good, gone, good].map(|slice| DiskPart::new(0, Segment::Direct(slice)));
    disk.read_many(&mut parts);
    let memory = Err(DiskError::Memory(MemoryFault));
    assert_eq!(parts.map(|part| part.result), [Ok(()), memory, Ok(())]);
}

#[test]
fn what_is_written_is_read() {
    each("written", |disk| {
        assert_eq!(disk.len(), SIZE);
        assert_eq!(read(disk, 0, SIZE as usize).unwrap(), vec![0; SIZE as usize]);
        write(disk, 511, 7, 70000).unwrap();
        disk.flush().unwrap();
        let mut want = vec![0; SIZE as usize];
        want[511..70511].fill(7);
        assert!(read(disk, 0, SIZE as usize).unwrap() == want);
    });
}

#[test]
fn ranges_that_are_not_inside_are_refused() {
    each("ranges", |disk| {
        for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2), (u64::MAX - 1, 1), (0, SIZE + 1)] {
            let bytes = len as usize;
            assert_eq!(read(disk, offset, bytes), Err(DiskError::OutOfRange));
            assert_eq!(write(disk, offset, 1, bytes), Err(DiskError::OutOfRange));
            assert_eq!(disk.write_zeroes(offset, len), Err(DiskError::OutOfRange));
            assert_eq!(disk.discard(offset, len), Err(DiskError::OutOfRange));
        }
        assert_eq!(disk.discard(0, u64::MAX), Err(DiskError::OutOfRange));
        for (offset, len) in [(0, 0), (SIZE, 0), (SIZE - 1, 1)] {
            write(disk, offset, 1, len).unwrap();
            read(disk, offset, len).unwrap();
            disk.write_zeroes(offset, len as u64).unwrap();
            disk.discard(offset, len as u64).unwrap();
        }
    });
}

#[test]
fn zeroes_and_discards_reach_exactly_so_far() {
    each("zeroes", |disk| {
        let ranges = [(0, 512), (4096, 4096), (5000, 100), (100, 8192), (4095, 2), (1 << 19, 1 << 19), (513, 700_001)];
        for (offset, len) in ranges {
            for discard in [false, true] {
                write(disk, 0, 9, SIZE as usize).unwrap();
                if discard { disk.discard(offset, len) } else { disk.write_zeroes(offset, len) }.unwrap();
                let mut want = vec![9; SIZE as usize];
                want[offset as usize..(offset + len) as usize].fill(0);
                assert!(read(disk, 0, SIZE as usize).unwrap() == want);
            }
        }
    });
}

#[test]
fn a_big_disk_in_memory_is_sparse() {
    let disk = RamDisk::new(1 << 40).unwrap();
    write(&disk, (1 << 40) - 512, 1, 512).unwrap();
    assert_eq!(read(&disk, (1 << 40) - 1, 1).unwrap(), [1]);
    disk.write_zeroes(0, 1 << 40).unwrap();
    disk.discard(1, (1 << 40) - 1).unwrap();
    assert_eq!(read(&disk, (1 << 40) - 1, 1).unwrap(), [0]);
    assert!(RamDisk::new(0).is_err() && RamDisk::new(u64::MAX).is_err());
}

/// Memory that can only be copied to and from: a program's private one.
#[test]
fn remote_memory_is_reached() {
    const LEN: usize = 1 << 20;
    let mut child = Child::start(|turns| {
        let addr = map(0, LEN, RW, PRIVATE, -1, 0);
        fill(addr, 7, LEN);
        turns.give(addr);
    });
    let addr = child.take();
    let process = child.process();
    let remote = |at, len| Segment::Remote { memory: &*process, offset: at, len };
    each("remote", |disk| {
        disk.write(0, &remote(addr, LEN)).unwrap();
        assert_eq!(read(disk, 0, LEN).unwrap(), vec![7; LEN]);
        write(disk, 0, 8, 600_000).unwrap();
        disk.read(0, &remote(addr, LEN)).unwrap();
        let got = common::read(&*process, addr, LEN).unwrap();
        assert!(got[..600_000].iter().all(|&b| b == 8) && got[600_000..].iter().all(|&b| b == 7));
        disk.read(0, &remote(addr, LEN)).unwrap();
        common::write(&*process, addr, 7, LEN).unwrap();
        assert_eq!(disk.read(0, &remote(0, LEN)), Err(DiskError::Memory(MemoryFault)));
        assert_eq!(disk.write(0, &remote(0, 512)), Err(DiskError::Memory(MemoryFault)));
    });
}

/// The program truncates the memory that the disk is to read into.
#[test]
fn memory_that_is_gone_is_no_medium_error() {
    let mut child = Child::start(|turns| {
        let fd = memfd(1 << 16);
        turns.give(map(0, 1 << 16, RW, libc::MAP_SHARED, fd, 0));
        truncate(fd, 0);
        turns.give(0);
    });
    let (addr, pinner, process) = (child.take(), sys::Pinner::new(), child.process());
    let pinned = pinner.pin(&process, addr, 1 << 16, true).unwrap();
    let slice = pinned.memory.slice(pinned.offset, 1 << 16).unwrap();
    child.go();
    child.take();
    let path = Path::new("gone");
    let disk = path.open(SIZE);
    assert_eq!(disk.read(0, &Segment::Direct(slice)), Err(DiskError::Memory(MemoryFault)));
    assert_eq!(disk.write(0, &Segment::Direct(slice)), Err(DiskError::Memory(MemoryFault)));
    let memory: Arc<dyn Memory> = pinned.memory;
    assert!(memory.read(pinned.offset, &VolatileSlice::from(&mut [0u8; 8][..])).is_err());
}
