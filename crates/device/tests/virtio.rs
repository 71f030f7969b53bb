// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When the queues of a virtio device start and stop.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::{Arc, Mutex};

use device::virtio::{
    Latch, QueueSetup, QueueSpec, QueueState, VirtioDevice, VirtioEndpoint, VirtioIo, VirtioSpec, feature, status,
};
use device::{Steppable, Turn};

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Features(u64),
    Start(u16, QueueSetup),
    Stop(u16),
    Kick(u16),
    Reset,
}

/// Two queues, which stop at 7. Fails in its turn when told to.
struct Model(Log);

type Log = Arc<Mutex<(Vec<Seen>, bool)>>;

impl Model {
    fn saw(&self, seen: Seen) {
        self.0.lock().unwrap().0.push(seen);
    }
}

impl VirtioDevice for Model {
    fn spec(&self) -> VirtioSpec {
        let queue = QueueSpec { group: 0, max_size: 256 };
        VirtioSpec {
            device_id: 1,
            vendor_id: 0,
            features: feature::VERSION_1 | feature::RING_PACKED,
            queues: vec![queue; 2],
            groups: 1,
            address_spaces: 1,
            config_size: 8,
        }
    }

    fn set_features(&mut self, features: u64) {
        self.saw(Seen::Features(features));
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        (0..).zip(data).for_each(|(n, byte)| *byte = offset as u8 + n);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn start_queue(&mut self, _: &mut VirtioIo<'_>, queue: u16, setup: &QueueSetup) {
        self.saw(Seen::Start(queue, *setup));
    }

    fn stop_queue(&mut self, _: &mut VirtioIo<'_>, queue: u16) -> QueueState {
        self.saw(Seen::Stop(queue));
        QueueState::Split { avail: 7 }
    }

    fn queue_state(&self, _: u16) -> QueueState {
        QueueState::Split { avail: 5 }
    }

    fn kick(&mut self, queue: u16) {
        self.saw(Seen::Kick(queue));
    }

    fn turn(&mut self, io: &mut VirtioIo<'_>) -> Turn {
        if self.0.lock().unwrap().1 {
            io.fail("told to");
        }
        Turn::Idle
    }

    fn reset(&mut self, _: &mut VirtioIo<'_>) {
        self.saw(Seen::Reset);
    }
}

fn endpoint(latch: Latch) -> (Arc<VirtioEndpoint>, Log) {
    let log = Log::default();
    let endpoint = VirtioEndpoint::new(Box::new(Model(log.clone())), latch);
    log.lock().unwrap().0.clear();
    (endpoint, log)
}

fn take(log: &Log) -> Vec<Seen> {
    std::mem::take(&mut log.lock().unwrap().0)
}

fn setup(size: u16, at: u64, avail: u16) -> QueueSetup {
    let state = QueueState::Split { avail };
    QueueSetup { size, descriptors: at, driver: at + 1, device: at + 2, state }
}

/// VNET-6.3: ready first, then features, ring and DRIVER_OK.
#[test]
fn a_queue_takes_what_was_set_when_it_runs() {
    let (endpoint, log) = endpoint(Latch::Run);
    endpoint.set_ready(0, true, 0);
    endpoint.set_features(feature::VERSION_1 | 1);
    endpoint.set_status(status::FEATURES_OK, 0);
    endpoint.set_queue_size(0, 64);
    endpoint.set_queue_addresses(0, 0, 1, 2);
    endpoint.set_queue_state(0, QueueState::Split { avail: 3 });
    assert_eq!(take(&log), [Seen::Features(feature::VERSION_1)]);
    endpoint.set_status(status::FEATURES_OK | status::DRIVER_OK, 0);
    assert_eq!(take(&log), [Seen::Start(0, setup(64, 0, 3))]);
    endpoint.suspend(0);
    assert_eq!(take(&log), [Seen::Stop(0)]);
    assert_eq!(endpoint.queue_state(0).word(), 7);
    endpoint.resume(0);
    assert_eq!(take(&log), [Seen::Start(0, setup(64, 0, 7))]);
    assert_eq!(endpoint.queue_state(0).word(), 5, "asked of the device while it runs");
    endpoint.reset(0);
    assert_eq!(take(&log), [Seen::Stop(0), Seen::Reset, Seen::Features(0)]);
    assert_eq!((endpoint.queue_state(0).word(), endpoint.queue_size(0), endpoint.is_ready(0)), (0, 64, false));
}

/// VNET-6.3: vdpa_sim takes them when the queue becomes ready.
#[test]
fn a_latching_device_takes_them_when_ready() {
    let (endpoint, log) = endpoint(Latch::Ready);
    endpoint.set_ready(0, true, 0);
    endpoint.set_queue_size(0, 64);
    endpoint.set_queue_addresses(0, 16, 17, 18);
    endpoint.set_status(status::DRIVER_OK, 0);
    let latched = QueueSetup { driver: 0, device: 0, ..setup(256, 0, 0) };
    assert_eq!(take(&log), [Seen::Start(0, latched)]);
    endpoint.set_ready(0, false, 0);
    endpoint.set_ready(0, true, 0);
    assert_eq!(take(&log), [Seen::Stop(0), Seen::Start(0, setup(64, 16, 7))]);
}

#[test]
fn packed_rings_begin_with_wrap_counters_set() {
    let (endpoint, log) = endpoint(Latch::Run);
    endpoint.set_features(feature::RING_PACKED);
    endpoint.set_ready(1, true, 0);
    endpoint.set_status(status::DRIVER_OK, 0);
    let Some(Seen::Start(1, setup)) = take(&log).pop() else { panic!("not started") };
    assert_eq!(setup.state.word(), 0x8000_8000);
}

#[test]
fn a_device_that_fails_needs_a_reset() {
    let (endpoint, log) = endpoint(Latch::Run);
    endpoint.set_ready(0, true, 0);
    endpoint.set_status(status::DRIVER_OK, 0);
    endpoint.kick(0);
    endpoint.kick(1);
    endpoint.kick(9);
    take(&log);
    assert_eq!(endpoint.turn(0), Some(Turn::Idle));
    assert_eq!(take(&log), [Seen::Kick(0)], "of those that run");
    log.lock().unwrap().1 = true;
    endpoint.turn(0);
    assert_eq!(take(&log), [Seen::Stop(0)]);
    assert_eq!(endpoint.status(), status::DRIVER_OK | status::NEEDS_RESET);
    endpoint.reset(0);
    assert_eq!(endpoint.status(), 0);
}

#[test]
fn configuration_ends_where_it_ends() {
    let (endpoint, _) = endpoint(Latch::Run);
    let mut data = [0xff; 4];
    endpoint.read_config(6, &mut data);
    assert_eq!(data, [6, 7, 0, 0]);
    endpoint.read_config(u32::MAX, &mut data);
    assert_eq!(data, [0; 4]);
    endpoint.write_config(7, &[1, 2, 3]);
    endpoint.write_config(9, &[1]);
}
