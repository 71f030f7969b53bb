// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for table nodes and records: cells that are named by an index, never
//! move and are never given back, so that they can be read without a lock.
//!
//! Cells live in chunks, each twice as large as the one before.

use crate::sync::{Blank, CHUNKS, FIRST, OnceLock};

#[derive(Debug)]
pub(crate) struct Arena<T> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
}

impl<T> Default for Arena<T> {
    fn default() -> Arena<T> {
        Arena { chunks: std::array::from_fn(|_| OnceLock::new()) }
    }
}

impl<T: Blank> Arena<T> {
    /// The cell `index`, if there is memory for it.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (chunk, offset) = place(index)?;
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// Finds memory for the cell `index`. Whether there is some.
    pub(crate) fn grow(&self, index: u32) -> bool {
        let Some((chunk, offset)) = place(index) else { return false };
        let Some(slot) = self.chunks.get(chunk) else { return false };
        if slot.get().is_none() {
            let Some(cells) = T::blank((FIRST as usize) << chunk) else { return false };
            let _ = slot.set(cells);
        }
        slot.get().is_some_and(|cells| offset < cells.len())
    }
}

/// Chunk, and offset in it, of a cell.
#[inline]
fn place(index: u32) -> Option<(usize, usize)> {
    let number = index.checked_add(FIRST)?;
    let chunk = number.ilog2() - FIRST.ilog2();
    Some((chunk as usize, (number - (FIRST << chunk)) as usize))
}

/// Hands out the indices of arenas, lowest first; those given back
/// before new ones.
#[derive(Debug)]
pub(crate) struct Indices {
    free: Vec<u32>,
    fresh: u32,
    end: u32,
}

impl Indices {
    /// Indices from `first` to `end - 1`.
    pub(crate) fn new(first: u32, end: u32) -> Indices {
        Indices { free: Vec::new(), fresh: first, end }
    }

    /// An index; for a new one, if `grow` finds memory for it.
    pub(crate) fn take(&mut self, grow: impl FnOnce(u32) -> bool) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.fresh == self.end || !grow(self.fresh) {
            return None;
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    /// Takes an index back.
    pub(crate) fn give(&mut self, index: u32) {
        self.free.push(index);
    }

    /// Bytes of the cells, `each` so large, that were ever in use, and of the list.
    pub(crate) fn memory_used(&self, each: usize) -> usize {
        self.fresh as usize * each + self.free.capacity() * size_of::<u32>()
    }
}
