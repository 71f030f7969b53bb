// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workers give turns to open devices, and to those only.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use device::{Device, DeviceFiles, Endpoint, Io, RegionLayout, ResetKind, Steppable, Turn};
use pci::FunctionSpec;
use sys::{Clock, Executor, MemfdFiles};

const LONG: Duration = Duration::from_secs(20);

/// What a test device did and is to do.
#[derive(Debug, Default)]
struct Shared {
    turns: AtomicU64,
    busy: AtomicBool,
    inside: AtomicBool,
    overlapped: AtomicBool,
    until: AtomicU64,
}

struct Model {
    shared: Arc<Shared>,
    wrote: Sender<u64>,
    pending: bool,
    panics: bool,
}

impl Device for Model {
    fn function(&self) -> FunctionSpec {
        FunctionSpec::default()
    }
    fn read(&mut self, _: &mut Io<'_>, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: &mut Io<'_>, _: usize, _: u64, _: &[u8]) {
        self.pending = true;
    }
    fn publish(&mut self, _: &mut Io<'_>) {}
    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        assert!(!self.panics, "a model with a fault");
        let shared = &self.shared;
        if shared.inside.swap(true, Ordering::SeqCst) {
            shared.overlapped.store(true, Ordering::SeqCst);
        }
        shared.turns.fetch_add(1, Ordering::SeqCst);
        if std::mem::take(&mut self.pending) {
            let _ = self.wrote.send(io.now);
        }
        shared.inside.store(false, Ordering::SeqCst);
        let until = shared.until.load(Ordering::SeqCst);
        if shared.busy.load(Ordering::SeqCst) {
            Turn::Busy
        } else if until > io.now {
            Turn::Until(until)
        } else {
            Turn::Idle
        }
    }
    fn reset(&mut self, _: &mut Io<'_>, _: ResetKind) {}
}

fn model(panics: bool) -> (Arc<Endpoint>, Arc<Shared>, Receiver<u64>) {
    let (wrote, receive) = channel();
    let shared = Arc::new(Shared::default());
    let device = Model { shared: Arc::clone(&shared), wrote, pending: false, panics };
    (Endpoint::new(Box::new(device)), shared, receive)
}

fn open(endpoint: &Endpoint) {
    let layout = RegionLayout { base: 32 << 40, mmap: [0; 6] };
    endpoint.set_file(Some(MemfdFiles.create(&layout).unwrap()), 0);
}

fn turns(shared: &Shared) -> u64 {
    shared.turns.load(Ordering::SeqCst)
}

/// Waits until a device has had so many more turns.
fn wait_turns(shared: &Shared, more: u64) {
    let (start, from) = (Instant::now(), turns(shared));
    while turns(shared) < from + more {
        assert!(start.elapsed() < LONG, "no turns");
        std::thread::yield_now();
    }
}

#[test]
fn open_devices_get_turns_and_a_store_gets_one_soon() {
    let clock = Clock::new();
    let executor = Executor::new(2, clock);
    let (endpoint, shared, wrote) = model(false);
    executor.add(endpoint.clone());
    endpoint.write(0, 0, &[1], clock.now());
    assert!(wrote.recv_timeout(Duration::from_millis(20)).is_err(), "closed devices get none");
    open(&endpoint);
    assert!(wrote.recv_timeout(LONG).is_ok());
    for _ in 0..50 {
        endpoint.write(0, 0, &[1], clock.now());
        assert!(wrote.recv_timeout(LONG).is_ok());
    }
    wait_turns(&shared, 10);
    endpoint.set_file(None, clock.now());
    assert!(!shared.overlapped.load(Ordering::SeqCst));
}

#[test]
fn closed_and_removed_devices_get_none() {
    let executor = Executor::new(1, Clock::new());
    let (endpoint, shared, _wrote) = model(false);
    let (other, other_shared, _other_wrote) = model(false);
    executor.keep([endpoint.clone() as Arc<dyn Steppable>, other.clone() as Arc<dyn Steppable>]);
    open(&endpoint);
    open(&other);
    let quiet = |shared: &Shared, witness: &Shared| {
        // A turn that has begun may still end; then the witness goes on alone.
        wait_turns(witness, 2);
        let before = turns(shared);
        wait_turns(witness, 5);
        turns(shared) == before
    };
    wait_turns(&shared, 2);
    endpoint.set_file(None, 0);
    assert!(quiet(&shared, &other_shared));
    open(&endpoint);
    wait_turns(&shared, 2);
    executor.keep([endpoint.clone() as Arc<dyn Steppable>]);
    assert!(quiet(&other_shared, &shared));
    executor.remove(&(endpoint.clone() as Arc<dyn Steppable>));
    let start = Instant::now();
    while Arc::strong_count(&endpoint) > 1 {
        assert!(start.elapsed() < LONG, "somebody holds it");
        std::thread::yield_now();
    }
    // Back again: it is open still, but has to say so.
    executor.keep([other.clone() as Arc<dyn Steppable>]);
    open(&other);
    wait_turns(&other_shared, 2);
}

#[test]
fn a_busy_device_starves_nobody() {
    let executor = Executor::new(1, Clock::new());
    let models: Vec<_> = (0..8).map(|_| model(false)).collect();
    for (endpoint, shared, _) in &models {
        shared.busy.store(true, Ordering::SeqCst);
        executor.add(endpoint.clone());
        open(endpoint);
    }
    wait_turns(&models[7].1, 10);
    let before: Vec<u64> = models.iter().map(|(_, shared, _)| turns(shared)).collect();
    wait_turns(&models[0].1, 1000);
    for ((_, shared, _), before) in models.iter().zip(before) {
        assert!(turns(shared) - before >= 900);
    }
}

#[test]
fn a_device_that_waits_for_a_time_is_not_late() {
    let clock = Clock::new();
    let executor = Executor::new(1, clock);
    let (endpoint, shared, _wrote) = model(false);
    executor.add(endpoint.clone());
    open(&endpoint);
    // Long enough for the sleeps to have grown, had there been no time to keep.
    let until = clock.now() + 100_000_000;
    shared.until.store(until, Ordering::SeqCst);
    while clock.now() < until {
        std::thread::yield_now();
    }
    wait_turns(&shared, 1);
}

#[test]
fn a_model_that_fails_takes_nobody_along() {
    let executor = Executor::new(1, Clock::new());
    let (bad, _, _bad_wrote) = model(true);
    let (good, shared, _wrote) = model(false);
    executor.keep([bad.clone() as Arc<dyn Steppable>, good.clone() as Arc<dyn Steppable>]);
    open(&bad);
    open(&good);
    wait_turns(&shared, 20);
    bad.set_file(None, 0);
}

/// An open device that does nothing: a worker sleeps nearly all the time.
#[test]
fn an_idle_device_costs_next_to_nothing() {
    let executor = Executor::new(1, Clock::new());
    let (endpoint, shared, _wrote) = model(false);
    executor.add(endpoint.clone());
    open(&endpoint);
    wait_turns(&shared, 50);
    // By now the sleeps are long: 50 turns take 100 ms at 2 ms each.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        wait_turns(&shared, 1);
    }
    let before = turns(&shared);
    let start = Instant::now();
    wait_turns(&shared, 100);
    let each = start.elapsed() / 100;
    assert!(each >= Duration::from_micros(1500), "a turn each {each:?} since turn {before}");
}
