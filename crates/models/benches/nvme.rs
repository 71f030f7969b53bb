// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a command costs in the NVMe controller, with driver and disk in the
//! same thread, each beside the bare copy of its data: rows of
//! `name,ours,peer` in ns a command, medians over many runs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use device::Disk;
use models::nvme::spec::{Command, NvmOpcode};
use models::nvme::{Config, Controller};
use models::testing::nvme::Driver;
use models::testing::{Access, Bench, MemoryDisk, TestMemory};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

const ROUNDS: usize = 31;
const DISK: usize = 64 << 20;

fn main() {
    println!("name,ours,peer");
    idle();
    transfers("read_4k_qd1", NvmOpcode::Read, 4 << 10, 1);
    transfers("read_4k_qd32", NvmOpcode::Read, 4 << 10, 32);
    transfers("write_4k_qd32", NvmOpcode::Write, 4 << 10, 32);
    transfers("read_128k_qd8", NvmOpcode::Read, 128 << 10, 8);
    transfers("write_128k_qd8", NvmOpcode::Write, 128 << 10, 8);
}

fn driver(queues: u16) -> Driver<Bench> {
    let disk = MemoryDisk::new(DISK);
    disk.set(0, &vec![0x5a; DISK]);
    let namespaces = vec![disk as Arc<dyn Disk>];
    let controller = Controller::new(Config { namespaces, ..Config::default() });
    let bench = Bench::new(Box::new(controller), Access::Mapped, TestMemory::new(64 << 20, false));
    let mut driver = Driver::new(bench);
    driver.enable(32).expect("enabled");
    for id in 1..=queues {
        driver.create_queue_pair(id, 64, Some(id)).expect("created");
    }
    driver
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time(count: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        work();
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// A turn that finds nothing; the peer is a load of one register.
fn idle() {
    for (name, queues) in [("idle_turn_1_queue", 1), ("idle_turn_64_queues", 64)] {
        let driver = driver(queues);
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(time(10_000, || {
                black_box(driver.machine.turn());
            }));
            peer.push(time(10_000, || {
                black_box(driver.machine.load_bar(0, 0x14));
            }));
        }
        println!("{name},{:.1},{:.1}", median(ours), median(peer));
    }
}

/// Batches of `depth` commands of `len` bytes; the peer is the copy alone.
fn transfers(name: &str, opcode: NvmOpcode, len: usize, depth: usize) {
    let mut driver = driver(1);
    let blocks = (len / 512) as u32;
    let commands: Vec<Command> = (0..depth)
        .map(|i| {
            let buffer = driver.alloc(len as u64).expect("memory");
            driver.transfer(opcode, (i * len / 512) as u64, blocks, 512, buffer).expect("memory")
        })
        .collect();
    // On pages, as the disk and the buffers are: what a copy costs depends on it.
    let [source, target] = [0x5a_u8, 1].map(|byte| {
        let region: MmapRegion = MmapRegion::new(depth * len).expect("memory");
        region.as_volatile_slice().copy_from(&vec![byte; depth * len]);
        region
    });
    let batches = (32 << 20) / (depth * len).max(64 << 10);
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(time(batches, || {
            for command in &commands {
                driver.put(1, *command).expect("room");
            }
            driver.ring(1);
            let mut done = 0;
            while done < depth {
                driver.machine.turn();
                let completions = driver.reap(1);
                assert!(completions.iter().all(|completion| completion.status().is_success()));
                done += completions.len();
            }
        }));
        peer.push(time(batches, || {
            for at in (0..depth * len).step_by(len) {
                let from = source.get_slice(at, len).expect("inside");
                from.copy_to_volatile_slice(target.get_slice(at, len).expect("inside"));
            }
        }));
    }
    println!("{name},{:.1},{:.1}", median(ours) / depth as f64, median(peer) / depth as f64);
}
