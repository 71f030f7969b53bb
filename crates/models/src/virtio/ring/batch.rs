// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers that a device has read from a ring.

use std::ops::Range;

use iommu::{Access, Session};

use super::area::Area;
use super::{MAX_TABLE, RingError};
use crate::virtio::spec::ring::{DESC, Desc, desc};

/// Most buffers of a batch.
pub const BURST: usize = 64;
/// Parts after which a batch takes no further buffer.
const MANY_PARTS: usize = 2048;

/// A piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it lies.
    pub iova: u64,
    /// Its length in bytes; may be 0.
    pub len: u32,
}

/// A buffer: parts for the device to read, then parts to write.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// What the driver knows it by: the head's number, or its id.
    pub(super) id: u16,
    /// Slots of the ring that it takes.
    pub(super) slots: u16,
    first: u32,
    writable: u32,
    end: u32,
    /// Bytes to read.
    pub read_len: u64,
    /// Bytes to write.
    pub write_len: u64,
}

/// Buffers in the order in which they were made available, and room for them.
#[derive(Debug, Default)]
pub struct Batch {
    chains: Vec<Chain>,
    parts: Vec<Part>,
    tables: Vec<Table>,
    words: Vec<[u64; 2]>,
}

/// The last descriptor of a chain, which is indirect.
#[derive(Clone, Copy, Debug)]
struct Table {
    chain: u32,
    iova: u64,
    len: u32,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.parts.clear();
        self.tables.clear();
    }

    /// The buffers.
    #[inline]
    #[must_use]
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// The parts of a buffer that the device reads.
    #[inline]
    #[must_use]
    pub fn readable(&self, chain: &Chain) -> &[Part] {
        self.range(chain.first..chain.writable)
    }

    /// The parts of a buffer that the device writes.
    #[inline]
    #[must_use]
    pub fn writable(&self, chain: &Chain) -> &[Part] {
        self.range(chain.writable..chain.end)
    }

    #[inline]
    fn range(&self, range: Range<u32>) -> &[Part] {
        self.parts.get(range.start as usize..range.end as usize).unwrap_or_default()
    }

    /// Whether there is no room for further buffers.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= MANY_PARTS
    }

    /// Starts a buffer.
    #[inline]
    pub(super) fn open(&self) -> Open {
        let first = self.parts.len() as u32;
        Open(Chain { id: 0, slots: 0, first, writable: first, end: first, read_len: 0, write_len: 0 })
    }

    /// Makes room.
    #[inline]
    pub(super) fn reserve(&mut self, chains: usize) {
        self.chains.reserve(chains);
        self.parts.reserve(chains);
    }

    /// Adds the only descriptor of an open buffer, which is no table.
    #[inline]
    pub(super) fn push_only(&mut self, open: &mut Open, only: Desc) {
        let chain = &mut open.0;
        chain.end += 1;
        if only.flags & desc::WRITE == 0 {
            chain.writable = chain.end;
            chain.read_len = u64::from(only.len);
        } else {
            chain.write_len = u64::from(only.len);
        }
        self.parts.push(Part { iova: only.addr, len: only.len });
    }

    /// Adds a descriptor to an open buffer, and whether it ends there.
    #[inline]
    pub(super) fn add(&mut self, open: &mut Open, next: Desc, indirect: bool) -> Result<bool, RingError> {
        if next.flags & desc::INDIRECT != 0 {
            if !indirect || next.flags & desc::NEXT != 0 {
                return Err(RingError::StrayTable);
            }
            if next.len == 0 || !next.len.is_multiple_of(DESC as u32) || next.len as usize > MAX_TABLE * DESC {
                return Err(RingError::TableLength(next.len));
            }
            self.tables.push(Table { chain: self.chains.len() as u32, iova: next.addr, len: next.len });
            return Ok(true);
        }
        self.push(&mut open.0, next)?;
        Ok(next.flags & desc::NEXT == 0)
    }

    #[inline]
    fn push(&mut self, chain: &mut Chain, next: Desc) -> Result<(), RingError> {
        if next.flags & desc::WRITE != 0 {
            chain.write_len += u64::from(next.len);
        } else if chain.writable == chain.end {
            chain.writable += 1;
            chain.read_len += u64::from(next.len);
        } else {
            return Err(RingError::Order);
        }
        chain.end += 1;
        self.parts.push(Part { iova: next.addr, len: next.len });
        Ok(())
    }

    /// Ends a buffer.
    #[inline]
    pub(super) fn close(&mut self, open: Open, id: u16, slots: u16) {
        self.chains.push(Chain { id, slots, ..open.0 });
    }

    /// Keeps the first buffers of what was read, if there is any.
    pub(super) fn stop(&mut self, open: &Open, error: RingError) -> Result<(), RingError> {
        self.parts.truncate(open.0.first as usize);
        let chains = self.chains.len() as u32;
        self.tables.retain(|table| table.chain < chains);
        if chains == 0 { Err(error) } else { Ok(()) }
    }

    /// Reads the indirect tables. Entries of a split ring's table are linked.
    #[inline]
    pub(super) fn follow(&mut self, session: &mut Session<'_>, linked: bool) -> Result<(), RingError> {
        if self.tables.is_empty() { Ok(()) } else { self.follow_all(session, linked) }
    }

    fn follow_all(&mut self, session: &mut Session<'_>, linked: bool) -> Result<(), RingError> {
        let tables = std::mem::take(&mut self.tables);
        let mut words = std::mem::take(&mut self.words);
        let mut result = Ok(());
        for table in &tables {
            let number = table.chain as usize;
            let Some(mut chain) = self.chains.get(number).copied() else { break };
            // A chain's parts follow one another.
            let before = chain.first as usize..chain.end as usize;
            let moved = self.parts.len() as u32;
            self.parts.extend_from_within(before);
            (chain.writable, chain.end) = (chain.writable - chain.first + moved, chain.end - chain.first + moved);
            chain.first = moved;
            if let Err(error) = self.read_table(session, &mut chain, table, linked, &mut words) {
                self.parts.truncate(moved as usize);
                self.chains.truncate(number);
                result = if number == 0 { Err(error) } else { Ok(()) };
                break;
            }
            if let Some(place) = self.chains.get_mut(number) {
                *place = chain;
            }
            if self.is_full() {
                self.chains.truncate(number + 1);
                break;
            }
        }
        (self.tables, self.words) = (tables, words);
        result
    }

    fn read_table(
        &mut self,
        session: &mut Session<'_>,
        chain: &mut Chain,
        table: &Table,
        linked: bool,
        words: &mut Vec<[u64; 2]>,
    ) -> Result<(), RingError> {
        let count = table.len as usize / DESC;
        let area = Area::new(table.iova, table.len as usize);
        words.resize(count, [0; 2]);
        match area.direct(session, Access::Read)? {
            Some(slice) => {
                slice.copy_to(&mut words[..]);
            }
            None => area.read(session, 0, zerocopy::IntoBytes::as_mut_bytes(&mut words[..]))?,
        }
        let size = count as u16;
        let mut index = 0;
        for _ in 0..count {
            let next = words.get(usize::from(index)).ok_or(RingError::OutsideTable { index, size })?;
            let next = if linked { Desc::from_words(*next) } else { Desc::from_packed_words(*next).0 };
            if next.flags & desc::INDIRECT != 0 {
                return Err(RingError::StrayTable);
            }
            self.push(chain, next)?;
            index = match linked {
                true if next.flags & desc::NEXT == 0 => return Ok(()),
                true => next.next,
                false => index + 1,
            };
        }
        if linked { Err(RingError::Loop(size)) } else { Ok(()) }
    }
}

/// A buffer that is being read.
#[derive(Debug)]
pub(super) struct Open(Chain);
