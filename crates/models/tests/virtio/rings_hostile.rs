// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings whose driver means ill. What is wrong is found before anything of a
//! buffer is used; buffers before it are handed over first.

use device::virtio::feature::{INDIRECT_DESC, RING_PACKED};
use iommu::FaultReason;
use models::testing::TestMemory;
use models::testing::virtio::DriverRing;
use models::virtio::ring::{Base, Batch, Ring, RingError, Setup};
use models::virtio::spec::ring::{Desc, desc};

use crate::rings::{part, start, wire};

const SIZE: u16 = 16;

/// What a device finds in a ring that `prepare` has spoiled, published behind
/// a good buffer.
fn find(features: u64, prepare: impl Fn(&mut DriverRing)) -> RingError {
    let mut found = Vec::new();
    for (remote, piece) in [(false, 1 << 20), (true, 1 << 20), (false, 4096)] {
        let memory = TestMemory::new(1 << 20, remote);
        let (requester, _space) = wire(&memory, piece);
        let mut driver = DriverRing::new(memory, 0x3f00, SIZE, features, start(features));
        let mut ring = Ring::new(driver.setup()).unwrap();
        let good = driver.add(&[part(1, 1)], &[part(2, 2)], None).unwrap();
        prepare(&mut driver);
        driver.publish();
        let mut batch = Batch::default();
        let mut session = requester.session();
        match ring.fetch(&mut session, &mut batch, 64) {
            Ok(()) => {
                assert_eq!(batch.chains().len(), 1, "the good buffer only");
                ring.complete(&mut session, &batch, &[2]).unwrap();
                assert_eq!(driver.used(), Some((good, 2)));
                found.push(ring.fetch(&mut session, &mut batch, 64).unwrap_err());
            }
            Err(error) => found.push(error),
        }
        assert!(batch.chains().is_empty());
        // It stays wrong.
        assert_eq!(ring.fetch(&mut session, &mut batch, 64), Err(found[0]));
    }
    assert!(found.iter().all(|error| *error == found[0]), "{found:?}");
    found[0]
}

/// Stores a descriptor over the one that the next buffer will get, in words of
/// the ring's layout.
fn spoil(features: u64, len: u32, flags: u16, next: u16) -> impl Fn(&mut DriverRing) {
    move |driver| {
        let id = driver.add(&[part(0x100, 8)], &[], None).unwrap();
        driver.publish();
        let packed = features & RING_PACKED != 0;
        let one = match packed {
            true => Desc { addr: 0x8000, len, flags: id, next: flags | desc::AVAIL },
            false => Desc { addr: 0x8000, len, flags, next },
        };
        driver.set_raw(if packed { 1 } else { id }, one.to_words());
    }
}

#[test]
fn an_index_that_jumps() {
    for (to, moved) in [(SIZE + 1, SIZE + 1), (0x8000, 0x8000), (0xffff, 0xffff)] {
        let memory = TestMemory::new(1 << 16, false);
        let (requester, _space) = wire(&memory, 1 << 16);
        let mut driver = DriverRing::new(memory, 0, SIZE, 0, Base::default());
        let ring = Ring::new(driver.setup()).unwrap();
        driver.set_index(to);
        let found = ring.fetch(&mut requester.session(), &mut Batch::default(), 64);
        assert_eq!(found, Err(RingError::IndexJump { moved, size: SIZE }));
    }
}

/// An index that runs backwards is one that jumps far ahead.
#[test]
fn an_index_that_runs_backwards() {
    let memory = TestMemory::new(1 << 16, false);
    let (requester, _space) = wire(&memory, 1 << 16);
    let mut driver = DriverRing::new(memory, 0, SIZE, 0, Base { index: 100, wrap: false });
    let ring = Ring::new(driver.setup()).unwrap();
    driver.set_index(99);
    let found = ring.fetch(&mut requester.session(), &mut Batch::default(), 64);
    assert_eq!(found, Err(RingError::IndexJump { moved: 0xffff, size: SIZE }));
}

#[test]
fn chains_that_loop_or_leave_the_table() {
    // The first buffer took the last two descriptors, the next one takes 13.
    assert_eq!(find(0, spoil(0, 8, desc::NEXT, 13)), RingError::Loop(SIZE));
    assert_eq!(find(0, spoil(0, 8, desc::NEXT, SIZE)), RingError::OutsideTable { index: SIZE, size: SIZE });
    assert_eq!(find(0, spoil(0, 8, desc::NEXT, 0xffff)), RingError::OutsideTable { index: 0xffff, size: SIZE });
}

/// A packed chain that goes on for ever goes around the ring.
#[test]
fn packed_chains_that_never_end() {
    let all = |driver: &mut DriverRing| {
        driver.add(&[part(0x100, 8)], &[], None).unwrap();
        driver.publish();
        for slot in 0..SIZE {
            let next = Desc { addr: 0, len: 1, flags: 0, next: desc::AVAIL | desc::NEXT };
            driver.set_raw(slot, next.to_words());
        }
    };
    let memory = TestMemory::new(1 << 16, false);
    let (requester, _space) = wire(&memory, 1 << 16);
    let mut driver = DriverRing::new(memory, 0, SIZE, RING_PACKED, start(RING_PACKED));
    let ring = Ring::new(driver.setup()).unwrap();
    all(&mut driver);
    let found = ring.fetch(&mut requester.session(), &mut Batch::default(), 64);
    assert_eq!(found, Err(RingError::Loop(SIZE)));
}

#[test]
fn tables_that_are_none() {
    for layout in [0, RING_PACKED] {
        let features = layout | INDIRECT_DESC;
        for len in [0, 1, 15, 17, 1024 * 16 + 16, u32::MAX] {
            assert_eq!(find(features, spoil(features, len, desc::INDIRECT, 0)), RingError::TableLength(len), "{len}");
        }
        assert_eq!(find(layout, spoil(layout, 16, desc::INDIRECT, 0)), RingError::StrayTable, "not negotiated");
        let linked = find(features, spoil(features, 16, desc::INDIRECT | desc::NEXT, 0));
        assert_eq!(linked, RingError::StrayTable, "a chain goes on behind it");
    }
}

/// What is wrong inside a table.
#[test]
fn tables_that_hold_nonsense() {
    for layout in [0, RING_PACKED] {
        let features = layout | INDIRECT_DESC;
        let packed = layout != 0;
        let table = |entries: Vec<(u16, u16)>| {
            let (memory, piece) = (TestMemory::new(1 << 20, false), 1 << 20);
            let (requester, _space) = wire(&memory, piece);
            let mut driver = DriverRing::new(memory.clone(), 0, SIZE, features, start(features));
            let ring = Ring::new(driver.setup()).unwrap();
            let parts = vec![part(1, 1); entries.len()];
            driver.add(&parts, &[], Some(0x8000)).unwrap();
            for (i, (flags, next)) in (0..).zip(entries) {
                let one = match packed {
                    true => Desc { addr: 1, len: 1, flags: 0, next: flags },
                    false => Desc { addr: 1, len: 1, flags, next },
                };
                for (word, at) in one.to_words().iter().zip([0, 8]) {
                    memory.set(0x8000 + i * 16 + at, &word.to_ne_bytes());
                }
            }
            driver.publish();
            ring.fetch(&mut requester.session(), &mut Batch::default(), 64)
        };
        assert_eq!(table(vec![(desc::INDIRECT, 0)]), Err(RingError::StrayTable), "a table in a table");
        let order = vec![(desc::WRITE | desc::NEXT, 1), (0, 0)];
        assert_eq!(table(order), Err(RingError::Order));
        if !packed {
            assert_eq!(table(vec![(desc::NEXT, 1), (desc::NEXT, 0)]), Err(RingError::Loop(2)));
            assert_eq!(table(vec![(desc::NEXT, 2), (0, 0)]), Err(RingError::OutsideTable { index: 2, size: 2 }));
        }
    }
}

#[test]
fn parts_in_the_wrong_order() {
    let memory = TestMemory::new(1 << 16, false);
    let (requester, _space) = wire(&memory, 1 << 16);
    let mut driver = DriverRing::new(memory, 0, SIZE, 0, Base::default());
    let ring = Ring::new(driver.setup()).unwrap();
    let head = driver.add(&[part(1, 1), part(2, 2)], &[], None).unwrap();
    // The two descriptors are neighbours.
    driver.set_raw(head, Desc { addr: 1, len: 1, flags: desc::WRITE | desc::NEXT, next: head + 1 }.to_words());
    driver.publish();
    let found = ring.fetch(&mut requester.session(), &mut Batch::default(), 64);
    assert_eq!(found, Err(RingError::Order));
}

/// Rings that are mapped nowhere, in part, or not for writing, and rings that
/// wrap around the end of all addresses: a fault, no more.
#[test]
fn rings_outside_the_maps() {
    let memory = TestMemory::new(1 << 16, false);
    let (requester, _space) = wire(&memory, 1 << 16);
    let mut batch = Batch::default();
    for features in [0, RING_PACKED] {
        for at in [1 << 16, (1 << 16) - 8, u64::MAX - 15, u64::MAX - 1, 1 << 63] {
            let setup = Setup { size: 32768, desc: at, driver: at, device: at, features, base: start(features) };
            let mut ring = Ring::new(&setup).unwrap();
            let mut session = requester.session();
            assert!(matches!(ring.fetch(&mut session, &mut batch, 64), Err(RingError::Dma(_)) | Ok(())), "{at:#x}");
            assert!(batch.chains().is_empty());
            assert!(ring.listen(&mut session).is_err() || at < 1 << 16, "{at:#x}");
        }
    }
}

/// A map that goes while the ring is in use: its buffers stay with the driver,
/// and come when the ring is mapped again.
#[test]
fn maps_removed_under_a_running_ring() {
    for features in [0, RING_PACKED] {
        let memory = TestMemory::new(1 << 16, false);
        let (requester, space) = wire(&memory, 1 << 16);
        let mut driver = DriverRing::new(memory.clone(), 0, SIZE, features, start(features));
        let mut ring = Ring::new(driver.setup()).unwrap();
        let id = driver.add(&[part(1, 1)], &[], None).unwrap();
        driver.publish();
        let mut batch = Batch::default();
        ring.fetch(&mut requester.session(), &mut batch, 64).unwrap();
        let last = (1 << 16) - 1;
        space.unmap(0, last, &mut |_| ());
        let mut session = requester.session();
        let fault = ring.complete(&mut session, &batch, &[0]).unwrap_err();
        assert_eq!(fault.reason, FaultReason::NotMapped);
        assert!(matches!(ring.fetch(&mut session, &mut batch, 64), Err(RingError::Dma(_))));
        drop(session);
        assert_eq!(driver.used(), None);
        let offset = 0;
        space.map(iommu::Mapping { first: 0, last, prot: crate::rings::RW, memory, offset, tag: 0 }).unwrap();
        let mut session = requester.session();
        ring.fetch(&mut session, &mut batch, 64).unwrap();
        ring.complete(&mut session, &batch, &[0]).unwrap();
        assert_eq!(driver.used(), Some((id, 0)));
    }
}

/// Sizes that no ring has.
#[test]
fn sizes_that_are_none() {
    for (size, features, index) in
        [(0, 0, 0), (3, 0, 0), (0, RING_PACKED, 0), (0x8001, RING_PACKED, 0), (4, RING_PACKED, 4)]
    {
        let setup = Setup { size, features, base: Base { index, wrap: true }, ..Setup::default() };
        assert_eq!(Ring::new(&setup).err(), Some(RingError::Size(size)));
    }
    assert!(Ring::new(&Setup { size: 3, features: RING_PACKED, ..Setup::default() }).is_ok());
}
