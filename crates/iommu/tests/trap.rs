// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Something that is planned for the n-th access of a device.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Sink;
use iommu::{Access, AddressSpace, DmaFault, FaultReason, Mapping, Prot, Requester};

fn requester() -> (Arc<AddressSpace>, Arc<Requester>) {
    let space = AddressSpace::new();
    let memory = Arc::new(Sink);
    space.map(Mapping { first: 0, last: 0xffff, prot: Prot::READ | Prot::WRITE, memory, offset: 0, tag: 0 }).unwrap();
    let requester = Requester::new();
    requester.set_bus_master(true);
    requester.attach(Some(Arc::clone(&space).into()));
    (space, requester)
}

fn trap(requester: &Requester, access: Access, count: u64, stops: bool) -> Arc<AtomicU64> {
    let sprung = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sprung);
    requester.set_trap(
        access,
        count,
        stops,
        Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
    );
    sprung
}

#[test]
fn it_goes_off_once_at_the_access_meant() {
    let (_space, requester) = requester();
    let sprung = trap(&requester, Access::Write, 3, false);
    let mut session = requester.session();
    for _ in 0..10 {
        session.read(0, &mut [0; 8]).unwrap();
    }
    session.write(0, &[0; 8]).unwrap();
    session.write(0, &[0; 8]).unwrap();
    assert_eq!(sprung.load(Ordering::Relaxed), 0);
    session.write(0, &[0; 8]).unwrap();
    session.write(0, &[0; 8]).unwrap();
    assert_eq!(sprung.load(Ordering::Relaxed), 1);
}

#[test]
fn it_stops_the_device_in_its_tracks() {
    let (_space, requester) = requester();
    let mut session = requester.session();
    session.read(0, &mut [0; 8]).unwrap();
    let sprung = trap(&requester, Access::Read, 2, true);
    session.read(0, &mut [0; 8]).unwrap();
    let off = |access| Err(DmaFault { iova: 0, access, reason: FaultReason::BusMasterOff });
    assert_eq!(session.read(0, &mut [0; 8]), off(Access::Read));
    assert_eq!(session.write(0, &[0; 8]), off(Access::Write), "also what was translated before");
    assert_eq!(sprung.load(Ordering::Relaxed), 1);
    drop(session);
    assert_eq!(requester.session().read(0, &mut [0; 8]), off(Access::Read));
    requester.set_bus_master(false);
    requester.set_bus_master(true);
    requester.session().read(0, &mut [0; 8]).unwrap();
    assert_eq!(sprung.load(Ordering::Relaxed), 1);
}

/// A read goes the short way where the translation is known and the memory can
/// be addressed: not while accesses are counted.
#[test]
fn it_counts_reads_of_what_is_known_already() {
    let (space, memory) = (AddressSpace::new(), common::Bytes::direct(1));
    common::map(&space, &memory, 0, 0xfff, Prot::READ, 0);
    let requester = Requester::new();
    requester.set_bus_master(true);
    requester.attach(Some(Arc::clone(&space).into()));
    let mut session = requester.session();
    session.read(0, &mut [0; 8]).unwrap();
    let sprung = trap(&requester, Access::Read, 2, true);
    session.read(0, &mut [0; 8]).unwrap();
    assert_eq!(sprung.load(Ordering::Relaxed), 0);
    let off = DmaFault { iova: 0, access: Access::Read, reason: FaultReason::BusMasterOff };
    assert_eq!(session.read(0, &mut [0; 8]), Err(off));
    assert_eq!(sprung.load(Ordering::Relaxed), 1);
}
