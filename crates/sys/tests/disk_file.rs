// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks in files: locks, sizes, rights. Apart from the tests with child
//! processes, which inherit every lock.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::PathBuf;

use device::{Disk, DiskError};
use iommu::Segment;
use sys::disk::{FileDisk, OpenDiskError, Options};
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

fn read(disk: &dyn Disk, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
    let mut bytes = vec![0xee; len];
    disk.read(offset, &Segment::Direct(VolatileSlice::from(&mut bytes[..])))?;
    Ok(bytes)
}

fn write(disk: &dyn Disk, offset: u64, value: u8, len: usize) -> Result<(), DiskError> {
    disk.write(offset, &Segment::Direct(VolatileSlice::from(&mut vec![value; len][..])))
}

#[test]
fn a_file_is_locked_against_a_second_writer() {
    let path = Path::new("locked");
    let first = path.open(SIZE);
    let again = |read_only| FileDisk::open(&path.0, Options { read_only, ..Options::default() });
    for read_only in [false, true] {
        let error = again(read_only).unwrap_err();
        assert!(matches!(error, OpenDiskError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    drop(first);
    let (_one, _two) = (again(true).unwrap(), again(true).unwrap());
    assert!(matches!(again(false), Err(OpenDiskError::Locked { .. })));
}

#[test]
fn read_only_files_are_not_written() {
    let path = Path::new("read-only");
    write(&path.open(SIZE), 0, 6, 4096).unwrap();
    let disk = FileDisk::open(&path.0, Options { read_only: true, ..Options::default() }).unwrap();
    assert!(disk.is_read_only());
    assert_eq!(read(&disk, 0, 4096).unwrap(), vec![6; 4096]);
    let refused = Err(DiskError::Medium(libc::EROFS));
    assert_eq!(write(&disk, 0, 1, 1), refused);
    assert_eq!(disk.write_zeroes(0, 1), refused);
    assert_eq!(disk.discard(0, 1), refused);
    disk.flush().unwrap();
    assert_eq!(read(&disk, 0, 1).unwrap(), [6]);
}

#[test]
fn sizes_come_from_the_file_or_from_the_user() {
    let path = Path::new("sizes");
    let open = |size, read_only| FileDisk::open(&path.0, Options { size, read_only, shared: false });
    assert!(matches!(open(None, false), Err(OpenDiskError::Open { .. })), "no such file");
    assert!(matches!(open(Some(4096), true), Err(OpenDiskError::Open { .. })), "not made for reading");
    assert_eq!(open(Some(8192), false).unwrap().len(), 8192);
    assert_eq!(open(None, false).unwrap().len(), 8192);
    assert_eq!(open(Some(4096), false).unwrap().len(), 4096);
    assert_eq!(std::fs::metadata(&path.0).unwrap().len(), 8192, "nothing is cut off");
    assert!(matches!(open(Some(16384), true), Err(OpenDiskError::Short { actual: 8192, wanted: 16384, .. })));
    assert_eq!(open(Some(16384), false).unwrap().len(), 16384);
    std::fs::write(&path.0, "").unwrap();
    assert!(matches!(open(None, false), Err(OpenDiskError::Empty { .. })));
    let kind = |path: &str| FileDisk::open(path.as_ref(), Options::default());
    assert!(matches!(kind("/dev/null"), Err(OpenDiskError::Kind { .. })));
    assert!(matches!(kind("/"), Err(OpenDiskError::Kind { .. })));
}

#[test]
fn a_file_that_somebody_shortens_is_a_medium_error() {
    let path = Path::new("shortened");
    let disk = path.open(SIZE);
    std::fs::OpenOptions::new().write(true).open(&path.0).unwrap().set_len(4096).unwrap();
    read(&disk, 0, 4096).unwrap();
    assert_eq!(read(&disk, 4095, 2), Err(DiskError::Medium(libc::EIO)));
}
