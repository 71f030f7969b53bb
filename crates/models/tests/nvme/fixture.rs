// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A controller on a bench, with a driver.

use std::sync::Arc;

use device::Disk;
use models::nvme::spec::{AdminOpcode, Command, Completion, NvmOpcode, Status};
use models::nvme::{Config, Controller, LbaSize};
use models::testing::nvme::{Driver, Machine, blocks_command, command};
use models::testing::{Access, Bench, MemoryDisk, TestMemory};

pub(crate) const MEMORY: usize = 16 << 20;
pub(crate) const DISK: usize = 8 << 20;

pub(crate) struct Fixture {
    pub(crate) driver: Driver<Bench>,
    pub(crate) disk: Arc<MemoryDisk>,
}

/// A controller that nobody has touched, with a disk of 8 MiB.
pub(crate) fn fixture(access: Access, lba_size: LbaSize) -> Fixture {
    fixture_on(access, lba_size, TestMemory::new(MEMORY, false))
}

pub(crate) fn fixture_on(access: Access, lba_size: LbaSize, memory: Arc<TestMemory>) -> Fixture {
    let disk = MemoryDisk::new(DISK);
    let namespaces = vec![disk.clone() as Arc<dyn Disk>];
    let controller = Controller::new(Config { lba_size, namespaces, ..Config::default() });
    Fixture { driver: Driver::new(Bench::new(Box::new(controller), access, memory)), disk }
}

/// An enabled controller with I/O queue pair 1 of 32 entries on vector 1.
pub(crate) fn ready() -> Fixture {
    ready_with(Access::Mapped)
}

pub(crate) fn ready_with(access: Access) -> Fixture {
    let mut fixture = fixture(access, LbaSize::B512);
    fixture.driver.enable(32).unwrap();
    fixture.driver.create_queue_pair(1, 32, Some(1)).unwrap();
    fixture
}

impl Fixture {
    /// The status with which a command ends.
    pub(crate) fn status(&mut self, queue: u16, command: Command) -> Status {
        let completion = self.driver.execute(queue, command).unwrap();
        check(&completion);
        completion.status()
    }

    /// The same for an admin command of an opcode and dwords 10 and 11.
    pub(crate) fn admin(&mut self, opcode: AdminOpcode, cdw10: u32, cdw11: u32) -> Status {
        self.status(0, Command { cdw10: cdw10.into(), cdw11: cdw11.into(), ..command(opcode) })
    }

    /// A one-block read of block 0 to a page of its own.
    pub(crate) fn small_read(&mut self) -> Command {
        let iova = self.driver.alloc(4096).unwrap();
        Command { prp1: iova.into(), ..blocks_command(NvmOpcode::Read, 1, 0, 1) }
    }

    /// Whether an ordinary read works.
    pub(crate) fn is_alive(&mut self) -> bool {
        let read = self.small_read();
        self.status(1, read).is_success()
    }

    pub(crate) fn fill(&mut self, iova: u64, byte: u8, len: usize) {
        self.driver.machine.set(iova, &vec![byte; len]);
    }

    pub(crate) fn bytes(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.machine.get(iova, &mut bytes);
        bytes
    }
}

/// Do Not Retry goes with the status, More with an entry in the error log.
pub(crate) fn check(completion: &Completion) {
    let status = completion.status();
    let field = completion.status.get();
    assert_eq!(field >> 15 & 1 == 0, status.is_retryable(), "{status}");
    let logged = !matches!(status, Status::SUCCESS | Status::COMPARE_FAILURE | Status::ABORT_REQUESTED);
    assert_eq!(field >> 14 & 1 != 0, logged, "{status}");
}
