// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device sees of its requester: data, faults, attachments, and how
//! much a space costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;

use iommu::{
    Access, AddressSpace, Direct, DmaFault, FaultReason, MapError, Mapping, Memory, MemoryFault, Places, Prot,
    Requester, Segment,
};
use vm_memory::VolatileSlice;

mod common;

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Memory reached by copying; it can vanish.
#[derive(Debug)]
struct Remote {
    bytes: Vec<AtomicU8>,
    gone: AtomicBool,
}

impl Remote {
    fn new(length: usize) -> Arc<Remote> {
        let bytes = (0..length).map(|at| AtomicU8::new(at as u8)).collect();
        Arc::new(Remote { bytes, gone: AtomicBool::new(false) })
    }

    fn part(&self, offset: u64, length: usize) -> Result<&[AtomicU8], MemoryFault> {
        if self.gone.load(Ordering::SeqCst) {
            return Err(MemoryFault);
        }
        self.bytes.get(offset as usize..offset as usize + length).ok_or(MemoryFault)
    }
}

impl Memory for Remote {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let bytes: Vec<u8> = self.part(offset, to.len())?.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes);
        for (cell, byte) in self.part(offset, from.len())?.iter().zip(bytes) {
            cell.store(byte, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn mapping(memory: &Arc<Remote>, first: u64, last: u64, prot: Prot, offset: u64) -> Mapping {
    Mapping { first, last, prot, memory: memory.clone(), offset, tag: 0 }
}

fn map(space: &AddressSpace, memory: &Arc<Remote>, first: u64, last: u64) {
    space.map(mapping(memory, first, last, RW, 0)).expect("free");
}

fn unmap(space: &AddressSpace, first: u64, last: u64) -> Vec<(u64, u64)> {
    let mut removed = Vec::new();
    space.unmap(first, last, &mut |mapping| removed.push((mapping.first, mapping.last)));
    removed
}

fn attached(space: &Arc<AddressSpace>) -> Arc<Requester> {
    let requester = Requester::new();
    requester.attach(Some(space.clone().into()));
    requester.set_bus_master(true);
    requester
}

fn read(requester: &Requester, iova: u64) -> Result<u8, FaultReason> {
    let mut byte = [0];
    requester.session().read(iova, &mut byte).map(|()| byte[0]).map_err(|fault| fault.reason)
}

#[test]
fn each_refusal_has_its_reason() {
    let (space, memory) = (AddressSpace::new(), Remote::new(8192));
    let requester = Requester::new();
    assert_eq!(read(&requester, 0), Err(FaultReason::BusMasterOff));
    requester.set_bus_master(true);
    assert_eq!(read(&requester, 0), Err(FaultReason::Blocked));
    requester.attach(Some(space.clone().into()));
    assert_eq!(read(&requester, 0), Err(FaultReason::NotMapped));
    space.map(mapping(&memory, 0, PAGE - 1, Prot::WRITE, 0)).expect("free");
    assert_eq!(read(&requester, 0), Err(FaultReason::Permission));
    assert!(space.update(0, &mut |mapping| mapping.prot = Prot::READ));
    assert_eq!(read(&requester, 1), Ok(1));
    let fault = DmaFault { iova: 5, access: Access::Write, reason: FaultReason::Permission };
    assert_eq!(requester.session().write(5, &[1, 2]), Err(fault));
    memory.gone.store(true, Ordering::SeqCst);
    assert_eq!(read(&requester, 7), Err(FaultReason::Memory));
    let reasons: Vec<FaultReason> = requester.take_faults().iter().map(|fault| fault.reason).collect();
    use FaultReason::{Blocked, BusMasterOff, Memory, NotMapped, Permission};
    assert_eq!(reasons, [BusMasterOff, Blocked, NotMapped, Permission, Permission, Memory]);
    requester.set_bus_master(false);
    assert_eq!(read(&requester, 1), Err(BusMasterOff));
    requester.take_faults();
    for iova in 0..200 {
        assert!(requester.session().read(iova, &mut [0]).is_err());
    }
    let kept: Vec<u64> = requester.take_faults().iter().map(|fault| fault.iova).collect();
    assert_eq!(kept, Vec::from_iter(0..64), "the oldest are kept, in bounds");
}

#[test]
fn an_access_goes_on_in_the_next_mapping_and_stops_at_a_fault() {
    let (space, memory) = (AddressSpace::new(), Remote::new(4 * 4096));
    let requester = attached(&space);
    space.map(mapping(&memory, PAGE, 2 * PAGE - 1, RW, 0)).expect("free");
    space.map(mapping(&memory, 2 * PAGE, 3 * PAGE - 1, Prot::WRITE, 3 * PAGE)).expect("free");
    space.map(mapping(&memory, 3 * PAGE, 4 * PAGE - 1, RW, 2 * PAGE)).expect("free");
    let mut runs = Vec::new();
    let mut session = requester.session();
    let mut run = |segment: Segment<'_>| -> Result<(), Failed> {
        if let Segment::Remote { offset, len, .. } = segment {
            runs.push((offset, len));
        }
        Ok(())
    };
    let result = session.segments(2 * PAGE - 16, 3 * 4096, Access::Write, &mut run);
    assert_eq!(result, Err(Failed::Fault(4 * PAGE, FaultReason::NotMapped)));
    assert_eq!(runs, [(PAGE - 16, 16), (3 * PAGE, 4096), (2 * PAGE, 4096)]);
    let fault = DmaFault { iova: 2 * PAGE, access: Access::Read, reason: FaultReason::Permission };
    let mut bytes = [0xee; 32];
    assert_eq!(session.read(2 * PAGE - 16, &mut bytes), Err(fault));
    assert_eq!(bytes[..16], Vec::from_iter(240..=255u8));
    assert_eq!(bytes[16..], [0xee; 16]);
    drop(session);
    // A memory that is too short fails where it ends.
    space.map(mapping(&memory, 4 * PAGE, 5 * PAGE - 1, RW, 1 << 40)).expect("free");
    let fault = DmaFault { iova: 4 * PAGE, access: Access::Write, reason: FaultReason::Memory };
    assert_eq!(requester.session().write(4 * PAGE - 8, &[0; 16]), Err(fault));
}

#[derive(Debug, PartialEq, Eq)]
enum Failed {
    Fault(u64, FaultReason),
    Memory,
}

impl From<DmaFault> for Failed {
    fn from(fault: DmaFault) -> Failed {
        Failed::Fault(fault.iova, fault.reason)
    }
}

impl From<MemoryFault> for Failed {
    fn from(_: MemoryFault) -> Failed {
        Failed::Memory
    }
}

#[test]
fn the_last_byte_is_an_address_and_nothing_follows_it() {
    let (space, memory) = (AddressSpace::new(), Remote::new(8192));
    let requester = attached(&space);
    map(&space, &memory, u64::MAX - 4095, u64::MAX);
    map(&space, &memory, 0, PAGE - 1);
    assert_eq!(read(&requester, u64::MAX), Ok(255));
    let fault = DmaFault { iova: 0, access: Access::Read, reason: FaultReason::NotMapped };
    assert_eq!(requester.session().read(u64::MAX - 1, &mut [0; 3]), Err(fault));
    assert_eq!(space.at_or_after(PAGE).map(|mapping| mapping.last), Some(u64::MAX));
    assert_eq!(unmap(&space, 0, u64::MAX), [(0, PAGE - 1), (u64::MAX - 4095, u64::MAX)]);
    assert!(space.at_or_after(0).is_none());
    map(&space, &memory, 0, u64::MAX);
    assert_eq!(read(&requester, 4000), Ok(160));
    assert_eq!(space.map(mapping(&memory, 7, 7, RW, 0)), Err(MapError::Overlap));
    assert_eq!(unmap(&space, 0, u64::MAX - 1), []);
    assert_eq!(unmap(&space, 0, u64::MAX), [(0, u64::MAX)]);
}

/// What a place remembers is forgotten with the mapping.
#[test]
fn nothing_is_remembered_across_a_fence() {
    let (space, other) = (AddressSpace::new(), AddressSpace::new());
    let (memory, second) = (Remote::new(8192), Remote::new(8192));
    let requester = attached(&space);
    map(&space, &memory, 0, 2 * PAGE - 1);
    assert_eq!(read(&requester, 10), Ok(10));
    assert!(space.split_at(PAGE));
    assert_eq!(read(&requester, PAGE + 10), Ok(10));
    assert_eq!(unmap(&space, PAGE, 2 * PAGE - 1), [(PAGE, 2 * PAGE - 1)]);
    assert_eq!(read(&requester, PAGE + 10), Err(FaultReason::NotMapped));
    assert_eq!(read(&requester, 10), Ok(10));
    let moved = |mapping: &mut Mapping| (mapping.memory, mapping.offset, mapping.tag) = (second.clone(), 5, 9);
    assert!(space.update(0, &mut { moved }));
    assert_eq!(Arc::strong_count(&memory), 1, "the old memory is let go of at once");
    assert_eq!(read(&requester, 10), Ok(15));
    assert_eq!(space.at_or_after(0).map(|mapping| mapping.tag), Some(9));
    assert!(!space.update(1, &mut |_| ()));
    map(&other, &memory, 0, PAGE - 1);
    requester.attach(Some(other.clone().into()));
    requester.attach(Some(other.clone().into()));
    assert_eq!(read(&requester, 10), Ok(10));
    requester.attach(None);
    assert_eq!(read(&requester, 10), Err(FaultReason::Blocked));
    assert_eq!((Arc::strong_count(&space), Arc::strong_count(&other)), (1, 1));
}

#[test]
fn a_requester_that_is_dropped_is_detached() {
    let (space, memory) = (AddressSpace::new(), Remote::new(4096));
    map(&space, &memory, 0, PAGE - 1);
    let requester = attached(&space);
    assert!(requester.attach_pasid(3, Some(space.clone().into())));
    assert_eq!(read(&requester, 0), Ok(0));
    drop(requester);
    assert_eq!((Arc::strong_count(&space), Arc::strong_count(&memory)), (1, 2));
}

#[test]
fn a_pasid_has_its_own_space() {
    let (space, own) = (AddressSpace::new(), AddressSpace::new());
    let memory = Remote::new(8192);
    map(&space, &memory, 0, PAGE - 1);
    space.map(mapping(&memory, PAGE, 2 * PAGE - 1, RW, 1)).expect("free");
    own.map(mapping(&memory, 0, PAGE - 1, RW, 7)).expect("free");
    let requester = attached(&space);
    let read = |pasid, iova| {
        let mut byte = [0];
        requester.session_pasid(pasid).read(iova, &mut byte).map(|()| byte[0]).map_err(|fault| fault.reason)
    };
    assert_eq!(read(5, 0), Err(FaultReason::Blocked));
    for pasid in [5, (1 << 20) - 1] {
        assert!(requester.attach_pasid(pasid, Some(own.clone().into())));
        assert_eq!(read(pasid, 0), Ok(7));
        assert_eq!(read(pasid, PAGE), Err(FaultReason::NotMapped));
    }
    assert!(!requester.attach_pasid(1 << 20, Some(own.clone().into())));
    assert!(requester.attach_pasid(77, None));
    assert!(requester.attach_pasid(5, None));
    assert_eq!(read(5, 0), Err(FaultReason::Blocked));
    assert_eq!(read((1 << 20) - 1, 0), Ok(7));
    assert_eq!(unmap(&own, 0, PAGE - 1).len(), 1);
    assert_eq!(read((1 << 20) - 1, 0), Err(FaultReason::NotMapped));
    requester.set_bus_master(false);
    assert_eq!(read((1 << 20) - 1, 0), Err(FaultReason::BusMasterOff));
}

#[test]
fn sessions_do_not_wait_for_each_other() {
    let (space, memory) = (AddressSpace::new(), Remote::new(4096));
    map(&space, &memory, 0, PAGE - 1);
    let requester = attached(&space);
    let mut sessions: Vec<_> = (0..10).map(|_| requester.session()).collect();
    for session in &mut sessions {
        assert_eq!(session.read(0, &mut [0]), Ok(()));
    }
    drop(sessions);
    assert_eq!(unmap(&space, 0, PAGE - 1).len(), 1);
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
#[cfg(not(miri))]
fn direct_memory_is_not_copied() {
    use vm_memory::MmapRegion;

    #[derive(Debug)]
    struct Direct(MmapRegion<()>);

    impl Memory for Direct {
        fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
            vm_memory::VolatileMemory::get_slice(&self.0, offset as usize, len).ok()
        }

        fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
            Err(MemoryFault)
        }

        fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
            Err(MemoryFault)
        }
    }

    let space = AddressSpace::new();
    let memory: Arc<dyn Memory> = Arc::new(Direct(MmapRegion::new(3 * 4096).expect("memory")));
    for page in [1, 2] {
        let (first, offset) = (page * PAGE, (3 - page) * PAGE);
        let mapping = Mapping { first, last: first + PAGE - 1, prot: RW, memory: memory.clone(), offset, tag: 0 };
        space.map(mapping).expect("free");
    }
    let requester = attached(&space);
    let sent: Vec<u8> = (0..5000).map(|at| (at % 251) as u8).collect();
    requester.session().write(PAGE + 96, &sent).expect("mapped");
    let mut got = vec![0; 5000];
    let own = VolatileSlice::from(got.as_mut_slice());
    requester.session().copy_slice(PAGE + 96, &own, Access::Read).expect("mapped");
    assert_eq!(got, sent);
    let mut start = [0u8; 4];
    memory.slice(2 * PAGE + 96, 4).expect("inside").copy_to(&mut start);
    assert_eq!(start, [0, 1, 2, 3]);
    let own = VolatileSlice::from(got.as_mut_slice());
    requester.session().copy_slice(PAGE, &own, Access::Write).expect("mapped");
    assert_eq!(read(&requester, PAGE + 1), Ok(1));
}

/// A map's bytes: dense, one large, and placed as unkindly as can be.
#[test]
#[cfg(not(miri))]
fn a_map_costs_little_wherever_it_lies() {
    let memory = Remote::new(0);
    let each = |space: &AddressSpace| space.memory_used() / space.len();
    let large = AddressSpace::new();
    map(&large, &memory, 16 << 30, (32 << 30) - 1);
    assert!(large.memory_used() <= 4096, "{} bytes", large.memory_used());
    let dense = AddressSpace::new();
    for page in 0..100_000 {
        map(&dense, &memory, page * PAGE, page * PAGE + PAGE - 1);
    }
    assert!(each(&dense) <= 64, "{} bytes", each(&dense));
    let before = dense.memory_used();
    assert_eq!(unmap(&dense, 0, u64::MAX).len(), 100_000);
    for round in 0..3 {
        for page in 0..90_000 {
            map(&dense, &memory, page * PAGE + round * 7, page * PAGE + round * 7 + 99);
        }
        assert_eq!(unmap(&dense, 0, u64::MAX).len(), 90_000);
    }
    assert!(dense.memory_used() <= 2 * before, "{before} bytes grew to {}", dense.memory_used());
    // Two in each node, and nine in each node of pages of which five stay.
    for (bits, each_node, keep) in [(4, 2u64, 2u64), (5, 2, 2), (10, 2, 2), (5, 9, 5)] {
        let space = AddressSpace::new();
        let mut group = 0u64;
        while space.len() < 65_000 {
            let place = (0..16).fold(0, |place, bit| place | (group >> bit & 1) << (bit * bits % 47)) << 17;
            for page in 0..each_node {
                let first = place + page * PAGE;
                let _ = space.map(mapping(&memory, first, first + PAGE - 1, RW, 0));
            }
            unmap(&space, place + keep * PAGE, place + 32 * PAGE - 1);
            group += 1;
            if group > 1 << 16 {
                break;
            }
        }
        assert!(space.len() > 30_000);
        assert!(each(&space) <= 256, "{bits} {each_node} {keep}: {} bytes", each(&space));
    }
}

struct Done(AtomicBool);

/// Ends the threads also when an assertion fails.
struct End<'a>(&'a Done);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Devices on threads of their own, while what they read is taken away and
/// given back.
#[test]
fn nothing_is_reached_after_an_unmap() {
    const ROUNDS: u64 = if cfg!(miri) { 10 } else { 200 };
    let space = AddressSpace::new();
    let requesters = [attached(&space), attached(&space)];
    let fixed = Remote::new(4096);
    map(&space, &fixed, 5 * PAGE, 6 * PAGE - 1);
    let done = Done(AtomicBool::new(false));
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for requester in [&requesters[0], &requesters[1], &requesters[1]] {
            scope.spawn(|| {
                while !done.0.load(Ordering::Relaxed) {
                    let mut session = requester.session();
                    for page in 3..9 {
                        let mut byte = [0];
                        match session.read(page * PAGE + 3, &mut byte) {
                            Ok(()) => assert_eq!(byte, [3]),
                            Err(fault) => assert_eq!((fault.reason, page == 5), (FaultReason::NotMapped, false)),
                        }
                    }
                    drop(session);
                    reads.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            });
        }
        let end = End(&done);
        for round in 0..ROUNDS {
            let memory = Remote::new(16);
            let first = (3 + round % 2 * 3) * PAGE;
            map(&space, &memory, first, first + PAGE - 1);
            map(&space, &memory, first + PAGE, first + 2 * PAGE - 1);
            if round % 16 == 0 {
                requesters[(round / 16 % 2) as usize].set_bus_master(true);
            }
            assert_eq!(unmap(&space, first, first + 2 * PAGE - 1).len(), 2);
            // From here on a device that reached it would get `Memory`.
            memory.gone.store(true, Ordering::SeqCst);
            assert_eq!(Arc::strong_count(&memory), 1);
        }
        while reads.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        drop(end);
    });
}

/// Translations that are kept together: one for each mapping, none of a range
/// that is refused, and no more of them than before.
#[test]
fn a_gather_keeps_what_was_translated() {
    let (space, near, far) = (AddressSpace::new(), Remote::new(3 * PAGE as usize), Remote::new(PAGE as usize));
    map(&space, &near, 0, 2 * PAGE - 1);
    map(&space, &far, 2 * PAGE, 3 * PAGE - 1);
    space.map(mapping(&near, 5 * PAGE, 6 * PAGE - 1, Prot::READ, 0)).expect("free");
    space.map(mapping(&near, 0_u64.wrapping_sub(PAGE), u64::MAX, RW, 0)).expect("free");
    let requester = attached(&space);
    let mut places = Places::default();
    let refused = |iova, access, reason| Err(DmaFault { iova, access, reason });
    for _ in 0..2 {
        let mut session = requester.session();
        let mut gather = session.gather(&mut places);
        assert!(gather.is_empty(), "nothing is left of the last time");
        gather.add(PAGE + 1, 2 * PAGE as usize - 1, Access::Write).expect("mapped");
        assert_eq!(gather.len(), 2);
        let result = gather.add(PAGE, 3 * PAGE as usize, Access::Read);
        assert_eq!(result, refused(3 * PAGE, Access::Read, FaultReason::NotMapped));
        let result = gather.add(5 * PAGE, 1, Access::Write);
        assert_eq!(result, refused(5 * PAGE, Access::Write, FaultReason::Permission));
        let result = gather.add(u64::MAX, 2, Access::Read);
        assert_eq!(result, refused(0, Access::Read, FaultReason::NotMapped));
        gather.add(9, 0, Access::Read).expect("no byte");
        gather.add(5 * PAGE, 1, Access::Read).expect("mapped");
        gather.add(u64::MAX, 1, Access::Read).expect("mapped");
        gather.truncate(3);
        let parts: Vec<(usize, u64)> = gather
            .segments(0..3)
            .map(|segment| match segment {
                Segment::Remote { memory, offset, len } => {
                    let own = if std::ptr::addr_eq(memory, Arc::as_ptr(&far)) { 1 << 32 } else { 0 };
                    (len, own | offset)
                }
                Segment::Direct(_) => unreachable!("reached by copying"),
            })
            .collect();
        assert_eq!(parts, [(PAGE as usize - 1, PAGE + 1), (PAGE as usize, 1 << 32), (1, 0)]);
        assert_eq!(gather.segments(1..2).count(), 1);
        assert_eq!(gather.segments(2..4).count(), 0, "out of range");
        assert_eq!(requester.take_faults().len(), 3);
    }
    space.unmap(0, u64::MAX, &mut |_| {});
    assert_eq!(Arc::strong_count(&far), 1, "places keep no memory");
}

/// What many pieces come to when a memory has no faster way.
#[test]
fn many_pieces_are_one_after_the_other() {
    let memory = Remote::new(100);
    let (mut a, mut b) = ([0; 2], [0; 3]);
    memory.read_many(&[(50, VolatileSlice::from(&mut a[..])), (7, VolatileSlice::from(&mut b[..]))]).expect("there");
    assert_eq!((a, b), ([50, 51], [7, 8, 9]));
    let (mut a, mut b) = ([1; 2], [2; 2]);
    memory.write_many(&[(0, VolatileSlice::from(&mut a[..])), (1, VolatileSlice::from(&mut b[..]))]).expect("there");
    let mut all = [0; 4];
    memory.read(0, &VolatileSlice::from(&mut all[..])).expect("there");
    assert_eq!(all, [1, 2, 2, 3]);
    assert_eq!(memory.write_many(&[(99, VolatileSlice::from(&mut a[..]))]), Err(MemoryFault));
}

/// PCIe 6.12: requests to a peer's bus address go there whatever is mapped,
/// with and without a PASID, before and after something was remembered; a run
/// of bytes goes on in memory where the peer ends.
#[test]
fn a_direct_peer_answers_before_the_iommu() {
    let (space, memory, peer) = (AddressSpace::new(), Remote::new(4 * 4096), Remote::new(4096));
    let requester = attached(&space);
    assert!(requester.attach_pasid(7, Some(space.clone().into())));
    map(&space, &memory, 0, 4 * PAGE - 1);
    let read = |at: u64, pasid: Option<u32>| {
        let mut bytes = [0; 8];
        let mut session = pasid.map_or_else(|| requester.session(), |pasid| requester.session_pasid(pasid));
        session.read(at, &mut bytes).map(|()| bytes).map_err(|fault| fault.reason)
    };
    requester.session().write(PAGE, &[0xaa; 8]).unwrap();
    assert_eq!(read(PAGE, None), Ok([0xaa; 8]), "remembered as memory");
    let window = |first: u64| vec![Direct { first, last: first + PAGE - 1, memory: peer.clone() }];
    requester.set_direct(window(PAGE));
    for pasid in [None, Some(7), Some(9)] {
        assert_eq!(read(PAGE, pasid), Ok([0, 1, 2, 3, 4, 5, 6, 7]), "{pasid:?}");
    }
    assert_eq!(read(8, Some(9)), Err(FaultReason::Blocked));
    // Across both ends.
    assert_eq!(read(PAGE - 4, None), Ok([252, 253, 254, 255, 0, 1, 2, 3]));
    assert_eq!(read(2 * PAGE - 4, None), Ok([252, 253, 254, 255, 0, 1, 2, 3]));
    requester.session().write(2 * PAGE - 4, &[9; 8]).unwrap();
    assert_eq!(read(2 * PAGE, None), Ok([9, 9, 9, 9, 4, 5, 6, 7]));
    // A PASID that is attached later, no domain at all, and no bus mastering.
    assert!(requester.attach_pasid(8, Some(space.clone().into())));
    assert_eq!(read(PAGE, Some(8)), Ok([0, 1, 2, 3, 4, 5, 6, 7]));
    requester.attach(None);
    assert_eq!((read(PAGE, None), read(0, None)), (Ok([0, 1, 2, 3, 4, 5, 6, 7]), Err(FaultReason::Blocked)));
    requester.set_bus_master(false);
    assert_eq!(read(PAGE, None), Err(FaultReason::BusMasterOff));
    requester.set_bus_master(true);
    requester.attach(Some(space.clone().into()));
    requester.set_direct(Vec::new());
    assert_eq!(read(PAGE, None), Ok([0xaa; 8]), "what was there before");
}

/// Pages of the property below: two mappings side by side, one that may only be
/// read, nothing, one that is copied.
#[cfg(not(miri))]
const COPIED: u64 = 4;

/// Many copies come to what the same ones come to one by one, up to the first
/// that cannot be made.
#[test]
#[cfg(not(miri))]
fn many_copies_are_one_after_the_other() {
    use proptest::prelude::*;

    fn world(logged: bool) -> (Arc<common::Bytes>, Arc<AddressSpace>, Arc<Requester>, Arc<iommu::DirtyLog>) {
        let (space, memory) = (AddressSpace::new(), common::Bytes::direct(4));
        memory.set(0, &(0..4 * PAGE).map(|at| (at % 251) as u8).collect::<Vec<_>>());
        common::map(&space, &memory, 0, PAGE - 1, RW, PAGE);
        common::map(&space, &memory, PAGE, 2 * PAGE - 1, RW, 0);
        common::map(&space, &memory, 2 * PAGE, 3 * PAGE - 1, Prot::READ, 2 * PAGE);
        common::map(&space, &common::Bytes::copied(1), COPIED * PAGE, (COPIED + 1) * PAGE - 1, RW, 0);
        let (requester, log) = (Requester::new(), iommu::DirtyLog::new(12));
        log.set_enabled(logged);
        requester.set_log(Some(log.clone()));
        requester.attach(Some(space.clone().into()));
        requester.set_bus_master(true);
        (memory, space, requester, log)
    }
    fn dirty(log: &iommu::DirtyLog) -> Vec<(u64, Vec<u64>)> {
        let mut all = Vec::new();
        let _ = log.read(0, u64::MAX, true, &mut |first, words| {
            all.push((first, words.to_vec()));
            std::ops::ControlFlow::Continue(())
        });
        all
    }
    let place = prop_oneof![8 => 0..2 * PAGE, 1 => 0..6 * PAGE];
    let copies = prop::collection::vec((place.clone(), place, 1..80_usize), 0..40);
    proptest!(|(copies in copies, logged: bool)| {
        let (together, _space, requester, log) = world(logged);
        let done = requester.session().copy_all_direct(&copies, |copy| *copy);
        let (single, _other, one_by_one, single_log) = world(logged);
        let mut session = one_by_one.session();
        let possible = copies.iter().take_while(|(source, destination, len)| {
            session.copy_direct(*source, *destination, *len) == Some(Ok(()))
        });
        prop_assert_eq!(done, possible.count());
        drop(session);
        prop_assert_eq!(together.get::<{ 4 * PAGE as usize }>(0), single.get::<{ 4 * PAGE as usize }>(0));
        prop_assert_eq!(dirty(&log), dirty(&single_log));
    });
}
