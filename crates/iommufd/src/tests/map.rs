// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_MAP` with a fixed IOVA (IOMMUFD-5.1 to 5.9).

use caller::Capability;
use caller::testing::{Client, MemFile};
use uapi::Errno;
use uapi::iommufd::{Command, IoasMap};

use super::{FIXED, NOTHING, PAGE, RAM, READ, ROM, RW, WRITE, lab};
use crate::testing::{domain, put};

/// IOMMUFD-5.1: each error with all that come after it.
#[test]
fn order_of_checks() {
    let (mut lab, ioas) = lab();
    let max = u64::MAX;
    let good = IoasMap { ioas_id: ioas, flags: FIXED | RW, user_va: RAM, length: PAGE, ..IoasMap::default() };
    let bad = IoasMap { flags: FIXED, ioas_id: 99, user_va: max, length: 0, ..good };
    let cases = [
        (IoasMap { flags: 8, iova: max, ..bad }, Errno::EOPNOTSUPP),
        (IoasMap { reserved: 1, iova: max, ..bad }, Errno::EOPNOTSUPP),
        (IoasMap { iova: max, ..bad }, Errno::EOVERFLOW),
        (IoasMap { length: max, ..bad }, Errno::EOVERFLOW),
        (IoasMap { flags: 0, iova: max, ..bad }, Errno::EOVERFLOW),
        (bad, Errno::EINVAL),
        (IoasMap { flags: FIXED | RW, ..bad }, Errno::ENOENT),
        (IoasMap { user_va: max, length: PAGE, ..good }, Errno::EOVERFLOW),
        (IoasMap { user_va: max, length: 1, ..good }, Errno::EOVERFLOW),
        (IoasMap { length: 0, ..good }, Errno::EINVAL),
        (IoasMap { user_va: 0, length: max - PAGE + 1, ..good }, Errno::EINVAL),
        (IoasMap { user_va: 0, iova: max - 1, length: max - PAGE, ..good }, Errno::EOVERFLOW),
    ];
    for (map, expected) in cases {
        assert_eq!(lab.run(map), Err(expected), "{map:?}");
    }
    assert_eq!(lab.run(good).map(|done| done.iova), Ok(0));
}

/// IOMMUFD-5.1, IOMMUFD-5.2, IOMMUFD-5.3: with an alignment.
#[test]
fn alignment() {
    let (mut lab, ioas) = lab();
    let mut half_pages = domain();
    half_pages.page_sizes = 1 << 11;
    lab.add_domain(1000, ioas, &half_pages).unwrap();
    let flags = FIXED | RW;
    assert_eq!(lab.map(ioas, flags, RAM, 2049, 0), Err(Errno::EINVAL));
    assert_eq!(lab.map(ioas, flags, RAM, 2048, 1024), Err(Errno::EINVAL));
    assert_eq!(lab.map(ioas, flags, RAM + 1024, 2048, 2048), Err(Errno::EINVAL));
    // The offset is looked at last: EEXIST comes before.
    assert_eq!(lab.map(ioas, flags, RAM + 2048, 2048, 2048), Ok(2048));
    assert_eq!(lab.map(ioas, flags, RAM + 1024, 2048, 2048), Err(Errno::EEXIST));
    assert_eq!(lab.counts(), (0, 1, 1));
}

/// IOMMUFD-5.2, SELF-6.5
#[test]
fn overlaps() {
    let (mut lab, ioas) = lab();
    let flags = FIXED | RW;
    lab.map(ioas, flags, RAM, 4 * PAGE, 10 * PAGE).unwrap();
    lab.reserve(ioas, 20 * PAGE, 30 * PAGE - 1).unwrap();
    for (first, pages) in [(10, 4), (9, 2), (13, 2), (8, 10), (11, 1)] {
        assert_eq!(lab.map(ioas, flags, RAM, pages * PAGE, first * PAGE), Err(Errno::EEXIST));
    }
    for (first, pages) in [(20, 1), (19, 2), (29, 2), (25, 1), (9, 30)] {
        assert_eq!(lab.map(ioas, flags, RAM, pages * PAGE, first * PAGE), Err(Errno::EINVAL), "reserved is first");
    }
    assert_eq!(lab.map(ioas, flags, RAM, 6 * PAGE, 14 * PAGE), Ok(14 * PAGE));
    assert_eq!(lab.map(ioas, flags, 0, PAGE, u64::MAX - 1), Err(Errno::EOVERFLOW));
    let last = u64::MAX - PAGE + 1;
    assert_eq!(lab.map(ioas, flags, RAM, PAGE, last), Ok(last));
}

/// IOMMUFD-5.6: without a domain nothing is touched; with one it is pinned,
/// all or nothing.
#[test]
fn lazy_and_pinned() {
    let (mut lab, ioas) = lab();
    assert_eq!(lab.map(ioas, FIXED | RW, NOTHING, PAGE, 0), Ok(0));
    assert_eq!(
        lab.map(ioas, FIXED | RW, u64::MAX - 3 * PAGE + 1, PAGE, PAGE),
        Ok(PAGE),
        "not even a program's address"
    );
    assert_eq!(lab.add_domain(1000, ioas, &domain()), Err(Errno::EFAULT));
    lab.unmap(ioas, 0, u64::MAX).unwrap();

    lab.map(ioas, FIXED | RW, RAM, 2 * PAGE, 0).unwrap();
    lab.client.memory.store(RAM, &7_u64.to_le_bytes());
    assert_eq!(lab.dma_read(ioas, 0), None);
    assert_eq!(lab.counts(), (0, 0, 0));
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.dma_read(ioas, 0), Some(7));
    assert_eq!(lab.counts(), (0, 2, 2));

    let end = RAM + 64 * PAGE;
    for (va, flags) in [(NOTHING, READ), (end - PAGE, READ), (ROM, RW), (ROM, WRITE)] {
        assert_eq!(lab.map(ioas, FIXED | flags, va, 2 * PAGE, 8 * PAGE), Err(Errno::EFAULT), "{va:#x} {flags}");
    }
    assert_eq!(lab.counts(), (0, 2, 2), "nothing stays pinned");
    assert_eq!(lab.areas(ioas), [(0, 2 * PAGE - 1)], "nor mapped");
    assert_eq!(lab.map(ioas, FIXED | READ, ROM, 2 * PAGE, 8 * PAGE), Ok(8 * PAGE));
    lab.remove_domain(1000, ioas);
    assert_eq!((lab.counts(), lab.dma_read(ioas, 0)), ((0, 0, 0), None));
    lab.add_domain(1001, ioas, &domain()).unwrap();
    assert_eq!((lab.counts(), lab.dma_read(ioas, 0)), ((0, 4, 4), Some(7)), "the address was kept");
}

/// IOMMUFD-5.6: a failure half way through the areas leaves all of them as
/// they were.
#[test]
fn a_domain_that_fails_leaves_nothing() {
    let (mut lab, ioas) = lab();
    for n in 0..5 {
        lab.map(ioas, FIXED | RW, RAM + n * PAGE, PAGE, 2 * n * PAGE).unwrap();
    }
    lab.map(ioas, FIXED | RW, NOTHING, PAGE, 5 * PAGE).unwrap();
    let mut low = domain();
    low.aperture = 0..=100 * PAGE;
    assert_eq!(lab.add_domain(1000, ioas, &low), Err(Errno::EFAULT));
    assert_eq!((lab.counts(), lab.areas(ioas).len()), ((0, 0, 0), 6));
    assert_eq!(lab.map(ioas, FIXED | RW, RAM, PAGE, 1 << 40), Ok(1 << 40), "nothing is reserved");
    assert_eq!(lab.unmap(ioas, 5 * PAGE, PAGE), Ok(PAGE));
    lab.client.memory.store(RAM + 3 * PAGE, &9_u64.to_le_bytes());
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.dma_read(ioas, 6 * PAGE), Some(9));
}

/// IOMMUFD-5.7
#[test]
fn reply_that_cannot_be_written_leaves_the_mapping() {
    let (mut lab, ioas) = lab();
    let map = IoasMap { ioas_id: ioas, flags: FIXED | RW, user_va: RAM, length: PAGE, ..IoasMap::default() };
    let arg = put(&lab.client, map);
    let bytes = lab.client.get_bytes(arg, 40);
    lab.client.memory.store(ROM, &bytes);
    assert_eq!(lab.ioctl(IoasMap::REQUEST, ROM), Err(Errno::EFAULT));
    assert_eq!(lab.areas(ioas), [(0, PAGE - 1)]);
}

/// IOMMUFD-5.8: pins are taken in the mapper's memory, whoever asks; once it
/// is gone only what is pinned stays.
#[test]
fn the_mapper_s_memory_is_pinned() {
    let (mut lab, ioas) = lab();
    let other = Client::new(2);
    let file = MemFile::new(1, 16 * PAGE);
    other.memory.map_file(RAM, 16 * PAGE, true, &file, 0);
    other.memory.store(RAM, &5_u64.to_le_bytes());
    let map =
        |iova| IoasMap { ioas_id: ioas, flags: FIXED | RW, user_va: RAM, length: PAGE, iova, ..IoasMap::default() };
    lab.run_as(&other, map(0)).unwrap();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.dma_read(ioas, 0), Some(5));
    assert_eq!((lab.counts().2, lab.counts_of(&other).2), (0, 1));
    other.memory.end();
    assert_eq!(lab.dma_read(ioas, 0), Some(5), "what is pinned stays");
    // A second domain needs no pins, the first of another IOAS does.
    lab.add_domain(1001, ioas, &domain()).unwrap();
    lab.remove_domain(1000, ioas);
    assert_eq!(lab.dma_read(ioas, 0), Some(5));
    lab.remove_domain(1001, ioas);
    assert_eq!(lab.add_domain(1002, ioas, &domain()), Err(Errno::EFAULT));
}

/// IOMMUFD-5.9
#[test]
fn what_was_mapped_to_be_read_is_never_written() {
    let (mut lab, ioas) = lab();
    lab.client.capabilities.borrow_mut().push(Capability::IpcLock);
    lab.map(ioas, FIXED | READ, RAM, PAGE, 0).unwrap();
    assert_eq!(lab.copy((ioas, 0), (ioas, PAGE), FIXED | RW, PAGE), Err(Errno::EPERM));
    assert_eq!(lab.copy((ioas, 0), (ioas, PAGE), FIXED | READ, PAGE), Ok(PAGE));
    lab.map(ioas, FIXED | RW, RAM, PAGE, 4 * PAGE).unwrap();
    lab.copy((ioas, 4 * PAGE), (ioas, 5 * PAGE), FIXED | READ, PAGE).unwrap();
    assert_eq!(
        lab.copy((ioas, 5 * PAGE), (ioas, 6 * PAGE), FIXED | RW, PAGE),
        Ok(6 * PAGE),
        "the pages may be written"
    );
}

/// Maps cost what they are said to cost: 64 bytes for each of many, and
/// nothing for length.
#[test]
fn memory_of_maps() {
    let (mut lab, ioas) = lab();
    lab.client.memory.map(1 << 40, 16 << 30, true);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    let space = lab.context().ioas(ioas).unwrap().space().clone();
    let empty = space.memory_used();
    lab.map(ioas, FIXED | RW, 1 << 40, 16 << 30, 0).unwrap();
    assert!(space.memory_used() - empty < 4096);
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    const MAPS: u64 = 20_000;
    for n in 0..MAPS {
        lab.map(ioas, FIXED | RW, (1 << 40) + n * PAGE, PAGE, n * PAGE).unwrap();
    }
    assert!(space.memory_used() - empty < 64 * MAPS as usize, "{}", space.memory_used());
    assert_eq!(lab.context().backing.sources.iter().count(), 1);
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Ok(MAPS * PAGE));
    assert_eq!((lab.counts(), lab.context().backing.sources.iter().count()), ((0, 0, 0), 0));
}
