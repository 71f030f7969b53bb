// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a log of its writes costs a controller that reads blocks of 4 KiB at
//! depth 32. Only the controller's turns are measured, without the program
//! that submits, so that nothing hides the cost.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use device::Disk;
use iommu::DirtyLog;
use models::nvme::spec::NvmOpcode;
use models::nvme::{Config, Controller, LbaSize};
use models::testing::{Access, Bench, MemoryDisk, TestMemory, nvme::Driver};

use crate::table::Figures;
use crate::timing::in_turn;

const ROUNDS: usize = 301;
const DEPTH: usize = 32;
const BATCHES: usize = 50;
const BLOCK: u64 = 4096;
const MEMORY: usize = 256 << 20;
const DISK: usize = 64 << 20;
/// Where blocks are read to; the driver's own memory is below.
const DATA: u64 = 64 << 20;

pub(super) fn cost() -> Result<Figures> {
    let memory = TestMemory::new(MEMORY, false);
    memory.set(0, &vec![1; MEMORY]);
    let disk = MemoryDisk::new(DISK);
    disk.set(0, &vec![2; DISK]);
    let namespaces: Vec<std::sync::Arc<dyn Disk>> = vec![disk];
    let controller = Controller::new(Config { lba_size: LbaSize::B4096, namespaces, ..Config::default() });
    let bench = Bench::new(Box::new(controller), Access::Mapped, memory);
    let mut driver = Driver::new(bench);
    driver.enable(32).map_err(|error| anyhow!("{error}"))?;
    driver.create_queue_pair(1, 64, Some(1)).map_err(|error| anyhow!("{error}"))?;
    let (log, driver, place) = (DirtyLog::new(12), RefCell::new(driver), RefCell::new(1_u64));
    log.set_enabled(true);
    let run = |logged: bool| -> Result<f64> {
        let (mut driver, mut place) = (driver.borrow_mut(), place.borrow_mut());
        driver.machine.endpoint.requester.set_log(logged.then(|| log.clone()));
        let mut took = 0;
        for _ in 0..BATCHES {
            for _ in 0..DEPTH {
                *place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let page = (*place >> 33) % ((MEMORY as u64 - DATA) / BLOCK);
                let slba = (*place >> 20) % (DISK as u64 / BLOCK);
                let read = driver.transfer(NvmOpcode::Read, slba, 1, BLOCK, DATA + page * BLOCK);
                read.and_then(|read| driver.put(1, read)).map_err(|error| anyhow!("{error}"))?;
            }
            driver.ring(1);
            let start = Instant::now();
            driver.machine.run();
            took += start.elapsed().as_nanos();
            let done = driver.reap(1);
            ensure!(done.len() == DEPTH, "{} of {DEPTH} reads are done", done.len());
        }
        Ok(took as f64 / (BATCHES * DEPTH) as f64)
    };
    Ok(Figures::times(in_turn(ROUNDS, || run(true), || run(false))?))
}
