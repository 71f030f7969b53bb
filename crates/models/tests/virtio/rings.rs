// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings whose driver means well: buffers come and go in order, the base is
//! exact, kicks and events come when they are asked for.

use std::sync::Arc;

use device::virtio::feature::{EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED};
use iommu::{AddressSpace, Mapping, Prot, Requester};
use models::testing::TestMemory;
use models::testing::virtio::DriverRing;
use models::virtio::ring::{Base, Batch, Part, Ring};

pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A requester that sees all of a memory, mapped in pieces of `piece` bytes.
pub(crate) fn wire(memory: &Arc<TestMemory>, piece: u64) -> (Arc<Requester>, Arc<AddressSpace>) {
    let space = AddressSpace::new();
    for first in (0..memory.size() as u64).step_by(piece as usize) {
        let last = (first + piece).min(memory.size() as u64) - 1;
        let memory = memory.clone();
        space.map(Mapping { first, last, prot: RW, memory, offset: first, tag: 0 }).unwrap();
    }
    let requester = Requester::new();
    requester.attach(Some(space.clone().into()));
    requester.set_bus_master(true);
    (requester, space)
}

/// Both layouts, with and without event indexes, addressed directly, in
/// pieces, and by copying.
pub(crate) fn each_kind(test: impl Fn(u64, bool, u64)) {
    for packed in [0, RING_PACKED] {
        for event in [0, EVENT_IDX] {
            for (remote, piece) in [(false, 1 << 20), (false, 4096), (true, 1 << 20)] {
                test(packed | event | INDIRECT_DESC, remote, piece);
            }
        }
    }
}

pub(crate) fn start(features: u64) -> Base {
    Base { index: 0, wrap: features & RING_PACKED != 0 }
}

pub(crate) fn part(iova: u64, len: u32) -> Part {
    Part { iova, len }
}

/// VNET-6.4: a ring at IOVA 0; buffers come in order with their parts, twice
/// around, and return used with their lengths.
#[test]
fn buffers_come_and_go_in_order() {
    each_kind(|features, remote, piece| {
        let memory = TestMemory::new(1 << 20, remote);
        let (requester, _space) = wire(&memory, piece);
        let mut driver = DriverRing::new(memory, 0, 256, features, start(features));
        let mut ring = Ring::new(driver.setup()).unwrap();
        let mut batch = Batch::default();
        for round in 0..600_u32 {
            let table = (round % 3 == 2).then_some(0x8000);
            let (read, write) = ([part(0x1_0000, 1 + round), part(0x2_0000, 2)], [part(0x3_0000, 3 + round)]);
            let id = driver.add(&read, &write, table).unwrap();
            let mut session = requester.session();
            ring.fetch(&mut session, &mut batch, 8).unwrap();
            assert!(batch.chains().is_empty(), "not published yet");
            driver.publish();
            ring.fetch(&mut session, &mut batch, 8).unwrap();
            let [chain] = batch.chains() else { panic!("{} buffers", batch.chains().len()) };
            assert_eq!((batch.readable(chain), batch.writable(chain)), (&read[..], &write[..]));
            assert_eq!((chain.read_len, chain.write_len), (u64::from(round) + 3, u64::from(round) + 3));
            assert_eq!(driver.used(), None, "fetching takes nothing");
            ring.complete(&mut session, &batch, &[round]).unwrap();
            assert_eq!(driver.used(), Some((id, round)));
            assert_eq!(driver.used(), None);
        }
    });
}

/// VNET-6.4, VDPA-6.3: another ring at the base of the first goes on where
/// that one was, 0x8000 being the first slot of a packed ring.
#[test]
fn a_base_is_exact() {
    each_kind(|features, remote, piece| {
        let memory = TestMemory::new(1 << 20, remote);
        let (requester, _space) = wire(&memory, piece);
        let mut driver = DriverRing::new(memory, 0x1000, 8, features, start(features));
        let mut setup = *driver.setup();
        let mut batch = Batch::default();
        for round in 0..1000_u32 {
            let mut ring = Ring::new(&setup).unwrap();
            let ids: Vec<_> =
                (0..3).map(|_| driver.add(&[part(0x2000, 1)], &[part(0x3000, 1)], None).unwrap()).collect();
            driver.publish();
            let mut session = requester.session();
            ring.fetch(&mut session, &mut batch, 64).unwrap();
            assert_eq!(batch.chains().len(), 3, "round {round}");
            // Of three that were looked at two are taken.
            ring.complete(&mut session, &batch, &[round, 0]).unwrap();
            assert_eq!(driver.used(), Some((ids[0], round)));
            assert_eq!(driver.used(), Some((ids[1], 0)));
            setup.base = ring.base();
            let mut ring = Ring::new(&setup).unwrap();
            ring.fetch(&mut session, &mut batch, 64).unwrap();
            assert_eq!(batch.chains().len(), 1, "round {round}");
            ring.complete(&mut session, &batch, &[7]).unwrap();
            assert_eq!(driver.used(), Some((ids[2], 7)));
            setup.base = ring.base();
        }
    });
}

/// A device that listens is kicked for the next buffer, one that looks by
/// itself is not.
#[test]
fn kicks_come_when_asked_for() {
    each_kind(|features, remote, piece| {
        let memory = TestMemory::new(1 << 20, remote);
        let (requester, _space) = wire(&memory, piece);
        let mut driver = DriverRing::new(memory, 0, 16, features, start(features));
        let mut ring = Ring::new(driver.setup()).unwrap();
        let mut batch = Batch::default();
        for round in 0..100 {
            let mut session = requester.session();
            assert!(!ring.listen(&mut session).unwrap(), "nothing is there");
            driver.add(&[part(0x2000, 1)], &[], None).unwrap();
            assert!(driver.publish(), "round {round}: a kick was asked for");
            assert!(ring.listen(&mut session).unwrap(), "what is there already is told of");
            ring.hush(&mut session).unwrap();
            for _ in 0..3 {
                ring.fetch(&mut session, &mut batch, 64).unwrap();
                ring.complete(&mut session, &batch, &vec![0; batch.chains().len()]).unwrap();
                while driver.used().is_some() {}
                driver.add(&[part(0x2000, 1)], &[], None).unwrap();
                // An index of the split ring cannot ask for nothing, so the
                // first kick after one was asked for may come.
                let kicked = driver.publish();
                assert!(!kicked || features & (EVENT_IDX | RING_PACKED) == EVENT_IDX, "round {round}");
            }
            ring.fetch(&mut session, &mut batch, 64).unwrap();
            ring.complete(&mut session, &batch, &vec![0; batch.chains().len()]).unwrap();
            while driver.used().is_some() {}
        }
    });
}

/// The driver hears of used buffers when it wants to, also of the first of
/// several, and not otherwise.
#[test]
fn events_come_when_asked_for() {
    each_kind(|features, remote, piece| {
        let memory = TestMemory::new(1 << 20, remote);
        let (requester, _space) = wire(&memory, piece);
        let mut driver = DriverRing::new(memory, 0, 16, features, start(features));
        let mut ring = Ring::new(driver.setup()).unwrap();
        let mut batch = Batch::default();
        for round in 0..200 {
            let wanted = round % 3 != 1;
            for _ in 0..1 + round % 4 {
                driver.add(&[part(0x2000, 1)], &[part(0x2000, 1)], None).unwrap();
            }
            driver.publish();
            driver.want_events(wanted);
            let mut session = requester.session();
            ring.fetch(&mut session, &mut batch, 64).unwrap();
            let told = ring.complete(&mut session, &batch, &vec![1; batch.chains().len()]).unwrap();
            assert!(told == wanted || round == 0, "round {round}");
            while driver.used().is_some() {}
        }
    });
}

/// VNET-6.4: with IN_ORDER buffers that are only read return by one used
/// descriptor, that of the last, in the place of the first (virtio 2.8.8);
/// those with something to be written to have one each.
#[test]
fn in_order_one_descriptor_stands_for_all_before() {
    let features = RING_PACKED | IN_ORDER;
    let memory = TestMemory::new(1 << 20, false);
    let (requester, _space) = wire(&memory, 1 << 20);
    let mut driver = DriverRing::new(memory.clone(), 0, 8, features, start(features));
    let mut ring = Ring::new(driver.setup()).unwrap();
    let mut batch = Batch::default();
    let slot = |number: u64| {
        let mut words = [0; 2];
        memory.get(number * 16 + 12, &mut words);
        u16::from_le_bytes(words)
    };
    for round in 0..20_u32 {
        let read = [part(0x2000, 1), part(0x2100, 1)];
        let ids: Vec<_> = (0..3).map(|_| driver.add(&read[..1 + round as usize % 2], &[], None).unwrap()).collect();
        driver.publish();
        let mut session = requester.session();
        ring.fetch(&mut session, &mut batch, 64).unwrap();
        assert_eq!(batch.chains().len(), 3);
        let first = u64::from(ring.base().index);
        ring.complete(&mut session, &batch, &[0, 0, 0]).unwrap();
        assert_eq!(slot(first), ids[2], "round {round}");
        for id in ids {
            assert_eq!(driver.used(), Some((id, 0)));
        }
        let ids = [&[][..], &read].map(|read| driver.add(read, &[part(0x3000, 9)], None).unwrap());
        driver.publish();
        ring.fetch(&mut session, &mut batch, 64).unwrap();
        ring.complete(&mut session, &batch, &[round, 7]).unwrap();
        assert_eq!((driver.used(), driver.used()), (Some((ids[0], round)), Some((ids[1], 7))));
        assert_eq!(driver.used(), None);
    }
}

/// A batch ends where it has become long; the rest comes with the next one.
#[test]
fn batches_are_bounded() {
    let features = INDIRECT_DESC;
    let memory = TestMemory::new(1 << 20, false);
    let (requester, _space) = wire(&memory, 1 << 20);
    let mut driver = DriverRing::new(memory, 0, 256, features, start(features));
    let mut ring = Ring::new(driver.setup()).unwrap();
    let many: Vec<Part> = (0..1024).map(|i| part(i, 1)).collect();
    for _ in 0..256 {
        driver.add(&many, &[], Some(0x1_0000)).unwrap();
    }
    driver.publish();
    let (mut batch, mut taken) = (Batch::default(), 0);
    loop {
        let mut session = requester.session();
        ring.fetch(&mut session, &mut batch, 64).unwrap();
        let parts: usize = batch.chains().iter().map(|chain| batch.readable(chain).len()).sum();
        assert!(parts <= 4096, "{parts} parts in a batch");
        if batch.chains().is_empty() {
            break;
        }
        taken += batch.chains().len();
        ring.complete(&mut session, &batch, &vec![0; batch.chains().len()]).unwrap();
    }
    assert_eq!(taken, 256);
}
