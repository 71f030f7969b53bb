// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PRP entries and lists: every layout that the rules allow, and those that
//! they do not.

use models::nvme::LbaSize;
use models::nvme::spec::{Cc, Command, NvmOpcode, Status};
use models::testing::Access;
use models::testing::nvme::{Machine, blocks_command};
use proptest::prelude::*;

use crate::fixture::{Fixture, fixture, ready};

/// Memory that data pages are taken from, in pages.
const POOL: u64 = 1200;

/// Writes a PRP list for `pages` that begins `skip` entries into a page, with
/// chained pages of their own; where it begins.
fn list(fixture: &mut Fixture, pages: &[u64], skip: usize, page: u64) -> u64 {
    let per_page = page as usize / 8;
    let room = per_page - skip;
    let start = fixture.driver.alloc(page + page).unwrap().next_multiple_of(page);
    let fits = pages.len() <= room;
    let (now, later) = pages.split_at(if fits { pages.len() } else { room - 1 });
    let mut entries = now.to_vec();
    if !fits {
        entries.push(list(fixture, later, 0, page));
    }
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    fixture.driver.machine.set(start + 8 * skip as u64, &bytes);
    start + 8 * skip as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Data written from scattered pages are those on the disk, and come back
    /// to other scattered pages.
    #[test]
    fn scattered_pages_arrive_in_order(
        blocks in 1_u32..=4096,
        slba in 0_u64..100,
        offset_dwords in 0_u64..1024,
        skip in 0_usize..512,
        mps in 0_u32..=2,
        shuffle in any::<u64>(),
        contiguous in any::<bool>(),
    ) {
        let mut fixture = fixture(Access::Mapped, LbaSize::B512);
        fixture.driver.enable_with(32, Cc(Cc::ENABLED.0 | mps << 7)).unwrap();
        fixture.driver.create_queue_pair(1, 32, None).unwrap();
        let page = 4096_u64 << mps;
        let pool = fixture.driver.alloc(POOL * 4096 + page).unwrap().next_multiple_of(page);
        let len = u64::from(blocks) * 512;
        let offset = offset_dwords * 4 % page;
        let count = (offset + len).div_ceil(page);
        let in_pool = POOL * 4096 / page;
        // A permutation of the pool: an odd factor modulo a power of two, cycled into range.
        let place = |i: u64| if contiguous { i } else { (i * (2 * (shuffle % 300) + 1) + shuffle % 77) % 2048 };
        let places: Vec<u64> = (0..2048).map(place).filter(|at| *at < in_pool).take(count as usize).collect();
        prop_assert_eq!(places.len() as u64, count);
        let pages: Vec<u64> = places.iter().map(|at| pool + at * page).collect();

        let mut command = blocks_command(NvmOpcode::Write, 1, slba, blocks);
        command.prp1.set(pages[0] + offset);
        match &pages[1..] {
            [] => command.prp2.set(0xdead_beef), // Reserved.
            [second] => command.prp2.set(*second),
            rest => command.prp2.set(list(&mut fixture, rest, skip % (page as usize / 8), page)),
        }
        let data: Vec<u8> = (0..len).map(|i| (i ^ i >> 8 ^ i >> 16 ^ shuffle) as u8).collect();
        let mut left = &data[..];
        for (i, at) in pages.iter().enumerate() {
            let from = if i == 0 { offset } else { 0 };
            let (part, rest) = left.split_at(left.len().min((page - from) as usize));
            fixture.driver.machine.set(at + from, part);
            left = rest;
        }
        prop_assert_eq!(fixture.status(1, command), Status::SUCCESS);
        let start = slba as usize * 512;
        prop_assert!(fixture.disk.get(start..start + data.len()) == data);

        prop_assert_eq!(fixture.status(1, Command { opcode: 5, ..command }), Status::SUCCESS);
        for at in &pages {
            fixture.fill(*at, 0, page as usize);
        }
        prop_assert_eq!(fixture.status(1, Command { opcode: 2, ..command }), Status::SUCCESS);
        let mut back = Vec::new();
        for (i, at) in pages.iter().enumerate() {
            let from = if i == 0 { offset } else { 0 };
            back.extend(fixture.bytes(at + from, (data.len() - back.len()).min((page - from) as usize)));
        }
        prop_assert!(back == data);
    }
}

#[test]
fn offsets_that_are_not_allowed() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(64 << 10).unwrap();
    let list = fixture.driver.alloc(4096).unwrap();
    let entries = |fixture: &mut Fixture, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        fixture.driver.machine.set(list, &bytes);
    };
    let read = |prp1: u64, prp2: u64, blocks: u32| Command {
        prp1: prp1.into(),
        prp2: prp2.into(),
        ..blocks_command(NvmOpcode::Read, 1, 0, blocks)
    };
    for offset in 1..4 {
        assert_eq!(fixture.status(1, read(iova + offset, 0, 1)), Status::INVALID_PRP_OFFSET, "first, {offset}");
    }
    assert_eq!(fixture.status(1, read(iova, iova + 4100, 16)), Status::INVALID_PRP_OFFSET, "second");
    for offset in [1, 2, 4] {
        assert_eq!(fixture.status(1, read(iova, list + offset, 24)), Status::INVALID_PRP_OFFSET, "list, {offset}");
    }
    entries(&mut fixture, &[iova + 4096, iova + 8192]);
    assert_eq!(fixture.status(1, read(iova, list, 24)), Status::SUCCESS);
    entries(&mut fixture, &[iova + 4096, iova + 8192 + 512]);
    assert_eq!(fixture.status(1, read(iova, list, 24)), Status::INVALID_PRP_OFFSET, "entry");
    // The last entry of the page points at the next list, which is on a page.
    fixture.driver.machine.set(list + 4088, &(list + 8).to_le_bytes());
    assert_eq!(fixture.status(1, read(iova, list + 4088, 24)), Status::INVALID_PRP_OFFSET, "chain");
}

#[test]
fn a_list_that_points_at_itself_ends() {
    let mut fixture = ready();
    let (iova, list) = (fixture.driver.alloc(4096).unwrap(), fixture.driver.alloc(4096).unwrap());
    let mut entries = [iova; 512];
    entries[511] = list;
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    fixture.driver.machine.set(list, &bytes);
    let read = Command { prp1: iova.into(), prp2: (list + 4088).into(), ..blocks_command(NvmOpcode::Read, 1, 0, 4096) };
    assert_eq!(fixture.status(1, read), Status::SUCCESS);
}
