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
//! Readers take no lock. What makes that right:
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

const PREFIX: usize = 32;
const OCCUPIED: usize = 34;

/// Bits of an IOVA that a node tells apart.
const DIGIT: u32 = 5;
/// Number of memories that a space can have.
pub(crate) const MEMORIES: u32 = 1 << 30;
/// Set in a reference to a node. Below it are the lowest bit of the node's
/// digit (6 bits) and its index (25 bits). Without it: the index of a record.
/// 0: empty.
const NODE: u32 = 1 << 31;
const INDEX: u32 = 25;

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
    nodes: Arena<Node>,
    records: Arena<Record>,
}

/// The part that belongs to the writer.
#[derive(Debug)]
pub(crate) struct Allocator {
    nodes: Indices,
    records: Indices,
    /// Taken out of the tree, but perhaps still read.
    retired_nodes: Vec<u32>,
}

impl Default for Allocator {
    fn default() -> Allocator {
        Allocator { nodes: Indices::new(0, 1 << INDEX), records: Indices::new(1, 1 << 27), retired_nodes: Vec::new() }
    }
}

impl Allocator {
    /// After a fence: nobody reads the retired nodes any more.
    pub(crate) fn reuse_nodes(&mut self) {
        while let Some(index) = self.retired_nodes.pop() {
            self.nodes.give(index);
        }
    }

    /// After a fence: nobody reads this record any more.
    pub(crate) fn reuse_record(&mut self, record: u32) {
        self.records.give(record);
    }

    pub(crate) fn memory_used(&self) -> usize {
        self.nodes.memory_used::<Node>()
            + self.records.memory_used::<Record>()
            + self.retired_nodes.capacity() * size_of::<u32>()
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

fn shift(reference: u32) -> u32 {
    reference >> INDEX & 63
}

impl Table {
    /// The record that covers `iova`. For sessions.
    #[inline]
    pub(crate) fn translate(&self, iova: u64) -> Option<Entry> {
        // Straight down without a look at prefixes: the record tells whether
        // the way was right.
        let mut at = self.root.load(Ordering::Acquire);
        while at & NODE != 0 {
            at = self.node(at)?[digit(iova, shift(at))].load(Ordering::Acquire);
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
        let record = allocator.records.take(&self.records)?;
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

    /// Puts a record with the key `key` into the tree, in place of one with
    /// the same key if there is one. Returns whether there was memory for it.
    pub(crate) fn insert(&self, allocator: &mut Allocator, key: u64, record: u32) -> bool {
        let mut parent: Option<(&Node, usize)> = None;
        let mut at = self.root.load(Ordering::Relaxed);
        // The node that `at` needs to be under, and what all its keys share.
        let other = loop {
            if at & NODE == 0 {
                break self.entry(at).map(|entry| entry.first);
            }
            let Some(node) = self.node(at) else { return false };
            let (prefix, shift) = (prefix(node), shift(at));
            if above(prefix, shift) != above(key, shift) {
                break Some(prefix);
            }
            let digit = digit(key, shift);
            parent = Some((node, digit));
            at = node[digit].load(Ordering::Relaxed);
        };
        let reference = match other {
            None => record,
            Some(other) if other == key && at & NODE == 0 => record,
            Some(other) => {
                let shift = shift_of((other ^ key).checked_ilog2().unwrap_or(0));
                match self.fork(allocator, shift, (other, at), (key, record)) {
                    Some(reference) => reference,
                    None => return false,
                }
            }
        };
        self.change(|| match parent {
            None => self.root.store(reference, Ordering::Release),
            Some((node, digit)) => {
                node[digit].store(reference, Ordering::Release);
                node[OCCUPIED].store(node[OCCUPIED].load(Ordering::Relaxed) | 1 << digit, Ordering::Release);
            }
        });
        true
    }

    /// Takes the record with the key `key` out of the tree.
    pub(crate) fn remove(&self, allocator: &mut Allocator, key: u64) {
        let mut grandparent: Option<(&Node, usize)> = None;
        let mut parent: Option<(&Node, usize, u32)> = None;
        let mut at = self.root.load(Ordering::Relaxed);
        while at & NODE != 0 {
            let Some(node) = self.node(at) else { return };
            let digit = digit(key, shift(at));
            grandparent = parent.map(|(node, digit, _)| (node, digit));
            parent = Some((node, digit, at));
            at = node[digit].load(Ordering::Relaxed);
        }
        if self.entry(at).is_none_or(|entry| entry.first != key) {
            return;
        }
        let Some((node, digit, reference)) = parent else {
            self.change(|| self.root.store(0, Ordering::Release));
            return;
        };
        let rest = node[OCCUPIED].load(Ordering::Relaxed) & !(1 << digit);
        if !rest.is_power_of_two() {
            self.change(|| {
                node[OCCUPIED].store(rest, Ordering::Release);
                node[digit].store(0, Ordering::Release);
            });
            return;
        }
        // A node is for two: the last child takes its place. Whoever is in
        // the node still finds that child, and the one removed.
        let child = node[rest.ilog2() as usize & 31].load(Ordering::Relaxed);
        self.change(|| match grandparent {
            None => self.root.store(child, Ordering::Release),
            Some((node, digit)) => node[digit].store(child, Ordering::Release),
        });
        allocator.retired_nodes.push(reference & ((1 << INDEX) - 1));
    }

    /// A new node with two children.
    fn fork(&self, allocator: &mut Allocator, shift: u32, a: (u64, u32), b: (u64, u32)) -> Option<u32> {
        let index = allocator.nodes.take(&self.nodes)?;
        let node = self.nodes.get(index)?;
        for slot in node {
            slot.store(0, Ordering::Relaxed);
        }
        let mut occupied = 0;
        for (key, reference) in [a, b] {
            node[digit(key, shift)].store(reference, Ordering::Relaxed);
            occupied |= 1 << digit(key, shift);
        }
        let prefix = above(a.0, shift).checked_shl(span(shift)).unwrap_or(0);
        node[PREFIX].store(prefix as u32, Ordering::Relaxed);
        node[PREFIX + 1].store((prefix >> 32) as u32, Ordering::Relaxed);
        node[OCCUPIED].store(occupied, Ordering::Relaxed);
        Some(NODE | shift << INDEX | index)
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
        self.nodes.get(reference & ((1 << INDEX) - 1))
    }
}

fn prefix(node: &Node) -> u64 {
    u64::from(node[PREFIX].load(Ordering::Relaxed)) | u64::from(node[PREFIX + 1].load(Ordering::Relaxed)) << 32
}
