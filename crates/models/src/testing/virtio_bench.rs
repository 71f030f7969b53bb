// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device on a test bench, no host around it.

use std::sync::Arc;

use device::virtio::{Latch, QueueState, VirtioDevice, VirtioEndpoint, feature, status};
use device::{Nanos, Steppable, Turn};
use iommu::{AddressSpace, Mapping, Prot};

use super::bench::until_idle;
use super::virtio::DriverRing;
use super::{CountedEvent, TestMemory};
use crate::virtio::ring::Base;

/// A device, negotiated, with memory at IOVA 0 for all of its groups.
#[derive(Debug)]
pub struct VirtioBench {
    /// The device.
    pub endpoint: Arc<VirtioEndpoint>,
    /// What its groups are attached to.
    pub space: Arc<AddressSpace>,
    /// Memory at IOVA 0 of `space`.
    pub memory: Arc<TestMemory>,
    /// Callbacks of its queues.
    pub events: Vec<Arc<CountedEvent>>,
    /// That of its configuration.
    pub config: Arc<CountedEvent>,
    /// The driver's features.
    pub features: u64,
    /// The time.
    pub now: Nanos,
    /// Where the next ring goes.
    next: u64,
}

impl VirtioBench {
    /// Puts a device on the bench; of the features wanted the driver takes
    /// those offered, and the status becomes FEATURES_OK.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<TestMemory>, wanted: u64) -> VirtioBench {
        let endpoint = VirtioEndpoint::new(device, Latch::Run);
        let space = AddressSpace::new();
        let mapping = Mapping {
            first: 0,
            last: memory.size() as u64 - 1,
            prot: Prot::READ | Prot::WRITE,
            memory: memory.clone(),
            offset: 0,
            tag: 0,
        };
        space.map(mapping).unwrap_or_else(|error| panic!("{error}"));
        for group in 0..endpoint.spec().groups {
            if let Some(requester) = endpoint.requester(group) {
                requester.attach(Some(space.clone().into()));
            }
        }
        let events: Vec<_> = endpoint.spec().queues.iter().map(|_| Arc::<CountedEvent>::default()).collect();
        let features = wanted & endpoint.spec().features;
        let config = Arc::<CountedEvent>::default();
        let bench = VirtioBench { endpoint, space, memory, events, config, features, now: 0, next: 0 };
        bench.negotiate();
        bench
    }

    /// Binds callbacks and negotiates, as after a reset.
    pub fn negotiate(&self) {
        for (queue, event) in (0..).zip(&self.events) {
            self.endpoint.interrupts.bind_queue(queue, Some(event.clone()));
        }
        self.endpoint.interrupts.bind_config(Some(self.config.clone()));
        self.endpoint.set_features(self.features);
        self.endpoint.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK, self.now);
    }

    /// Lays out a queue behind the last one and makes it ready.
    pub fn queue(&mut self, index: u16, size: u16) -> DriverRing {
        let base = Base { index: 0, wrap: self.features & feature::RING_PACKED != 0 };
        let ring = DriverRing::new(self.memory.clone(), self.next, size, self.features, base);
        self.next = ring.after();
        self.set_up(index, &ring);
        ring
    }

    /// Tells the device of a queue, at the ring's base, and makes it ready.
    pub fn set_up(&self, index: u16, ring: &DriverRing) {
        let setup = ring.setup();
        self.endpoint.set_queue_size(index, setup.size);
        self.endpoint.set_queue_addresses(index, setup.desc, setup.driver, setup.device);
        let half = u32::from(setup.base.index) | u32::from(setup.base.wrap) << 15;
        let packed = self.features & feature::RING_PACKED != 0;
        self.endpoint.set_queue_state(index, QueueState::from_word(half | half << 16, packed));
        self.endpoint.set_ready(index, true, self.now);
    }

    /// Memory behind the rings, on a page.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.next.next_multiple_of(4096)
    }

    /// DRIVER_OK.
    pub fn start(&self) {
        self.endpoint.set_status(self.endpoint.status() | status::DRIVER_OK, self.now);
    }

    /// One turn.
    pub fn turn(&self) -> Turn {
        self.endpoint.turn(self.now).unwrap_or(Turn::Idle)
    }

    /// Turns until the device has nothing to do. Panics if it never ends.
    pub fn run(&self) {
        until_idle(|| self.turn());
    }

    /// Publishes, runs, and takes a buffer that must be used then: its id and
    /// bytes written.
    #[track_caller]
    pub fn finish(&self, ring: &mut DriverRing) -> (u16, u32) {
        ring.publish();
        self.run();
        ring.used().unwrap_or_else(|| panic!("no buffer was used"))
    }
}
