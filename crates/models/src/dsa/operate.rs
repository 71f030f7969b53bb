// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the operations do, a piece at a time.

use iommu::{Access, DmaFault, Session};

use super::crc;
use super::moving::{BUFFER, Reach, Room, copy, copy_direct, probe, read, write};
use super::spec::{DELTA_BYTES, Descriptor, Status, flag, opcode, result};

/// Bytes moved directly in one piece.
const PIECE: u64 = 1 << 20;
const PAGE: u64 = super::spec::PAGE;

/// How far an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes done.
    pub(super) done: u64,
    /// Bytes of the delta record done.
    pub(super) record: u32,
    /// The CRC so far, once there is one.
    pub(super) crc: Option<u32>,
    /// Highest offset applied of a delta record, plus 1.
    pub(super) offset: u32,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) status: Status,
    pub(super) result: u8,
    /// Bytes or descriptors done.
    pub(super) done: u32,
    pub(super) fault: Option<DmaFault>,
    /// What stands behind the fault's address in the completion record.
    pub(super) value: u64,
}

impl Outcome {
    /// It ended so, and nothing else is to be said.
    pub(super) fn plain(status: Status) -> Outcome {
        Outcome { status, result: 0, done: 0, fault: None, value: 0 }
    }
}

/// Does a piece of an operation that was found to make sense, and takes its
/// bytes off `budget`. `None`: there is more to do.
pub(super) fn step(
    dma: &mut Session<'_>,
    room: &mut Room,
    descriptor: &Descriptor,
    progress: &mut Progress,
    budget: &mut u64,
) -> Option<Outcome> {
    let mut work = Work { dma, room, descriptor, progress, budget };
    match descriptor.opcode() {
        opcode::MOVE => work.copy(),
        opcode::FILL => work.fill(),
        opcode::COMPARE => work.compare(),
        opcode::COMPARE_PATTERN => work.compare_pattern(),
        opcode::CREATE_DELTA => work.create_delta(),
        opcode::APPLY_DELTA => work.apply_delta(),
        opcode::DUAL_CAST => work.dual_cast(),
        opcode::CRC | opcode::COPY_CRC => work.crc(),
        opcode::FLUSH => work.flush(),
        // Descriptors of a queue are done one after the other: a drain has
        // nothing to wait for.
        _ => Some(Outcome::plain(Status::Success)),
    }
}

struct Work<'w, 's> {
    dma: &'w mut Session<'s>,
    room: &'w mut Room,
    descriptor: &'w Descriptor,
    progress: &'w mut Progress,
    budget: &'w mut u64,
}

impl Work<'_, '_> {
    fn left(&self) -> u64 {
        u64::from(self.descriptor.size) - self.progress.done
    }

    /// Length of the next piece.
    fn piece(&self, most: u64) -> usize {
        self.left().min(most) as usize
    }

    fn source(&self) -> u64 {
        self.descriptor.source.wrapping_add(self.progress.done)
    }

    fn destination(&self) -> u64 {
        self.descriptor.destination.wrapping_add(self.progress.done)
    }

    /// Counts what was done of a piece; `Some` if the operation is over.
    fn advance(&mut self, reach: Reach) -> Option<Outcome> {
        self.progress.done += reach.done as u64;
        *self.budget = self.budget.saturating_sub(reach.done as u64);
        match reach.fault {
            Some(fault) => Some(self.faulted(fault)),
            None if self.left() == 0 => Some(self.success()),
            None => None,
        }
    }

    fn outcome(&self, status: Status) -> Outcome {
        Outcome { done: self.progress.done as u32, ..Outcome::plain(status) }
    }

    fn success(&self) -> Outcome {
        self.outcome(Status::Success)
    }

    fn faulted(&self, fault: DmaFault) -> Outcome {
        Outcome { fault: Some(fault), ..self.outcome(Status::PageFault) }
    }

    fn copy(&mut self) -> Option<Outcome> {
        let Descriptor { source, destination, size, .. } = *self.descriptor;
        if destination > source && destination - source < u64::from(size) {
            return self.copy_downwards();
        }
        let len = self.piece(PIECE);
        let (from, to) = (self.source(), self.destination());
        let reach = copy_direct(self.dma, from, to, len).unwrap_or_else(|| copy(self.dma, self.room, from, &[to], len));
        self.advance(reach)
    }

    /// A move to a higher address that overlaps goes from the end down.
    fn copy_downwards(&mut self) -> Option<Outcome> {
        let mut len = self.piece(BUFFER as u64);
        let end = self.left();
        let reach = loop {
            let offset = end - len as u64;
            let from = self.descriptor.source.wrapping_add(offset);
            let to = self.descriptor.destination.wrapping_add(offset);
            // Nothing is written unless everything can be: what a piece writes
            // may be what a smaller one would have to read.
            let possible = probe(self.dma, self.room, from, len, Access::Read)
                .and_then(|()| probe(self.dma, self.room, to, len, Access::Write));
            let [buffer, _] = &mut self.room.buffers;
            let Some(buffer) = buffer.get_mut(..len) else { return Some(self.success()) };
            let done = possible.and_then(|()| {
                self.dma.read(from, buffer)?;
                self.dma.write(to, buffer)
            });
            // Down to the next page of either.
            let in_page = |iova: u64| (iova.wrapping_add(len as u64 - 1) % PAGE + 1) as usize;
            let shorter = in_page(from).min(in_page(to));
            match done {
                Ok(()) => break Reach { done: len, fault: None },
                Err(_) if shorter < len => len = shorter,
                Err(fault) => break Reach { done: 0, fault: Some(fault) },
            }
        };
        self.advance(reach).map(|outcome| Outcome { result: result::DOWNWARDS, ..outcome })
    }

    fn dual_cast(&mut self) -> Option<Outcome> {
        let second = self.descriptor.second().wrapping_add(self.progress.done);
        let len = self.piece(PIECE);
        let reach = copy(self.dma, self.room, self.source(), &[self.destination(), second], len);
        self.advance(reach)
    }

    fn fill(&mut self) -> Option<Outcome> {
        let len = self.piece(BUFFER as u64);
        let to = self.destination();
        let [buffer, _] = &mut self.room.buffers;
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        // Pieces are whole patterns; after a fault one may begin within.
        let mut pattern = self.descriptor.source.to_le_bytes();
        pattern.rotate_left((self.progress.done % 8) as usize);
        for bytes in buffer.chunks_mut(pattern.len()) {
            bytes.copy_from_slice(pattern.get(..bytes.len()).unwrap_or_default());
        }
        let reach = write(self.dma, to, buffer);
        self.advance(reach)
    }

    fn compare(&mut self) -> Option<Outcome> {
        let len = self.piece(BUFFER as u64);
        let (first, second) = (self.source(), self.destination());
        let [a, b] = &mut self.room.buffers;
        let a = a.get_mut(..len).unwrap_or_default();
        let mut reach = read(self.dma, first, a);
        let b = b.get_mut(..reach.done).unwrap_or_default();
        let other = read(self.dma, second, b);
        if other.fault.is_some() {
            reach = other;
        }
        let difference = a.iter().zip(b.iter()).take(reach.done).position(|(a, b)| a != b);
        self.compared(difference, reach)
    }

    fn compare_pattern(&mut self) -> Option<Outcome> {
        let len = self.piece(BUFFER as u64);
        let from = self.source();
        let [buffer, _] = &mut self.room.buffers;
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        let reach = read(self.dma, from, buffer);
        // The pattern has the place of the second address.
        let mut pattern = self.descriptor.destination.to_le_bytes();
        pattern.rotate_left((self.progress.done % 8) as usize);
        let difference = buffer.iter().take(reach.done).zip(pattern.iter().cycle()).position(|(a, b)| a != b);
        self.compared(difference, reach)
    }

    fn compared(&mut self, difference: Option<usize>, reach: Reach) -> Option<Outcome> {
        let Some(at) = difference else { return self.advance(reach).map(|outcome| self.expect(outcome)) };
        self.advance(Reach { done: at, fault: None });
        Some(self.expect(Outcome { result: result::DIFFERENT, ..self.success() }))
    }

    /// Compares the result of a comparison with the one that was expected.
    fn expect(&self, outcome: Outcome) -> Outcome {
        let wrong = self.descriptor.has(flag::CHECK_RESULT) && outcome.result != self.descriptor.expected();
        match outcome.status {
            Status::Success if wrong => Outcome { status: Status::FalsePredicate, ..outcome },
            _ => outcome,
        }
    }

    fn create_delta(&mut self) -> Option<Outcome> {
        let len = self.piece(BUFFER as u64);
        let (first, second) = (self.source(), self.destination());
        let [a, b] = &mut self.room.buffers;
        let a = a.get_mut(..len).unwrap_or_default();
        let mut reach = read(self.dma, first, a);
        let b = b.get_mut(..reach.done).unwrap_or_default();
        let other = read(self.dma, second, b);
        if other.fault.is_some() {
            reach = other;
        }
        reach.done &= !7;
        let mut record = Vec::new();
        let mut full = false;
        let room = (self.descriptor.max_delta() - self.progress.record) as usize;
        let words = a.chunks_exact(8).zip(b.chunks_exact(8)).take(reach.done / 8);
        for (n, (_, new)) in words.enumerate().filter(|(_, (old, new))| old != new) {
            full = record.len() + DELTA_BYTES > room;
            if full {
                reach = Reach { done: 8 * n, fault: None };
                break;
            }
            let offset = (self.progress.done / 8) as u16 + n as u16;
            record.extend_from_slice(&offset.to_le_bytes());
            record.extend_from_slice(new);
        }
        let to = self.descriptor.second().wrapping_add(self.progress.record.into());
        if let Some(fault) = write(self.dma, to, &record).fault {
            return Some(self.with_delta(self.faulted(fault)));
        }
        self.progress.record += record.len() as u32;
        let outcome = self.advance(reach);
        if full {
            let over = Outcome { result: result::DELTA_OVERFLOW, ..self.success() };
            return Some(self.with_delta(over));
        }
        outcome.map(|outcome| self.with_delta(outcome))
    }

    fn with_delta(&self, outcome: Outcome) -> Outcome {
        let found = if self.progress.record > 0 { result::DELTA } else { 0 };
        let result = outcome.result.max(found);
        let wrong = self.descriptor.has(flag::CHECK_RESULT) && self.descriptor.expected_mask() & 1 << result == 0;
        let status = match outcome.status {
            Status::Success if wrong => Status::FalsePredicate,
            status => status,
        };
        Outcome { status, result, value: self.progress.record.into(), ..outcome }
    }

    fn apply_delta(&mut self) -> Option<Outcome> {
        let left = (self.descriptor.word() - self.progress.record) as usize;
        if left == 0 {
            self.progress.done = self.descriptor.size.into();
            return Some(self.success());
        }
        let len = left.min(BUFFER / DELTA_BYTES * DELTA_BYTES);
        let from = self.descriptor.source.wrapping_add(self.progress.record.into());
        let mut bytes = std::mem::take(&mut self.room.buffers[0]);
        let outcome = match self.dma.read(from, bytes.get_mut(..len).unwrap_or_default()) {
            Ok(()) => self.apply(bytes.get(..len).unwrap_or_default()),
            Err(fault) => Some(self.faulted(fault)),
        };
        self.room.buffers[0] = bytes;
        *self.budget = self.budget.saturating_sub(len as u64);
        outcome
    }

    /// Applies entries of a delta record. What is done is counted in bytes of
    /// the record.
    fn apply(&mut self, entries: &[u8]) -> Option<Outcome> {
        for entry in entries.chunks_exact(DELTA_BYTES) {
            let (offset, data) = entry.split_at(2);
            let offset = offset.iter().rev().fold(0, |offset, byte| offset << 8 | u32::from(*byte));
            if offset < self.progress.offset {
                return Some(self.outcome(Status::DeltaOrder));
            }
            if offset >= self.descriptor.size / 8 {
                return Some(self.outcome(Status::DeltaOffset));
            }
            let to = self.descriptor.destination.wrapping_add(u64::from(offset) * 8);
            if let Err(fault) = self.dma.write(to, data) {
                return Some(self.faulted(fault));
            }
            self.progress.offset = offset + 1;
            self.progress.record += DELTA_BYTES as u32;
            self.progress.done = self.progress.record.into();
        }
        None
    }

    fn crc(&mut self) -> Option<Outcome> {
        let descriptor = self.descriptor;
        let crc = match self.progress.crc {
            Some(crc) => crc,
            None => {
                let mut seed = descriptor.word().to_le_bytes();
                if descriptor.has(flag::READ_SEED)
                    && let Err(fault) = self.dma.read(descriptor.seed_address(), &mut seed)
                {
                    return Some(self.faulted(fault));
                }
                let seed = u32::from_le_bytes(seed);
                if descriptor.has(flag::RAW_CRC) { seed.reverse_bits() } else { !seed }
            }
        };
        let len = self.piece(BUFFER as u64);
        let (from, to) = (self.source(), self.destination());
        let [buffer, _] = &mut self.room.buffers;
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        let mut reach = read(self.dma, from, buffer);
        if descriptor.opcode() == opcode::COPY_CRC {
            let wrote = write(self.dma, to, buffer.get(..reach.done).unwrap_or_default());
            if wrote.fault.is_some() {
                reach = wrote;
            }
        }
        let bytes = buffer.get_mut(..reach.done).unwrap_or_default();
        if descriptor.has(flag::RAW_DATA) {
            bytes.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
        let crc = crc::update(crc, bytes);
        self.progress.crc = Some(crc);
        let value = if descriptor.has(flag::RAW_CRC) { crc.reverse_bits() } else { !crc };
        self.advance(reach).map(|outcome| Outcome { value: value.into(), ..outcome })
    }

    /// There is no cache to flush; what counts is whether the range is there.
    fn flush(&mut self) -> Option<Outcome> {
        let len = self.piece(PIECE);
        let (to, dma, room) = (self.destination(), &mut *self.dma, &mut *self.room);
        let reach = match probe(dma, room, to, len, Access::Read) {
            Ok(()) => Reach { done: len, fault: None },
            Err(fault) => Reach { done: fault.iova.wrapping_sub(to) as usize, fault: Some(fault) },
        };
        self.advance(reach)
    }
}
