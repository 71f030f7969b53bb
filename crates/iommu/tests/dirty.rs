// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of a domain were written: IOMMUFD-9.1 to IOMMUFD-9.6 as far as
//! the log goes.

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{Bytes, PAGE, Sink, map};
use iommu::{Access, AddressSpace, DirtyLog, Domain, Mapping, Places, Prot, Requester};
use proptest::prelude::*;

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
    write(6);
    // Turned off it keeps what it has (IOMMUFD-9.1), and notes nothing new.
    for _ in 0..2 {
        log.set_enabled(false);
        write(4);
        assert_eq!(dirty(&log, 0, u64::MAX, false), [2, 6]);
    }
    log.clear(2 * PAGE, 3 * PAGE - 1);
    assert_eq!(dirty(&log, 0, u64::MAX, true), [6]);
    assert!(dirty(&log, 0, u64::MAX, true).is_empty());
    log.set_enabled(true);
    assert!(dirty(&log, 0, u64::MAX, true).is_empty());
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

/// A log that may record little says of more that it is dirty, never of less.
#[test]
fn what_cannot_be_recorded_is_dirty() {
    let Lab { log, requester, .. } = lab(DirtyLog::with_limit(12, 9 * 4096));
    log.set_enabled(true);
    let write = |page: u64| requester.session().write(page * PAGE, &[1]).expect("mapped");
    // Eight chunks side by side, one by itself, and no more.
    let (far, beyond, further) = (1 << 30, (1 << 40) + 5, (1 << 40) + 9);
    for page in [3, far, beyond, further] {
        write(page);
    }
    assert_eq!(dirty(&log, 0, (far + 1) * PAGE - 1, false), [3, far]);
    let unknown = Vec::from_iter(beyond..=further);
    assert_eq!(dirty(&log, (far + 1) * PAGE, u64::MAX, false), unknown);
    assert_eq!(dirty(&log, 0, u64::MAX, false), [&[3, far], &unknown[..]].concat());
    // Cleared from an end it becomes smaller, from the middle it cannot.
    assert_eq!(dirty(&log, (beyond + 1) * PAGE, (further - 1) * PAGE - 1, true), unknown[1..3]);
    assert_eq!(dirty(&log, (beyond + 1) * PAGE, further * PAGE, false), unknown[1..]);
    assert_eq!(dirty(&log, 0, (beyond + 2) * PAGE - 1, true), [3, far, beyond, beyond + 1]);
    assert_eq!(dirty(&log, 0, u64::MAX, true), unknown[2..]);
    // There is room again.
    write(further);
    assert_eq!(dirty(&log, 0, u64::MAX, true), [further]);
    log.set_enabled(false);
    log.set_enabled(true);
    write(7);
    assert_eq!(dirty(&log, 0, u64::MAX, true), [7]);
}

/// Who breaks off has seen what was cleared, and sees the rest the next time.
#[test]
fn a_reader_may_break_off() {
    for places in [1, 2] {
        let Lab { log, requester, .. } = lab(DirtyLog::new(12));
        log.set_enabled(true);
        // Chunks of two places have to be merged, those of one not.
        let mut sessions: Vec<_> = (0..places).map(|_| requester.session()).collect();
        for chunk in 0..8u64 {
            let session = &mut sessions[chunk as usize % places];
            session.write((chunk << 15) * PAGE, &[1]).expect("mapped");
        }
        drop(sessions);
        let mut seen = Vec::new();
        let result = log.read(0, u64::MAX, true, &mut |iova, _| {
            seen.push(iova >> 27);
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(result.is_break());
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(dirty(&log, 0, u64::MAX, true), (3..8).map(|chunk| chunk << 15).collect::<Vec<u64>>());
    }
}

/// The owner marks what others write, and clears what was unmapped; a granule
/// that was unmapped in part stays as it is.
#[test]
fn the_owner_marks_and_clears() {
    let Lab { log, requester, .. } = lab(DirtyLog::new(11));
    log.mark(0, 5000);
    assert!(dirty(&log, 0, u64::MAX, true).is_empty(), "off");
    log.set_enabled(true);
    log.mark(2047, 6000);
    requester.session().write(10 * 2048, &[0; 4096]).expect("mapped");
    assert_eq!(dirty(&log, 0, u64::MAX, false), [0, 1, 2, 10, 11]);
    log.clear(2047, 2 * 2048);
    log.clear(10 * 2048, 11 * 2048 - 1);
    log.clear(100, 99 + 2047);
    assert_eq!(dirty(&log, 0, u64::MAX, false), [0, 2, 11]);
    log.clear(u64::MAX, u64::MAX);
    log.clear(0, u64::MAX);
    assert!(dirty(&log, 0, u64::MAX, true).is_empty());
}

/// Something that happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Write { requester: usize, address: u64, length: usize },
    Mark { address: u64, length: u64 },
    Read { address: u64, length: u64, clear: bool, calls: usize },
    Clear { address: u64, length: u64 },
    Enable(bool),
    Attach { requester: usize, to: usize },
}

/// Addresses near each other, near the ends of chunks, and far away.
fn address() -> impl Strategy<Value = u64> {
    let near =
        prop_oneof![Just(0u64), Just(1 << 27), Just((1 << 27) * 9), Just(4 << 30), Just(3 << 42), Just(!0 << 20)];
    (near, 0u64..1 << 16, any::<bool>()).prop_map(|(near, distance, before)| {
        if before { near.wrapping_sub(distance) } else { near.wrapping_add(distance) }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let length = || prop_oneof![4 => 1u64..20_000, 1 => 1u64..if cfg!(miri) { 1 << 16 } else { 1 << 28 }];
    prop_oneof![
        6 => (0usize..3, address(), 1usize..70_000)
            .prop_map(|(requester, address, length)| Step::Write { requester, address, length }),
        1 => (address(), length()).prop_map(|(address, length)| Step::Mark { address, length }),
        3 => (address(), prop_oneof![length(), Just(u64::MAX)], any::<bool>(), 0usize..4)
            .prop_map(|(address, length, clear, calls)| Step::Read { address, length, clear, calls }),
        1 => (address(), length()).prop_map(|(address, length)| Step::Clear { address, length }),
        1 => prop::bool::weighted(0.8).prop_map(Step::Enable),
        1 => (0usize..3, 0usize..3).prop_map(|(requester, to)| Step::Attach { requester, to }),
    ]
}

/// The log against a set of granules. `exact`: it may record all.
fn agree(shift: u32, limit: u64, exact: bool, steps: &[Step]) {
    let Lab { domain, log, requester } = lab(DirtyLog::with_limit(shift, limit));
    let requesters = [requester, Requester::new(), Requester::new()];
    let domains = [Some(domain.clone()), Some(Domain { log: None, ..domain }), None];
    let mut attached = [0, 2, 2];
    requesters.iter().for_each(|requester| requester.set_bus_master(true));
    let mut set = BTreeSet::new();
    let mut on = false;
    for step in steps {
        match *step {
            Step::Write { requester, address, length } => {
                let length = length.min(usize::try_from(u64::MAX - address).unwrap_or(usize::MAX).max(1));
                let done = requesters[requester].session().write(address, &vec![0; length]);
                assert_eq!(done.is_ok(), attached[requester] != 2);
                if on && attached[requester] == 0 {
                    set.extend(address >> shift..=(address + (length as u64 - 1)) >> shift);
                }
            }
            Step::Mark { address, length } => {
                let last = address.saturating_add(length - 1);
                log.mark(address, last);
                if on {
                    set.extend(address >> shift..=last >> shift);
                }
            }
            Step::Read { address, length, clear, calls } => {
                let last = address.saturating_add(length - 1);
                let mut left = calls;
                let mut seen = BTreeSet::new();
                let result = log.read(address, last, clear, &mut |iova, words| {
                    for (at, word) in words.iter().enumerate() {
                        let first = (iova >> shift) + at as u64 * 64;
                        seen.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| first + bit));
                    }
                    left = left.wrapping_sub(1);
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                let asked = address >> shift..=last >> shift;
                assert!(seen.iter().all(|granule| asked.contains(granule)), "not asked for");
                let end = if result.is_break() { *seen.last().expect("a call") } else { *asked.end() };
                let expected = BTreeSet::from_iter(set.range(*asked.start()..=end).copied());
                if exact {
                    assert_eq!(seen, expected);
                } else {
                    assert!(seen.is_superset(&expected));
                }
                if clear {
                    set.retain(|granule| !seen.contains(granule));
                }
            }
            Step::Clear { address, length } => {
                let last = address.saturating_add(length - 1);
                log.clear(address, last);
                let (first, last) = (u128::from(address), u128::from(last));
                set.retain(|granule| {
                    let start = u128::from(*granule) << shift;
                    start < first || start + (1 << shift) - 1 > last
                });
            }
            Step::Enable(enable) => {
                log.set_enabled(enable);
                on = enable;
                if on {
                    set.clear();
                }
            }
            Step::Attach { requester, to } => {
                requesters[requester].attach(domains[to].clone());
                attached[requester] = to;
            }
        }
    }
    drop(requesters);
    let seen = BTreeSet::from_iter(dirty(&log, 0, u64::MAX, true));
    assert!(if exact { seen == set } else { seen.is_superset(&set) });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 100 }, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_set(shift in 11u32..15, steps in prop::collection::vec(step(), 1..40)) {
        let steps = [&[Step::Enable(true)][..], &steps].concat();
        agree(shift, 1 << 30, true, &steps);
    }

    /// Nothing is lost when there is too little room.
    #[test]
    fn never_says_less_than_a_set(chunks in 0u64..30, steps in prop::collection::vec(step(), 1..40)) {
        let steps = [&[Step::Enable(true)][..], &steps].concat();
        // Where little is known, all up to the last address may be dirty.
        let steps: Vec<Step> = steps.into_iter().filter(|step| !far(step)).collect();
        agree(12, chunks * 4096, false, &steps);
    }
}

/// Whether a step reaches so far that too much would be unknown for a set.
fn far(step: &Step) -> bool {
    let (Step::Write { address, .. }
    | Step::Mark { address, .. }
    | Step::Read { address, .. }
    | Step::Clear { address, .. }) = step
    else {
        return false;
    };
    *address > 1 << 31
}

/// Devices write while somebody copies what is dirty, as a migration does: in
/// the end the copy is the memory. Also while a device comes and goes.
#[test]
fn a_copy_of_the_dirty_pages_ends_up_complete() {
    const PAGES: u64 = if cfg!(miri) { 8 } else { 1000 };
    const ROUNDS: u64 = if cfg!(miri) { 8 } else { 200 };
    let (space, memory) = (AddressSpace::new(), Bytes::copied(PAGES as usize));
    map(&space, &memory, 0, PAGES * PAGE - 1, Prot::READ | Prot::WRITE, 0);
    let log = DirtyLog::new(12);
    let domain = Domain { space, log: Some(log.clone()), stage1: None };
    let requesters = [Requester::new(), Requester::new()];
    for requester in &requesters {
        requester.set_bus_master(true);
        requester.attach(Some(domain.clone()));
    }
    let mut copy = vec![0u64; PAGES as usize];
    let mut update = |log: &DirtyLog| {
        for page in dirty(log, 0, PAGES * PAGE - 1, true) {
            copy[page as usize] = u64::from_le_bytes(memory.get(page * PAGE + 8));
        }
    };
    log.set_enabled(true);
    let running = AtomicU64::new(3);
    thread::scope(|scope| {
        for (thread, requester) in [(0u64, &requesters[0]), (1, &requesters[0]), (2, &requesters[1])] {
            let running = &running;
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let mut session = requester.session();
                    for step in 0..PAGES / 8 {
                        let page = (round * 7 + step * 13 + thread) % PAGES;
                        // A device that is detached at the moment is refused.
                        let _ = session.write(page * PAGE + 8, &(round * 4 + thread).to_le_bytes());
                    }
                    drop(session);
                    thread::yield_now();
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for round in 0.. {
            if running.load(Ordering::Relaxed) == 0 {
                break;
            }
            update(&log);
            requesters[1].attach(if round % 2 == 0 { None } else { Some(domain.clone()) });
        }
    });
    drop(requesters);
    update(&log);
    let all: Vec<u64> = (0..PAGES).map(|page| u64::from_le_bytes(memory.get(page * PAGE + 8))).collect();
    assert_eq!(copy, all);
}
