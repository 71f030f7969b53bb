// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's side of a virtqueue, split or packed.
//!
//! It keeps descriptors in a free list that it uses from the end, so chains
//! lie scattered in a split ring's table as they do after a while in use.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::TestMemory;
use crate::virtio::ring::{Base, Part, Setup};
use crate::virtio::spec::ring::{DESC, Desc, desc, event, needs_event};
use device::virtio::feature;

/// A virtqueue, as its driver has it. IOVAs are offsets in its memory.
#[derive(Debug)]
pub struct DriverRing {
    memory: Arc<TestMemory>,
    setup: Setup,
    /// Split: free descriptors. Packed: free ids.
    free: Vec<u16>,
    /// Slots that each buffer takes.
    held: BTreeMap<u16, Vec<u16>>,
    /// Slots not in use.
    room: u16,
    /// Split: the available index. Packed: the next slot.
    next: u16,
    wrap: bool,
    /// What is added and not published: packed flags by slot.
    flags: Vec<(u16, u16)>,
    /// The index or slot at the last publication, and slots since.
    published: u16,
    added: u16,
    /// Split: the used index. Packed: the next slot to look at.
    seen: u16,
    seen_wrap: bool,
    /// With IN_ORDER: ids in the order in which they were added, and those
    /// that were returned without a used descriptor of their own.
    order: VecDeque<u16>,
    skipped: VecDeque<u16>,
}

impl DriverRing {
    /// Lays a ring out from `at` on: first the descriptors, then the driver's
    /// area, then the device's, each on a boundary of 64 bytes. Starts at the
    /// setup's base.
    #[must_use]
    pub fn new(memory: Arc<TestMemory>, at: u64, size: u16, features: u64, base: Base) -> DriverRing {
        let round = |len: u64| len.next_multiple_of(64);
        let slots = u64::from(size);
        let packed = features & feature::RING_PACKED != 0;
        let driver = at + round(slots * DESC as u64);
        let device = driver + round(if packed { 4 } else { 6 + 2 * slots });
        let setup = Setup { size, desc: at, driver, device, features, base };
        let zeros = vec![0; (DriverRing::end(&setup) - at) as usize];
        memory.set(at, &zeros);
        let mut ring = DriverRing {
            memory,
            setup,
            free: (0..size).collect(),
            held: BTreeMap::new(),
            room: size,
            next: base.index,
            wrap: base.wrap,
            flags: Vec::new(),
            published: base.index,
            added: 0,
            seen: base.index,
            seen_wrap: base.wrap,
            order: VecDeque::new(),
            skipped: VecDeque::new(),
        };
        if packed {
            // As if all before had been used.
            for slot in 0..size {
                let wrap = base.wrap == (slot < base.index);
                let flags = if wrap { desc::AVAIL | desc::USED } else { 0 };
                ring.set(ring.slot(slot) + 14, &flags.to_le_bytes());
            }
        } else {
            ring.set(driver + 2, &base.index.to_le_bytes());
            ring.set(device + 2, &base.index.to_le_bytes());
        }
        ring.want_events(true);
        ring
    }

    fn end(setup: &Setup) -> u64 {
        setup.device + 6 + 8 * u64::from(setup.size)
    }

    /// What the device is told.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The first IOVA behind the ring.
    #[must_use]
    pub fn after(&self) -> u64 {
        DriverRing::end(&self.setup).next_multiple_of(64)
    }

    /// Slots free.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.room
    }

    /// Adds a buffer, through a table at `table` if one is given. Its id;
    /// `None` if there is no room.
    pub fn add(&mut self, read: &[Part], write: &[Part], table: Option<u64>) -> Option<u16> {
        let parts = read.iter().map(|part| (*part, 0)).chain(write.iter().map(|part| (*part, desc::WRITE)));
        let descs: Vec<Desc> =
            parts.map(|(part, flags)| Desc { addr: part.iova, len: part.len, flags, next: 0 }).collect();
        let slots = if table.is_some() { 1 } else { descs.len() as u16 };
        if slots == 0 || slots > self.room || usize::from(slots) > self.free.len() {
            return None;
        }
        let descs = match table {
            Some(table) => vec![self.write_table(table, &descs)],
            None => descs,
        };
        self.room -= slots;
        self.added += slots;
        let id = if self.is_packed() { self.add_packed(&descs) } else { self.add_split(&descs) };
        if self.is_packed() && self.setup.features & feature::IN_ORDER != 0 {
            self.order.push_back(id);
        }
        Some(id)
    }

    fn write_table(&self, table: u64, descs: &[Desc]) -> Desc {
        for (i, one) in descs.iter().enumerate() {
            let mut one = *one;
            if !self.is_packed() && i + 1 < descs.len() {
                (one.flags, one.next) = (one.flags | desc::NEXT, i as u16 + 1);
            }
            if self.is_packed() {
                (one.flags, one.next) = (0, one.flags);
            }
            self.set_desc(table + (i * DESC) as u64, one);
        }
        Desc { addr: table, len: (descs.len() * DESC) as u32, flags: desc::INDIRECT, next: 0 }
    }

    fn add_split(&mut self, descs: &[Desc]) -> u16 {
        let slots = self.free.split_off(self.free.len() - descs.len());
        for (i, one) in descs.iter().enumerate() {
            let mut one = *one;
            if let Some(next) = slots.get(i + 1) {
                (one.flags, one.next) = (one.flags | desc::NEXT, *next);
            }
            self.set_desc(self.slot(slots[i]), one);
        }
        let head = slots[0];
        let at = self.setup.driver + 4 + 2 * u64::from(self.next % self.setup.size);
        self.set(at, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        self.held.insert(head, slots);
        head
    }

    fn add_packed(&mut self, descs: &[Desc]) -> u16 {
        let id = self.free.pop().unwrap_or_default();
        for (i, one) in descs.iter().enumerate() {
            let wrap = if self.wrap { desc::AVAIL } else { desc::USED };
            let more = if i + 1 < descs.len() { desc::NEXT } else { 0 };
            // The flags are stored when it is published.
            let before = self.get16(self.slot(self.next) + 14);
            self.set_desc(self.slot(self.next), Desc { flags: id, next: before, ..*one });
            self.flags.push((self.next, one.flags | more | wrap));
            (self.next, self.wrap) = self.forward(self.next, self.wrap, 1);
        }
        self.held.insert(id, vec![0; descs.len()]);
        id
    }

    /// Makes what was added available. Whether the device wants a kick.
    pub fn publish(&mut self) -> bool {
        let added = std::mem::take(&mut self.added);
        if self.is_packed() {
            for (slot, flags) in std::mem::take(&mut self.flags).into_iter().rev() {
                self.set(self.slot(slot) + 14, &flags.to_le_bytes());
            }
            let wanted = self.get16(self.setup.device + 2);
            if wanted != event::DESC {
                return added > 0 && wanted == event::ENABLE;
            }
            let place = self.get16(self.setup.device);
            let mut slot = place & 0x7fff;
            if (place & 0x8000 != 0) != self.wrap {
                slot = slot.wrapping_sub(self.setup.size);
            }
            return needs_event(slot, self.next, self.next.wrapping_sub(added));
        }
        self.set(self.setup.driver + 2, &self.next.to_le_bytes());
        let old = std::mem::replace(&mut self.published, self.next);
        if self.setup.features & feature::EVENT_IDX != 0 {
            let event = self.get16(self.setup.device + 4 + 8 * u64::from(self.setup.size));
            return needs_event(event, self.next, old);
        }
        old != self.next && self.get16(self.setup.device) & 1 == 0
    }

    /// Takes a used buffer: its id and the bytes written.
    ///
    /// # Panics
    /// If the device returns what it was not given.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if let Some(id) = self.skipped.pop_front() {
            return Some((id, 0));
        }
        let (id, len, slots) = if self.is_packed() {
            let flags = self.get16(self.slot(self.seen) + 14);
            let (avail, used) = (flags & desc::AVAIL != 0, flags & desc::USED != 0);
            if avail != used || used != self.seen_wrap {
                return None;
            }
            let id = self.get16(self.slot(self.seen) + 12);
            let len = self.get32(self.slot(self.seen) + 8);
            let ids = match self.setup.features & feature::IN_ORDER {
                0 => vec![id],
                _ => self.up_to(id),
            };
            let mut slots = 0;
            for id in &ids {
                slots += self.held.remove(id).unwrap_or_else(|| panic!("buffer {id} was not given")).len() as u16;
                self.free.push(*id);
            }
            (self.seen, self.seen_wrap) = self.forward(self.seen, self.seen_wrap, slots);
            if let [first, skipped @ ..] = &ids[..] {
                self.room += slots;
                self.skipped.extend(skipped);
                return Some((*first, if skipped.is_empty() { len } else { 0 }));
            }
            (id, len, slots)
        } else {
            if self.get16(self.setup.device + 2) == self.seen {
                return None;
            }
            let at = self.setup.device + 4 + 8 * u64::from(self.seen % self.setup.size);
            let (id, len) = (self.get32(at) as u16, self.get32(at + 4));
            let held = self.held.remove(&id).unwrap_or_else(|| panic!("buffer {id} was not given"));
            let slots = held.len() as u16;
            self.seen = self.seen.wrapping_add(1);
            self.free.extend(held);
            (id, len, slots)
        };
        self.room += slots;
        Some((id, len))
    }

    /// All buffers that were added before `id`, and that one.
    fn up_to(&mut self, id: u16) -> Vec<u16> {
        let end = self.order.iter().position(|other| *other == id);
        let end = end.unwrap_or_else(|| panic!("buffer {id} was not given"));
        self.order.drain(..=end).collect()
    }

    /// Whether the driver wants to be told of the next used buffer.
    pub fn want_events(&mut self, on: bool) {
        let event_idx = self.setup.features & feature::EVENT_IDX != 0;
        if self.is_packed() {
            let wrap = if self.seen_wrap { 0x8000 } else { 0 };
            self.set(self.setup.driver, &(self.seen | wrap).to_le_bytes());
            let flags = match on {
                true if event_idx => event::DESC,
                true => event::ENABLE,
                false => event::DISABLE,
            };
            self.set(self.setup.driver + 2, &flags.to_le_bytes());
        } else if event_idx {
            // Behind what is used, no event is wanted.
            let at = if on { self.seen } else { self.seen.wrapping_sub(1) };
            self.set(self.setup.driver + 4 + 2 * u64::from(self.setup.size), &at.to_le_bytes());
        } else {
            self.set(self.setup.driver, &u16::from(!on).to_le_bytes());
        }
    }

    /// Stores the available index as it is given.
    pub fn set_index(&mut self, index: u16) {
        self.set(self.setup.driver + 2, &index.to_le_bytes());
    }

    /// Stores a descriptor as it is given.
    pub fn set_raw(&mut self, slot: u16, words: [u64; 2]) {
        for (i, word) in words.iter().enumerate() {
            self.set(self.slot(slot) + 8 * i as u64, &word.to_ne_bytes());
        }
    }

    fn is_packed(&self) -> bool {
        self.setup.features & feature::RING_PACKED != 0
    }

    fn forward(&self, index: u16, wrap: bool, slots: u16) -> (u16, bool) {
        let next = index + slots;
        if next >= self.setup.size { (next - self.setup.size, !wrap) } else { (next, wrap) }
    }

    fn slot(&self, slot: u16) -> u64 {
        self.setup.desc + u64::from(slot) * DESC as u64
    }

    fn set_desc(&self, at: u64, one: Desc) {
        let [addr, rest] = one.to_words();
        self.set(at, &addr.to_ne_bytes());
        self.set(at + 8, &rest.to_ne_bytes());
    }

    fn set(&self, at: u64, bytes: &[u8]) {
        self.memory.set(at, bytes);
    }

    fn get16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.get(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn get32(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.get(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}
