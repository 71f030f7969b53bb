// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! NVM commands that do what they are asked for.

use models::nvme::spec::{ALL_NAMESPACES, Command, NvmOpcode, Range, Status};
use models::testing::DiskCalls;
use models::testing::nvme::{Machine, blocks_command};
use zerocopy::IntoBytes;

use crate::fixture::{DISK, ready};

#[test]
fn the_first_and_last_block() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(4096).unwrap();
    for (slba, byte) in [(0, 0x11), (DISK as u64 / 512 - 1, 0x22)] {
        fixture.fill(iova, byte, 512);
        let write = fixture.driver.transfer(NvmOpcode::Write, slba, 1, 512, iova).unwrap();
        assert_eq!(fixture.status(1, write), Status::SUCCESS);
        let at = slba as usize * 512;
        assert_eq!(fixture.disk.get(at..at + 512), [byte; 512]);
        fixture.fill(iova, 0, 512);
        assert_eq!(fixture.status(1, Command { opcode: 2, ..write }), Status::SUCCESS);
        assert_eq!(fixture.bytes(iova, 512), [byte; 512]);
    }
}

#[test]
fn contiguous_pages_reach_the_disk_as_one_run() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(2 << 20).unwrap();
    fixture.disk.take_calls();
    let read = fixture.driver.transfer(NvmOpcode::Read, 0, 4096, 512, iova).unwrap();
    assert_eq!(fixture.status(1, read), Status::SUCCESS);
    assert_eq!(fixture.disk.take_calls(), DiskCalls { reads: 1, ..DiskCalls::default() });
}

#[test]
fn compare_tells_equal_from_different() {
    let mut fixture = ready();
    let len = 200 << 10;
    let iova = fixture.driver.alloc(len as u64).unwrap();
    fixture.disk.set(5 * 512, &vec![0x77; len]);
    fixture.fill(iova, 0x77, len);
    let compare = fixture.driver.transfer(NvmOpcode::Compare, 5, (len / 512) as u32, 512, iova).unwrap();
    assert_eq!(fixture.status(1, compare), Status::SUCCESS);
    for at in [0, 70_000, len - 1] {
        fixture.fill(iova + at as u64, 0x78, 1);
        assert_eq!(fixture.status(1, compare), Status::COMPARE_FAILURE, "byte {at}");
        fixture.fill(iova + at as u64, 0x77, 1);
    }
    assert_eq!(fixture.status(1, compare), Status::SUCCESS);
}

#[test]
fn write_zeroes_takes_any_length() {
    let mut fixture = ready();
    for deallocate in [0, 1 << 25] {
        fixture.disk.set(0, &vec![0xff; DISK]);
        fixture.disk.take_calls();
        let mut zeroes = blocks_command(NvmOpcode::WriteZeroes, 1, 1, (DISK / 512 - 2) as u32);
        zeroes.cdw12.set(zeroes.cdw12.get() | deallocate);
        assert_eq!(fixture.status(1, zeroes), Status::SUCCESS);
        let calls = fixture.disk.take_calls();
        assert_eq!((calls.zeroes, calls.discards), if deallocate == 0 { (1, 0) } else { (0, 1) });
        assert_eq!(fixture.disk.get(511..514), [0xff, 0, 0]);
        assert_eq!(fixture.disk.get(DISK - 514..DISK - 511), [0, 0, 0xff]);
    }
}

#[test]
fn dataset_management_discards_ranges() {
    let mut fixture = ready();
    fixture.disk.set(0, &vec![0xff; DISK]);
    let iova = fixture.driver.alloc(4096).unwrap();
    let range = |slba: u64, blocks: u32| Range { attributes: 0.into(), blocks: blocks.into(), slba: slba.into() };
    let ranges = [range(1, 2), range(10, 0), range(DISK as u64 / 512 - 1, 1), range(100, 1)];
    fixture.driver.machine.set(iova, ranges.as_bytes());
    let command = |count: u32, attributes: u32| Command {
        opcode: NvmOpcode::DatasetManagement.raw(),
        nsid: 1.into(),
        cdw10: (count - 1).into(),
        cdw11: attributes.into(),
        prp1: iova.into(),
        ..Command::default()
    };
    assert_eq!(fixture.status(1, command(3, 3)), Status::SUCCESS);
    assert_eq!(fixture.disk.get(512..513), [0xff], "hints change nothing");
    assert_eq!(fixture.status(1, command(3, 4)), Status::SUCCESS);
    for (at, byte) in [(511, 0xff), (512, 0), (1535, 0), (1536, 0xff), (5120, 0xff), (DISK - 1, 0), (51200, 0xff)] {
        assert_eq!(fixture.disk.get(at..at + 1), [byte], "byte {at}");
    }
    // One bad range, and none is done.
    let ranges = [range(200, 1), range(DISK as u64 / 512, 1)];
    fixture.driver.machine.set(iova, ranges.as_bytes());
    assert_eq!(fixture.status(1, command(2, 4)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(fixture.disk.get(200 * 512..200 * 512 + 1), [0xff]);
    // As many as there can be.
    fixture.driver.machine.set(iova, [range(300, 1); 256].as_bytes());
    assert_eq!(fixture.status(1, command(256, 4)), Status::SUCCESS);
    assert_eq!(fixture.disk.get(300 * 512..300 * 512 + 1), [0]);
}

#[test]
fn flush_and_unit_access_make_durable() {
    let mut fixture = ready();
    fixture.disk.take_calls();
    for nsid in [1, ALL_NAMESPACES] {
        let flush = Command { opcode: NvmOpcode::Flush.raw(), nsid: nsid.into(), ..Command::default() };
        assert_eq!(fixture.status(1, flush), Status::SUCCESS);
        assert_eq!(fixture.disk.take_calls().flushes, 1);
    }
    let mut write = Command { opcode: 1, ..fixture.small_read() };
    assert_eq!(fixture.status(1, write), Status::SUCCESS);
    assert_eq!(fixture.disk.take_calls().flushes, 0);
    write.cdw12.set(1 << 30);
    assert_eq!(fixture.status(1, write), Status::SUCCESS);
    assert_eq!(fixture.disk.take_calls(), DiskCalls { writes: 1, flushes: 1, ..DiskCalls::default() });
}
