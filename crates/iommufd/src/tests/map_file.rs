// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_MAP_FILE` (IOMMUFD-5.10 to 5.12).

use caller::Caller;
use caller::testing::MemFile;
use uapi::Errno;
use uapi::iommufd::IoasMapFile;

use super::{FIXED, PAGE, READ, RW, lab};
use crate::backing::DmaBuf;
use crate::testing::{Lab, domain};

fn good(ioas: u32, fd: i32) -> IoasMapFile {
    IoasMapFile { ioas_id: ioas, flags: FIXED | RW, fd, length: PAGE, ..IoasMapFile::default() }
}

/// IOMMUFD-5.10
#[test]
fn order_of_checks() {
    let (mut lab, ioas) = lab();
    let max = u64::MAX;
    let fd = lab.client.mem_fd(&MemFile::new(1, 2 * PAGE));
    let good = good(ioas, fd);
    let bad = IoasMapFile { flags: FIXED, ioas_id: 99, fd: 77, start: max, length: 0, ..good };
    let flags = FIXED | RW;
    let cases = [
        (IoasMapFile { flags: 8, iova: max, ..bad }, Errno::EOPNOTSUPP),
        (IoasMapFile { iova: max, ..bad }, Errno::EOVERFLOW),
        (IoasMapFile { length: max, ..bad }, Errno::EOVERFLOW),
        (bad, Errno::EINVAL),
        (IoasMapFile { flags, ..bad }, Errno::ENOENT),
        (IoasMapFile { flags, ioas_id: ioas, ..bad }, Errno::EINVAL),
        (IoasMapFile { flags, ioas_id: ioas, length: 2, ..bad }, Errno::EOVERFLOW),
        (IoasMapFile { flags, ioas_id: ioas, length: 1, ..bad }, Errno::EBADF),
        (IoasMapFile { start: 0, length: max - PAGE + 1, ..good }, Errno::EINVAL),
    ];
    for (map, expected) in cases {
        assert_eq!(lab.run(map), Err(expected), "{map:?}");
    }
    lab.run(good).unwrap();
    assert_eq!(lab.run(good), Err(Errno::EEXIST));
}

/// IOMMUFD-5.10: what cannot be pinned shows when it is.
#[test]
fn any_file_without_a_domain() {
    let (mut lab, ioas) = lab();
    let fds = [lab.client.foreign_fd(), lab.client.eventfd().0, lab.client.mem_fd(&MemFile::new(1, PAGE))];
    for fd in fds {
        lab.run(IoasMapFile { length: 2 * PAGE, ..good(ioas, fd) }).unwrap();
        assert_eq!(lab.add_domain(1000, ioas, &domain()), Err(Errno::EINVAL));
        lab.unmap(ioas, 0, u64::MAX).unwrap();
    }
    lab.add_domain(1000, ioas, &domain()).unwrap();
    for fd in fds {
        assert_eq!(lab.run(IoasMapFile { length: 2 * PAGE, ..good(ioas, fd) }), Err(Errno::EINVAL));
    }
    lab.run(good(ioas, fds[2])).unwrap();
    let beyond = IoasMapFile { iova: PAGE, start: PAGE, ..good(ioas, fds[2]) };
    assert_eq!(lab.run(beyond), Err(Errno::EINVAL), "the end of the file");
}

/// IOMMUFD-5.12: also when its limit says so (section 7).
#[test]
fn the_file_outlives_its_descriptor() {
    let (mut lab, ioas) = lab();
    let file = MemFile::new(1, 4 * PAGE);
    let fd = lab.client.mem_fd(&file);
    lab.run(IoasMapFile { start: PAGE, length: 2 * PAGE, ..good(ioas, fd) }).unwrap();
    lab.client.close(fd);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!((lab.dma_read(ioas, 0), lab.counts()), (Some(0), (0, 2, 2)));
    lab.client.memory.map_file(0x7000_0000, PAGE, true, &file, PAGE);
    lab.client.memory.store(0x7000_0000, &6_u64.to_le_bytes());
    assert_eq!(lab.dma_read(ioas, 0), Some(6));
    lab.client.memory.end();
    lab.remove_domain(1000, ioas);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.dma_read(ioas, 0), Some(6), "nor does a file need its mapper");
}

fn dma_buf(lab: &mut Lab, pages: u64) -> (i32, std::sync::Arc<DmaBuf>) {
    let file = lab.files.allocate();
    let memory = MemFile::new(9, pages * PAGE);
    let buffer = DmaBuf::new(pages * PAGE, memory);
    lab.iommufd.dma_bufs.insert(file, buffer.clone());
    (lab.client.fd(file), buffer)
}

/// IOMMUFD-5.11
#[test]
fn dma_bufs() {
    let (mut lab, ioas) = lab();
    let (fd, buffer) = dma_buf(&mut lab, 4);
    let other = lab.ioas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    for (start, length) in [(0, 4 * PAGE + 1), (4 * PAGE, 1), (3 * PAGE, PAGE + 1), (1 << 60, PAGE)] {
        assert_eq!(lab.run(IoasMapFile { start, length, ..good(ioas, fd) }), Err(Errno::EINVAL));
    }
    lab.run(IoasMapFile { start: PAGE, length: 2 * PAGE, ..good(ioas, fd) }).unwrap();
    assert_eq!((lab.dma_read(ioas, PAGE), lab.counts()), (Some(0), (0, 0, 0)), "nobody pays");
    lab.copy((ioas, 0), (other, 0), FIXED | READ, 2 * PAGE).unwrap();
    assert_eq!((lab.dma_read(other, 0), lab.dma_read(ioas, 0)), (None, Some(0)));
    buffer.set_revoked(true);
    assert_eq!(lab.run(IoasMapFile { iova: 50 * PAGE, ..good(ioas, fd) }), Err(Errno::ENODEV));
    buffer.set_revoked(false);
    assert_eq!(lab.run(IoasMapFile { iova: 50 * PAGE, ..good(ioas, fd) }).unwrap().iova, 50 * PAGE);
    lab.add_domain(1001, other, &domain()).unwrap();
    assert_eq!(lab.dma_read(other, 0), Some(0));
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    lab.unmap(other, 0, u64::MAX).unwrap();
    assert!(lab.context().backing.pages.is_empty());
}

/// IOMMUFD-5.11: it is found out before the IOVA is looked at, with and without
/// a domain.
#[test]
fn dma_bufs_of_other_exporters() {
    let (mut lab, ioas) = lab();
    let fd = lab.client.dma_buf_fd(2 * PAGE);
    for domains in 0..2 {
        if domains > 0 {
            lab.add_domain(1000, ioas, &domain()).unwrap();
        }
        for (start, length) in [(0, 2 * PAGE + 1), (2 * PAGE, 1), (0, u64::MAX / 2)] {
            assert_eq!(lab.run(IoasMapFile { start, length, ..good(ioas, fd) }), Err(Errno::EINVAL), "beyond its end");
        }
        for map in [good(ioas, fd), IoasMapFile { iova: 1, ..good(ioas, fd) }] {
            assert_eq!(lab.run(IoasMapFile { length: 2 * PAGE, ..map }), Err(Errno::EOPNOTSUPP));
        }
        assert_eq!(lab.counts(), (0, 0, 0));
    }
}

/// IOMMUFD-5.11: revoking is a fence, the area stays, and un-revoking does not
/// bring it back; where nothing was revoked it takes away all the same (SELF-3.23).
#[test]
fn what_is_revoked_leads_nowhere() {
    let (mut lab, ioas) = lab();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    for revoked in [[true, false], [false, false]] {
        let (fd, buffer) = dma_buf(&mut lab, 4);
        lab.run(IoasMapFile { length: 2 * PAGE, ..good(ioas, fd) }).unwrap();
        assert_eq!(lab.dma_read(ioas, PAGE), Some(0));
        for on in revoked {
            buffer.set_revoked(on);
            lab.context().lose_buffer(&buffer);
            assert_eq!(lab.dma_read(ioas, PAGE), None);
        }
        // Nor does the next domain see it, and new mappings work.
        lab.remove_domain(1000, ioas);
        lab.add_domain(1000, ioas, &domain()).unwrap();
        assert_eq!(lab.dma_read(ioas, PAGE), None);
        lab.run(IoasMapFile { iova: 50 * PAGE, length: PAGE, ..good(ioas, fd) }).unwrap();
        assert_eq!(lab.dma_read(ioas, 50 * PAGE), Some(0));
        assert_eq!(lab.unmap(ioas, 0, 2 * PAGE), Ok(2 * PAGE), "the area has stayed");
        assert_eq!(lab.unmap(ioas, 50 * PAGE, PAGE), Ok(PAGE));
    }
}
