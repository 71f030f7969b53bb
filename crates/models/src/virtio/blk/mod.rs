// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio block device (virtio 1.3, 5.2) on a [`Disk`].
//!
//! Requests are done in the caller's thread, during a
//! [`turn`](device::virtio::VirtioDevice::turn), and return in order. Reads or
//! writes that stand one behind the other are one call of the disk, and move
//! between disk and the program's memory with nothing in between.
//!
//! # What it does not implement
//! Lifetime reports, secure erase, zoned devices, the cache's mode in the
//! configuration (written data is volatile until a flush), SCSI commands.

mod execute;
mod request;

use std::sync::Arc;

use device::virtio::{QueueSetup, QueueSpec, QueueState, VirtioIo, VirtioSpec, feature as transport};
use device::{Disk, DiskPart, Turn, VirtioDevice};
use iommu::Places;
use zerocopy::IntoBytes;

use super::queue::{Look, Queues, Served, sooner};
use super::ring::{BURST, Batch};
use super::spec::blk::{Config as Space, ID, ID_LEN, SECTOR, feature};
use request::Request;

/// Most ranges of a discard or write zeroes.
const RANGES: u32 = 32;
/// Most sectors of a range: 1 GiB.
const RANGE_SECTORS: u32 = 1 << 21;
/// Bytes that a batch of more than one request moves at most: whoever unmaps
/// waits for it.
const BATCH_BYTES: u64 = 512 << 10;

/// How a device is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The medium.
    pub disk: Arc<dyn Disk>,
    /// Number of queues, at least 1.
    pub queues: u16,
    /// Largest queue, a power of two.
    pub queue_size: u16,
    /// Bytes of a block: 512 or 4096.
    pub block_size: u32,
    /// The device's name, up to 20 bytes.
    pub serial: String,
    /// Whether packed rings are offered.
    pub packed: bool,
    /// Whether IN_ORDER is offered.
    pub in_order: bool,
    /// Whether indirect descriptors are offered.
    pub indirect: bool,
}

impl Config {
    /// One queue of [`QUEUE_SIZE`](super::QUEUE_SIZE) and blocks of 512 bytes, on `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>) -> Config {
        Config {
            disk,
            queues: 1,
            queue_size: super::QUEUE_SIZE,
            block_size: 512,
            serial: String::from("vfuse"),
            packed: false,
            in_order: false,
            indirect: true,
        }
    }
}

/// A block device.
#[derive(Debug)]
pub struct Blk {
    config: Config,
    space: Space,
    queues: Queues,
    batch: Batch,
    requests: Vec<Request>,
    places: Places,
}

impl Blk {
    /// A device on a disk. What is beyond the last whole block of the disk is
    /// not seen.
    #[must_use]
    pub fn new(config: Config) -> Blk {
        let block = u64::from(config.block_size).max(SECTOR);
        let space = Space {
            capacity: (config.disk.len() / block * (block / SECTOR)).into(),
            seg_max: u32::from(config.queue_size.min(256)).saturating_sub(2).max(1).into(),
            blk_size: config.block_size.into(),
            opt_io_size: 0.into(),
            min_io_size: 1.into(),
            num_queues: config.queues.into(),
            max_discard_sectors: RANGE_SECTORS.into(),
            max_discard_seg: RANGES.into(),
            discard_sector_alignment: (config.block_size / SECTOR as u32).into(),
            max_write_zeroes_sectors: RANGE_SECTORS.into(),
            max_write_zeroes_seg: RANGES.into(),
            write_zeroes_may_unmap: 1,
            ..Space::default()
        };
        let queues = Queues::new(usize::from(config.queues));
        Blk { config, space, queues, batch: Batch::default(), requests: Vec::new(), places: Places::default() }
    }

    fn offered(&self) -> u64 {
        let mut features = transport::VERSION_1
            | transport::ACCESS_PLATFORM
            | transport::EVENT_IDX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH;
        features |= match self.config.disk.is_read_only() {
            true => feature::RO,
            false => feature::DISCARD | feature::WRITE_ZEROES,
        };
        if self.config.queues > 1 {
            features |= feature::MQ;
        }
        if self.config.packed {
            features |= transport::RING_PACKED;
        }
        if self.config.indirect {
            features |= transport::INDIRECT_DESC;
        }
        if self.config.in_order {
            features |= transport::IN_ORDER;
        }
        features
    }

    /// The device's name.
    fn serial(&self) -> [u8; ID_LEN] {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.config.serial.as_bytes()) {
            *to = *from;
        }
        id
    }

    /// A batch of one queue. Whether there was one, or when to look again.
    fn serve(&mut self, io: &mut VirtioIo<'_>, index: usize) -> Served {
        let Some(dma) = io.dma.first() else { return Err(None) };
        let Some(queue) = self.queues.get_mut(index) else { return Err(None) };
        let look = queue.look(&mut dma.session(), &mut self.batch, BURST);
        if !matches!(look, Look::Some) {
            return queue.none(&look, dma, io);
        }
        let count = self.execute(dma);
        let Some(queue) = self.queues.get_mut(index) else { return Err(None) };
        let written: Vec<u32> = self.requests.iter().take(count).map(|request| request.written).collect();
        queue.complete(&mut dma.session(), &self.batch, &written, io, index as u16)
    }
}

impl VirtioDevice for Blk {
    fn spec(&self) -> VirtioSpec {
        let queue = QueueSpec { group: 0, max_size: self.config.queue_size };
        VirtioSpec {
            device_id: ID,
            vendor_id: 0x1af4,
            features: self.offered(),
            queues: vec![queue; usize::from(self.config.queues)],
            groups: 1,
            address_spaces: 1,
            config_size: size_of::<Space>() as u32,
        }
    }

    fn set_features(&mut self, features: u64) {
        self.queues.set_features(features);
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let from = self.space.as_bytes().get(offset as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn start_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16, setup: &QueueSetup) {
        self.queues.start(io, queue, setup);
    }

    fn stop_queue(&mut self, io: &mut VirtioIo<'_>, queue: u16) -> QueueState {
        self.queues.stop(io.dma.first().map(|dma| &**dma), queue)
    }

    fn queue_state(&self, queue: u16) -> QueueState {
        self.queues.state(queue)
    }

    fn turn(&mut self, io: &mut VirtioIo<'_>) -> Turn {
        let (mut busy, mut until) = (false, None);
        for index in 0..usize::from(self.config.queues) {
            match self.serve(io, index) {
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

    fn reset(&mut self, _io: &mut VirtioIo<'_>) {}

    fn statistics(&self, queue: u16) -> Option<Vec<(&'static str, u64)>> {
        self.queues.statistics(queue)
    }
}

/// Where on the disk so many bytes from a sector on lie, if they are whole
/// sectors inside.
fn extent(space: &Space, sector: u64, bytes: u64) -> Option<u64> {
    let sectors = bytes / SECTOR;
    let inside =
        bytes.is_multiple_of(SECTOR) && sector.checked_add(sectors).is_some_and(|end| end <= space.capacity.get());
    inside.then(|| sector * SECTOR)
}

/// Room that is used again.
type Parts<'a> = Vec<DiskPart<'a>>;
