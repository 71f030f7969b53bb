// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of a virtqueue, split or packed.
//!
//! A device looks at a ring in batches, each within one DMA session:
//! [`Ring::fetch`] reads what is available into a [`Batch`] without taking
//! it, [`Ring::complete`] takes the first so many buffers and returns them
//! used, all of them visible at once. So a device never has buffers of which
//! the ring's [`base`](Ring::base) does not tell, and may be stopped between
//! any two batches.
//!
//! What the driver says is checked here: an index that jumps or runs
//! backwards, a chain that loops or leaves its table, parts in the wrong
//! order, tables in tables. Each is a [`RingError`], found before anything
//! of the buffer is used. Addresses are checked by the DMA path alone.
//!
//! Nothing is kept between batches but indexes: an area is translated anew in
//! each session, which costs a few nanoseconds where the session remembers it.

mod area;
mod batch;
mod packed;
mod split;

pub use batch::{BURST, Batch, Chain, Part};

use iommu::{DmaFault, Session};

use device::virtio::feature;
use packed::Packed;
use split::Split;

/// Most entries of an indirect table. Drivers use more than the ring has
/// slots: Linux up to the device's own limit of segments.
pub const MAX_TABLE: usize = 1024;

/// Where a driver has put a ring, and how they speak about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Slots; not 0. A split ring has a power of two of them.
    pub size: u16,
    /// IOVA of the descriptors.
    pub desc: u64,
    /// IOVA of the available ring, or of the driver's event structure.
    pub driver: u64,
    /// IOVA of the used ring, or of the device's event structure.
    pub device: u64,
    /// Features in force: [`feature::RING_PACKED`], [`feature::EVENT_IDX`] and
    /// [`feature::INDIRECT_DESC`] count.
    pub features: u64,
    /// Where to start.
    pub base: Base,
}

/// The next buffer that the device takes; all before it have been used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Split: the index, which counts to 2^16. Packed: the slot.
    pub index: u16,
    /// Packed: the wrap counter, which starts as `true`.
    pub wrap: bool,
}

/// What is wrong with a ring. The queue is broken until it is set up again,
/// except after [`Dma`](RingError::Dma): what is not mapped may be mapped later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The ring is not where the driver said.
    #[error(transparent)]
    Dma(#[from] DmaFault),
    /// More was made available than the ring has slots, or the index ran
    /// backwards.
    #[error("the available index moved by {moved} in a ring of {size}")]
    IndexJump {
        /// How far, forwards.
        moved: u16,
        /// Slots of the ring.
        size: u16,
    },
    /// A descriptor that the table does not have.
    #[error("descriptor {index} is outside a table of {size}")]
    OutsideTable {
        /// Its number.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain longer than its table.
    #[error("a chain of more than {0} descriptors")]
    Loop(u16),
    /// An indirect table that is empty, no whole number of descriptors, or
    /// larger than [`MAX_TABLE`].
    #[error("an indirect table of {0} bytes")]
    TableLength(u32),
    /// An indirect table where none may be: in a table, with a chain going on
    /// behind it, or without the feature.
    #[error("an indirect descriptor where none is allowed")]
    StrayTable,
    /// A part to read behind one to write.
    #[error("a part that the device reads behind one that it writes")]
    Order,
    /// The ring has no slots, or a split ring a number that is no power of two.
    #[error("a ring of {0} slots")]
    Size(u16),
}

/// A virtqueue.
#[derive(Clone, Debug)]
pub struct Ring(Layout);

#[derive(Clone, Debug)]
enum Layout {
    Split(Split),
    Packed(Packed),
}

impl Ring {
    /// The ring as the driver has set it up.
    pub fn new(setup: &Setup) -> Result<Ring, RingError> {
        let packed = setup.features & feature::RING_PACKED != 0;
        let bad = match packed {
            true => setup.size == 0 || setup.size > 1 << 15 || setup.base.index >= setup.size,
            false => !setup.size.is_power_of_two(),
        };
        if bad {
            return Err(RingError::Size(setup.size));
        }
        Ok(Ring(if packed { Layout::Packed(Packed::new(setup)) } else { Layout::Split(Split::new(setup)) }))
    }

    /// Reads up to `limit` available buffers, at most [`BURST`]. After an
    /// error there is none. What is wrong behind a good buffer is found the
    /// next time.
    #[inline]
    pub fn fetch(&self, session: &mut Session<'_>, batch: &mut Batch, limit: usize) -> Result<(), RingError> {
        batch.clear();
        let limit = limit.min(BURST);
        let read = match &self.0 {
            Layout::Split(ring) => ring.fetch(session, batch, limit),
            Layout::Packed(ring) => ring.fetch(session, batch, limit),
        };
        let followed = read.and_then(|()| batch.follow(session, matches!(self.0, Layout::Split(_))));
        followed.inspect_err(|_| batch.clear())
    }

    /// Returns the first buffers of what was fetched last, one for each
    /// element of `written`: the bytes written to it. Whether the driver wants
    /// to be told. After an error nothing was taken.
    #[inline]
    pub fn complete(&mut self, session: &mut Session<'_>, batch: &Batch, written: &[u32]) -> Result<bool, DmaFault> {
        let chains = batch.chains().get(..written.len()).unwrap_or_default();
        if chains.is_empty() {
            return Ok(false);
        }
        match &mut self.0 {
            Layout::Split(ring) => ring.complete(session, chains, written),
            Layout::Packed(ring) => ring.complete(session, chains, written),
        }
    }

    /// Asks for a kick when the next buffer is made available. Whether one is
    /// already.
    pub fn listen(&mut self, session: &mut Session<'_>) -> Result<bool, DmaFault> {
        match &mut self.0 {
            Layout::Split(ring) => ring.listen(session),
            Layout::Packed(ring) => ring.listen(session),
        }
    }

    /// Asks for no kicks: the device looks by itself.
    pub fn hush(&mut self, session: &mut Session<'_>) -> Result<(), DmaFault> {
        match &mut self.0 {
            Layout::Split(ring) => ring.hush(session),
            Layout::Packed(ring) => ring.hush(session),
        }
    }

    /// Where a later ring of the same memory goes on.
    #[must_use]
    pub fn base(&self) -> Base {
        match &self.0 {
            Layout::Split(ring) => ring.base(),
            Layout::Packed(ring) => ring.base(),
        }
    }
}
