// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program and a device in threads of their own: what the program sees of a
//! completion is whole, and nothing is lost.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use models::nvme::LbaSize;
use models::nvme::spec::NvmOpcode;
use models::testing::nvme::{Driver, Machine, blocks_command};
use models::testing::{Access, Bench, TestMemory};

use crate::fixture::{MEMORY, fixture_on};

/// A bench whose device is given its turns by another thread.
#[derive(Debug)]
struct Elsewhere(Arc<Bench>);

impl Machine for Elsewhere {
    fn load(&mut self, offset: u64) -> u32 {
        self.0.load_bar(0, offset)
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.0.store_bar(0, offset, value);
    }

    fn get(&self, iova: u64, to: &mut [u8]) {
        self.0.memory.get(iova, to);
    }

    fn set(&self, iova: u64, from: &[u8]) {
        self.0.memory.set(iova, from);
    }

    fn memory(&self) -> Range<u64> {
        4096..self.0.memory.size() as u64
    }

    fn step(&mut self) -> bool {
        std::thread::yield_now();
        true
    }
}

fn run(remote: bool) {
    let bench = fixture_on(Access::Mapped, LbaSize::B512, TestMemory::new(MEMORY, remote)).driver.machine;
    let bench = Arc::new(bench);
    let stop = Arc::new(AtomicBool::new(false));
    let device = {
        let (bench, stop) = (bench.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if bench.turn() != device::Turn::Busy {
                    std::thread::yield_now();
                }
            }
        })
    };
    let mut driver = Driver::new(Elsewhere(bench));
    driver.patience = usize::MAX;
    for _ in 0..3 {
        driver.enable(8).unwrap();
        driver.create_queue_pair(1, 9, Some(1)).unwrap();
        let flush = blocks_command(NvmOpcode::Flush, 1, 0, 1);
        // In order, so each completion is known beforehand.
        let (mut expected, mut count) = (std::collections::VecDeque::new(), 0);
        while count < 3000 {
            while let Ok(cid) = driver.put(1, flush) {
                expected.push_back(cid);
            }
            driver.ring(1);
            while let Some(completion) = driver.peek(1) {
                assert_eq!(Some(completion.cid.get()), expected.pop_front());
                assert!(completion.status().is_success() && completion.sq_id.get() == 1);
                count += 1;
            }
            driver.release(1);
            std::thread::yield_now();
        }
        driver.disable().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    device.join().unwrap();
}

#[test]
fn completions_are_seen_whole() {
    run(false);
}

#[test]
fn completions_are_seen_whole_where_memory_is_copied() {
    run(true);
}
