// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mappings across a reset: section 8, for each parent × offered × acked ×
//! event.

use std::fmt::Write as _;

use uapi::Errno;
use uapi::vhost::{backend, iotlb, request};

use crate::testing::{Bench, PRIVATE, SHARED};
use crate::{OnReset, Parent, ParentSpec};

const A: u64 = 0x10000;
const B: u64 = 0x50000;

/// Where this parent's program has what it maps.
fn memory(spec: &ParentSpec) -> u64 {
    if spec.use_va { SHARED } else { PRIVATE }
}

/// A program that has acknowledged all it can, but PERSIST only if it likes.
fn program(spec: &ParentSpec, persist: bool) -> Bench {
    let mut bench = Bench::owned(spec.clone());
    let offered: u64 = bench.get(request::GET_BACKEND_FEATURES).unwrap();
    let persist = if persist { backend::IOTLB_PERSIST } else { 0 };
    bench.ack(offered & !backend::IOTLB_PERSIST | persist);
    bench
}

/// What the device reaches: the ranges, or everything.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    OneToOne,
    Nothing,
    Kept,
}

fn reach(bench: &Bench) -> Reach {
    match bench.reach(0) {
        None => Reach::OneToOne,
        Some(ranges) if ranges.is_empty() => Reach::Nothing,
        Some(ranges) => {
            assert_eq!(ranges, [(A, A + 0x1fff)]);
            Reach::Kept
        }
    }
}

/// One line of the table, as observed.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    offered: bool,
    reset: Reach,
    records: usize,
    close: Reach,
    group: Result<u64, Errno>,
}

fn observe(spec: &ParentSpec, acked: bool) -> Line {
    let mut bench = program(spec, acked);
    let offered: u64 = bench.get(request::GET_BACKEND_FEATURES).unwrap();
    bench.update(0, A, 0x2000, memory(spec)).unwrap();
    bench.negotiate();
    bench.set_status(0xf).unwrap();
    bench.set_status(0).unwrap();
    let (reset, records) = (reach(&bench), bench.records(0).unwrap().len());
    let group = bench.ring(request::VDPA_SET_GROUP_ASID, 0, 0);
    bench.reopen();
    Line { offered: offered & backend::IOTLB_PERSIST != 0, reset, records, close: reach(&bench), group }
}

/// The decision table as it is observed; `cargo test decision_table --
/// --nocapture` prints it. VDPA-8.1 to VDPA-8.9
#[test]
fn decision_table() {
    let mut table = String::from("parent     offered acked  SET_STATUS 0       close + open  SET_GROUP_ASID\n");
    for parent in Parent::ALL {
        for acked in [false, true] {
            let spec = parent.spec();
            if acked && !spec.has_persistent_map() {
                let mut bench = Bench::owned(spec);
                let ack = bench.set(request::SET_BACKEND_FEATURES, backend::IOTLB_PERSIST);
                assert_eq!(ack, Err(Errno::EOPNOTSUPP));
                writeln!(table, "{:10} no      EOPNOTSUPP", parent.name()).unwrap();
                continue;
            }
            let line = observe(&spec, acked);
            let Line { offered, reset, records, close, group } = &line;
            let device = format!("{reset:?}, {records} record");
            let group = if group.is_ok() { "moves the queues".into() } else { format!("{group:?}") };
            let yes = |b: &bool| if *b { "yes" } else { "no" };
            let close_text = format!("{close:?}");
            writeln!(
                table,
                "{:10} {:7} {:6} {device:19} {close_text:13} {group}",
                parent.name(),
                yes(offered),
                yes(&acked)
            )
            .unwrap();
            let expected = match (parent, acked) {
                (Parent::Platform, _) => Line {
                    offered: true,
                    reset: Reach::Kept,
                    records: 1,
                    close: Reach::Nothing,
                    group: Err(Errno::EOPNOTSUPP),
                },
                (Parent::Sim | Parent::SimDma | Parent::Mlx5, acked) => Line {
                    offered: true,
                    reset: if acked { Reach::Kept } else { Reach::OneToOne },
                    records: 1,
                    close: Reach::OneToOne,
                    group: Ok(0),
                },
                (Parent::Vduse, _) => {
                    Line { offered: false, reset: Reach::Kept, records: 1, close: Reach::Kept, group: Ok(0) }
                }
                (Parent::Dma, _) => {
                    Line { offered: false, reset: Reach::Kept, records: 1, close: Reach::Nothing, group: Ok(0) }
                }
            };
            assert_eq!(line, expected, "{parent} acked {acked}");
        }
    }
    println!("{table}");
}

/// The last line of the table: a parent that declares bit 8 itself.
#[test]
fn a_parent_that_declares_persistence_itself() {
    for parent in [Parent::Vduse, Parent::Dma] {
        let spec = ParentSpec { backend: backend::IOTLB_PERSIST, ..parent.spec() };
        for acked in [false, true] {
            let line = observe(&spec, acked);
            assert_eq!((line.offered, line.reset, line.records), (true, Reach::Kept, 1), "{parent}");
        }
    }
    let cleaning = ParentSpec { reset_map: false, backend: backend::IOTLB_PERSIST, ..Parent::Mlx5.spec() };
    assert_eq!(observe(&cleaning, false).reset, Reach::OneToOne, "as its compat_reset does");
    assert_eq!(observe(&cleaning, true).reset, Reach::Kept);
}

/// VDPA-8.1, VDPA-8.2, VDPA-8.3: SET_STATUS 0 and close carry the flag, open
/// does not.
#[test]
fn open_never_cleans() {
    // A set_map parent without reset_map shows who cleaned: only compat_reset can.
    let spec = ParentSpec { reset_map: false, ..Parent::Mlx5.spec() };
    let mut bench = program(&spec, false);
    bench.update(0, A, 0x2000, PRIVATE).unwrap();
    bench.vdpa.release(bench.file);
    assert_eq!(bench.reach(0), None, "close has");
    // One that declares persistence itself, acknowledged: nobody cleans.
    let own = ParentSpec { backend: backend::IOTLB_PERSIST, ..spec };
    let mut bench = program(&own, true);
    bench.update(0, A, 0x2000, PRIVATE).unwrap();
    bench.reopen();
    assert_eq!(bench.reach(0), Some(vec![(A, A + 0x1fff)]), "not even open, which has nothing acknowledged");
}

/// VDPA-8.4, VDPA-8.13: reset_map is for address spaces that were used, at
/// close.
#[test]
fn reset_map_comes_at_close() {
    let mut bench = program(&Parent::Sim.spec(), true);
    bench.update(1, A, 0x2000, SHARED).unwrap();
    bench.invalidate(1, A, 0x2000).unwrap();
    assert_eq!((bench.reach(0), bench.reach(1)), (None, Some(vec![])), "empty, not 1:1");
    bench.set_status(0).unwrap();
    assert_eq!(bench.reach(1), Some(vec![]));
    bench.vdpa.release(bench.file);
    assert_eq!((bench.reach(0), bench.reach(1)), (None, None));
}

/// VDPA-8.5: no reset touches records, pins or accounts.
#[test]
fn records_outlive_every_reset() {
    for parent in Parent::ALL {
        for on_reset in [OnReset::Negotiated, OnReset::Clean, OnReset::Keep, OnReset::MustAck] {
            let spec = ParentSpec { on_reset, ..parent.spec() };
            if spec.check().is_err() {
                continue;
            }
            let mut bench = program(&spec, false);
            bench.update(0, A, 0x2000, memory(&spec)).unwrap();
            let pinned = bench.accounts.pinned(bench.client.process);
            bench.set_status(0).unwrap();
            assert_eq!(bench.records(0).unwrap(), [(A, A + 0x1fff)], "{parent} {on_reset:?}");
            assert_eq!(bench.accounts.pinned(bench.client.process), pinned);
            assert_eq!(bench.update(0, A, 0x2000, memory(&spec)), Err(Errno::EFAULT));
        }
    }
}

/// VDPA-8.6, VDPA-8.7: groups go back to address space 0 either way, and the
/// maps of the other stay if they were to stay.
#[test]
fn groups_go_back_with_or_without_the_flag() {
    for parent in [Parent::Sim, Parent::SimDma, Parent::Mlx5] {
        for acked in [false, true] {
            let spec = parent.spec();
            let mut bench = program(&spec, acked);
            bench.client.memory.store(memory(&spec), &[6]);
            bench.update(1, A, 0x2000, memory(&spec)).unwrap();
            bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
            assert_eq!(bench.dma(1, A), Some(6));
            bench.set_status(0).unwrap();
            assert_eq!((bench.dma(1, A), bench.ask(request::VDPA_GET_VRING_GROUP, 2)), (None, Ok(1)), "{parent}");
            bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
            assert_eq!(bench.dma(1, A), acked.then_some(6), "{parent} acked {acked}");
        }
    }
}

/// VDPA-8.8
#[test]
fn a_platform_domain_lasts_from_open_to_close() {
    for acked in [false, true] {
        let mut bench = program(&Parent::Platform.spec(), acked);
        bench.client.memory.store(PRIVATE, &[6]);
        bench.update(0, A, 0x2000, PRIVATE).unwrap();
        bench.set_status(0).unwrap();
        assert_eq!(bench.dma(0, A), Some(6));
        bench.vdpa.release(bench.file);
        assert_eq!(bench.dma(0, A), None);
    }
}

/// VDPA-8.10
#[test]
fn records_and_table_disagree_after_an_unacknowledged_reset() {
    for parent in [Parent::Sim, Parent::Mlx5, Parent::SimDma] {
        let spec = parent.spec();
        let at = memory(&spec);
        let ready = || {
            let mut bench = program(&spec, false);
            bench.update(0, A, 0x2000, at).unwrap();
            bench.set_status(0).unwrap();
            assert_eq!(bench.reach(0), None);
            bench
        };
        let mut bench = ready();
        assert_eq!(bench.update(0, A, 0x2000, at), Err(Errno::EFAULT), "EEXIST");
        assert_eq!(bench.invalidate(0, A, 0x2000), Ok(72));
        assert_eq!(bench.reach(0), Some(vec![]), "{parent}: empty, not 1:1");
        assert_eq!(bench.update(0, A, 0x2000, at), Ok(72));
        let mut bench = ready();
        assert_eq!(bench.update(0, B, 0x1000, at), Ok(72));
        let (a, b) = ((A, A + 0x1fff), (B, B + 0xfff));
        let dma_map = parent == Parent::SimDma;
        assert_eq!(bench.reach(0), Some(if dma_map { vec![b] } else { vec![a, b] }), "{parent}");
    }
}

/// VDPA-8.11
#[test]
fn acknowledged_maps_serve_at_once() {
    let mut bench = program(&Parent::Sim.spec(), true);
    bench.update(0, A, 0x8000, SHARED).unwrap();
    for round in 1..4 {
        bench.negotiate();
        bench.set_ring(0, A + 0x1000);
        bench.ring(request::SET_VRING_BASE, 0, round - 1).unwrap();
        bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
        bench.set_status(0xf).unwrap();
        bench.post(SHARED + 0x1000, A + 0x4000);
        bench.settle();
        assert_eq!(bench.used(SHARED + 0x1000), (round as u16, 1));
        bench.set_status(0).unwrap();
    }
}

/// VDPA-8.12: what was acknowledged at the time of the reset counts.
#[test]
fn an_acknowledgement_can_be_taken_back() {
    let mut bench = program(&Parent::Sim.spec(), true);
    bench.update(0, A, 0x2000, SHARED).unwrap();
    bench.set_status(0).unwrap();
    assert_eq!(reach(&bench), Reach::Kept);
    bench.ack(backend::IOTLB_ASID);
    bench.set_status(0).unwrap();
    assert_eq!(reach(&bench), Reach::OneToOne);
}

/// VDPA-8.14, VDPA-8.16: before the gate platform parents kept maps and the
/// others wiped theirs; the un-acknowledged case is that, bug for bug.
#[test]
fn the_unacknowledged_case_is_the_old_one() {
    assert_eq!(observe(&Parent::Platform.spec(), false).reset, Reach::Kept);
    for parent in [Parent::Mlx5, Parent::Sim, Parent::SimDma] {
        let old = ParentSpec { on_reset: OnReset::Clean, ..parent.spec() };
        let (old, new) = (observe(&old, false), observe(&parent.spec(), false));
        assert_eq!((old.reset, old.records, old.close), (new.reset, new.records, new.close), "{parent}");
        assert!(!old.offered, "VNET-6.7: what loses maps does not offer PERSIST");
    }
}

/// VDPA-8.18: records never, the table only where it is 1:1 and un-acked, and
/// the lab's other choices.
#[test]
fn the_labs_choices() {
    let reset = |on_reset, acked| observe(&ParentSpec { on_reset, ..Parent::Sim.spec() }, acked);
    assert_eq!(reset(OnReset::Negotiated, false).reset, Reach::OneToOne);
    assert_eq!(reset(OnReset::Negotiated, true).reset, Reach::Kept);
    assert_eq!(reset(OnReset::Keep, false).reset, Reach::Kept);
    assert_eq!(reset(OnReset::Keep, true).reset, Reach::Kept);
    assert_eq!(reset(OnReset::MustAck, true).reset, Reach::Kept);
    let mut clean = Bench::owned(ParentSpec { on_reset: OnReset::Clean, ..Parent::Sim.spec() });
    let ack = clean.set(request::SET_BACKEND_FEATURES, backend::IOTLB_PERSIST);
    assert_eq!(ack, Err(Errno::EOPNOTSUPP));
    for (parent, on_reset) in [
        (Parent::Platform, OnReset::Clean),
        (Parent::Vduse, OnReset::Clean),
        (Parent::Vduse, OnReset::MustAck),
        (Parent::Dma, OnReset::MustAck),
    ] {
        assert!(ParentSpec { on_reset, ..parent.spec() }.check().is_err());
    }
}

/// What `explain` foretells is what happens.
#[test]
fn explanations_are_true() {
    for parent in Parent::ALL {
        for acked in [false, true] {
            let spec = parent.spec();
            if acked && !spec.has_persistent_map() {
                continue;
            }
            let mut bench = program(&spec, acked);
            bench.update(0, A, 0x2000, memory(&spec)).unwrap();
            let told = bench.vdpa.explain("dev").unwrap();
            assert_eq!((told.offered, told.acked), (spec.has_persistent_map(), Some(acked)));
            assert_eq!((told.spaces[0].records, told.spaces[0].reach), (1, Some(1)));
            bench.set_status(0).unwrap();
            let now = bench.vdpa.explain("dev").unwrap();
            assert_eq!(now.spaces[0].reach, told.spaces[0].after_reset, "{parent}");
            let text = told.to_string();
            let kept = now.spaces[0].reach == Some(1);
            assert!(text.contains(if kept { "at a reset: kept" } else { "at a reset: cleaned" }), "{text}");
        }
    }
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    bench.vdpa.release(bench.file);
    assert_eq!(bench.vdpa.explain("dev").unwrap().acked, None);
    assert_eq!(bench.vdpa.explain(""), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.explain("x"), Err(Errno::ENODEV));
}
