// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packed layout (2.8).

use std::sync::atomic::{Ordering, fence};

use iommu::{Access, DmaFault, Session};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};
use zerocopy::IntoBytes;

use super::area::Area;
use super::batch::{BURST, Batch, Chain};
use super::{Base, RingError, Setup};
use crate::virtio::spec::ring::{DESC, Desc, desc, event, needs_event};
use device::virtio::feature;

/// Offsets in a descriptor.
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;
/// An event suppression structure: slot and wrap counter, then flags.
const EVENT: usize = 4;
const EVENT_FLAGS: usize = 2;
const WRAP: u16 = 1 << 15;

/// How long a device that has found fewer than [`PLENTY`] buffers waits for the
/// next one, in turns of an empty loop (some 100 ns).
const PATIENCE: u32 = 8;
/// Buffers that are worth a batch.
const PLENTY: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Packed {
    size: u16,
    ring: Area,
    /// What the driver wants to be told.
    driver: Area,
    /// What the device wants to be told.
    device: Area,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    /// The next slot to take and to use, which are the same between batches.
    next: Slot,
    /// Whether kicks are suppressed; unknown at first, as memory may say either.
    hushed: Option<bool>,
}

/// A place in the ring.
#[derive(Clone, Copy, Debug)]
struct Slot {
    index: u16,
    wrap: bool,
}

impl Slot {
    #[inline]
    fn forward(self, slots: u16, size: u16) -> Slot {
        // Both are at most 2^15.
        let index = u32::from(self.index) + u32::from(slots);
        match index.checked_sub(u32::from(size)) {
            Some(index) => Slot { index: index as u16, wrap: !self.wrap },
            None => Slot { index: index as u16, wrap: self.wrap },
        }
    }

    #[inline]
    fn at(self) -> usize {
        usize::from(self.index) * DESC
    }

    /// Whether a descriptor with these flags was made available here.
    #[inline]
    fn is_available(self, flags: u16) -> bool {
        (flags & desc::AVAIL != 0) == self.wrap && (flags & desc::USED != 0) != self.wrap
    }

    /// Flags of a used descriptor.
    #[inline]
    fn used(self, written: u32) -> u16 {
        let wrap = if self.wrap { desc::AVAIL | desc::USED } else { 0 };
        if written > 0 { wrap | desc::WRITE } else { wrap }
    }
}

impl Packed {
    pub(super) fn new(setup: &Setup) -> Packed {
        Packed {
            size: setup.size,
            ring: Area::new(setup.desc, usize::from(setup.size) * DESC),
            driver: Area::new(setup.driver, EVENT),
            device: Area::new(setup.device, EVENT),
            indirect: setup.features & feature::INDIRECT_DESC != 0,
            event_idx: setup.features & feature::EVENT_IDX != 0,
            in_order: setup.features & feature::IN_ORDER != 0,
            next: Slot { index: setup.base.index, wrap: setup.base.wrap },
            hushed: None,
        }
    }

    pub(super) fn base(&self) -> Base {
        Base { index: self.next.index, wrap: self.next.wrap }
    }

    #[inline]
    pub(super) fn fetch(&self, session: &mut Session<'_>, batch: &mut Batch, limit: usize) -> Result<(), RingError> {
        let ring = self.ring;
        match ring.direct(session, Access::Read)? {
            Some(slice) if slice.load::<u16>(self.next.at() + FLAGS, Ordering::Relaxed).is_ok() => {
                self.fetch_direct(&slice, batch, limit)
            }
            _ => self.read(batch, limit, false, |slot| {
                let mut words = [0; 2];
                ring.read(session, slot.at(), words.as_mut_bytes())?;
                // In one copy the flags may be newer than the rest.
                if slot.is_available(Desc::from_packed_words(words).0.flags) {
                    fence(Ordering::Acquire);
                    ring.read(session, slot.at(), words.as_mut_bytes())?;
                }
                Ok(words)
            }),
        }
    }

    #[inline]
    fn fetch_direct(&self, slice: &VolatileSlice<'_>, batch: &mut Batch, limit: usize) -> Result<(), RingError> {
        let Ok(table) = slice.get_array_ref::<u64>(0, usize::from(self.size) * 2) else { return Ok(()) };
        self.read(batch, limit, true, |slot| {
            // Slots are below the size. Length, id and flags are one load; the
            // address is not older than the flags.
            let at = usize::from(slot.index) * 2;
            let rest = table.load(at + 1);
            fence(Ordering::Acquire);
            Ok([table.load(at), rest])
        })
    }

    /// Reads what is available. A driver makes the buffers of a burst available
    /// one by one, each in the cache line that the device looks at; so one that
    /// is `patient` lets it write, and gets the burst in one batch.
    #[inline]
    fn read(
        &self,
        batch: &mut Batch,
        limit: usize,
        patient: bool,
        mut load: impl FnMut(Slot) -> Result<[u64; 2], DmaFault>,
    ) -> Result<(), RingError> {
        let (mut at, mut waited) = (self.next, false);
        batch.reserve(limit);
        while batch.chains().len() < limit {
            let mut open = batch.open();
            let chain = match load(at).map(Desc::from_packed_words) {
                Ok((next, _)) if !at.is_available(next.flags) => Ok(None),
                Ok((next, id)) if next.flags & (desc::NEXT | desc::INDIRECT) == 0 => {
                    batch.push_only(&mut open, next);
                    Ok(Some((id, 1)))
                }
                _ => self.walk(at, &mut |slot, head| {
                    let (next, id) = Desc::from_packed_words(load(slot)?);
                    if head && !slot.is_available(next.flags) {
                        return Ok(Step::Empty);
                    }
                    Ok(if batch.add(&mut open, next, self.indirect)? { Step::Last(id) } else { Step::More })
                }),
            };
            match chain {
                Ok(Some((id, slots))) => {
                    batch.close(open, id, slots);
                    at = at.forward(slots, self.size);
                    waited = false;
                }
                Ok(None) if patient && !waited && (1..PLENTY).contains(&batch.chains().len()) => {
                    (0..PATIENCE).for_each(|_| std::hint::spin_loop());
                    waited = true;
                }
                Ok(None) => break,
                Err(error) => return batch.stop(&open, error),
            }
            if batch.is_full() {
                break;
            }
        }
        Ok(())
    }

    /// Visits the slots of a chain; its id and length.
    #[inline]
    fn walk(
        &self,
        head: Slot,
        visit: &mut impl FnMut(Slot, bool) -> Result<Step, RingError>,
    ) -> Result<Option<(u16, u16)>, RingError> {
        let mut slot = head;
        for slots in 1..=self.size {
            match visit(slot, slots == 1)? {
                Step::Empty => return Ok(None),
                Step::Last(id) => return Ok(Some((id, slots))),
                Step::More => slot = slot.forward(1, self.size),
            }
        }
        Err(RingError::Loop(self.size))
    }

    #[inline]
    pub(super) fn complete(
        &mut self,
        session: &mut Session<'_>,
        chains: &[Chain],
        written: &[u32],
    ) -> Result<bool, DmaFault> {
        let Some(slice) = self.ring.direct(session, Access::Write)? else {
            return self.complete_copied(session, chains, written);
        };
        let (next, slots) = match self.in_order && chains.iter().all(|chain| chain.write_len == 0) {
            true => self.store_last(&slice, chains),
            false => self.store_all(&slice, chains, written),
        };
        self.next = next;
        Ok(self.wants_event(session, slots).unwrap_or(true))
    }

    /// Writes a used descriptor for each buffer; where the ring goes on, and the
    /// slots used.
    #[inline]
    fn store_all(&self, slice: &VolatileSlice<'_>, chains: &[Chain], written: &[u32]) -> (Slot, u32) {
        let mut places = [self.next; BURST];
        let (mut at, mut slots) = (self.next, 0_u32);
        for (place, chain) in places.iter_mut().zip(chains) {
            *place = at;
            at = at.forward(chain.slots, self.size);
            slots += u32::from(chain.slots);
        }
        // The driver goes in order, and sees all or none: the first one comes
        // last. Its neighbours come just before: the driver looks at their
        // cache line all the time.
        for ((place, chain), written) in places.iter().zip(chains).zip(written).skip(1).rev() {
            if let Ok(element) = slice.get_ref::<u64>(place.at() + LEN) {
                element.store(used(*written, chain.id, place.used(*written)));
            }
        }
        if let Some((chain, written)) = chains.first().zip(written.first()) {
            self.store_first(slice, chain.id, *written);
        }
        (at, slots)
    }

    /// Writes one used descriptor for buffers that are only read: its id is that
    /// of the last one, and the driver knows their order (2.8.8).
    #[inline]
    fn store_last(&self, slice: &VolatileSlice<'_>, chains: &[Chain]) -> (Slot, u32) {
        let slots: u32 = chains.iter().map(|chain| u32::from(chain.slots)).sum();
        if let Some(last) = chains.last() {
            self.store_first(slice, last.id, 0);
        }
        // At most as many as the ring has.
        (self.next.forward(slots as u16, self.size), slots)
    }

    /// Writes the used descriptor in the next slot, its flags last.
    #[inline]
    fn store_first(&self, slice: &VolatileSlice<'_>, id: u16, written: u32) {
        let at = self.next.at();
        if let (Ok(len), Ok(place)) = (slice.get_ref::<u32>(at + LEN), slice.get_ref::<u16>(at + ID)) {
            len.store(written.to_le());
            place.store(id.to_le());
        }
        let flags = self.next.used(written).to_le();
        if slice.store(flags, at + FLAGS, Ordering::Release).is_err()
            && let Ok(place) = slice.get_array_ref::<u8>(at + FLAGS, 2)
        {
            // Not aligned here: whoever maps a ring so has no atomic flags.
            fence(Ordering::Release);
            place.copy_from(&flags.to_ne_bytes());
        }
    }

    #[cold]
    fn complete_copied(
        &mut self,
        session: &mut Session<'_>,
        chains: &[Chain],
        written: &[u32],
    ) -> Result<bool, DmaFault> {
        let (mut at, mut slots) = (self.next, 0_u32);
        let mut first = None;
        for (chain, written) in chains.iter().zip(written) {
            let element = used(*written, chain.id, at.used(*written)).to_ne_bytes();
            match first {
                None => first = Some(element),
                Some(_) => self.ring.write(session, at.at() + LEN, &element)?,
            }
            at = at.forward(chain.slots, self.size);
            slots += u32::from(chain.slots);
        }
        let (body, flags) = first.as_ref().map_or((&[][..], &[][..]), |first| first.split_at(FLAGS - LEN));
        self.ring.write(session, self.next.at() + LEN, body)?;
        fence(Ordering::Release);
        self.ring.write(session, self.next.at() + FLAGS, flags)?;
        self.next = at;
        Ok(self.wants_event(session, slots).unwrap_or(true))
    }

    /// Whether the driver wants to hear of the `slots` last used.
    #[inline]
    fn wants_event(&self, session: &mut Session<'_>, slots: u32) -> Result<bool, DmaFault> {
        fence(Ordering::SeqCst);
        let wanted = self.driver.load(session, EVENT_FLAGS)?;
        if wanted == event::DISABLE {
            return Ok(false);
        }
        if wanted != event::DESC || !self.event_idx || slots >= u32::from(self.size) {
            return Ok(true);
        }
        let place = self.driver.load(session, 0)?;
        let mut slot = place & !WRAP;
        if (place & WRAP != 0) != self.next.wrap {
            slot = slot.wrapping_sub(self.size);
        }
        Ok(needs_event(slot, self.next.index, self.next.index.wrapping_sub(slots as u16)))
    }

    pub(super) fn listen(&mut self, session: &mut Session<'_>) -> Result<bool, DmaFault> {
        if self.event_idx {
            let wrap = if self.next.wrap { WRAP } else { 0 };
            self.device.store(session, 0, self.next.index | wrap)?;
            self.device.store(session, EVENT_FLAGS, event::DESC)?;
        } else if self.hushed != Some(false) {
            self.device.store(session, EVENT_FLAGS, event::ENABLE)?;
        }
        self.hushed = Some(false);
        fence(Ordering::SeqCst);
        Ok(self.next.is_available(self.ring.load(session, self.next.at() + FLAGS)?))
    }

    pub(super) fn hush(&mut self, session: &mut Session<'_>) -> Result<(), DmaFault> {
        if self.hushed != Some(true) {
            self.device.store(session, EVENT_FLAGS, event::DISABLE)?;
            self.hushed = Some(true);
        }
        Ok(())
    }
}

/// The second word of a used descriptor.
#[inline]
fn used(written: u32, id: u16, flags: u16) -> u64 {
    (u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48).to_le()
}

enum Step {
    /// Nothing is available.
    Empty,
    /// The chain goes on.
    More,
    /// It ends, with its id.
    Last(u16),
}
