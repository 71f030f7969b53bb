// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Domains with a table of the program's own: what a device reaches, against a
//! walker that is as simple as can be, and what hostile tables come to. The
//! part of IOMMUFD-11.5 that is below the call: an invalidation of VTD_S1.
#![allow(clippy::precedence)] // an entry is an address and flags

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{Bytes, PAGE, map};
use iommu::{Access, AddressSpace, DirtyLog, Domain, FaultReason, Nested, Prot, Requester, VtdStage1};
use proptest::prelude::*;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const EA: u64 = 1 << 10;
const XD: u64 = 1 << 63;

/// A program whose memory is mapped at address 0 of its space.
struct Guest {
    space: Arc<AddressSpace>,
    memory: Arc<Bytes>,
    nested: Arc<Nested>,
    requester: Arc<Requester>,
    log: Arc<DirtyLog>,
}

impl Guest {
    /// Of so many pages; the table's root is page 1.
    fn new(memory: Arc<Bytes>, width: u32, extended_accessed: bool) -> Guest {
        let space = AddressSpace::new();
        map(&space, &memory, 0, memory.len() - 1, Prot::READ | Prot::WRITE, 0);
        let nested = Nested::new(VtdStage1::new(PAGE, width, extended_accessed).expect("width"));
        let requester = Requester::new();
        requester.set_bus_master(true);
        let log = DirtyLog::new(12);
        let domain = Domain { space: space.clone(), log: Some(log.clone()), stage1: Some(nested.clone()) };
        requester.attach(Some(domain));
        Guest { space, memory, nested, requester, log }
    }

    fn set(&self, page: u64, index: u64, entry: u64) {
        self.memory.set(page * PAGE + index * 8, &entry.to_le_bytes());
    }

    fn entry(&self, page: u64, index: u64) -> u64 {
        u64::from_le_bytes(self.memory.get(page * PAGE + index * 8))
    }

    /// Offset in the memory.
    fn translate(&self, iova: u64, access: Access) -> Result<u64, FaultReason> {
        let mut session = self.requester.session();
        session.translate(iova, access).map(|found| found.offset).map_err(|fault| fault.reason)
    }

    /// Tables in pages 1 to 4 for the addresses from `iova`, 4 KiB each.
    fn small(&self, iova: u64, entries: &[u64]) {
        for (page, level) in [(1, 4), (2, 3), (3, 2)] {
            self.set(page, iova >> (3 + 9 * level) & 511, (page + 1) * PAGE | P | W | U);
        }
        for (at, entry) in entries.iter().enumerate() {
            self.set(4, (iova >> 12 & 511) + at as u64, *entry);
        }
    }
}

#[test]
fn each_flag_counts() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    let iova = 0x7f12_3456_7000;
    guest.small(iova, &[9 * PAGE | P | W | U | XD, 10 * PAGE | P | U, 11 * PAGE | P | W, 12 * PAGE | W | U]);
    assert_eq!(guest.translate(iova + 5, Access::Write), Ok(9 * PAGE + 5));
    assert_eq!(guest.translate(iova + PAGE, Access::Read), Ok(10 * PAGE));
    assert_eq!(guest.translate(iova + PAGE, Access::Write), Err(FaultReason::Stage1Permission));
    assert_eq!(guest.translate(iova + 2 * PAGE, Access::Read), Err(FaultReason::Stage1Permission));
    assert_eq!(guest.translate(iova + 3 * PAGE, Access::Read), Err(FaultReason::Stage1NotPresent));
    assert!(FaultReason::Stage1NotPresent.is_recoverable());
    assert!(FaultReason::Stage1Permission.is_recoverable());
    assert!(!FaultReason::Blocked.is_recoverable());
    // Rights of the tables above count, too.
    guest.set(3, iova >> 21 & 511, 4 * PAGE | P | U);
    guest.nested.invalidate(iova, iova + PAGE - 1);
    assert_eq!(guest.translate(iova, Access::Write), Err(FaultReason::Stage1Permission));
    assert_eq!(guest.translate(iova, Access::Read), Ok(9 * PAGE));
    let faults = guest.requester.take_faults();
    assert_eq!(faults[0].iova, iova + PAGE);
}

#[test]
fn pages_have_three_sizes_and_tables_two_depths() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    guest.set(1, 0, 2 * PAGE | P | W | U);
    guest.set(2, 0, 3 * PAGE | P | W | U);
    guest.set(3, 7, P | W | U | PS);
    guest.set(2, 3, P | U | PS);
    assert_eq!(guest.translate((7 << 21) + 0x1_2345, Access::Write), Ok(0x1_2345));
    assert_eq!(guest.translate((3 << 30) + 0x1_2345, Access::Read), Ok(0x1_2345));
    assert_eq!(guest.translate((3 << 30) + 0x2_0000, Access::Read), Err(FaultReason::NotMapped));
    // Five levels: the root is one above.
    let guest = Guest::new(Bytes::copied(32), 57, false);
    guest.set(1, 511, 5 * PAGE | P | W | U);
    guest.set(5, 511, 6 * PAGE | P | W | U);
    guest.set(6, 511, 7 * PAGE | P | W | U);
    guest.set(7, 511, P | W | U | PS);
    assert_eq!(guest.translate(u64::MAX - 0x1f_ffff + 9, Access::Read), Ok(9));
    assert!(VtdStage1::new(0, 39, false).is_none());
}

/// The wrong addresses, reserved bits, loops, and tables that are not there.
#[test]
fn hostile_tables_are_refused() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    assert_eq!(guest.translate(1 << 47, Access::Read), Err(FaultReason::Stage1Invalid));
    assert_eq!(guest.translate(u64::MAX >> 1, Access::Read), Err(FaultReason::Stage1Invalid));
    assert_eq!(guest.translate(u64::MAX << 47, Access::Read), Err(FaultReason::Stage1NotPresent));
    // Each table is the root: four levels further there is the root as a page.
    guest.set(1, 0, PAGE | P | W | U);
    assert_eq!(guest.translate(8, Access::Read), Ok(PAGE + 8));
    guest.set(1, 1, PAGE | P | W | U | PS);
    assert_eq!(guest.translate(1 << 39, Access::Read), Err(FaultReason::Stage1Invalid));
    guest.set(2, 0, 1 << 13 | P | U | PS);
    guest.set(2, 1, 1 << 29 | P | U | PS);
    guest.set(2, 2, 1 << 12 | P | U | PS);
    guest.set(1, 2, 2 * PAGE | P | W | U);
    let at = 2 << 39;
    assert_eq!(guest.translate(at, Access::Read), Err(FaultReason::Stage1Invalid));
    assert_eq!(guest.translate(at + (1 << 30), Access::Read), Err(FaultReason::Stage1Invalid));
    assert_eq!(guest.translate(at + (2 << 30), Access::Read), Ok(0));
    for nowhere in [32 * PAGE, 0x000f_ffff_ffff_f000] {
        guest.set(1, 3, nowhere | P | W | U);
        assert_eq!(guest.translate(3 << 39, Access::Read), Err(FaultReason::Stage1Unreachable));
    }
    guest.memory.vanish();
    guest.nested.invalidate(0, u64::MAX);
    assert_eq!(guest.translate(8, Access::Read), Err(FaultReason::Stage1Unreachable));
}

/// What is remembered goes by an invalidation, or by a change of the space.
#[test]
fn translations_are_remembered_until_invalidated() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    guest.small(0, &[9 * PAGE | P | W | U, 10 * PAGE | P | U]);
    assert_eq!(guest.translate(1, Access::Write), Ok(9 * PAGE + 1));
    assert_eq!(guest.translate(PAGE, Access::Read), Ok(10 * PAGE));
    guest.set(4, 0, 11 * PAGE | P | W | U);
    guest.set(4, 1, 12 * PAGE | P | U);
    assert_eq!(guest.translate(1, Access::Write), Ok(9 * PAGE + 1), "remembered");
    guest.nested.invalidate(PAGE, 2 * PAGE - 1);
    assert_eq!(guest.translate(1, Access::Write), Ok(9 * PAGE + 1), "not meant");
    assert_eq!(guest.translate(PAGE, Access::Read), Ok(12 * PAGE));
    guest.nested.invalidate(0, u64::MAX);
    assert_eq!(guest.translate(1, Access::Write), Ok(11 * PAGE + 1));
    // More rights need no invalidation.
    assert_eq!(guest.translate(PAGE, Access::Write), Err(FaultReason::Stage1Permission));
    guest.set(4, 1, 12 * PAGE | P | W | U);
    assert_eq!(guest.translate(PAGE, Access::Write), Ok(12 * PAGE));
    guest.space.unmap(0, u64::MAX, &mut |_| ());
    assert_eq!(guest.translate(1, Access::Write), Err(FaultReason::Stage1Unreachable));
    assert_eq!(Arc::strong_count(&guest.memory), 1);
}

/// The space's rights count as well as the table's, for tables and for pages.
#[test]
fn both_stages_must_allow() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    guest.small(0, &[9 * PAGE | P | W | U, 10 * PAGE | P | W | U]);
    guest.space.unmap(0, u64::MAX, &mut |_| ());
    map(&guest.space, &guest.memory, 0, 9 * PAGE - 1, Prot::READ, 0);
    map(&guest.space, &guest.memory, 9 * PAGE, 10 * PAGE - 1, Prot::READ, 9 * PAGE);
    map(&guest.space, &guest.memory, 10 * PAGE, 10 * PAGE + 99, Prot::WRITE, 20 * PAGE);
    // Tables that cannot be written to cannot be used before they are marked.
    for (page, index) in [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1)] {
        guest.set(page, index, guest.entry(page, index) | A | D);
    }
    assert_eq!(guest.translate(0, Access::Read), Ok(9 * PAGE));
    assert_eq!(guest.translate(0, Access::Write), Err(FaultReason::Permission));
    assert_eq!(guest.translate(PAGE, Access::Write), Ok(20 * PAGE));
    assert_eq!(guest.translate(PAGE, Access::Read), Err(FaultReason::Permission));
    assert_eq!(guest.translate(PAGE + 100, Access::Write), Err(FaultReason::NotMapped));
    let mut session = guest.requester.session();
    assert_eq!(session.translate(PAGE + 5, Access::Write).expect("mapped").last, PAGE + 99);
}

/// Writes are noted by the address in the space, tables included.
#[test]
fn the_log_is_of_the_space() {
    let guest = Guest::new(Bytes::copied(32), 48, false);
    guest.log.set_enabled(true);
    guest.small(0x7000_0000, &[9 * PAGE | P | W | U, 20 * PAGE | P | W | U]);
    guest.requester.session().write(0x7000_0000 + PAGE - 1, &[1, 2]).expect("mapped");
    let mut dirty = Vec::new();
    let _ = guest.log.read(0, u64::MAX, true, &mut |iova, words| {
        dirty.push((iova, words.to_vec()));
        ControlFlow::Continue(())
    });
    assert_eq!(dirty, [(0, vec![1 << 9 | 1 << 20])]);
}

#[test]
#[cfg(not(miri))] // mapped memory
fn flags_are_set_where_that_can_be_done_at_once() {
    let guest = Guest::new(Bytes::direct(32), 48, true);
    guest.log.set_enabled(true);
    guest.small(0, &[9 * PAGE | P | W | U]);
    assert_eq!(guest.translate(0, Access::Read), Ok(9 * PAGE));
    for page in 1..4 {
        assert_eq!(guest.entry(page, 0), (page + 1) * PAGE | P | W | U | A | EA);
    }
    assert_eq!(guest.entry(4, 0), 9 * PAGE | P | W | U | A | EA);
    assert_eq!(guest.translate(0, Access::Write), Ok(9 * PAGE));
    assert_eq!(guest.entry(4, 0), 9 * PAGE | P | W | U | A | D | EA);
    assert_eq!(guest.entry(3, 0), 4 * PAGE | P | W | U | A | EA);
    let mut dirty = Vec::new();
    let _ = guest.log.read(0, u64::MAX, true, &mut |iova, words| {
        dirty.push((iova, words.to_vec()));
        ControlFlow::Continue(())
    });
    assert_eq!(dirty, [(0, vec![0b10_0001_1110])]);
    // A page that is dirty already may be written to after it was read.
    guest.set(4, 1, 10 * PAGE | P | W | U | A | D);
    assert_eq!(guest.translate(PAGE, Access::Read), Ok(10 * PAGE));
    guest.set(4, 1, 0);
    assert_eq!(guest.translate(PAGE, Access::Write), Ok(10 * PAGE));
}

/// What a page-table entry can be, mostly sound: tables are in pages 1 to 7.
fn entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![8 => Just(P | W | U), 1 => Just(P | U), 1 => Just(P | W), 1 => Just(0)];
    let size = prop_oneof![4 => Just(0), 1 => Just(PS)];
    let odd = prop_oneof![12 => Just(0u64), 1 => (0u32..64).prop_map(|bit| 1 << bit)];
    (1u64..40, flags, size, odd).prop_map(|(page, flags, size, odd)| page * PAGE | flags | size | odd)
}

/// The walk, written down again: level by level, no flags set, no cache.
fn naive(guest: &Guest, maps: &[(u64, u64, u64, bool)], iova: u64, write: bool) -> Result<u64, FaultReason> {
    let second = |address: u64| {
        let (first, _, offset, writable) =
            maps.iter().find(|(first, last, ..)| (*first..=*last).contains(&address)).copied()?;
        Some((address - first + offset, writable))
    };
    let sign = iova >> 47;
    if sign != 0 && sign != 0x1_ffff {
        return Err(FaultReason::Stage1Invalid);
    }
    let mut table = PAGE;
    let mut all = !0;
    for level in [3, 2, 1, 0] {
        let shift = 12 + 9 * level;
        let (at, writable) = second(table + (iova >> shift & 511) * 8).ok_or(FaultReason::Stage1Unreachable)?;
        let entry = u64::from_le_bytes(guest.memory.get(at));
        let page = level == 0 || entry & PS != 0;
        let low = if level > 0 && page { entry & ((1 << shift) - 1) >> 13 << 13 } else { 0 };
        if entry & P == 0 {
            return Err(FaultReason::Stage1NotPresent);
        }
        if level == 3 && entry & PS != 0 || low != 0 {
            return Err(FaultReason::Stage1Invalid);
        }
        if entry & U == 0 {
            return Err(FaultReason::Stage1Permission);
        }
        all &= entry;
        if page {
            if write && all & W == 0 {
                return Err(FaultReason::Stage1Permission);
            }
            let _ = writable;
            let base = entry & 0x000f_ffff_ffff_f000 & !((1 << shift) - 1);
            let (offset, may) = second(base + (iova & ((1 << shift) - 1))).ok_or(FaultReason::NotMapped)?;
            return if write && !may { Err(FaultReason::Permission) } else { Ok(offset) };
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    unreachable!("level 0 is a page")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 100 }, ..ProptestConfig::default() })]

    /// Every access comes to what a walk of the tables by hand comes to.
    #[test]
    fn agrees_with_a_naive_walk(
        entries in prop::collection::vec((1u64..8, 0u64..4, entry()), 1..60),
        holes in prop::collection::vec((8u64..40, any::<bool>()), 0..4),
        accesses in prop::collection::vec((0u64..4, 0u64..4, 0u64..4, 0u64..4, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let guest = Guest::new(Bytes::copied(40), 48, false);
        guest.space.unmap(0, u64::MAX, &mut |_| ());
        // Tables are marked beforehand, so that read-only memory can hold them.
        for (page, index, entry) in &entries {
            guest.set(*page, *index, entry | A | D);
        }
        let mut maps: Vec<(u64, u64, u64, bool)> = vec![(0, 8 * PAGE - 1, 0, true)];
        for page in 8..40 {
            match holes.iter().find(|(hole, _)| *hole == page) {
                Some((_, false)) => {}
                Some((_, true)) => maps.push((page * PAGE, page * PAGE + PAGE - 1, (47 - page) * PAGE, false)),
                None => maps.push((page * PAGE, page * PAGE + PAGE - 1, page * PAGE, true)),
            }
        }
        for (first, last, offset, writable) in &maps {
            let prot = if *writable { Prot::READ | Prot::WRITE } else { Prot::READ };
            map(&guest.space, &guest.memory, *first, *last, prot, *offset);
        }
        for (a, b, c, d, high, write) in accesses {
            let iova = a << 39 | b << 30 | c << 21 | d << 12 | if high { 0xabc } else { 0 };
            let access = if write { Access::Write } else { Access::Read };
            prop_assert_eq!(guest.translate(iova, access), naive(&guest, &maps, iova, write), "{:#x}", iova);
        }
    }
}
