// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames from the driver to the port.

use std::ops::RangeInclusive;

use device::virtio::VirtioIo;
use device::{Frames, MAX_FRAME};
use iommu::{Access, Gather};

use super::{BATCH_BYTES, Net, bytes, simple};
use crate::virtio::queue::{Look, Served};
use crate::virtio::ring::{BURST, Batch};
use crate::virtio::spec::net::HEADER;

impl Net {
    /// A batch of frames. One whose memory is not there, or that is too short
    /// or too long for a frame, is dropped; its buffer returns all the same.
    pub(super) fn transmit(&mut self, io: &mut VirtioIo<'_>, index: u16, pair: u16) -> Served {
        let header = self.header();
        let Some(dma) = io.dma.get(self.group(index)) else { return Err(None) };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Err(None) };
        let mut session = dma.session();
        let look = queue.look(&mut session, &mut self.batch, BURST);
        if !matches!(look, Look::Some) {
            drop(session);
            return queue.none(&look, dma, io);
        }
        self.out.clear();
        let lengths = header as u64 + 1..=(MAX_FRAME - (HEADER - header)) as u64;
        let (mut taken, mut dropped) = (self.batch.chains().len(), 0);
        if !simple::send(&mut session, &self.batch, &mut self.out, lengths.clone()) {
            (taken, dropped) = copy_each(session.gather(&mut self.places), &self.batch, &mut self.out, lengths);
        }
        self.written.clear();
        self.written.resize(taken, 0);
        let served = queue.complete(&mut session, &self.batch, &self.written, io, index);
        drop(session);
        if header != HEADER {
            self.widen(header);
        }
        if let Some(counters) = self.counters.get_mut(usize::from(pair)) {
            counters.sent += self.out.len() as u64;
            counters.dropped += dropped;
        }
        if !self.out.is_empty() {
            self.config.port.send(pair, &mut self.out);
        }
        served
    }

    /// Gives frames with an old driver's shorter header the usual one.
    #[cold]
    fn widen(&mut self, header: usize) {
        let mut wide = device::Frames::new();
        for frame in self.out.iter() {
            let (head, body) = frame.split_at(header.min(frame.len()));
            let number = wide.len();
            wide.add(frame.len() + HEADER - header);
            let Some(place) = wide.get_mut(number) else { return };
            let (to_head, to_body) = place.split_at_mut(HEADER);
            to_head.fill(0);
            to_head.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            to_body.iter_mut().zip(body).for_each(|(to, from)| *to = *from);
        }
        self.out = wide;
    }
}

/// Copies frames one by one: how many were taken, and how many of these
/// dropped.
fn copy_each(
    mut gather: Gather<'_, '_>,
    batch: &Batch,
    out: &mut Frames,
    lengths: RangeInclusive<u64>,
) -> (usize, u64) {
    let (mut taken, mut sum, mut dropped) = (0, 0, 0);
    for chain in batch.chains() {
        if taken > 0 && sum >= BATCH_BYTES {
            break;
        }
        taken += 1;
        let before = gather.len();
        let len = chain.read_len;
        let mut parts = batch.readable(chain).iter();
        if !lengths.contains(&len) || parts.any(|part| gather.add(part.iova, part.len as usize, Access::Read).is_err())
        {
            gather.truncate(before);
            dropped += 1;
            continue;
        }
        sum += len;
        out.add(len as usize);
    }
    if bytes::copy(gather.segments(0..gather.len()), out.bytes_mut(), Access::Read).is_err() {
        dropped += out.len() as u64;
        out.clear();
    }
    (taken, dropped)
}
