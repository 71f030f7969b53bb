// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of a domain were written: IOMMUFD-9.1 to IOMMUFD-9.6 as far as
//! the log goes.

use std::ops::ControlFlow;
use std::sync::Arc;

use iommu::{Access, AddressSpace, DirtyLog, Domain, Mapping, Memory, MemoryFault, Places, Prot, Requester};
use vm_memory::VolatileSlice;

const PAGE: u64 = 4096;

/// Memory that takes everything.
#[derive(Debug)]
struct Sink;

impl Memory for Sink {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }
}

struct Lab {
    domain: Domain,
    log: Arc<DirtyLog>,
    requester: Arc<Requester>,
}

/// A requester attached to a domain of one large mapping, with a log.
fn lab(log: Arc<DirtyLog>) -> Lab {
    let space = AddressSpace::new();
    let (prot, memory) = (Prot::READ | Prot::WRITE, Arc::new(Sink));
    space.map(Mapping { first: 0, last: u64::MAX, prot, memory, offset: 0, tag: 0 }).expect("free");
    let domain = Domain { space, log: Some(log.clone()), stage1: None };
    let requester = Requester::new();
    requester.attach(Some(domain.clone()));
    requester.set_bus_master(true);
    Lab { domain, log, requester }
}

/// Numbers of the dirty granules.
fn dirty(log: &DirtyLog, first: u64, last: u64, clear: bool) -> Vec<u64> {
    let mut all = Vec::new();
    let result = log.read(first, last, clear, &mut |iova, words| {
        let start = iova >> log.page_shift();
        assert_eq!(start % 64, 0);
        for (at, word) in words.iter().enumerate() {
            all.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| start + at as u64 * 64 + bit));
        }
        ControlFlow::Continue(())
    });
    assert!(result.is_continue());
    assert!(all.is_sorted_by(|a, b| a < b), "ascending, each once");
    all
}

/// IOMMUFD-9.1: nothing is dirty when it goes on, also when it was on.
#[test]
fn going_on_starts_clean() {
    let Lab { log, requester, .. } = lab(DirtyLog::new(12));
    let write = |page: u64| requester.session().write(page * PAGE + 5, &[1]).expect("mapped");
    write(1);
    assert!(!log.is_enabled());
    assert!(dirty(&log, 0, u64::MAX, true).is_empty());
    for _ in 0..2 {
        write(1);
        log.set_enabled(true);
        assert!(dirty(&log, 0, u64::MAX, false).is_empty());
        write(2);
        requester.session().read(3 * PAGE, &mut [0]).expect("mapped");
        assert_eq!(dirty(&log, 0, u64::MAX, false), [2]);
    }
    log.set_enabled(false);
    write(4);
    assert!(dirty(&log, 0, u64::MAX, false).is_empty());
}

/// Every way to write marks what it writes, and no more.
#[test]
fn each_write_marks_its_granules() {
    let Lab { log, requester, .. } = lab(DirtyLog::new(12));
    log.set_enabled(true);
    let mut session = requester.session();
    session.write(PAGE - 1, &[0; 2]).expect("mapped");
    session.translate(5 * PAGE + 7, Access::Write).expect("mapped");
    session.translate(6 * PAGE, Access::Read).expect("mapped");
    let mut places = Places::default();
    let mut gather = session.gather(&mut places);
    gather.add(70 * PAGE + 4095, 2 + 63 * 4096, Access::Write).expect("mapped");
    gather.add(200 * PAGE, 10, Access::Read).expect("mapped");
    session.write(u64::MAX, &[1]).expect("mapped");
    let last = session.translate(9 * PAGE + 7, Access::Write).expect("mapped").last;
    assert_eq!(last, 10 * PAGE - 1, "the next page is not marked");
    drop(session);
    let all: Vec<u64> = [0, 1, 5, 9].into_iter().chain(70..=134).chain([u64::MAX >> 12]).collect();
    assert_eq!(dirty(&log, 0, u64::MAX, false), all);
    assert_eq!(dirty(&log, 71 * PAGE, 133 * PAGE - 1, true), Vec::from_iter(71..133));
    let rest = [0, 1, 5, 9, 70, 133, 134, u64::MAX >> 12];
    assert_eq!(dirty(&log, 0, u64::MAX, true), rest);
    assert!(dirty(&log, 0, u64::MAX, true).is_empty());
}

/// What was written is not lost with the attachment, nor with the requester.
#[test]
fn who_leaves_hands_over() {
    let Lab { domain, log, requester } = lab(DirtyLog::new(12));
    log.set_enabled(true);
    let write = |page: u64| requester.session().write(page * PAGE, &[1]).expect("mapped");
    write(1);
    let other = Domain { log: None, ..domain.clone() };
    requester.attach(Some(other));
    write(2);
    requester.attach(Some(domain.clone()));
    write(3);
    requester.attach(Some(domain.clone()));
    assert!(requester.attach_pasid(9, Some(domain)));
    requester.session_pasid(9).write(4 * PAGE, &[1]).expect("mapped");
    drop(requester);
    assert_eq!(dirty(&log, 0, u64::MAX, true), [1, 3, 4]);
}
