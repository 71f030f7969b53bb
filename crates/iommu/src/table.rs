// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The translation table: a radix tree over the first IOVAs of the mappings.
//!
//! Each mapping is one [`Record`] and one key, however long it is; a node
//! exists only where two keys part (path compression), so there are fewer
//! nodes than mappings wherever those lie. An IOVA is translated by finding
//! the last key that is not after it, and looking whether the record reaches
//! that far.
//!
//! One writer at a time changes the tree while any number of readers walk it.
//! Readers take no lock. Nodes where pages lie side by side are wide: beside
//! each page's record they hold its translation, so that a walk need not go to
//! the record. What makes all that right:
//!
//! - A record that was reachable when a walk began stays as it was until the
//!   walk's session has ended, because the writer fences before it uses a
//!   record or a node again. So a record that covers the IOVA is an answer.
//! - "Nothing there" is an answer only if no change happened meanwhile, which
//!   [`Table::sequence`] tells; else the walk starts again.

use crate::Prot;
use crate::arena::{Arena, Indices};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, pause};

/// What a mapping is kept as: first, last, offset; then from bit 0 the memory
/// (30 bits), the rights (2 bits) and the owner's tag (32 bits).
type Record = [AtomicU64; 4];
/// Slots, one a digit; prefix (low, high); bit map of the slots in use; spare.
type Node = [AtomicU32; 36];
/// For the slots of a wide node: the translation itself, where the slot's
/// record is exactly as long as the slot (a page among pages) and fits; else
/// 0. Bit 0: set; then rights (2 bits), memory (13), page of the offset (48).
type Pages = [AtomicU64; 32];

const PREFIX: usize = 32;
const OCCUPIED: usize = 34;

/// Bits of an IOVA that a node tells apart.
const DIGIT: u32 = 5;
/// Number of memories that a space can have.
pub(crate) const MEMORIES: u32 = 1 << 30;
/// Set in a reference to a node. Below it are [`WIDE`], the lowest bit of the
/// node's digit (6 bits) and its index (24 bits). Without it: the index of a
/// record. 0: empty.
const NODE: u32 = 1 << 31;
/// Set in a reference to a node with [`Pages`].
const WIDE: u32 = 1 << 30;
const INDEX: u32 = 24;
/// A node of pages becomes wide when it has as many in use as the first, and
/// narrow when it has as few as the second.
const WIDEN: u32 = 8;
const NARROW: u32 = 4;

/// A record's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) offset: u64,
    pub(crate) memory: u32,
    pub(crate) prot: Prot,
    pub(crate) tag: u32,
}

/// The part that readers see.
#[derive(Debug, Default)]
pub(crate) struct Table {
    root: AtomicU32,
    /// Odd while the tree is being changed.
    sequence: AtomicU64,
    records: Arena<Record>,
    narrow: Arena<Node>,
    /// The wide nodes, and their pages under the same index.
    wide: Arena<Node>,
    pages: Arena<Pages>,
}

/// Where a reference stands: a slot of a node, or the root.
type Place = Option<(u32, usize)>;

/// The part that belongs to the writer.
#[derive(Debug)]
pub(crate) struct Allocator {
    records: Indices,
    narrow: Indices,
    wide: Indices,
    /// Taken out of the tree, but perhaps still read.
    retired: Vec<u32>,
}

impl Default for Allocator {
    fn default() -> Allocator {
        Allocator {
            records: Indices::new(1, 1 << 27),
            narrow: Indices::new(0, 1 << INDEX),
            wide: Indices::new(0, 1 << INDEX),
            retired: Vec::new(),
        }
    }
}

impl Allocator {
    /// After a fence: nobody reads the retired nodes any more.
    pub(crate) fn reuse_nodes(&mut self) {
        while let Some(node) = self.retired.pop() {
            self.give(node);
        }
    }

    /// After a fence: nobody reads this record any more.
    pub(crate) fn reuse_record(&mut self, record: u32) {
        self.records.give(record);
    }

    pub(crate) fn memory_used(&self) -> usize {
        self.records.memory_used(size_of::<Record>())
            + self.narrow.memory_used(size_of::<Node>())
            + self.wide.memory_used(size_of::<Node>() + size_of::<Pages>())
            + self.retired.capacity() * size_of::<u32>()
    }

    fn give(&mut self, node: u32) {
        if node & WIDE == 0 { &mut self.narrow } else { &mut self.wide }.give(index(node));
    }
}

/// Lowest bit of the digit that holds `bit`. Digits end below bit 12, so that
/// pages are told apart by as few as possible.
fn shift_of(bit: u32) -> u32 {
    (bit + 3) / DIGIT * DIGIT - if bit < 2 { 0 } else { 3 }
}

/// Number of low bits in which keys under a node can differ.
fn span(shift: u32) -> u32 {
    if shift == 0 { 2 } else { shift + DIGIT }
}

fn above(key: u64, shift: u32) -> u64 {
    key.checked_shr(span(shift)).unwrap_or(0)
}

fn digit(key: u64, shift: u32) -> usize {
    (key >> shift) as usize & 31
}

fn shift(node: u32) -> u32 {
    node >> INDEX & 63
}

fn index(node: u32) -> u32 {
    node & ((1 << INDEX) - 1)
}

/// What stands in [`Pages`] for a record in a slot, or 0.
fn page(entry: &Entry, shift: u32) -> u64 {
    let length = 1 << shift;
    let fits = entry.first & (length - 1) == 0
        && entry.last - entry.first == length - 1
        && entry.offset & 0xfff == 0
        && entry.offset >> 60 == 0
        && entry.memory >> 13 == 0;
    if fits { entry.offset << 4 | u64::from(entry.memory) << 3 | u64::from(entry.prot.bits() & 3) << 1 | 1 } else { 0 }
}

fn entry_of(page: u64, iova: u64, shift: u32) -> Entry {
    let within = (1 << shift) - 1;
    Entry {
        first: iova & !within,
        last: iova | within,
        offset: page >> 4 & !0xfff,
        memory: (page >> 3) as u32 & 0x1fff,
        prot: Prot::from_bits_truncate((page >> 1) as u8),
        tag: 0,
    }
}

impl Table {
    /// The record that covers `iova`. For sessions.
    #[inline]
    pub(crate) fn translate(&self, iova: u64) -> Option<Entry> {
        let mut at = self.root.load(Ordering::Acquire);
        let mut told_apart = 0;
        while at & NODE != 0 {
            let shift = shift(at);
            let node = self.node(at)?;
            // Where the tree has left out bits, they may be others.
            if shift + DIGIT != told_apart && above(prefix(node), shift) != above(iova, shift) {
                return self.translate_slowly(iova);
            }
            if at & WIDE != 0 {
                let page = self.pages.get(index(at))?[digit(iova, shift)].load(Ordering::Acquire);
                if page != 0 {
                    return Some(entry_of(page, iova, shift));
                }
            }
            at = node[digit(iova, shift)].load(Ordering::Acquire);
            told_apart = shift;
        }
        match self.entry(at) {
            Some(entry) if entry.first <= iova && iova <= entry.last => Some(entry),
            _ => self.translate_slowly(iova),
        }
    }

    fn translate_slowly(&self, iova: u64) -> Option<Entry> {
        for round in 0.. {
            let before = self.sequence.load(Ordering::Acquire);
            let found = self.floor(iova).and_then(|record| self.entry(record)).filter(|entry| iova <= entry.last);
            fence(Ordering::Acquire);
            if found.is_some() || (before & 1 == 0 && before == self.sequence.load(Ordering::Relaxed)) {
                return found;
            }
            pause(round);
        }
        None
    }

    /// The record with the greatest first IOVA that is not above `key`.
    pub(crate) fn floor(&self, key: u64) -> Option<u32> {
        let mut left = 0;
        let mut at = self.root.load(Ordering::Acquire);
        loop {
            if at & NODE == 0 {
                return match self.entry(at) {
                    Some(entry) if entry.first <= key => Some(at),
                    _ => self.last_under(left),
                };
            }
            let node = self.node(at)?;
            let (prefix, shift) = (prefix(node), shift(at));
            if above(prefix, shift) != above(key, shift) {
                return self.last_under(if prefix < key { at } else { left });
            }
            let digit = digit(key, shift);
            let below = node[OCCUPIED].load(Ordering::Acquire) & ((1 << digit) - 1);
            if below != 0 {
                left = node[below.ilog2() as usize & 31].load(Ordering::Acquire);
            }
            at = node[digit].load(Ordering::Acquire);
        }
    }

    /// The record with the least first IOVA that is not below `key`.
    pub(crate) fn ceiling(&self, key: u64) -> Option<u32> {
        let mut right = 0;
        let mut at = self.root.load(Ordering::Acquire);
        loop {
            if at & NODE == 0 {
                return match self.entry(at) {
                    Some(entry) if entry.first >= key => Some(at),
                    _ => self.first_under(right),
                };
            }
            let node = self.node(at)?;
            let (prefix, shift) = (prefix(node), shift(at));
            if above(prefix, shift) != above(key, shift) {
                return self.first_under(if prefix > key { at } else { right });
            }
            let digit = digit(key, shift);
            let beyond = node[OCCUPIED].load(Ordering::Acquire) & !1 << digit;
            if beyond != 0 {
                right = node[beyond.trailing_zeros() as usize & 31].load(Ordering::Acquire);
            }
            at = node[digit].load(Ordering::Acquire);
        }
    }

    fn last_under(&self, mut at: u32) -> Option<u32> {
        while at & NODE != 0 {
            let node = self.node(at)?;
            let highest = node[OCCUPIED].load(Ordering::Acquire).checked_ilog2()?;
            at = node[highest as usize & 31].load(Ordering::Acquire);
        }
        (at != 0).then_some(at)
    }

    fn first_under(&self, mut at: u32) -> Option<u32> {
        while at & NODE != 0 {
            let node = self.node(at)?;
            let lowest = node[OCCUPIED].load(Ordering::Acquire).trailing_zeros();
            at = node.get(lowest as usize)?.load(Ordering::Acquire);
        }
        (at != 0).then_some(at)
    }

    /// A record's content; nothing for the empty reference.
    #[inline]
    pub(crate) fn entry(&self, record: u32) -> Option<Entry> {
        if record == 0 {
            return None;
        }
        let [first, last, offset, rest] = self.records.get(record)?;
        let rest = rest.load(Ordering::Relaxed);
        Some(Entry {
            first: first.load(Ordering::Relaxed),
            last: last.load(Ordering::Relaxed),
            offset: offset.load(Ordering::Relaxed),
            memory: rest as u32 & (MEMORIES - 1),
            prot: Prot::from_bits_truncate((rest >> 30) as u8),
            tag: (rest >> 32) as u32,
        })
    }

    /// Makes a record that no reader can see yet.
    pub(crate) fn record(&self, allocator: &mut Allocator, entry: &Entry) -> Option<u32> {
        let record = allocator.records.take(|index| self.records.grow(index))?;
        self.fill(record, entry);
        Some(record)
    }

    /// Changes a record that readers may see: only the tag may differ, or the
    /// last IOVA be lower.
    pub(crate) fn fill(&self, record: u32, entry: &Entry) {
        let Some([first, last, offset, rest]) = self.records.get(record) else { return };
        first.store(entry.first, Ordering::Relaxed);
        last.store(entry.last, Ordering::Relaxed);
        offset.store(entry.offset, Ordering::Relaxed);
        let prot = u64::from(entry.prot.bits() & 3);
        rest.store(u64::from(entry.tag) << 32 | prot << 30 | u64::from(entry.memory), Ordering::Relaxed);
    }

    /// Puts a record into the tree, in place of one with the same first IOVA
    /// if there is one. Returns whether there was memory for it.
    pub(crate) fn insert(&self, allocator: &mut Allocator, record: u32) -> bool {
        let Some(entry) = self.entry(record) else { return false };
        let key = entry.first;
        let (mut above_parent, mut parent): (Place, Place) = (None, None);
        let mut at = self.root.load(Ordering::Relaxed);
        // A key that all under `at` resemble more than they resemble ours.
        let other = loop {
            if at & NODE == 0 {
                break self.entry(at).map(|entry| entry.first);
            }
            let Some(node) = self.node(at) else { return false };
            let (prefix, shift) = (prefix(node), shift(at));
            if above(prefix, shift) != above(key, shift) {
                break Some(prefix);
            }
            above_parent = parent;
            parent = Some((at, digit(key, shift)));
            at = node[digit(key, shift)].load(Ordering::Relaxed);
        };
        match other {
            Some(other) if other != key || at & NODE != 0 => {
                let shift = shift_of((other ^ key).checked_ilog2().unwrap_or(0));
                let Some(node) = self.fork(allocator, shift, (other, at), (key, record)) else { return false };
                self.change(|| self.put(parent, node, 0));
            }
            _ => {
                let page = parent.map_or(0, |(node, _)| page(&entry, shift(node)));
                self.change(|| self.put(parent, record, page));
                if let Some((node, _)) = parent
                    && page != 0
                    && node & WIDE == 0
                    && self.occupied(node).count_ones() >= WIDEN
                {
                    self.replace(allocator, above_parent, node, WIDE);
                }
            }
        }
        true
    }

    /// Takes the record with the first IOVA `key` out of the tree.
    pub(crate) fn remove(&self, allocator: &mut Allocator, key: u64) {
        let (mut above_parent, mut parent): (Place, Place) = (None, None);
        let mut at = self.root.load(Ordering::Relaxed);
        while at & NODE != 0 {
            let Some(node) = self.node(at) else { return };
            above_parent = parent;
            parent = Some((at, digit(key, shift(at))));
            at = node[digit(key, shift(at))].load(Ordering::Relaxed);
        }
        if self.entry(at).is_none_or(|entry| entry.first != key) {
            return;
        }
        let Some((node, digit)) = parent else {
            return self.change(|| self.put(None, 0, 0));
        };
        let rest = self.occupied(node) & !(1 << digit);
        if !rest.is_power_of_two() {
            self.change(|| self.put(parent, 0, 0));
            if node & WIDE != 0 && rest.count_ones() <= NARROW {
                self.replace(allocator, above_parent, node, 0);
            }
            return;
        }
        // A node is for two: the last child takes its place. Whoever is in
        // the node still finds that child, and the one removed.
        let child = self.slot(node, rest.trailing_zeros() as usize);
        self.change(|| self.put(above_parent, child, 0));
        allocator.retired.push(node);
    }

    /// A new narrow node with two children.
    fn fork(&self, allocator: &mut Allocator, shift: u32, a: (u64, u32), b: (u64, u32)) -> Option<u32> {
        let prefix = above(a.0, shift).checked_shl(span(shift)).unwrap_or(0);
        let node = self.node_for(allocator, 0, shift, prefix)?;
        for (key, reference) in [a, b] {
            self.put(Some((node, digit(key, shift))), reference, 0);
        }
        Some(node)
    }

    /// Puts a copy in the place of a node, wide or narrow. If there is no
    /// memory for it the node stays.
    fn replace(&self, allocator: &mut Allocator, place: Place, old: u32, width: u32) {
        let Some(prefix) = self.node(old).map(prefix) else { return };
        let Some(new) = self.node_for(allocator, width, shift(old), prefix) else { return };
        for digit in 0..32 {
            let child = self.slot(old, digit);
            if child != 0 {
                let entry = if child & NODE == 0 { self.entry(child) } else { None };
                let page = entry.map_or(0, |entry| page(&entry, shift(old)));
                self.put(Some((new, digit)), child, page);
            }
        }
        self.change(|| self.put(place, new, 0));
        allocator.retired.push(old);
    }

    /// A node that no reader can see yet.
    fn node_for(&self, allocator: &mut Allocator, width: u32, shift: u32, prefix: u64) -> Option<u32> {
        let index = if width == 0 {
            allocator.narrow.take(|index| self.narrow.grow(index))?
        } else {
            allocator.wide.take(|index| self.wide.grow(index) && self.pages.grow(index))?
        };
        let reference = NODE | width | shift << INDEX | index;
        for (at, word) in self.node(reference)?.iter().enumerate() {
            let value = match at {
                PREFIX => prefix as u32,
                33 => (prefix >> 32) as u32,
                _ => 0,
            };
            word.store(value, Ordering::Relaxed);
        }
        if width != 0 {
            for page in self.pages.get(index)? {
                page.store(0, Ordering::Relaxed);
            }
        }
        Some(reference)
    }

    /// Stores a reference, and what stands for it among the pages.
    fn put(&self, place: Place, reference: u32, page: u64) {
        let Some((node, digit)) = place else {
            return self.root.store(reference, Ordering::Release);
        };
        let occupied = self.occupied(node) & !(1 << digit) | u32::from(reference != 0) << digit;
        if let Some(words) = self.node(node) {
            words[digit & 31].store(reference, Ordering::Release);
            words[OCCUPIED].store(occupied, Ordering::Release);
        }
        if node & WIDE != 0
            && let Some(pages) = self.pages.get(index(node))
        {
            pages[digit & 31].store(page, Ordering::Release);
        }
    }

    fn occupied(&self, node: u32) -> u32 {
        self.node(node).map_or(0, |words| words[OCCUPIED].load(Ordering::Relaxed))
    }

    fn slot(&self, node: u32, digit: usize) -> u32 {
        self.node(node).map_or(0, |words| words[digit & 31].load(Ordering::Relaxed))
    }

    fn change(&self, stores: impl FnOnce()) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        stores();
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    #[inline]
    fn node(&self, reference: u32) -> Option<&Node> {
        if reference & WIDE == 0 { &self.narrow } else { &self.wide }.get(index(reference))
    }
}

fn prefix(node: &Node) -> u64 {
    u64::from(node[PREFIX].load(Ordering::Relaxed)) | u64::from(node[PREFIX + 1].load(Ordering::Relaxed)) << 32
}
