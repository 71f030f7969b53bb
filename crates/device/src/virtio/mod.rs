// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a virtio device is written.
//!
//! A model implements [`VirtioDevice`]: its configuration space, and what to
//! do with queues that run. The [`VirtioEndpoint`] around it keeps what a
//! driver has set (status, features, each queue's size, addresses, position
//! and ready bit) and tells the model when a queue starts and stops, so a
//! model knows nothing of status bits, of suspending or of vhost.
//!
//! A queue *runs* while the status has DRIVER_OK, the device is not suspended
//! and the queue is ready. What was set of it is taken when that becomes true
//! (VNET-6.3b), or with [`Latch::Ready`] when it becomes ready.

mod endpoint;
mod interrupts;
mod queue;

use std::fmt;
use std::sync::Arc;

use iommu::Requester;

pub use endpoint::{Latch, VirtioEndpoint};
pub use interrupts::VirtioInterrupts;
pub use queue::{QueueSetup, QueueState};

use crate::{Nanos, Turn, Wake};

/// Bits of the status byte.
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up: queues run.
    pub const DRIVER_OK: u8 = 4;
    /// Features are negotiated.
    pub const FEATURES_OK: u8 = 8;
    /// The device has failed and must be reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The driver has given up.
    pub const FAILED: u8 = 0x80;
}

/// Features of the transport, as bits.
pub mod feature {
    /// Arbitrary descriptor layouts.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Addresses are those of the platform: IOVAs.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in order.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// One queue, as the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// The group whose address space its ring and buffers are in.
    pub group: u32,
    /// Largest size in descriptors; a power of two.
    pub max_size: u16,
}

/// What a device is. Constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioSpec {
    /// Virtio device id: 1 net, 2 block.
    pub device_id: u32,
    /// Vendor id.
    pub vendor_id: u32,
    /// Features offered.
    pub features: u64,
    /// Its queues, the control queue included.
    pub queues: Vec<QueueSpec>,
    /// Number of groups; every queue's group is less.
    pub groups: u32,
    /// Number of address spaces that groups can be put into.
    pub address_spaces: u32,
    /// Length of its configuration space in bytes.
    pub config_size: u32,
}

/// What a device can reach during a call.
pub struct VirtioIo<'a> {
    /// The way to memory of each group.
    pub dma: &'a [Arc<Requester>],
    /// Who is told of used buffers and of changes of the configuration.
    pub interrupts: &'a VirtioInterrupts,
    /// The time.
    pub now: Nanos,
    /// See [`fail`](Self::fail).
    pub(crate) failed: Option<&'static str>,
}

impl VirtioIo<'_> {
    /// The device cannot go on: NEEDS_RESET is set after the call, the driver
    /// is told by the configuration interrupt, and all queues stop. `why` goes
    /// to the log.
    pub fn fail(&mut self, why: &'static str) {
        self.failed.get_or_insert(why);
    }
}

impl fmt::Debug for VirtioIo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioIo").field("now", &self.now).field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// A virtio device model.
///
/// Calls never overlap. Queue indexes are those of [`VirtioSpec::queues`];
/// configuration accesses lie inside the configuration space.
pub trait VirtioDevice: Send {
    /// What it is. Constant.
    fn spec(&self) -> VirtioSpec;

    /// The driver's choice of the features offered; any subset. Comes before
    /// queues start and again after each reset.
    fn set_features(&mut self, features: u64);

    /// Reads configuration space; `data` is filled.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// Writes configuration space. What cannot be written is ignored.
    fn write_config(&mut self, offset: u32, data: &[u8]);

    /// Counts changes of the configuration that the device made itself.
    fn generation(&self) -> u32 {
        0
    }

    /// A queue begins to run, from `setup.state` on. There may be buffers in
    /// it already: they need no kick. Addresses and contents are a program's:
    /// anything.
    fn start_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16, setup: &QueueSetup);

    /// A queue that runs stops (suspend, not ready, reset, failure). Buffers
    /// taken from it are used, or given back as if never taken; nothing of the
    /// ring is touched after the return. The exact position to go on from.
    fn stop_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16) -> QueueState;

    /// The position of a queue that runs.
    fn queue_state(&self, queue: u16) -> QueueState;

    /// The driver has kicked a queue that runs. Only a hint: the device gets a
    /// turn next, and looks at its rings in each turn anyway.
    fn kick(&mut self, queue: u16) {
        let _ = queue;
    }

    /// Looks at the queues that run, does a bounded piece of work.
    fn turn(&mut self, io: &mut VirtioIo<'_>) -> Turn;

    /// Back to the state after power on: no features, every queue stopped
    /// before. What management has set (a MAC address, a backend) stays.
    fn reset(&mut self, io: &mut VirtioIo<'_>);

    /// Vendor statistics of a queue, as names and values; `None` if it has none.
    fn statistics(&self, queue: u16) -> Option<Vec<(&'static str, u64)>> {
        let _ = queue;
        None
    }

    /// Management gives a net device another MAC address; whether it takes it.
    fn set_mac(&mut self, mac: [u8; 6]) -> bool {
        let _ = mac;
        false
    }

    /// Whom a backend wakes when it has something for the device. Before the
    /// first turn, once.
    fn set_wake(&mut self, wake: Arc<dyn Wake>) {
        let _ = wake;
    }
}
