// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames from the port to the driver.

use std::ops::Range;

use device::virtio::VirtioIo;
use iommu::{Access, Gather};

use super::{BATCH_BYTES, Incoming, Net, bytes, simple};
use crate::virtio::parts;
use crate::virtio::queue::{Look, Served};
use crate::virtio::ring::{BURST, Batch};
use crate::virtio::spec::net::{HEADER, feature};

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

impl Net {
    /// A batch of frames. Those for which there is no buffer wait.
    pub(super) fn receive(&mut self, io: &mut VirtioIo<'_>, index: u16, pair: u16) -> Served {
        if !self.gather_frames(pair) {
            // The driver need not tell of new buffers.
            if let Some(dma) = io.dma.get(self.group(index))
                && let Some(queue) = self.queues.get_mut(usize::from(index))
            {
                queue.is_unused(dma);
            }
            return Err(None);
        }
        let header = self.header();
        let mergeable = self.queues.has(feature::MRG_RXBUF);
        let Some(dma) = io.dma.get(self.group(index)) else { return Err(None) };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Err(None) };
        let Some(incoming) = self.incoming.get_mut(usize::from(pair)) else { return Err(None) };
        let mut session = dma.session();
        let asked = incoming.buffers();
        let look = queue.look(&mut session, &mut self.batch, asked);
        if !matches!(look, Look::Some) {
            drop(session);
            return queue.none(&look, dma, io);
        }
        self.written.clear();
        let Incoming { frames, next, large } = &mut *incoming;
        if simple::receive(&mut session, &self.batch, (frames, *next), header, &mut self.written) {
            *next += self.written.len();
            *large = false;
            if let Some(counters) = self.counters.get_mut(usize::from(pair)) {
                counters.received += self.written.len() as u64;
            }
            return queue.complete(&mut session, &self.batch, &self.written, io, index);
        }
        let mut gather = session.gather(&mut self.places);
        self.found.clear();
        let (mut received, mut dropped, mut sum, mut more) = (0, 0, 0, false);
        while sum < BATCH_BYTES
            && let Some(frame) = incoming.frames.get_mut(incoming.next)
        {
            let before = (gather.len(), self.written.len());
            let len = frame.len().saturating_sub(HEADER - header);
            match place(&self.batch, &mut gather, &mut self.written, len, mergeable) {
                Placed::Whole => {
                    let buffers = (self.written.len() - before.1) as u16;
                    if let Some(count) = frame.get_mut(NUM_BUFFERS..HEADER) {
                        count.copy_from_slice(&buffers.to_le_bytes());
                    }
                    sum += len as u64;
                    let (places, buffers) = (before.0..gather.len(), before.1..self.written.len());
                    self.found.push(Found { frame: incoming.next, places, buffers });
                }
                Placed::NoRoom => {
                    let looked_at = self.batch.chains().len();
                    more = looked_at == asked && asked < BURST;
                    // A frame that a whole batch has no room for never has any.
                    if more || before.1 > 0 || looked_at < BURST {
                        self.written.truncate(before.1);
                        gather.truncate(before.0);
                        break;
                    }
                    dropped += 1;
                    let end = self.written.len();
                    fail(&mut self.written, before.1..end);
                }
                Placed::Nowhere => {
                    dropped += 1;
                    let end = self.written.len();
                    fail(&mut self.written, before.1..end);
                }
                Placed::TooShort => {
                    self.written.truncate(before.1);
                    gather.truncate(before.0);
                    dropped += 1;
                }
            }
            incoming.next += 1;
        }
        // All buffers are on their way here when the first one is filled.
        let runs = gather.all();
        for Found { frame, places, buffers } in &self.found {
            let Some(frame) = incoming.frames.get_mut(*frame) else { continue };
            let frame = if header == HEADER { frame } else { shorten(frame) };
            match bytes::copy(runs.segments(places.clone()), frame, Access::Write) {
                Ok(()) => received += 1,
                Err(_) => {
                    dropped += 1;
                    fail(&mut self.written, buffers.clone());
                }
            }
        }
        if let Some(counters) = self.counters.get_mut(usize::from(pair)) {
            counters.received += received;
            counters.dropped += dropped;
        }
        incoming.large = more;
        if self.written.is_empty() {
            drop(session);
            // A frame was dropped, or may have more buffers, or waits for them.
            return if dropped > 0 || more { Ok(true) } else { Err(queue.was_idle(dma, io.now)) };
        }
        queue.complete(&mut session, &self.batch, &self.written, io, index)
    }

    /// Gets frames from the port where there are none; whether there are some.
    fn gather_frames(&mut self, pair: u16) -> bool {
        let Net { incoming, config, filter, counters, queues, .. } = self;
        let Some(incoming) = incoming.get_mut(usize::from(pair)) else { return false };
        if incoming.next < incoming.frames.len() {
            return true;
        }
        incoming.frames.clear();
        incoming.next = 0;
        config.port.receive(pair, &mut incoming.frames, BURST);
        if incoming.frames.is_empty() {
            return false;
        }
        if filter.is_set(queues.features()) {
            let before = incoming.frames.len();
            let mut kept = device::Frames::new();
            incoming.frames.iter().filter(|frame| filter.accepts(frame)).for_each(|frame| kept.push(frame));
            if let Some(counters) = counters.get_mut(usize::from(pair)) {
                counters.dropped += (before - kept.len()) as u64;
            }
            incoming.frames = kept;
        }
        !incoming.frames.is_empty()
    }
}

/// Where a frame goes.
#[derive(Debug)]
pub(super) struct Found {
    frame: usize,
    places: Range<usize>,
    /// Of those used.
    buffers: Range<usize>,
}

enum Placed {
    /// In the buffers added to `written`.
    Whole,
    /// There are too few buffers.
    NoRoom,
    /// A buffer's memory is not there. It is used up.
    Nowhere,
    /// The buffer is too short for a frame that needs one.
    TooShort,
}

/// Finds buffers for a frame behind those that `written` tells of.
#[inline]
fn place(batch: &Batch, gather: &mut Gather<'_, '_>, written: &mut Vec<u32>, len: usize, mergeable: bool) -> Placed {
    let mut left = len as u64;
    while left > 0 {
        let Some(chain) = batch.chains().get(written.len()) else { return Placed::NoRoom };
        let here = left.min(chain.write_len);
        written.push(here as u32);
        if !mergeable && here < left {
            return Placed::TooShort;
        }
        left -= here;
        let mut parts = parts::slice(batch.writable(chain), 0, here);
        if parts.any(|part| gather.add(part.iova, part.len as usize, Access::Write).is_err()) {
            return Placed::Nowhere;
        }
    }
    Placed::Whole
}

/// The buffers of a frame that did not get there return empty.
fn fail(written: &mut [u32], buffers: Range<usize>) {
    written.get_mut(buffers).unwrap_or_default().fill(0);
}

/// A frame as it lies in one buffer.
#[inline]
pub(super) fn one_buffer(frame: &mut [u8], header: usize) -> &[u8] {
    if let Some(count) = frame.get_mut(NUM_BUFFERS..HEADER) {
        count.copy_from_slice(&1_u16.to_le_bytes());
    }
    if header == HEADER { frame } else { shorten(frame) }
}

/// Takes `num_buffers` out of the header, for a driver that does not know it.
fn shorten(frame: &mut [u8]) -> &mut [u8] {
    frame.copy_within(..NUM_BUFFERS, HEADER - NUM_BUFFERS);
    frame.get_mut(HEADER - NUM_BUFFERS..).unwrap_or_default()
}
