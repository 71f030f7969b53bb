// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The quick way of frames: a batch whose buffers all lie in one mapping, as
//! those of most drivers do, and of which none is in any way special.
//!
//! All buffers are looked at, and on their way here, before the first one is
//! touched. If any is not such, nothing was done, and the batch goes the long
//! way. A frame takes half the instructions here that it takes there.

use std::ops::RangeInclusive;

use device::Frames;
use iommu::{Access, Session, Span};
use vm_memory::VolatileSlice;

use super::BATCH_BYTES;
use super::receive::one_buffer;
use crate::virtio::ring::{Batch, Chain, Part};

/// The mapping of a buffer's first part.
#[inline]
fn span<'s>(session: &'s mut Session<'_>, part: Option<&Part>, access: Access) -> Option<Span<'s>> {
    session.span(part?.iova, access)
}

/// Copies what the driver sends; every buffer must have one of the lengths.
/// Whether that was done.
#[inline]
pub(super) fn send(session: &mut Session<'_>, batch: &Batch, out: &mut Frames, lengths: RangeInclusive<u64>) -> bool {
    copy_out(session, batch, out, lengths).is_some() || {
        out.clear();
        false
    }
}

#[inline]
fn copy_out(session: &mut Session<'_>, batch: &Batch, out: &mut Frames, lengths: RangeInclusive<u64>) -> Option<()> {
    let first = batch.chains().first()?;
    let span = span(session, batch.readable(first).first(), Access::Read)?;
    for chain in batch.chains() {
        let parts = batch.readable(chain);
        if !lengths.contains(&chain.read_len) || !parts.iter().all(|part| span.prefetch(part.iova, part.len as usize)) {
            return None;
        }
        out.add(chain.read_len as usize);
    }
    if out.size() as u64 > BATCH_BYTES {
        return None;
    }
    let own = VolatileSlice::from(out.bytes_mut());
    let mut at = 0;
    for part in batch.chains().iter().flat_map(|chain| batch.readable(chain)) {
        let len = part.len as usize;
        span.part(part.iova, len)?.copy_to_volatile_slice(own.subslice(at, len).ok()?);
        at += len;
    }
    Some(())
}

/// Delivers the frames from a number on, as many as there are buffers for, each
/// in the first part of one. Their bytes are added to `written`. Whether that
/// was done.
#[inline]
pub(super) fn receive(
    session: &mut Session<'_>,
    batch: &Batch,
    (frames, next): (&mut Frames, usize),
    header: usize,
    written: &mut Vec<u32>,
) -> bool {
    let part = |chain: &Chain| batch.writable(chain).first();
    let Some(span) = batch.chains().first().and_then(|first| span(session, part(first), Access::Write)) else {
        return false;
    };
    let mut sum = 0;
    for (chain, len) in batch.chains().iter().zip(frames.lengths(next)) {
        let fits = part(chain).is_some_and(|part| part.len as usize >= len && span.prefetch(part.iova, len));
        if !fits {
            return false;
        }
        sum += len as u64;
    }
    if sum > BATCH_BYTES {
        return false;
    }
    for (chain, frame) in batch.chains().iter().zip(frames.iter_mut(next)) {
        let frame = one_buffer(frame, header);
        let Some(slice) = part(chain).and_then(|part| span.part(part.iova, frame.len())) else { break };
        slice.copy_from(frame);
        written.push(frame.len() as u32);
    }
    true
}
