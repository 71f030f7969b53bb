// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Log pages.

use models::nvme::spec::{
    AdminOpcode, Command, CommandEffects, ErrorEntry, FirmwareSlots, LogPage, NvmOpcode, Smart, Status,
    critical_warning, padded,
};
use models::testing::nvme::{blocks_command, command};
use zerocopy::FromBytes;

use crate::fixture::{Fixture, ready};

fn log(fixture: &mut Fixture, page: u8, offset: u64, len: u32, nsid: u32) -> Result<Vec<u8>, Status> {
    let iova = fixture.driver.alloc(len.into()).unwrap();
    fixture.fill(iova, 0xaa, len as usize);
    let dwords = len / 4 - 1;
    let get = Command {
        nsid: nsid.into(),
        cdw10: (u32::from(page) | (dwords & 0xffff) << 16).into(),
        cdw11: (dwords >> 16).into(),
        cdw12: (offset as u32).into(),
        cdw13: ((offset >> 32) as u32).into(),
        ..command(AdminOpcode::GetLogPage)
    };
    let get = fixture.driver.point(get, iova, len.into()).unwrap();
    match fixture.status(0, get) {
        Status::SUCCESS => Ok(fixture.bytes(iova, len as usize)),
        status => Err(status),
    }
}

fn errors(fixture: &mut Fixture) -> Vec<ErrorEntry> {
    let bytes = log(fixture, 1, 0, 4096, u32::MAX).unwrap();
    let entries = bytes.chunks(64).map(|entry| ErrorEntry::read_from_bytes(entry).unwrap());
    entries.take_while(|entry| entry.count.get() != 0).collect()
}

fn smart(fixture: &mut Fixture) -> Smart {
    Smart::read_from_bytes(&log(fixture, 2, 0, 512, u32::MAX).unwrap()).unwrap()
}

#[test]
fn the_error_log_tells_of_failed_commands_newest_first() {
    let mut fixture = ready();
    assert!(errors(&mut fixture).is_empty());
    let read = blocks_command(NvmOpcode::Read, 1, 1 << 40, 1);
    let first = fixture.driver.execute(1, read).unwrap();
    let second = fixture.driver.execute(0, Command { opcode: 0x7f, ..Command::default() }).unwrap();
    let [newest, oldest] = errors(&mut fixture)[..] else { panic!("two entries") };
    assert_eq!((newest.count.get(), oldest.count.get()), (2, 1));
    assert_eq!((oldest.sq_id.get(), oldest.cid, oldest.nsid.get(), oldest.lba.get()), (1, first.cid, 1, 1 << 40));
    assert_eq!((newest.sq_id.get(), newest.cid), (0, second.cid));
    assert_eq!(Status::from_field(oldest.status.get()), Status::LBA_OUT_OF_RANGE);
    for _ in 0..100 {
        fixture.driver.execute(1, read).unwrap();
    }
    let entries = errors(&mut fixture);
    assert_eq!((entries.len(), entries[0].count.get(), entries[63].count.get()), (64, 102, 39));
    assert_eq!(smart(&mut fixture).error_entries.get(), 102);
}

#[test]
fn smart_counts_what_was_done() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(1 << 20).unwrap();
    let write = fixture.driver.transfer(NvmOpcode::Write, 0, 2048, 512, iova).unwrap();
    assert_eq!(fixture.status(1, write), Status::SUCCESS);
    let read = fixture.small_read();
    for _ in 0..3 {
        assert_eq!(fixture.status(1, read), Status::SUCCESS);
    }
    fixture.driver.machine.now = 5 * 3_600_000_000_000;
    let log = smart(&mut fixture);
    assert_eq!((log.units_read.get(), log.units_written.get()), (1, 3));
    assert_eq!((log.reads.get(), log.writes.get()), (3, 1));
    assert_eq!((log.temperature.get(), log.spare, log.hours.get(), log.power_cycles.get()), (307, 100, 5, 1));
    assert_eq!(log.critical_warning, 0);
    fixture.driver.set_feature(models::nvme::spec::Feature::TemperatureThreshold, 300).unwrap();
    assert_eq!(smart(&mut fixture).critical_warning, critical_warning::TEMPERATURE);
}

#[test]
fn the_other_pages() {
    let mut fixture = ready();
    let slots = FirmwareSlots::read_from_bytes(&log(&mut fixture, 3, 0, 512, 0).unwrap()).unwrap();
    assert_eq!((slots.active, slots.revisions[0]), (1, padded(env!("CARGO_PKG_VERSION"))));
    assert!(log(&mut fixture, 4, 0, 4096, u32::MAX).unwrap().iter().all(|byte| *byte == 0));
    let effects = CommandEffects::read_from_bytes(&log(&mut fixture, 5, 0, 4096, 0).unwrap()).unwrap();
    for opcode in 0..=u8::MAX {
        let at = usize::from(opcode);
        assert_eq!(effects.admin[at].get() & 1 != 0, AdminOpcode::from_raw(opcode).is_some(), "{opcode:#x}");
        assert_eq!(effects.nvm[at].get() & 1 != 0, NvmOpcode::from_raw(opcode).is_some(), "{opcode:#x}");
    }
    assert_eq!(effects.nvm[1].get(), 3);
}

#[test]
fn parts_of_a_page_and_more_than_a_page() {
    let mut fixture = ready();
    let whole = log(&mut fixture, 5, 0, 4096, 0).unwrap();
    assert_eq!(log(&mut fixture, 5, 1024, 64, 0).unwrap(), whole[1024..1088]);
    assert_eq!(log(&mut fixture, 5, 4092, 4, 0).unwrap(), whole[4092..]);
    let longer = log(&mut fixture, 2, 0, 1 << 20, 0).unwrap();
    assert_eq!(longer[3], 100);
    assert!(longer[512..].iter().all(|byte| *byte == 0), "no stale memory after the page");
    assert_eq!(log(&mut fixture, 5, 4100, 4, 0), Err(Status::INVALID_FIELD), "beyond the end");
    assert_eq!(log(&mut fixture, 5, 1 << 40, 4, 0), Err(Status::INVALID_FIELD), "far beyond the end");
    assert_eq!(log(&mut fixture, 5, 2, 4, 0), Err(Status::INVALID_FIELD), "not on a dword");
    assert_eq!(log(&mut fixture, 5, 0, (2 << 20) + 4, 0), Err(Status::INVALID_FIELD), "more than MDTS");
}

#[test]
fn wrong_pages_are_refused() {
    let mut fixture = ready();
    for page in (0..=u8::MAX).filter(|page| LogPage::from_raw(*page).is_none()) {
        assert_eq!(log(&mut fixture, page, 0, 4, 0), Err(Status::INVALID_LOG_PAGE), "{page:#x}");
    }
    assert_eq!(log(&mut fixture, 2, 0, 512, 1), Err(Status::INVALID_FIELD), "not kept by namespace");
    assert_eq!(log(&mut fixture, 2, 0, 512, 2), Err(Status::INVALID_NAMESPACE));
}
