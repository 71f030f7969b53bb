// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any messages and resets against a model whose law is the decision table
//! (VDPA-7.9 to VDPA-7.12, VDPA-8.1 to VDPA-8.9).

use std::collections::BTreeMap;

use proptest::prelude::*;
use uapi::Errno;
use uapi::vhost::{backend, iotlb, request};

use crate::testing::{Bench, PRIVATE, SHARED};
use crate::{Mapping, OnReset, Parent, ParentSpec};

const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    Update(u32, u64, u64),
    Invalidate(u32, u64, u64),
    Begin(u32),
    End(u32),
    Reset,
    Ack(bool),
    /// Puts the control queue's group into an address space.
    Group(u32),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0u32..2, 0u64..24, 1u64..6);
    prop_oneof![
        8 => range().prop_map(|(asid, page, pages)| Op::Update(asid, page, pages)),
        4 => range().prop_map(|(asid, page, pages)| Op::Invalidate(asid, page, pages)),
        1 => (0u32..2).prop_map(|asid| Op::Invalidate(asid, 0, 1 << 51)),
        2 => (0u32..2).prop_map(Op::Begin),
        3 => (0u32..2).prop_map(Op::End),
        2 => Just(Op::Reset),
        2 => any::<bool>().prop_map(Op::Ack),
        2 => (0u32..2).prop_map(Op::Group),
        1 => Just(Op::Reopen),
    ]
}

/// Ranges by first IOVA, last inclusive.
type Ranges = BTreeMap<u64, u64>;

struct Model {
    spec: ParentSpec,
    /// vhost-vdpa's records.
    records: BTreeMap<u32, Ranges>,
    /// What the device has; `None`: everything at its own address.
    device: Vec<Option<Ranges>>,
    batch: Option<u32>,
    acked: bool,
    /// The address space of group 1.
    group: u32,
}

impl Model {
    fn new(spec: &ParentSpec) -> Model {
        let spaces = if spec.mapping == Mapping::Platform { 1 } else { 2 };
        let (spec, records, device) = (spec.clone(), BTreeMap::new(), Vec::new());
        let mut model = Model { spec, records, device, batch: None, acked: false, group: 0 };
        model.device = vec![model.first(); spaces];
        model
    }

    /// The first state of a table.
    fn first(&self) -> Option<Ranges> {
        if self.spec.one_to_one { None } else { Some(Ranges::new()) }
    }

    fn enter(&mut self, asid: u32, creates: bool) -> Result<(), Errno> {
        if asid as usize >= self.device.len() || !creates && !self.records.contains_key(&asid) {
            return Err(Errno::EFAULT);
        }
        self.records.entry(asid).or_default();
        if self.batch.is_some_and(|batch| batch != asid) { Err(Errno::EFAULT) } else { Ok(()) }
    }

    fn hand_over(&mut self, asid: u32) {
        self.device[asid as usize] = self.records.get(&asid).cloned();
    }

    fn update(&mut self, asid: u32, first: u64, last: u64) -> Result<(), Errno> {
        self.enter(asid, true)?;
        let records = self.records.entry(asid).or_default();
        if records.iter().any(|(from, to)| *from <= last && first <= *to) {
            return Err(Errno::EFAULT);
        }
        records.insert(first, last);
        match self.spec.mapping {
            Mapping::SetMap if self.batch.is_none() => self.hand_over(asid),
            Mapping::SetMap => {}
            _ => {
                self.device[asid as usize].get_or_insert_default().insert(first, last);
            }
        }
        Ok(())
    }

    fn remove(&mut self, asid: u32, first: u64, last: u64) {
        let records = self.records.entry(asid).or_default();
        let gone: Vec<u64> =
            records.iter().filter(|(from, to)| **from <= last && first <= **to).map(|(from, _)| *from).collect();
        for from in gone {
            records.remove(&from);
            if self.spec.mapping != Mapping::SetMap {
                self.device[asid as usize].get_or_insert_default().remove(&from);
            }
        }
    }

    fn invalidate(&mut self, asid: u32, first: u64, last: u64) -> Result<(), Errno> {
        self.enter(asid, false)?;
        self.remove(asid, first, last);
        if self.spec.mapping == Mapping::SetMap && self.batch.is_none() {
            self.hand_over(asid);
        }
        Ok(())
    }

    fn end(&mut self, asid: u32) -> Result<(), Errno> {
        self.enter(asid, false)?;
        if self.batch.take().is_some() && self.spec.mapping == Mapping::SetMap {
            self.hand_over(asid);
        }
        Ok(())
    }

    /// The decision table's column of SET_STATUS 0.
    fn reset(&mut self) {
        let cleans = match self.spec.on_reset {
            OnReset::Negotiated | OnReset::MustAck => !self.acked,
            OnReset::Clean => true,
            OnReset::Keep => false,
        };
        if !self.spec.keeps_groups {
            self.group = 0;
        }
        if cleans && self.spec.compat_reset {
            let first = self.first();
            self.device.fill(first);
        }
    }

    /// Its column of close + open.
    fn reopen(&mut self) {
        self.reset();
        for asid in self.records.keys().copied().collect::<Vec<_>>() {
            self.remove(asid, 0, u64::MAX);
            if self.spec.reset_map {
                self.device[asid as usize] = self.first();
            }
        }
        if self.spec.mapping == Mapping::Platform {
            self.device[0] = Some(Ranges::new());
        }
        (self.records, self.batch, self.acked) = (BTreeMap::new(), None, false);
    }
}

fn ack(bench: &mut Bench, persist: bool) {
    bench.ack(backend::IOTLB_ASID | if persist { backend::IOTLB_PERSIST } else { 0 });
}

fn check(spec: &ParentSpec, ops: &[Op]) {
    let mut bench = Bench::owned(spec.clone());
    ack(&mut bench, false);
    let mut model = Model::new(spec);
    let memory = if spec.use_va { SHARED } else { PRIVATE };
    for op in ops {
        let last = |page: u64, pages: u64| (page + pages) * PAGE - 1;
        match *op {
            Op::Update(asid, page, pages) => {
                let done = bench.update(asid, page * PAGE, pages * PAGE, memory + page * PAGE);
                assert_eq!(done.map(drop), model.update(asid, page * PAGE, last(page, pages)), "{op:?}");
            }
            Op::Invalidate(asid, page, pages) => {
                let done = bench.invalidate(asid, page * PAGE, pages * PAGE);
                assert_eq!(done.map(drop), model.invalidate(asid, page * PAGE, last(page, pages)), "{op:?}");
            }
            Op::Begin(asid) => {
                let entered = model.enter(asid, true);
                if entered.is_ok() {
                    model.batch = Some(asid);
                }
                assert_eq!(bench.batch(asid, iotlb::BATCH_BEGIN).map(drop), entered, "{op:?}");
            }
            Op::End(asid) => assert_eq!(bench.batch(asid, iotlb::BATCH_END).map(drop), model.end(asid), "{op:?}"),
            Op::Reset => {
                bench.set_status(0).unwrap();
                model.reset();
            }
            Op::Ack(persist) => {
                let persist = persist && spec.has_persistent_map();
                ack(&mut bench, persist);
                model.acked = persist;
            }
            Op::Group(asid) if spec.set_group_asid => {
                assert_eq!(bench.ring(request::VDPA_SET_GROUP_ASID, 1, asid), Ok(0));
                model.group = asid;
            }
            Op::Group(_) => {}
            Op::Reopen => {
                bench.reopen();
                bench.ioctl(request::SET_OWNER, 0).unwrap();
                ack(&mut bench, false);
                model.reopen();
            }
        }
        for (asid, device) in (0..).zip(&model.device) {
            let ranges = |ranges: &Ranges| ranges.iter().map(|(first, last)| (*first, *last)).collect::<Vec<_>>();
            assert_eq!(bench.records(asid), model.records.get(&asid).map(ranges), "records after {op:?}");
            assert_eq!(bench.reach(asid), device.as_ref().map(ranges), "the device's after {op:?}");
        }
        // Its column of SET_GROUP_ASID: no map changes, the group looks elsewhere.
        if let Some(ranges) =
            model.device.get(model.group as usize).filter(|_| spec.set_group_asid).and_then(Option::as_ref)
        {
            for page in (0..30).map(|page| page * PAGE) {
                let there = ranges.range(..=page).next_back().is_some_and(|(_, last)| page <= *last);
                assert_eq!(bench.dma(1, page).is_some(), there, "{page:#x} after {op:?}");
            }
        }
        let pages: u64 = model.records.values().flatten().map(|(first, last)| (last - first + 1) / PAGE).sum();
        let pinned = if spec.use_va { 0 } else { pages };
        assert_eq!(bench.accounts.pinned(bench.client.process), pinned);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn records_and_tables_are_as_the_table_says(ops in proptest::collection::vec(op(), 1..60)) {
        for parent in Parent::ALL {
            for on_reset in [OnReset::Negotiated, OnReset::Clean, OnReset::Keep] {
                let spec = ParentSpec { on_reset, ..parent.spec() };
                if spec.check().is_ok() {
                    check(&spec, &ops);
                }
            }
        }
    }
}
