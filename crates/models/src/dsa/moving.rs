// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes between places in the program's memory.

use iommu::{Access, DmaFault, FaultReason, MemoryFault, Places, Segment, Session};
use vm_memory::VolatileSlice;

use super::spec::Descriptor;

/// Room for bytes that are not moved directly, and other memory that is used
/// again and again: taking it anew was 700 instructions a batch, of 8,000 that one
/// of 32 short moves took in all.
#[derive(Debug)]
pub(super) struct Room {
    places: Places,
    /// Two buffers of [`BUFFER`] bytes.
    pub(super) buffers: [Box<[u8]>; 2],
    /// For the list of a batch.
    pub(super) list: Vec<Descriptor>,
}

/// Bytes of a buffer: few enough to stay in the cache.
pub(super) const BUFFER: usize = 64 << 10;

impl Default for Room {
    fn default() -> Room {
        let buffers = [vec![0; BUFFER].into(), vec![0; BUFFER].into()];
        Room { places: Places::default(), buffers, list: Vec::new() }
    }
}

/// How far something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Bytes done.
    pub(super) done: usize,
    /// What stopped it.
    pub(super) fault: Option<DmaFault>,
}

impl Reach {
    fn of(result: Result<(), DmaFault>, start: u64, len: usize) -> Reach {
        match result {
            Ok(()) => Reach { done: len, fault: None },
            // What comes before a fault has been moved.
            Err(fault) => Reach { done: fault.iova.wrapping_sub(start) as usize, fault: Some(fault) },
        }
    }
}

/// Reads as much as there is.
pub(super) fn read(dma: &mut Session<'_>, iova: u64, to: &mut [u8]) -> Reach {
    Reach::of(dma.read(iova, to), iova, to.len())
}

/// Writes as much as can be.
pub(super) fn write(dma: &mut Session<'_>, iova: u64, from: &[u8]) -> Reach {
    Reach::of(dma.write(iova, from), iova, from.len())
}

/// Whether `len` bytes can be accessed.
pub(super) fn probe(
    dma: &mut Session<'_>,
    room: &mut Room,
    iova: u64,
    len: usize,
    access: Access,
) -> Result<(), DmaFault> {
    dma.gather(&mut room.places).add(iova, len, access)
}

/// A copy between two places that can be addressed, each in one mapping.
/// `None`: it is not one.
#[inline]
pub(super) fn copy_direct(dma: &mut Session<'_>, source: u64, destination: u64, len: usize) -> Option<Reach> {
    Some(match dma.copy_direct(source, destination, len)? {
        Ok(()) => Reach { done: len, fault: None },
        Err(fault) => Reach { done: 0, fault: Some(fault) },
    })
}

/// Copies upwards from `source` to each of `destinations`, up to the first
/// byte that one of them refuses.
pub(super) fn copy(dma: &mut Session<'_>, room: &mut Room, source: u64, destinations: &[u64], len: usize) -> Reach {
    let Room { places, buffers: [buffer, _], .. } = room;
    let mut reach = Reach { done: len, fault: None };
    let (gather, ends) = loop {
        // Two destinations at most, hence three ends.
        let mut gather = dma.gather(places);
        let mut ends = [0; 3];
        let operands = [(source, Access::Read)].into_iter().chain(destinations.iter().map(|at| (*at, Access::Write)));
        let mut refused = None;
        for ((iova, access), end) in operands.zip(&mut ends) {
            if let Err(fault) = gather.add(iova, reach.done, access) {
                refused = Some((fault, fault.iova.wrapping_sub(iova) as usize));
                break;
            }
            *end = gather.len();
        }
        match refused {
            Some((fault, before)) => reach = Reach { done: before.min(reach.done), fault: Some(fault) },
            None => break (gather, ends),
        }
        if reach.done == 0 {
            return reach;
        }
    };
    for (n, destination) in destinations.iter().enumerate() {
        let from = gather.segments(0..ends[0]);
        let (Some(start), Some(end)) = (ends.get(n), ends.get(n + 1)) else { break };
        let mut done = 0;
        if pair(from, gather.segments(*start..*end), buffer, &mut done).is_err() {
            let iova = destination.wrapping_add(done as u64);
            let fault = DmaFault { iova, access: Access::Write, reason: FaultReason::Memory };
            return Reach { done: done.min(reach.done), fault: Some(fault) };
        }
    }
    reach
}

/// Copies runs to runs of the same total length.
fn pair<'a>(
    mut from: impl Iterator<Item = Segment<'a>>,
    mut to: impl Iterator<Item = Segment<'a>>,
    buffer: &mut [u8],
    done: &mut usize,
) -> Result<(), MemoryFault> {
    let (mut source, mut destination) = (from.next(), to.next());
    while let (Some(a), Some(b)) = (source, destination) {
        let len = a.len().min(b.len());
        let (a, a_rest) = split(a, len)?;
        let (b, b_rest) = split(b, len)?;
        match (&a, &b) {
            (Segment::Direct(a), Segment::Direct(b)) => a.copy_to_volatile_slice(*b),
            (Segment::Direct(a), _) => b.copy_from(a)?,
            (_, Segment::Direct(b)) => a.copy_to(b)?,
            _ => bounce(a, b, buffer)?,
        }
        *done += len;
        source = a_rest.or_else(|| from.next());
        destination = b_rest.or_else(|| to.next());
    }
    Ok(())
}

/// Copies between two places that are both reached by copying.
fn bounce(from: Segment<'_>, to: Segment<'_>, buffer: &mut [u8]) -> Result<(), MemoryFault> {
    let (mut from, mut to) = (Some(from), Some(to));
    while let (Some(a), Some(b)) = (from, to) {
        let len = a.len().min(buffer.len());
        let (a, a_rest) = split(a, len)?;
        let (b, b_rest) = split(b, len)?;
        let slice = VolatileSlice::from(buffer.get_mut(..len).unwrap_or_default());
        a.copy_to(&slice)?;
        b.copy_from(&slice)?;
        (from, to) = (a_rest, b_rest);
    }
    Ok(())
}

/// The first `len` bytes of a run, and the rest.
fn split(segment: Segment<'_>, len: usize) -> Result<(Segment<'_>, Option<Segment<'_>>), MemoryFault> {
    if len == segment.len() {
        return Ok((segment, None));
    }
    Ok(match segment {
        Segment::Direct(slice) => {
            let first = slice.subslice(0, len).map_err(|_| MemoryFault)?;
            let rest = slice.offset(len).map_err(|_| MemoryFault)?;
            (Segment::Direct(first), Some(Segment::Direct(rest)))
        }
        Segment::Remote { memory, offset, len: whole } => {
            let rest = Segment::Remote { memory, offset: offset + len as u64, len: whole - len };
            (Segment::Remote { memory, offset, len }, Some(rest))
        }
    })
}
