// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An I/O address space: which IOVA ranges are mapped to which memory.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use crate::memories::{Memories, Numbers};
use crate::port::Port;
use crate::ports::Ports;
use crate::sync::{Mutex, MutexGuard, lock, try_lock};
use crate::table::{Allocator, Entry, Table};
use crate::{MapError, Mapping, Memory};

/// A set of mappings that devices translate through.
///
/// Mapping and unmapping take `&self`, serialised inside; translation takes
/// no lock. When [`unmap`](Self::unmap) returns, no access through what it
/// removed is under way or can start.
///
/// None of the methods may be called by a thread that has a session open on
/// the space, nor from a method's own callback.
#[derive(Default)]
pub struct AddressSpace {
    table: Table,
    memories: Memories,
    writer: Mutex<Writer>,
}

/// What whoever changes the space holds, the fence included.
#[derive(Default)]
struct Writer {
    allocator: Allocator,
    numbers: Numbers,
    count: usize,
    /// Attached to the space: who may have a session open.
    ports: Ports,
    /// Taken out of the table, not yet fenced.
    removed: Vec<u32>,
    /// Memories that no mapping uses any more.
    dead: Vec<u32>,
}

/// Lists longer than this are given back after use.
const KEEP: usize = 1024;

impl Debug for AddressSpace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("len", &try_lock(&self.writer).map(|writer| writer.count)).finish()
    }
}

impl AddressSpace {
    /// An empty address space.
    #[must_use]
    pub fn new() -> Arc<AddressSpace> {
        Arc::default()
    }

    /// Adds a mapping. The caller checks that it is aligned (API-071); here
    /// any `first <= last` will do.
    pub fn map(&self, mapping: Mapping) -> Result<(), MapError> {
        debug_assert!(mapping.first <= mapping.last);
        let writer = &mut *self.lock();
        if self.entry_from(self.table.floor(mapping.last)).is_some_and(|(_, entry)| entry.last >= mapping.first) {
            return Err(MapError::Overlap);
        }
        let memory = writer.numbers.take(&self.memories, &mapping.memory).ok_or(MapError::NoMemory)?;
        let entry = Entry {
            first: mapping.first,
            last: mapping.last,
            offset: mapping.offset,
            memory,
            prot: mapping.prot,
            tag: mapping.tag,
        };
        if self.add(writer, &entry) {
            return Ok(());
        }
        if writer.numbers.give(memory) {
            writer.numbers.forget(&self.memories, memory);
        }
        Err(MapError::NoMemory)
    }

    /// Removes every mapping that lies wholly inside `first..=last`, in
    /// ascending order, and fences once; then calls `removed` for each.
    pub fn unmap(&self, first: u64, last: u64, removed: &mut dyn FnMut(&Mapping)) {
        let writer = &mut *self.lock();
        let mut next = first;
        while let Some((record, entry)) = self.entry_from(self.table.ceiling(next))
            && entry.last <= last
        {
            self.table.remove(&mut writer.allocator, entry.first);
            writer.count -= 1;
            writer.retire(record, entry.memory);
            if entry.last == last {
                break;
            }
            next = entry.last + 1;
        }
        self.fence(writer, &mut |entry| {
            if let Some(mapping) = self.mapping(entry) {
                removed(&mapping);
            }
        });
    }

    /// The mapping that contains `iova` or, failing that, the next one after it.
    #[must_use]
    pub fn at_or_after(&self, iova: u64) -> Option<Mapping> {
        let _writer = self.lock();
        let (_, entry) = self
            .entry_from(self.table.floor(iova))
            .filter(|(_, entry)| entry.last >= iova)
            .or_else(|| self.entry_from(self.table.ceiling(iova)))?;
        self.mapping(&entry)
    }

    /// Changes tag, memory, offset and rights of the mapping that starts at
    /// `first`; its ends stay. Returns whether there is one. Fences if
    /// anything but the tag changes.
    pub fn update(&self, first: u64, change: &mut dyn FnMut(&mut Mapping)) -> bool {
        let writer = &mut *self.lock();
        let Some((record, old)) = self.entry_from(self.table.floor(first)).filter(|(_, entry)| entry.first == first)
        else {
            return false;
        };
        let Some(mut mapping) = self.mapping(&old) else { return false };
        change(&mut mapping);
        let Some(memory) = writer.numbers.take(&self.memories, &mapping.memory) else { return false };
        let new = Entry { offset: mapping.offset, memory, prot: mapping.prot, tag: mapping.tag, ..old };
        if (Entry { tag: old.tag, ..new }) == old {
            writer.numbers.give(memory);
            self.table.fill(record, &new);
            return true;
        }
        let replaced = self
            .table
            .record(&mut writer.allocator, &new)
            .is_some_and(|record| self.table.insert(&mut writer.allocator, record));
        if replaced {
            writer.retire(record, old.memory);
        } else if writer.numbers.give(memory) {
            writer.dead.push(memory);
        }
        self.fence(writer, &mut |_| ());
        replaced
    }

    /// Makes two mappings, with the same tag, of the one around `iova`: the
    /// second starts there. Returns whether a mapping starts there now.
    /// Devices notice nothing.
    pub fn split_at(&self, iova: u64) -> bool {
        let writer = &mut *self.lock();
        let Some((record, old)) = self.entry_from(self.table.floor(iova)).filter(|(_, entry)| entry.last >= iova)
        else {
            return false;
        };
        if old.first == iova {
            return true;
        }
        let Some(memory) = self.memories.get(old.memory) else { return false };
        let upper = Entry { first: iova, offset: old.offset.wrapping_add(iova - old.first), ..old };
        if writer.numbers.take(&self.memories, &memory).is_none() {
            return false;
        }
        // Until the lower one is cut both cover the upper half, with the same bytes.
        if !self.add(writer, &upper) {
            writer.numbers.give(old.memory);
            return false;
        }
        self.table.fill(record, &Entry { last: iova - 1, ..old });
        true
    }

    /// Number of mappings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the space takes: table, records and lists, not the memory
    /// mapped. What mappings took once is kept for others until the space goes.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        let writer = self.lock();
        size_of::<AddressSpace>()
            + writer.allocator.memory_used()
            + writer.numbers.memory_used()
            + writer.ports.memory_used()
            + (writer.removed.capacity() + writer.dead.capacity()) * size_of::<u32>()
    }

    /// What is mapped at `iova`, for a session.
    #[inline]
    pub(crate) fn translate(&self, iova: u64) -> Option<Entry> {
        self.table.translate(iova)
    }

    /// The memory with a number that `translate` has given in this session.
    pub(crate) fn memory(&self, number: u32) -> Option<Arc<dyn Memory>> {
        self.memories.get(number)
    }

    /// From now on fences wait for the sessions of `port`.
    pub(crate) fn add_port(&self, port: &Arc<Port>) {
        self.lock().ports.add(port);
    }

    /// No session of `port` uses the space any more.
    pub(crate) fn remove_port(&self, port: &Arc<Port>) {
        self.lock().ports.remove(port);
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    fn entry_from(&self, record: Option<u32>) -> Option<(u32, Entry)> {
        let record = record?;
        Some((record, self.table.entry(record)?))
    }

    fn mapping(&self, entry: &Entry) -> Option<Mapping> {
        let Entry { first, last, offset, memory, prot, tag } = *entry;
        Some(Mapping { first, last, prot, memory: self.memories.get(memory)?, offset, tag })
    }

    fn add(&self, writer: &mut Writer, entry: &Entry) -> bool {
        let Some(record) = self.table.record(&mut writer.allocator, entry) else { return false };
        if !self.table.insert(&mut writer.allocator, record) {
            writer.allocator.reuse_record(record);
            return false;
        }
        writer.count += 1;
        true
    }

    /// Waits until no session can use what has been removed, calls `then` for
    /// each, and only then lets go of it.
    fn fence(&self, writer: &mut Writer, then: &mut dyn FnMut(&Entry)) {
        if writer.removed.is_empty() && writer.dead.is_empty() {
            return;
        }
        for port in writer.ports.iter() {
            port.fence(&writer.dead);
        }
        writer.allocator.reuse_nodes();
        for record in writer.removed.drain(..) {
            if let Some(entry) = self.table.entry(record) {
                then(&entry);
            }
            writer.allocator.reuse_record(record);
        }
        for number in writer.dead.drain(..) {
            writer.numbers.forget(&self.memories, number);
        }
        writer.removed.shrink_to(KEEP);
        writer.dead.shrink_to(KEEP);
    }
}

impl Writer {
    fn retire(&mut self, record: u32, memory: u32) {
        self.removed.push(record);
        if self.numbers.give(memory) {
            self.dead.push(memory);
        }
    }
}
