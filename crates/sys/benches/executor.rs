// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What workers cost and how soon they look. Rows: `name,ours_ns,floor_ns`.
//!
//! - `doorbell_qd1/eventfd_round_trip`: a program stores to a mapped doorbell
//!   and waits for the interrupt; the floor is a round trip of two processes
//!   over two eventfds.
//! - `idle_cpu_per_s/one_percent`: processor time that one open device takes
//!   in a second in which nothing happens; the "floor" is 1% of a core.
#![allow(clippy::unwrap_used)] // a bench that cannot go on has failed

#[path = "../tests/common/mod.rs"]
mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Child, RW, map};
use device::{Device, DeviceFiles, Endpoint, Event, Io, RegionLayout, ResetKind, Turn};
use pci::FunctionSpec;
use sys::{Clock, EventFd, Executor, MemfdFiles};
use vm_memory::Bytes;

const BASE: u64 = 32 << 40;
const COMMANDS: u64 = 2000;
const ROUNDS: usize = 11;

/// Answers each new doorbell value with an interrupt.
struct Doorbell {
    event: Arc<EventFd>,
    seen: u32,
}

impl Device for Doorbell {
    fn function(&self) -> FunctionSpec {
        FunctionSpec::default()
    }
    fn read(&mut self, _: &mut Io<'_>, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: &mut Io<'_>, _: usize, _: u64, _: &[u8]) {}
    fn publish(&mut self, _: &mut Io<'_>) {}
    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        let Some(window) = io.windows[0] else { return Turn::Idle };
        let value = window.slice().load::<u32>(0, Ordering::Acquire).unwrap_or(self.seen);
        if value == self.seen {
            return Turn::Idle;
        }
        self.seen = value;
        self.event.signal();
        Turn::Busy
    }
    fn reset(&mut self, _: &mut Io<'_>, _: ResetKind) {}
}

fn wait(fd: i32) {
    let mut value = 0u64;
    // SAFETY: eight valid bytes.
    unsafe { libc::read(fd, (&raw mut value).cast(), 8) };
}

fn add(fd: i32) {
    let one = 1u64;
    // SAFETY: eight valid bytes.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

fn since(start: &libc::timespec) -> u64 {
    let now = now();
    ((now.tv_sec - start.tv_sec) * 1_000_000_000 + now.tv_nsec - start.tv_nsec) as u64
}

fn now() -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now
}

/// Processor time of this process in ns.
fn cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) as u64
}

fn median(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

fn main() {
    println!("name,ours_ns,floor_ns");
    let clock = Clock::new();
    let executor = Executor::new(2, clock);
    let (event, forth, back) = (
        EventFd::create(0, false, false).unwrap(),
        EventFd::create(0, false, false).unwrap(),
        EventFd::create(0, false, false).unwrap(),
    );
    let endpoint = Endpoint::new(Box::new(Doorbell { event: Arc::clone(&event), seen: 0 }));
    executor.add(endpoint.clone());
    let file = MemfdFiles.create(&RegionLayout { base: BASE, mmap: [4096, 0, 0, 0, 0, 0] }).unwrap();
    let memfd = MemfdFiles::of(&file).unwrap();
    endpoint.set_memory(true, 0);
    let fd = memfd.reopen(libc::O_RDWR).unwrap();
    let [irq, to, from] = [&event, &forth, &back].map(|event| event.as_fd().as_raw_fd());
    let mut program = Child::start(|turns| {
        let bar = map(0, 4096, RW, libc::MAP_SHARED, fd.as_raw_fd(), BASE as i64);
        let mut value = 0u32;
        loop {
            turns.wait();
            let start = now();
            for _ in 0..COMMANDS {
                value += 1;
                // SAFETY: the BAR that was just mapped.
                unsafe { (bar as *mut u32).write_volatile(value) };
                wait(irq);
            }
            turns.give(since(&start) / COMMANDS);
            let start = now();
            for _ in 0..COMMANDS {
                add(to);
                wait(from);
            }
            turns.tell(since(&start) / COMMANDS);
        }
    });
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        endpoint.set_file(Some(Arc::clone(&file)), clock.now());
        program.go();
        ours.push(program.take());
        // Closed: nobody looks, as in the floor's world.
        endpoint.set_file(None, clock.now());
        file.set_accessible(true);
        program.go();
        for _ in 0..COMMANDS {
            wait(to);
            add(from);
        }
        floor.push(program.take());
    }
    println!("doorbell_qd1/eventfd_round_trip,{:.0},{:.0}", median(ours), median(floor));
    endpoint.set_file(Some(file), clock.now());
    std::thread::sleep(Duration::from_millis(1200));
    let (start, used) = (Instant::now(), cpu());
    std::thread::sleep(Duration::from_secs(2));
    let idle = (cpu() - used) as f64 / start.elapsed().as_secs_f64();
    println!("idle_cpu_per_s/one_percent,{idle:.0},10000000");
}
