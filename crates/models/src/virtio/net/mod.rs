// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio network device (virtio 1.3, 5.1) on a [`NetPort`].
//!
//! Pairs of queues, and a control queue in a group of its own, so that a VMM
//! can put it into an address space of its own. Checksums and segments to be
//! made pass through: the port says what it takes and gives.
//! Frames go in batches: one DMA session, one call of the port and at most one
//! event for up to 64 of them.
//!
//! Which queue the control queue is depends on the driver: the last one if it
//! takes MQ, else the third (5.1.2). Its group is that of the queue's number,
//! so a driver without MQ has it in the data queues' group unless there is
//! only one pair.
//!
//! [`Wire`] connects two devices; other ports are given by the host.
//!
//! # What it does not implement
//! Receive side scaling, hash reports, interrupt coalescing, header split,
//! statistics on the control queue.

mod bytes;
mod checksum;
mod control;
mod filter;
mod receive;
mod segment;
mod simple;
mod transmit;
mod wire;

pub use wire::Wire;

use std::sync::Arc;

use device::virtio::{QueueSetup, QueueSpec, QueueState, VirtioIo, VirtioSpec, feature as transport};
use device::{Frames, NetPort, Offloads, Turn, VirtioDevice, Wake};
use iommu::Places;
use zerocopy::IntoBytes;

use super::queue::{Queues, sooner};
use super::ring::{BURST, Batch};
use super::spec::net::{Config as Space, HEADER, ID, feature, link};
use filter::Filter;

/// Bytes that a batch moves before it ends: whoever unmaps waits for it.
const BATCH_BYTES: u64 = 512 << 10;

/// How a device is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it is plugged into.
    pub port: Arc<dyn NetPort>,
    /// Its address.
    pub mac: [u8; 6],
    /// Pairs of queues, at least 1.
    pub pairs: u16,
    /// Largest queue, a power of two.
    pub queue_size: u16,
    /// Largest payload of a frame; `None`: the port's.
    pub mtu: Option<u16>,
    /// Whether there is a control queue; MQ needs it.
    pub control: bool,
    /// Whether a frame may take several buffers.
    pub mergeable: bool,
    /// Whether packed rings are offered.
    pub packed: bool,
    /// Whether IN_ORDER is offered.
    pub in_order: bool,
    /// Whether indirect descriptors are offered.
    pub indirect: bool,
    /// Whether the driver may be asked to announce itself.
    pub announce: bool,
    /// Whether checksum and segmentation are offered, where the port has them.
    pub offloads: bool,
}

impl Config {
    /// A device with one pair of queues of [`QUEUE_SIZE`](super::QUEUE_SIZE) and a control queue.
    #[must_use]
    pub fn new(port: Arc<dyn NetPort>, mac: [u8; 6]) -> Config {
        Config {
            port,
            mac,
            pairs: 1,
            queue_size: super::QUEUE_SIZE,
            mtu: None,
            control: true,
            mergeable: true,
            packed: false,
            in_order: false,
            indirect: true,
            announce: true,
            offloads: true,
        }
    }
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    config: Config,
    /// The address that management gave, until a driver sets another.
    mac: [u8; 6],
    queues: Queues,
    filter: Filter,
    /// Pairs that the driver uses.
    pairs: u16,
    up: bool,
    announce: bool,
    generation: u32,
    batch: Batch,
    places: Places,
    written: Vec<u32>,
    found: Vec<receive::Found>,
    out: Frames,
    /// What has come for each pair.
    incoming: Vec<Incoming>,
    counters: Vec<Counters>,
}

/// Frames that wait for buffers.
#[derive(Debug, Default)]
struct Incoming {
    frames: Frames,
    /// The first of them that is not delivered.
    next: usize,
    /// It takes more buffers than were looked at the last time.
    large: bool,
}

impl Incoming {
    /// How many buffers to look at: one a frame is enough, unless they are long.
    fn buffers(&self) -> usize {
        let frames = self.frames.len().saturating_sub(self.next);
        if self.large { BURST } else { frames.max(self.frames.size() / 1024).clamp(1, BURST) }
    }
}

/// Frames of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    received: u64,
    /// Those that the driver made badly, or had no room for.
    dropped: u64,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
    /// Beyond what was negotiated.
    None,
}

impl Net {
    /// A device on a port.
    #[must_use]
    pub fn new(config: Config) -> Net {
        let pairs = usize::from(config.pairs);
        let queues = Queues::new(pairs * 2 + usize::from(config.control));
        Net {
            mac: config.mac,
            queues,
            filter: Filter::new(config.mac),
            pairs: 1,
            up: config.port.is_up(),
            announce: false,
            generation: 0,
            batch: Batch::default(),
            places: Places::default(),
            written: Vec::with_capacity(BURST),
            found: Vec::with_capacity(BURST),
            out: Frames::new(),
            incoming: (0..pairs).map(|_| Incoming::default()).collect(),
            counters: vec![Counters::default(); pairs],
            config,
        }
    }

    fn count(&self) -> u16 {
        self.config.pairs * 2 + u16::from(self.config.control)
    }

    fn offered(&self) -> u64 {
        let Config { port, mtu, pairs, control, mergeable, packed, in_order, indirect, announce, offloads, .. } =
            &self.config;
        let mut features = transport::VERSION_1
            | transport::ACCESS_PLATFORM
            | transport::ANY_LAYOUT
            | transport::EVENT_IDX
            | feature::MAC
            | feature::STATUS;
        let mut offer = |on: bool, bits: u64| features |= if on { bits } else { 0 };
        offer(*packed, transport::RING_PACKED);
        offer(*in_order, transport::IN_ORDER);
        offer(*indirect, transport::INDIRECT_DESC);
        offer(*mergeable, feature::MRG_RXBUF);
        offer(mtu.or(port.mtu()).is_some(), feature::MTU);
        let by_control =
            feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN | feature::CTRL_MAC_ADDR;
        offer(*control, by_control);
        offer(*control && *announce, feature::GUEST_ANNOUNCE);
        offer(*control && *pairs > 1, feature::MQ);
        let can = if *offloads { port.offloads() } else { Offloads::default() };
        if can.checksum {
            offer(true, feature::CSUM | feature::GUEST_CSUM);
            offer(*control, feature::CTRL_GUEST_OFFLOADS);
            offer(can.tso4, feature::HOST_TSO4 | feature::GUEST_TSO4);
            offer(can.tso6, feature::HOST_TSO6 | feature::GUEST_TSO6);
            offer(can.ecn, feature::HOST_ECN | feature::GUEST_ECN);
            offer(can.ufo, feature::HOST_UFO | feature::GUEST_UFO);
        }
        features
    }

    /// What a queue is for, by what was negotiated.
    #[inline]
    fn role(&self, index: u16) -> Role {
        let pairs = if self.queues.has(feature::MQ) { self.config.pairs } else { 1 };
        match index {
            _ if index < pairs * 2 => match index % 2 {
                0 => Role::Receive(index / 2),
                _ => Role::Transmit(index / 2),
            },
            _ if index == pairs * 2 && self.queues.has(feature::CTRL_VQ) => Role::Control,
            _ => Role::None,
        }
    }

    fn group(&self, index: u16) -> usize {
        usize::from(self.config.control && index == self.config.pairs * 2)
    }

    /// Bytes of the header in the driver's buffers (5.1.6.1).
    #[inline]
    fn header(&self) -> usize {
        if self.queues.has(transport::VERSION_1 | feature::MRG_RXBUF) { HEADER } else { HEADER - 2 }
    }

    /// Says to the port what the driver takes.
    fn set_offloads(&self, features: u64) {
        let takes = |bit: u64| features & bit != 0 && features & feature::GUEST_CSUM != 0;
        self.config.port.set_offloads(Offloads {
            checksum: takes(feature::GUEST_CSUM),
            tso4: takes(feature::GUEST_TSO4),
            tso6: takes(feature::GUEST_TSO6),
            ecn: takes(feature::GUEST_ECN),
            ufo: takes(feature::GUEST_UFO),
        });
    }

    fn space(&self) -> Space {
        let status = if self.up { link::UP } else { 0 } | if self.announce { link::ANNOUNCE } else { 0 };
        Space {
            mac: self.filter.mac(),
            status: status.into(),
            max_virtqueue_pairs: self.config.pairs.into(),
            mtu: self.config.mtu.or(self.config.port.mtu()).unwrap_or(1500).into(),
            speed: u32::MAX.into(),
            duplex: 0xff,
            rss: [0; 7],
        }
    }

    /// Back to what a driver finds.
    fn forget(&mut self) {
        self.filter = Filter::new(self.mac);
        self.pairs = 1;
        self.announce = false;
        self.incoming.iter_mut().for_each(|incoming| {
            incoming.frames.clear();
            (incoming.next, incoming.large) = (0, false);
        });
    }

    /// Looks whether the link has come or gone.
    fn look_at_link(&mut self, io: &VirtioIo<'_>) {
        let up = self.config.port.is_up();
        if up != self.up {
            self.up = up;
            self.announce |= up && self.queues.has(feature::GUEST_ANNOUNCE);
            self.generation = self.generation.wrapping_add(1);
            io.interrupts.config();
        }
    }

    /// Whether any data queue runs; the port hears of it.
    fn tell_port(&mut self, runs: bool) {
        self.config.port.set_pairs(if runs { self.pairs } else { 0 });
    }
}

impl VirtioDevice for Net {
    fn spec(&self) -> VirtioSpec {
        let max_size = self.config.queue_size;
        VirtioSpec {
            device_id: ID,
            vendor_id: 0x1af4,
            features: self.offered(),
            queues: (0..self.count()).map(|index| QueueSpec { group: self.group(index) as u32, max_size }).collect(),
            groups: 1 + u32::from(self.config.control),
            address_spaces: 1 + u32::from(self.config.control),
            config_size: size_of::<Space>() as u32,
        }
    }

    fn set_features(&mut self, features: u64) {
        self.queues.set_features(features);
        self.set_offloads(features);
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let space = self.space();
        let from = space.as_bytes().get(offset as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    /// The address, which VMMs set (VNET-2.1, VNET-3.1); nothing else.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let mut mac = self.filter.mac();
        for (to, from) in mac.iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
        if mac != self.filter.mac() {
            self.filter.set_mac(mac);
            self.mac = mac;
        }
    }

    fn generation(&self) -> u32 {
        self.generation
    }

    fn start_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16, setup: &QueueSetup) {
        self.queues.start(io, queue, setup);
        if matches!(self.role(queue), Role::Receive(_)) {
            self.tell_port(true);
        }
    }

    fn stop_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16) -> QueueState {
        let state = self.queues.stop(io.dma.get(self.group(queue)).map(|dma| &**dma), queue);
        if queue.is_multiple_of(2) && !self.queues.any_running() {
            self.tell_port(false);
        }
        state
    }

    fn queue_state(&self, queue: u16) -> QueueState {
        self.queues.state(queue)
    }

    fn turn(&mut self, io: &mut VirtioIo<'_>) -> Turn {
        self.look_at_link(io);
        let (mut busy, mut until) = (false, None);
        for index in 0..self.count() {
            let served = match self.role(index) {
                _ if self.queues.get_mut(usize::from(index)).is_none() => continue,
                Role::Receive(pair) => self.receive(io, index, pair),
                Role::Transmit(pair) => self.transmit(io, index, pair),
                Role::Control => self.control(io, index),
                Role::None => continue,
            };
            match served {
                Ok(worked) => busy |= worked,
                Err(look) => until = sooner(until, look),
            }
        }
        match until {
            _ if busy => Turn::Busy,
            Some(until) => Turn::Until(until),
            None => Turn::Idle,
        }
    }

    fn reset(&mut self, _io: &mut VirtioIo<'_>) {
        self.forget();
        self.tell_port(false);
    }

    fn statistics(&self, queue: u16) -> Option<Vec<(&'static str, u64)>> {
        let mut statistics = self.queues.statistics(queue)?;
        let counters = self.counters.get(usize::from(queue / 2)).copied().unwrap_or_default();
        match self.role(queue) {
            Role::Receive(_) => {
                statistics.extend([("frames", counters.received), ("dropped", counters.dropped)]);
            }
            Role::Transmit(_) => statistics.push(("frames", counters.sent)),
            Role::Control | Role::None => {}
        }
        Some(statistics)
    }

    fn set_mac(&mut self, mac: [u8; 6]) -> bool {
        self.mac = mac;
        self.filter.set_mac(mac);
        self.generation = self.generation.wrapping_add(1);
        true
    }

    fn set_wake(&mut self, wake: Arc<dyn Wake>) {
        self.config.port.set_wake(wake);
    }
}
