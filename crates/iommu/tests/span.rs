// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All of a mapping at once: where that may be, and for how long.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod common;

use std::sync::Arc;

use common::{Bytes, PAGE};
use iommu::{Access, AddressSpace, DirtyLog, Prot, Requester};

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn world(memory: &Arc<Bytes>) -> (Arc<AddressSpace>, Arc<Requester>) {
    let (space, requester) = (AddressSpace::new(), Requester::new());
    common::map(&space, memory, PAGE, 3 * PAGE - 1, RW, PAGE);
    common::map(&space, memory, 4 * PAGE, 5 * PAGE - 1, Prot::READ, 0);
    requester.attach(Some(space.clone().into()));
    requester.set_bus_master(true);
    (space, requester)
}

fn has(requester: &Requester, iova: u64, access: Access) -> bool {
    requester.session().span(iova, access).is_some()
}

#[test]
fn a_span_is_its_mapping_and_nothing_beyond() {
    let memory = Bytes::direct(4);
    memory.set(PAGE + 5, b"here");
    let (_space, requester) = world(&memory);
    let mut session = requester.session();
    let span = session.span(2 * PAGE, Access::Write).unwrap();
    let mut bytes = [0; 4];
    assert_eq!(span.part(PAGE + 5, 4).unwrap().copy_to(&mut bytes), 4);
    assert_eq!(&bytes, b"here");
    span.part(3 * PAGE - 2, 2).unwrap().copy_from(b"ok");
    assert_eq!(&memory.get(3 * PAGE - 2), b"ok");
    let outside = [(PAGE - 1, 1), (3 * PAGE - 1, 2), (3 * PAGE, 0), (0, 1), (u64::MAX, 1), (PAGE, usize::MAX)];
    for (iova, len) in outside {
        assert!(span.part(iova, len).is_none() && !span.prefetch(iova, len), "{iova:#x} {len:#x}");
    }
    assert!(span.prefetch(PAGE, 2 * PAGE as usize));
    assert!(span.part(PAGE, 2 * PAGE as usize).is_some());
}

#[test]
fn there_is_none_where_an_access_is_refused_noted_or_counted() {
    let memory = Bytes::direct(5);
    let (space, requester) = world(&memory);
    assert!(!has(&requester, 0, Access::Read), "nothing is mapped");
    assert!(has(&requester, 4 * PAGE, Access::Read));
    assert!(!has(&requester, 4 * PAGE, Access::Write), "it may only be read");

    let log = DirtyLog::new(12);
    log.set_enabled(true);
    requester.set_log(Some(log));
    assert!(has(&requester, PAGE, Access::Read));
    assert!(!has(&requester, PAGE, Access::Write), "writes are noted");
    requester.set_log(None);
    assert!(has(&requester, PAGE, Access::Write));

    requester.set_trap(Access::Read, 1000, false, Box::new(|| ()));
    assert!(!has(&requester, PAGE, Access::Read), "accesses are counted");
    let (_other, requester) = world(&Bytes::copied(5));
    assert!(!has(&requester, PAGE, Access::Read), "it can only be copied");

    // A span that was there is so no longer.
    let (_third, requester) = world(&memory);
    assert!(has(&requester, PAGE, Access::Read));
    requester.set_bus_master(false);
    assert!(!has(&requester, PAGE, Access::Read) && !has(&requester, 4 * PAGE, Access::Read));
    requester.set_bus_master(true);
    assert!(has(&requester, PAGE, Access::Read));
    requester.attach(None);
    assert!(!has(&requester, PAGE, Access::Read));
    requester.attach(Some(space.clone().into()));
    assert!(has(&requester, PAGE, Access::Read));
    space.unmap(0, u64::MAX, &mut |_| ());
    assert!(!has(&requester, PAGE, Access::Read));
}
