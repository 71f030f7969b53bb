// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A controller on a bench, with a driver.

use std::sync::Arc;

use device::Disk;
use models::nvme::{Config, Controller, LbaSize};
use models::testing::nvme::Driver;
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
