// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP_DMA: API-067 to API-077.

use caller::Capability;
use uapi::Errno;
use uapi::vfio::type1::{DmaMap, MAP_DMA};

use super::{PAGE, RAM, READ, ROM, RW, Type1Lab, VADDR, WRITE, give_memory};
use crate::Options;
use crate::testing::Client;

fn locked(t: &Type1Lab) -> u64 {
    t.lab.vfio.locked.pages(t.lab.client.process)
}

/// API-067
#[test]
fn arguments() {
    let mut t = Type1Lab::new(3);
    assert_eq!(t.ioctl(MAP_DMA, 8), Err(Errno::EFAULT));
    let good = DmaMap { argsz: 32, flags: RW, vaddr: RAM, iova: 0, size: PAGE };
    for (argsz, flags) in [(31, RW), (0, RW), (32, 8 | RW), (32, 0x8000_0000 | RW)] {
        let arg = t.lab.client.put(&DmaMap { argsz, flags, ..good });
        assert_eq!(t.ioctl(MAP_DMA, arg), Err(Errno::EINVAL));
    }
    let arg = t.lab.client.put(&DmaMap { argsz: 4096, ..good });
    assert_eq!(t.ioctl(MAP_DMA, arg), Ok(0));
}

/// API-068, API-069, API-070, API-071, each before the next.
#[test]
fn checks_in_order() {
    let mut t = Type1Lab::new(3);
    assert_eq!(t.map(0, 1, u64::MAX, 0), Err(Errno::EINVAL), "size 0");
    assert_eq!(t.map(0, RAM, u64::MAX - 1, 3), Err(Errno::EOVERFLOW), "iova wraps, although nothing else is right");
    assert_eq!(t.map(0, u64::MAX - 1, 0, 3), Err(Errno::EOVERFLOW), "vaddr wraps");
    for flags in [0, VADDR | READ, VADDR | WRITE, VADDR | RW] {
        assert_eq!(t.map(flags, RAM, 0, PAGE), Err(Errno::EINVAL), "flags {flags}");
        assert_eq!(t.map(flags, RAM, 0, u64::MAX), Err(Errno::EOVERFLOW));
    }
    for (vaddr, iova, size) in [(RAM + 1, 0, PAGE), (RAM, 1, PAGE), (RAM, 0, PAGE + 1), (RAM, 0, 1), (RAM, 2048, 2048)]
    {
        assert_eq!(t.map(RW, vaddr, iova, size), Err(Errno::EINVAL));
    }
    assert_eq!(t.map(VADDR, RAM, 0, PAGE), Err(Errno::ENOENT));
    assert_eq!(t.map(VADDR, RAM, 0, PAGE + 1), Err(Errno::EINVAL), "alignment comes before the look-up");
}

/// API-069: the last byte may be 2^64-1.
#[test]
fn last_page_of_the_address_space() {
    let mut t = Type1Lab::with(3, Options { address_width: 64, ..Options::default() });
    assert_eq!(t.map(RW, RAM, u64::MAX - 4095, PAGE), Ok(()));
    assert!(t.dma_write(u64::MAX - 7, 1));
    assert_eq!(t.unmap(0, u64::MAX - 4095, PAGE), Ok(PAGE));
    // vaddr likewise does not wrap, but is no user address.
    assert_eq!(t.map(RW, u64::MAX - 4095, 0, PAGE), Err(Errno::EFAULT));
}

/// API-073
#[test]
fn overlap() {
    let mut t = Type1Lab::new(3);
    t.map(RW, RAM, 4 * PAGE, 4 * PAGE).unwrap();
    for (first, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (0, 16), (7, 1)] {
        assert_eq!(t.map(RW, RAM, first * PAGE, pages * PAGE), Err(Errno::EEXIST), "{first} {pages}");
    }
    // It comes before the limit, the ranges and the memory.
    assert_eq!(t.map(RW, 0, 5 * PAGE, PAGE), Err(Errno::EEXIST));
    assert_eq!(t.map(RW, RAM, 5 * PAGE, 1 << 50), Err(Errno::EEXIST));
    assert_eq!(t.map(RW, RAM, 3 * PAGE, PAGE), Ok(()));
    assert_eq!(t.map(RW, RAM, 8 * PAGE, PAGE), Ok(()));
    assert_eq!(locked(&t), 6);
}

/// API-074
#[test]
fn limit_and_ranges() {
    let mut t = Type1Lab::with(3, Options { dma_entry_limit: 2, ..Options::default() });
    for (iova, size) in [
        (0xfee0_0000, PAGE),
        (0xfedf_f000, 2 * PAGE),
        (0xfeef_f000, 2 * PAGE),
        (0xfedf_f000, 0x102 * PAGE),
        (0xffff_ffff_f000, 2 * PAGE),
        (1 << 48, PAGE),
    ] {
        assert_eq!(t.map(RW, RAM, iova, size), Err(Errno::EINVAL), "{iova:#x}");
    }
    assert_eq!(t.map(RW, RAM, 0xfedf_f000, PAGE), Ok(()));
    assert_eq!(t.map(RW, RAM, 0xffff_ffff_f000, PAGE), Ok(()));
    assert_eq!(t.map(RW, RAM, 0, PAGE), Err(Errno::ENOSPC));
    assert_eq!(t.map(RW, 0, 0xfee0_0000, PAGE), Err(Errno::ENOSPC), "the limit comes before the ranges");
    assert_eq!(t.unmap(0, 0xfedf_f000, PAGE), Ok(PAGE));
    assert_eq!(t.map(RW, 0, 0xfee0_0000, PAGE), Err(Errno::EINVAL), "the ranges come before the memory");
    assert_eq!(t.map(RW, RAM, 0, PAGE), Ok(()));
}

/// API-075: rights of the program's memory.
#[test]
fn memory_that_cannot_be_pinned() {
    let mut t = Type1Lab::new(3);
    let hole = 0x5000_0000_0000;
    t.lab.client.memory.map(hole, 4 * PAGE, true);
    t.lab.client.memory.map(hole + 5 * PAGE, PAGE, true);
    for (flags, vaddr, pages) in
        [(READ, 0, 1), (RW, hole, 6), (RW, hole + 4 * PAGE, 1), (WRITE, ROM, 1), (RW, ROM, 1), (RW, 1 << 63, 1)]
    {
        assert_eq!(t.map(flags, vaddr, 0, pages * PAGE), Err(Errno::EFAULT), "{flags} {vaddr:#x} {pages}");
    }
    assert_eq!(locked(&t), 0, "nothing is left of a failure");
    assert_eq!(t.map(READ, ROM, 0, PAGE), Ok(()));
    assert_eq!(t.map(RW, hole, PAGE, 4 * PAGE), Ok(()));
    assert_eq!(locked(&t), 5);
}

/// API-075: the limit, and what does not count against it.
#[test]
fn locked_memory_limit() {
    let mut t = Type1Lab::new(3);
    t.lab.client.memlock.set(4 * PAGE + 4095);
    assert_eq!(t.map(RW, RAM, 0, 5 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(t.map(RW, RAM, 0, 3 * PAGE), Ok(()));
    assert_eq!(t.map(RW, RAM, 0x10_0000, 2 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(t.map(RW, RAM, 0x10_0000, PAGE), Ok(()));
    assert_eq!(t.map(RW, RAM, 0x20_0000, PAGE), Err(Errno::ENOMEM));
    // The page that comes first decides.
    t.unmap(0, 0x10_0000, PAGE).unwrap();
    assert_eq!(t.map(RW, 0, 0x10_0000, 2 * PAGE), Err(Errno::EFAULT));
    // With CAP_IPC_LOCK there is no limit, but pages count.
    t.lab.client.capabilities.borrow_mut().push(Capability::IpcLock);
    assert_eq!(t.map(RW, RAM, 0x10_0000, 100 * PAGE), Ok(()));
    assert_eq!(locked(&t), 103);
    t.lab.client.capabilities.borrow_mut().clear();
    t.unmap(0, 0, 3 * PAGE).unwrap();
    assert_eq!(t.map(RW, RAM, 0, PAGE), Err(Errno::ENOMEM));
    t.unmap(0, 0x10_0000, 100 * PAGE).unwrap();
    assert_eq!(t.map(RW, RAM, 0, 4 * PAGE), Ok(()));
}

/// Extension: a lab may lift the limit; pages still count.
#[test]
fn locked_memory_without_limit() {
    let mut t = Type1Lab::with(3, Options { unlimited_memlock: true, ..Options::default() });
    t.lab.client.memlock.set(PAGE);
    assert_eq!(t.map(RW, RAM, 0, 100 * PAGE), Ok(()));
    assert_eq!(locked(&t), 100);
}

/// API-076: the same memory in two containers counts twice, and each program
/// pays for what it maps.
#[test]
fn accounting_by_container_and_program() {
    let mut t = Type1Lab::new(3);
    t.lab.add(8, "0000:02:00.0", Some(::device::Driver::VfioPci));
    let (second, second_group) = t.lab.container_with(8, 3);
    t.lab.client.memlock.set(8 * PAGE);
    t.map(RW, RAM, 0, 4 * PAGE).unwrap();
    let arg = t.lab.client.put(&DmaMap { argsz: 32, flags: RW, vaddr: RAM, iova: 0, size: 4 * PAGE });
    t.lab.ioctl(second, MAP_DMA, arg).unwrap();
    assert_eq!(locked(&t), 8);
    assert_eq!(t.map(RW, RAM, 0x10_0000, PAGE), Err(Errno::ENOMEM));

    let other = Client::new(2);
    give_memory(&other);
    other.memlock.set(PAGE);
    assert!(t.map_as(&other, RW, RAM, 0x10_0000, PAGE).is_ok());
    assert_eq!(t.map_as(&other, RW, RAM, 0x20_0000, PAGE), Err(Errno::ENOMEM));
    assert_eq!((locked(&t), t.lab.vfio.locked.pages(other.process)), (8, 1));
    // Whoever unmaps, the one who mapped is relieved.
    t.unmap(0, 0x10_0000, PAGE).unwrap();
    assert_eq!((locked(&t), t.lab.vfio.locked.pages(other.process)), (8, 0));
    t.lab.release(second_group);
    assert_eq!(locked(&t), 4);
}

/// API-077: on return 0 all of it is mapped, with the rights asked for.
#[test]
fn whole_range_is_mapped() {
    let mut t = Type1Lab::new(3);
    t.map(RW, RAM, 0x10_0000, 16 * PAGE).unwrap();
    assert_eq!(*t.lab.client.pins.borrow(), [(RAM, 16 * PAGE, true)]);
    for page in 0..16 {
        assert!(t.dma_write(0x10_0000 + page * PAGE + 8, page));
        assert_eq!(t.lab.client.get::<u64>(RAM + page * PAGE + 8), page);
    }
    assert!(!t.dma_write(0x10_0000 + 16 * PAGE, 0));
    assert!(!t.dma_write(0x10_0000 - 8, 0));
    t.map(READ, ROM, 0x20_0000, PAGE).unwrap();
    assert_eq!(t.dma_read(0x20_0000), Some(0));
    assert!(!t.dma_write(0x20_0000, 0));
    t.map(WRITE, RAM, 0x30_0000, PAGE).unwrap();
    assert!(t.dma_write(0x30_0000, 9));
    assert_eq!(t.dma_read(0x30_0000), None);
}
