// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UNMAP_DMA: API-079 to API-088.

use uapi::Errno;
use uapi::vfio::type1::{DmaUnmap, UNMAP_DMA};

use super::{ALL, BITMAP, PAGE, RAM, RW, Type1Lab, VADDR};
use crate::Options;

/// A lab with mappings of pages 2-3, 4 and 8-11.
fn lab(number: u64) -> Type1Lab {
    let mut t = Type1Lab::new(number);
    for (page, pages) in [(2, 2), (4, 1), (8, 4)] {
        t.map(RW, RAM, page * PAGE, pages * PAGE).unwrap();
    }
    t
}

fn pages(t: &mut Type1Lab, first: u64, pages: u64) -> Result<u64, Errno> {
    t.unmap(0, first * PAGE, pages * PAGE).map(|bytes| bytes / PAGE)
}

/// Which of the first 16 pages a device reaches.
fn mapped(t: &Type1Lab) -> Vec<u64> {
    (0..16).filter(|page| t.dma_read(page * PAGE).is_some()).collect()
}

/// API-079
#[test]
fn arguments() {
    let mut t = lab(3);
    assert_eq!(t.ioctl(UNMAP_DMA, 8), Err(Errno::EFAULT));
    let good = DmaUnmap { argsz: 24, flags: 0, iova: 0, size: 16 * PAGE };
    for (argsz, flags) in [(23, 0), (0, 0), (24, 8), (48, BITMAP | ALL), (48, BITMAP | VADDR), (24, 1 << 31)] {
        let arg = t.lab.client.put(&DmaUnmap { argsz, flags, ..good });
        assert_eq!(t.ioctl(UNMAP_DMA, arg), Err(Errno::EINVAL), "{argsz} {flags}");
    }
    let arg = t.lab.client.put(&DmaUnmap { argsz: 4096, ..good });
    assert_eq!(t.ioctl(UNMAP_DMA, arg), Ok(0));
    assert_eq!(t.lab.client.get::<DmaUnmap>(arg), DmaUnmap { argsz: 4096, size: 7 * PAGE, ..good });
}

/// API-081, API-082
#[test]
fn range_checks_in_order() {
    let mut t = lab(3);
    for flags in [0, VADDR] {
        assert_eq!(t.unmap(flags, 1, u64::MAX - 4095), Err(Errno::EINVAL), "alignment comes first");
        assert_eq!(t.unmap(flags, 2 * PAGE, u64::MAX - 4095), Err(Errno::EOVERFLOW));
        assert_eq!(t.unmap(flags, 2 * PAGE, 0), Err(Errno::EINVAL));
        assert_eq!(t.unmap(flags, 2 * PAGE, PAGE + 1), Err(Errno::EINVAL));
        assert_eq!(t.unmap(flags | ALL, 1, 0), Err(Errno::EINVAL));
        assert_eq!(t.unmap(flags | ALL, PAGE, 0), Err(Errno::EINVAL));
        assert_eq!(t.unmap(flags | ALL, 0, PAGE), Err(Errno::EINVAL));
    }
    assert_eq!(mapped(&t), [2, 3, 4, 8, 9, 10, 11]);
}

/// API-082
#[test]
fn all() {
    for number in [1, 3] {
        let mut t = lab(number);
        assert_eq!(t.unmap(ALL, 0, 0), Ok(7 * PAGE));
        assert!(mapped(&t).is_empty());
        assert_eq!(t.unmap(ALL, 0, 0), Ok(0));
        assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 0);
    }
}

/// API-082: ALL reaches the last byte of the address space.
#[test]
fn all_of_64_bits() {
    let mut t = Type1Lab::with(3, Options { address_width: 64, ..Options::default() });
    t.map(RW, RAM, u64::MAX - 4095, PAGE).unwrap();
    t.map(RW, RAM, 0, PAGE).unwrap();
    assert_eq!(t.unmap(ALL, 0, 0), Ok(2 * PAGE));
}

/// API-084, API-088: an end inside a mapping refuses everything.
#[test]
fn v2_bisection() {
    let mut t = lab(3);
    for (first, n) in [(3, 1), (2, 1), (3, 2), (0, 3), (9, 8), (2, 7), (9, 1), (0, 9)] {
        assert_eq!(pages(&mut t, first, n), Err(Errno::EINVAL), "{first} {n}");
    }
    assert_eq!(mapped(&t), [2, 3, 4, 8, 9, 10, 11]);
}

/// API-085, API-086
#[test]
fn v2_ranges() {
    let mut t = lab(3);
    for (first, n) in [(0, 2), (5, 3), (12, 100)] {
        assert_eq!(pages(&mut t, first, n), Ok(0), "a hole");
    }
    assert_eq!(pages(&mut t, 4, 1), Ok(1), "exactly one");
    assert_eq!(mapped(&t), [2, 3, 8, 9, 10, 11]);
    assert_eq!(pages(&mut t, 1, 11), Ok(6), "mappings and holes");
    assert!(mapped(&t).is_empty());
    // What is mapped again is reached again.
    t.map(RW, RAM, 2 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(mapped(&t), [2, 3]);
}

/// API-087
#[test]
fn v1_widens() {
    let mut t = lab(1);
    assert_eq!(pages(&mut t, 3, 13), Ok(0), "starts inside: even whole mappings behind stay");
    assert_eq!(mapped(&t), [2, 3, 4, 8, 9, 10, 11]);
    assert_eq!(pages(&mut t, 0, 3), Ok(2), "the first byte is enough");
    assert_eq!(mapped(&t), [4, 8, 9, 10, 11]);
    assert_eq!(pages(&mut t, 4, 5), Ok(5), "more than was asked for");
    assert!(mapped(&t).is_empty());
    assert_eq!(pages(&mut t, 0, 16), Ok(0));
}

/// API-091: unmapping unpins and is over at once.
#[test]
fn unmap_takes_the_pages_away() {
    let mut t = lab(3);
    assert!(t.dma_write(2 * PAGE, 1));
    assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 7);
    pages(&mut t, 2, 2).unwrap();
    assert!(!t.dma_write(2 * PAGE, 2));
    assert_eq!(t.lab.client.get::<u64>(RAM), 1);
    assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 5);
}

/// The copy back of the size can fail when all is done.
#[test]
fn fault_on_the_way_back() {
    let mut t = lab(3);
    let page = 0x5000_0000_0000;
    t.lab.client.memory.map(page, PAGE, true);
    let unmap = DmaUnmap { argsz: 24, flags: 0, iova: 4 * PAGE, size: PAGE };
    caller::Caller::write(&t.lab.client, page, zerocopy::IntoBytes::as_bytes(&unmap)).unwrap();
    t.lab.client.memory.map(page, PAGE, false);
    assert_eq!(t.ioctl(UNMAP_DMA, page), Err(Errno::EFAULT));
    assert_eq!(mapped(&t), [2, 3, 8, 9, 10, 11]);
}
