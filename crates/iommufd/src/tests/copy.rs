// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_COPY` (IOMMUFD-5.13 to 5.16).

use caller::testing::MemFile;
use uapi::Errno;
use uapi::iommufd::{Command, IoasCopy};

use super::{FIXED, NOTHING, PAGE, RAM, READ, ROM, RW, lab};
use crate::testing::{domain, put};

/// IOMMUFD-5.13: each error with all that come after it.
#[test]
fn order_of_checks() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | READ, RAM, 4 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | READ, RAM, PAGE, 100 * PAGE).unwrap();
    lab.reserve(ioas, 200 * PAGE, 300 * PAGE).unwrap();
    let max = u64::MAX;
    let good = IoasCopy {
        flags: FIXED | READ,
        src_ioas_id: ioas,
        dst_ioas_id: ioas,
        length: PAGE,
        dst_iova: 50 * PAGE,
        ..IoasCopy::default()
    };
    let bad = IoasCopy { flags: FIXED, src_ioas_id: 99, dst_ioas_id: 98, length: 0, src_iova: max - 1, ..good };
    let flags = FIXED | RW;
    let cases = [
        (IoasCopy { flags: 8, length: max, ..bad }, Errno::EOPNOTSUPP),
        (IoasCopy { length: max, ..bad }, Errno::EOVERFLOW),
        (IoasCopy { src_iova: max, ..bad }, Errno::EOVERFLOW),
        (IoasCopy { dst_iova: max, ..bad }, Errno::EOVERFLOW),
        (bad, Errno::EINVAL),
        (IoasCopy { flags, ..bad }, Errno::ENOENT),
        (IoasCopy { flags, src_ioas_id: ioas, ..bad }, Errno::EINVAL),
        (IoasCopy { flags, src_ioas_id: ioas, length: 3, ..bad }, Errno::EOVERFLOW),
        (IoasCopy { flags, src_ioas_id: ioas, length: 1, ..bad }, Errno::ENOENT),
        (IoasCopy { flags, dst_ioas_id: 98, ..good }, Errno::ENOENT),
        (IoasCopy { flags, dst_iova: 200 * PAGE, ..good }, Errno::EINVAL),
        (IoasCopy { flags, dst_iova: 100 * PAGE, ..good }, Errno::EEXIST),
        (IoasCopy { flags, dst_iova: max - 1, ..good }, Errno::EOVERFLOW),
        (IoasCopy { flags, ..good }, Errno::EPERM),
    ];
    for (copy, expected) in cases {
        assert_eq!(lab.run(copy), Err(expected), "{copy:?}");
    }
    assert_eq!(lab.run(good).unwrap().dst_iova, 50 * PAGE);
}

/// IOMMUFD-5.13, IOMMUFD-5.14, SELF-6.10: any part that is covered.
#[test]
fn sources() {
    let (mut lab, ioas) = lab();
    let other = lab.ioas();
    lab.map(ioas, FIXED | RW, RAM, 4 * PAGE, 10 * PAGE).unwrap();
    lab.map(ioas, FIXED | RW, RAM + 8 * PAGE, 4 * PAGE, 14 * PAGE).unwrap();
    lab.client.memory.store(RAM + 8 * PAGE, &3_u64.to_le_bytes());
    let mut copy = |iova, length| lab.copy((ioas, iova), (other, 0), FIXED | RW, length);
    for (iova, length) in [(9 * PAGE, 2 * PAGE), (17 * PAGE, 2 * PAGE), (0, PAGE), (10 * PAGE, 9 * PAGE)] {
        assert_eq!(copy(iova, length), Err(Errno::ENOENT));
    }
    assert_eq!(copy(13 * PAGE, 3 * PAGE), Ok(0));
    assert_eq!(lab.areas(other), [(0, PAGE - 1), (PAGE, 3 * PAGE - 1)], "an area for each slice");
    assert_eq!(lab.unmap(other, 0, 2 * PAGE), Err(Errno::ENOENT));
    assert_eq!(lab.areas(other), [(PAGE, 3 * PAGE - 1)]);
    lab.add_domain(1000, other, &domain()).unwrap();
    assert_eq!((lab.dma_read(other, PAGE), lab.counts()), (Some(3), (0, 2, 2)));
    assert_eq!(lab.unmap(other, 0, 3 * PAGE), Ok(2 * PAGE));
    assert_eq!(lab.counts(), (0, 0, 0));

    for n in 0..16 {
        let iova = 10 * PAGE + n * 511;
        assert_eq!(lab.copy((ioas, iova), (other, 20 * PAGE), FIXED | RW, 2048), Err(Errno::EINVAL), "4 KiB pages");
    }
    lab.remove_domain(1000, other);
    for n in 0..16 {
        let iova = 10 * PAGE + n * 511;
        assert_eq!(lab.copy((ioas, iova), (other, 20 * PAGE), FIXED | RW, 2048), Ok(20 * PAGE));
        assert_eq!(lab.unmap(other, 20 * PAGE, 2048), Ok(2048));
    }
}

/// IOMMUFD-5.15, IOMMUFD-7.3: pages are pinned once, and stay as long as one
/// area has them.
#[test]
fn copies_share_pins() {
    let (mut lab, ioas) = lab();
    let other = lab.ioas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    lab.add_domain(1001, other, &domain()).unwrap();
    lab.map(ioas, FIXED | RW, RAM, 8 * PAGE, 0).unwrap();
    lab.copy((ioas, 0), (ioas, 100 * PAGE), FIXED | RW, 8 * PAGE).unwrap();
    lab.copy((ioas, 2 * PAGE), (other, 0), FIXED | READ, 3 * PAGE).unwrap();
    assert_eq!(lab.counts(), (0, 8, 8));
    lab.unmap(ioas, 0, 8 * PAGE).unwrap();
    assert_eq!(lab.counts(), (0, 8, 8));
    lab.unmap(ioas, 100 * PAGE, 8 * PAGE).unwrap();
    assert_eq!(lab.counts(), (0, 3, 3));
    // What is pinned is found even where the program has nothing any more.
    lab.client.memory.store(RAM + 3 * PAGE, &4_u64.to_le_bytes());
    lab.client.memory.unmap(RAM);
    assert_eq!(lab.copy((other, PAGE), (ioas, 0), FIXED | RW, 2 * PAGE), Ok(0));
    assert_eq!((lab.counts(), lab.dma_read(ioas, 0)), ((0, 3, 3), Some(4)));
    lab.remove_domain(1001, other);
    assert_eq!(lab.counts(), (0, 2, 2));
    assert_eq!(lab.add_domain(1001, other, &domain()), Err(Errno::EFAULT), "page 2 is pinned by nobody");
    lab.remove_domain(1000, ioas);
    assert_eq!(lab.counts(), (0, 0, 0));
}

/// IOMMUFD-5.6: of a copy whose pins fail nothing is left.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    let (mut lab, ioas) = lab();
    let other = lab.ioas();
    lab.map(ioas, FIXED | READ, RAM, 4 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | READ, NOTHING, 4 * PAGE, 4 * PAGE).unwrap();
    lab.map(ioas, FIXED | READ, ROM, 4 * PAGE, 8 * PAGE).unwrap();
    lab.add_domain(1000, other, &domain()).unwrap();
    assert_eq!(lab.copy((ioas, PAGE), (other, 0), FIXED | READ, 9 * PAGE), Err(Errno::EFAULT));
    assert_eq!((lab.areas(other), lab.counts()), (vec![], (0, 0, 0)));
    lab.client.memlock.set(5 * PAGE);
    lab.copy((ioas, PAGE), (other, 0), FIXED | READ, 3 * PAGE).unwrap();
    assert_eq!(lab.copy((ioas, 8 * PAGE), (other, 8 * PAGE), FIXED | READ, 3 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(lab.counts(), (0, 3, 3));
    assert_eq!(lab.copy((ioas, 8 * PAGE), (other, 8 * PAGE), FIXED | READ, 2 * PAGE), Ok(8 * PAGE));
    lab.unmap(other, 0, u64::MAX).unwrap();
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    assert!(lab.context().backing.pages.is_empty());
    let left = lab.iommufd.budget.left();
    let fresh = lab.ioas();
    lab.map(fresh, FIXED | READ, RAM, PAGE, 0).unwrap();
    lab.copy((fresh, 0), (fresh, PAGE), FIXED | READ, PAGE).unwrap();
    lab.context().destroy_ioas(crate::ObjectId(fresh));
    assert_eq!(lab.iommufd.budget.left(), left, "what was taken is given back");
}

/// A copy whose pages were pinned at different times from different memory.
#[test]
fn pages_of_several_memories() {
    let (mut lab, ioas) = lab();
    let other = lab.ioas();
    let file = MemFile::new(7, 8 * PAGE);
    let va = 0x7000_0000;
    lab.client.memory.map_file(va, 4 * PAGE, true, &file, 0);
    lab.map(ioas, FIXED | RW, va, 4 * PAGE, 0).unwrap();
    lab.add_domain(1000, other, &domain()).unwrap();
    lab.copy((ioas, PAGE), (other, 0), FIXED | RW, PAGE).unwrap();
    // The program maps something else there; page 1 stays what it was.
    lab.client.memory.unmap(va);
    lab.client.memory.map(va, 4 * PAGE, true);
    for page in 0..4 {
        lab.client.memory.store(va + page * PAGE, &(10 + page).to_le_bytes());
    }
    lab.copy((ioas, 0), (other, 10 * PAGE), FIXED | RW, 4 * PAGE).unwrap();
    let seen: Vec<_> = (0..4).map(|page| lab.dma_read(other, (10 + page) * PAGE).unwrap()).collect();
    assert_eq!(seen, [10, 0, 12, 13]);
    assert_eq!(lab.counts(), (0, 4, 4));
    lab.unmap(other, 10 * PAGE, 4 * PAGE).unwrap();
    assert_eq!(lab.counts(), (0, 1, 1));
}

/// IOMMUFD-5.16
#[test]
fn reply_that_cannot_be_written_leaves_the_copy() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | READ, RAM, PAGE, 0).unwrap();
    let copy = IoasCopy {
        flags: READ,
        src_ioas_id: ioas,
        dst_ioas_id: ioas,
        length: PAGE,
        dst_iova: 5,
        ..IoasCopy::default()
    };
    assert_eq!(lab.run(copy).unwrap().dst_iova, PAGE);
    let arg = put(&lab.client, copy);
    let bytes = lab.client.get_bytes(arg, 40);
    lab.client.memory.store(ROM, &bytes);
    assert_eq!(lab.ioctl(IoasCopy::REQUEST, ROM), Err(Errno::EFAULT));
    assert_eq!(lab.areas(ioas).len(), 3);
}
