// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! NVM commands that fail, each with the status that the specification names.

use device::DiskError;
use models::nvme::spec::{ALL_NAMESPACES, AdminOpcode, Cns, Command, IdentifyNamespace, LogPage, NvmOpcode, Status};
use models::nvme::{Config, Controller, LbaSize};
use models::testing::nvme::{Driver, blocks_command, command};
use models::testing::{Access, Bench, MemoryDisk, TestMemory};

use crate::fixture::{DISK, Fixture, MEMORY, check, fixture_on, ready};

const BLOCKS: u64 = DISK as u64 / 512;

#[test]
fn unknown_namespaces() {
    let mut fixture = ready();
    let read = fixture.small_read();
    for opcode in NvmOpcode::ALL {
        for nsid in [0, 2, 1025, ALL_NAMESPACES - 1, ALL_NAMESPACES] {
            if (*opcode, nsid) != (NvmOpcode::Flush, ALL_NAMESPACES) {
                let command = Command { opcode: opcode.raw(), nsid: nsid.into(), ..read };
                assert_eq!(fixture.status(1, command), Status::INVALID_NAMESPACE, "{opcode:?} {nsid:#x}");
            }
        }
    }
}

#[test]
fn blocks_out_of_range() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(8192).unwrap();
    for opcode in [NvmOpcode::Read, NvmOpcode::Write, NvmOpcode::Compare, NvmOpcode::WriteZeroes] {
        for (slba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (u64::MAX, 2), (1 << 55, 1)] {
            let command = Command { prp1: iova.into(), ..blocks_command(opcode, 1, slba, blocks) };
            assert_eq!(fixture.status(1, command), Status::LBA_OUT_OF_RANGE, "{opcode:?} {slba:#x} {blocks}");
        }
    }
}

#[test]
fn transfers_longer_than_the_controller_takes() {
    let mut fixture = ready();
    for opcode in [NvmOpcode::Read, NvmOpcode::Write, NvmOpcode::Compare] {
        for blocks in [4097, 65536] {
            let command = blocks_command(opcode, 1, 0, blocks);
            assert_eq!(fixture.status(1, command), Status::INVALID_FIELD, "{opcode:?} {blocks}");
        }
    }
}

#[test]
fn buffers_that_are_not_mapped_end_in_a_transfer_error() {
    let mut fixture = ready();
    let end = MEMORY as u64;
    for opcode in [NvmOpcode::Read, NvmOpcode::Write, NvmOpcode::Compare] {
        for (prp1, prp2, blocks) in [
            (end, 0, 1),
            (!0xfff, 0, 8),
            (end - 4096, end, 16),
            (end - 4096, end, 24), // The list itself.
            (!0xfff, !0xfff, 16),
        ] {
            let command = Command { prp1: prp1.into(), prp2: prp2.into(), ..blocks_command(opcode, 1, 0, blocks) };
            assert_eq!(fixture.status(1, command), Status::DATA_TRANSFER_ERROR, "{opcode:?} {prp1:#x} {prp2:#x}");
        }
    }
    assert!(!fixture.driver.machine.endpoint.requester.take_faults().is_empty());
    assert!(fixture.is_alive());
}

#[test]
fn a_buffer_mapped_away_under_way_ends_in_a_transfer_error() {
    let mut fixture = ready();
    let iova = MEMORY as u64;
    let memory = TestMemory::new(1 << 20, false);
    let mapping = iommu::Mapping {
        first: iova,
        last: iova + 0xfffff,
        prot: iommu::Prot::WRITE,
        memory: memory.clone(),
        offset: 0,
        tag: 0,
    };
    fixture.driver.machine.space.map(mapping).unwrap();
    fixture.disk.set(0, &[0x42; 512]);
    let read = Command { prp1: iova.into(), ..blocks_command(NvmOpcode::Read, 1, 0, 1) };
    assert_eq!(fixture.status(1, read), Status::SUCCESS);
    let mut byte = [0];
    memory.get(511, &mut byte);
    assert_eq!(byte, [0x42]);
    let write = Command { opcode: 1, ..read };
    assert_eq!(fixture.status(1, write), Status::DATA_TRANSFER_ERROR, "the device may not read there");
    fixture.driver.machine.space.unmap(iova, iova + 0xfffff, &mut |_| {});
    assert_eq!(fixture.status(1, read), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn memory_that_is_gone_ends_in_a_transfer_error() {
    let memory = TestMemory::new(1 << 20, true);
    let mut fixture = fixture_on(Access::Mapped, LbaSize::B512, TestMemory::new(MEMORY, false));
    fixture.driver.enable(32).unwrap();
    fixture.driver.create_queue_pair(1, 32, None).unwrap();
    let iova = MEMORY as u64;
    let prot = iommu::Prot::READ | iommu::Prot::WRITE;
    let mapping = iommu::Mapping { first: iova, last: iova + 0xfffff, prot, memory: memory.clone(), offset: 0, tag: 0 };
    fixture.driver.machine.space.map(mapping).unwrap();
    let read = Command { prp1: iova.into(), ..blocks_command(NvmOpcode::Read, 1, 0, 1) };
    assert_eq!(fixture.status(1, read), Status::SUCCESS);
    memory.kill();
    for opcode in [NvmOpcode::Read, NvmOpcode::Write, NvmOpcode::Compare] {
        assert_eq!(fixture.status(1, Command { opcode: opcode.raw(), ..read }), Status::DATA_TRANSFER_ERROR);
    }
}

#[test]
fn failures_of_the_medium() {
    let mut fixture = ready();
    let read = fixture.small_read();
    const EIO: DiskError = DiskError::Medium(5);
    let all = [
        (NvmOpcode::Read, EIO, Status::UNRECOVERED_READ_ERROR),
        (NvmOpcode::Compare, EIO, Status::UNRECOVERED_READ_ERROR),
        (NvmOpcode::Write, EIO, Status::WRITE_FAULT),
        (NvmOpcode::WriteZeroes, EIO, Status::WRITE_FAULT),
        (NvmOpcode::Flush, EIO, Status::WRITE_FAULT),
        (NvmOpcode::Write, DiskError::Medium(28), Status::CAPACITY_EXCEEDED),
        (NvmOpcode::Write, DiskError::Medium(30), Status::WRITE_PROTECTED),
        (NvmOpcode::Read, DiskError::OutOfRange, Status::LBA_OUT_OF_RANGE),
    ];
    for (opcode, failure, status) in all {
        fixture.disk.fail(Some(failure));
        let command = Command { opcode: opcode.raw(), ..read };
        let completion = fixture.driver.execute(1, command).unwrap();
        check(&completion);
        assert_eq!(completion.status(), status, "{opcode:?} {failure:?}");
        fixture.disk.fail(None);
        assert_eq!(fixture.status(1, command), Status::SUCCESS);
    }
    let iova = fixture.driver.alloc(4096).unwrap();
    let smart = u32::from(LogPage::Smart.raw()) | 127 << 16;
    let get = Command { opcode: 2, cdw10: smart.into(), prp1: iova.into(), ..Command::default() };
    fixture.driver.admin(get).unwrap();
    assert_eq!(fixture.bytes(iova + 160, 1), [5], "media errors");
}

#[test]
fn a_namespace_that_may_not_be_written_says_so() {
    let disk = MemoryDisk::read_only(1 << 20);
    let config = Config { namespaces: vec![disk.clone()], ..Config::default() };
    let bench = Bench::new(Box::new(Controller::new(config)), Access::Mapped, TestMemory::new(1 << 20, false));
    let mut fixture = Fixture { driver: Driver::new(bench), disk };
    fixture.driver.enable(32).unwrap();
    fixture.driver.create_queue_pair(1, 32, None).unwrap();
    let ns: IdentifyNamespace = fixture.driver.identify(Cns::Namespace, 1).unwrap();
    assert_eq!(ns.nsattr, 1);
    let read = fixture.small_read();
    for opcode in NvmOpcode::ALL {
        let status = match opcode {
            NvmOpcode::Read | NvmOpcode::Compare | NvmOpcode::Flush => Status::SUCCESS,
            NvmOpcode::Write | NvmOpcode::WriteZeroes | NvmOpcode::DatasetManagement => Status::WRITE_PROTECTED,
        };
        assert_eq!(fixture.status(1, Command { opcode: opcode.raw(), ..read }), status, "{opcode:?}");
    }
    let format = Command { nsid: 1.into(), ..command(AdminOpcode::FormatNvm) };
    assert_eq!(fixture.status(0, format), Status::WRITE_PROTECTED);
}
