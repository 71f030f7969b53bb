// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Submission and completion queues (4.1) and their doorbells.
//!
//! A queue keeps the doorbell value that it has taken; what the program wrote
//! last may be another, if it was refused. Queues are physically contiguous
//! (CAP.CQR), so entry `i` lies at `base + i * size`.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use device::migration::LoadError;
use device::saved::{Reader, Writer};
use iommu::{Access, DmaFault, FaultReason, MemoryFault, Segment, Session};
use vm_memory::{Bytes, VolatileSlice};
use zerocopy::{FromBytes as _, IntoBytes};

use super::spec::{Command, Completion};

/// A doorbell value out of the queue's range, or one that overruns the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadDoorbell;

/// A submission queue.
#[derive(Clone, Debug)]
pub(crate) struct SubmissionQueue {
    /// Its id.
    pub(crate) id: u16,
    /// The completion queue that its commands complete to.
    pub(crate) cq: u16,
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
}

impl SubmissionQueue {
    pub(crate) fn new(id: u16, cq: u16, base: u64, entries: u32) -> SubmissionQueue {
        SubmissionQueue { id, cq, base, entries, head: 0, tail: 0 }
    }

    /// Index of the next entry to be taken: SQHD of a completion.
    pub(crate) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Entries not taken yet.
    pub(crate) fn waiting(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// Takes a tail doorbell. The tail may not pass the head: one entry stays
    /// free (4.1.1).
    pub(crate) fn ring(&mut self, tail: u32) -> Result<(), BadDoorbell> {
        if tail >= self.entries {
            return Err(BadDoorbell);
        }
        let free = self.entries - 1 - self.waiting();
        if distance(self.tail, tail, self.entries) > free {
            return Err(BadDoorbell);
        }
        self.tail = tail;
        Ok(())
    }

    /// Reads the next entries up to the tail or the end of the ring, at most
    /// `to.len()`; returns how many. The head does not move.
    pub(crate) fn fetch(&self, session: &mut Session<'_>, to: &mut [Command]) -> Result<usize, DmaFault> {
        let run = self.waiting().min(self.entries - self.head) as usize;
        let count = run.min(to.len());
        let Some(to) = to.get_mut(..count) else { return Ok(0) };
        session.read(at(self.base, self.head, Command::SIZE), to.as_mut_bytes())?;
        Ok(count)
    }

    /// Moves the head past one entry.
    pub(crate) fn take(&mut self) {
        self.head = next(self.head, self.entries);
    }

    pub(crate) fn save(&self, writer: &mut Writer) {
        writer.u16(self.cq);
        writer.u64(self.base);
        [self.entries, self.head, self.tail].into_iter().for_each(|value| writer.u32(value));
    }

    pub(crate) fn load(id: u16, reader: &mut Reader<'_>) -> Result<SubmissionQueue, LoadError> {
        let (cq, base) = (reader.u16()?, reader.u64()?);
        let (entries, head, tail) = ring(reader)?;
        Ok(SubmissionQueue { id, cq, base, entries, head, tail })
    }
}

/// A completion queue.
#[derive(Clone, Debug)]
pub(crate) struct CompletionQueue {
    /// Its id.
    pub(crate) id: u16,
    /// Interrupt vector; `None` while interrupts are off.
    pub(crate) vector: Option<u16>,
    /// Submission queues that complete here.
    pub(crate) users: u32,
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    pending: VecDeque<Completion>,
}

impl CompletionQueue {
    pub(crate) fn new(id: u16, base: u64, entries: u32, vector: Option<u16>) -> CompletionQueue {
        CompletionQueue { id, vector, users: 0, base, entries, head: 0, tail: 0, phase: true, pending: VecDeque::new() }
    }

    /// Takes a head doorbell. The head may not pass the tail.
    pub(crate) fn ring(&mut self, head: u32) -> Result<(), BadDoorbell> {
        if head >= self.entries || distance(self.head, head, self.entries) > self.used() {
            return Err(BadDoorbell);
        }
        self.head = head;
        Ok(())
    }

    /// Entries that the host has not consumed.
    pub(crate) fn used(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// Completions that can still be added without waiting for the host.
    pub(crate) fn room(&self) -> u32 {
        (self.entries - 1 - self.used()).saturating_sub(self.pending.len() as u32)
    }

    /// Whether something waits to be posted.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether something waits to be posted and there is room for it.
    pub(crate) fn can_post(&self) -> bool {
        self.has_pending() && self.used() < self.entries - 1
    }

    /// Adds a completion, to be posted later.
    pub(crate) fn push(&mut self, completion: Completion) {
        self.pending.push_back(completion);
    }

    pub(crate) fn save(&self, writer: &mut Writer) {
        writer.option(self.vector.map(u64::from));
        writer.u64(self.base);
        [self.entries, self.head, self.tail].into_iter().for_each(|value| writer.u32(value));
        writer.flag(self.phase);
        writer.u32(self.pending.len() as u32);
        self.pending.iter().for_each(|completion| writer.bytes(completion.as_bytes()));
    }

    /// Nobody uses it yet.
    pub(crate) fn load(id: u16, vectors: u16, reader: &mut Reader<'_>) -> Result<CompletionQueue, LoadError> {
        let vector = match reader.option()? {
            None => None,
            Some(vector) if vector < u64::from(vectors) => Some(vector as u16),
            Some(_) => return Err(LoadError::Corrupt("a vector that does not exist")),
        };
        let base = reader.u64()?;
        let (entries, head, tail) = ring(reader)?;
        let phase = reader.flag()?;
        let mut pending = VecDeque::new();
        for _ in 0..reader.count(MAX_PENDING)? {
            let bytes = reader.bytes(Completion::SIZE)?;
            pending.push_back(Completion::read_from_bytes(bytes).map_err(|_| LoadError::Truncated)?);
        }
        Ok(CompletionQueue { id, vector, users: 0, base, entries, head, tail, phase, pending })
    }

    /// Drops what waits of a submission queue that is gone.
    pub(crate) fn forget(&mut self, sq: u16) {
        self.pending.retain(|completion| completion.sq_id.get() != sq);
    }

    /// Posts what waits, as far as there is room.
    pub(crate) fn post(&mut self, session: &mut Session<'_>) -> Result<(), DmaFault> {
        let mut chunk = [Completion::default(); CHUNK];
        loop {
            let room = self.entries - 1 - self.used();
            let run = room.min(self.entries - self.tail).min(CHUNK as u32);
            let mut count = 0;
            for (entry, completion) in chunk.iter_mut().take(run as usize).zip(&self.pending) {
                *entry = *completion;
                entry.status.set(entry.status.get() & !1 | u16::from(self.phase));
                count += 1;
            }
            let Some(entries) = chunk.get(..count).filter(|entries| !entries.is_empty()) else { return Ok(()) };
            store(session, at(self.base, self.tail, Completion::SIZE), entries)?;
            self.pending.drain(..count);
            self.tail += count as u32;
            if self.tail == self.entries {
                self.tail = 0;
                self.phase = !self.phase;
            }
        }
    }
}

/// Completions that may wait to be posted: of every entry of a queue, and of
/// events.
const MAX_PENDING: usize = 8192;

/// Entries, head and tail of a saved queue.
fn ring(reader: &mut Reader<'_>) -> Result<(u32, u32, u32), LoadError> {
    let (entries, head, tail) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if (2..=1 << 16).contains(&entries) && head < entries && tail < entries {
        Ok((entries, head, tail))
    } else {
        Err(LoadError::Corrupt("a queue that is no ring"))
    }
}

/// Completions posted in one go.
const CHUNK: usize = 32;

/// Entries from `from` forward to `to`.
fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { entries - from + to }
}

fn next(index: u32, entries: u32) -> u32 {
    if index + 1 == entries { 0 } else { index + 1 }
}

fn at(base: u64, index: u32, size: usize) -> u64 {
    base.wrapping_add(u64::from(index) * size as u64)
}

enum Stop {
    Fault(DmaFault),
    Memory,
}

impl From<DmaFault> for Stop {
    fn from(fault: DmaFault) -> Stop {
        Stop::Fault(fault)
    }
}

impl From<MemoryFault> for Stop {
    fn from(_: MemoryFault) -> Stop {
        Stop::Memory
    }
}

/// Stores completions so that the host sees none of an entry before its phase
/// tag says so.
fn store(session: &mut Session<'_>, iova: u64, entries: &[Completion]) -> Result<(), DmaFault> {
    let bytes = entries.as_bytes();
    let mut done = 0;
    let result = session.segments::<Stop>(iova, bytes.len(), Access::Write, &mut |segment| {
        let part = bytes.get(done..done + segment.len()).ok_or(MemoryFault)?;
        done += part.len();
        match segment {
            Segment::Direct(slice) => store_direct(&slice, part)?,
            Segment::Remote { memory, offset, .. } => {
                // A copy may land in any order. The host looks at an entry
                // only after the one before it, so the first one opens the rest.
                let mut own = [0; CHUNK * Completion::SIZE];
                let own = own.get_mut(..part.len()).ok_or(MemoryFault)?;
                own.copy_from_slice(part);
                let (first, rest) = own.split_at_mut(part.len().min(Completion::SIZE));
                let (body, last) = first.split_at_mut(first.len().saturating_sub(4));
                let last_at = offset + body.len() as u64;
                let rest_at = last_at + last.len() as u64;
                let parts = [(rest_at, rest.into()), (offset, body.into()), (last_at, last.into())];
                memory.write_many(if part.len() > Completion::SIZE { &parts } else { &parts[1..] })?;
            }
        }
        Ok(())
    });
    result.map_err(|stop| match stop {
        Stop::Fault(fault) => fault,
        Stop::Memory => DmaFault { iova, access: Access::Write, reason: FaultReason::Memory },
    })
}

fn store_direct(slice: &VolatileSlice<'_>, bytes: &[u8]) -> Result<(), MemoryFault> {
    for (i, word) in bytes.chunks(4).enumerate() {
        let Ok(word) = <[u8; 4]>::try_from(word) else { return Err(MemoryFault) };
        // The last word of an entry carries the phase tag.
        let order = if i % 4 == 3 { Ordering::Release } else { Ordering::Relaxed };
        slice.store(u32::from_ne_bytes(word), i * 4, order).map_err(|_| MemoryFault)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submission_tail_moves_to_the_head_but_not_past_it() {
        let mut sq = SubmissionQueue::new(1, 1, 0, 4);
        assert_eq!(sq.ring(3), Ok(()));
        assert_eq!(sq.waiting(), 3);
        for bad in [0, 1, 2, 4, 0xffff] {
            assert_eq!(sq.ring(bad), Err(BadDoorbell), "{bad}");
        }
        sq.take();
        sq.take();
        assert_eq!((sq.head(), sq.waiting()), (2, 1));
        assert_eq!(sq.ring(1), Ok(()));
        assert_eq!(sq.waiting(), 3);
        assert_eq!(sq.ring(2), Err(BadDoorbell));
    }

    #[test]
    fn completion_head_moves_to_the_tail_but_not_past_it() {
        let mut cq = CompletionQueue::new(1, 0, 4, None);
        assert_eq!(cq.room(), 3);
        assert_eq!(cq.ring(1), Err(BadDoorbell));
        cq.tail = 2;
        assert_eq!(cq.room(), 1);
        assert_eq!(cq.ring(3), Err(BadDoorbell));
        assert_eq!(cq.ring(4), Err(BadDoorbell));
        assert_eq!(cq.ring(2), Ok(()));
        assert_eq!(cq.room(), 3);
    }
}
