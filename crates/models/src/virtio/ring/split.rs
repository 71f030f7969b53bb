// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split layout (2.7).

use std::sync::atomic::{Ordering, fence};

use iommu::{Access, DmaFault, Session};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};
use zerocopy::IntoBytes;

use super::area::Area;
use super::batch::{BURST, Batch, Chain};
use super::{Base, RingError, Setup};
use crate::virtio::spec::ring::{DESC, Desc, NO_INTERRUPT, NO_NOTIFY, desc, needs_event};
use device::virtio::feature;

/// Offsets in the available and the used ring.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const RING: usize = 4;
/// Size of an element of the used ring.
const USED: usize = 8;
/// Up to so many bytes of descriptors are copied at once, where they have to
/// be copied: one system call, not one for each.
const COPIED: usize = 1024 * DESC;

#[derive(Clone, Debug)]
pub(super) struct Split {
    size: u16,
    desc: Area,
    avail: Area,
    used: Area,
    indirect: bool,
    event_idx: bool,
    /// Both indexes: what is taken is used.
    next: u16,
    /// The used index when the driver was last considered for an event.
    told: Option<u16>,
    /// Whether kicks are suppressed; unknown at first, as memory may say either.
    hushed: Option<bool>,
}

impl Split {
    pub(super) fn new(setup: &Setup) -> Split {
        let slots = usize::from(setup.size);
        let event_idx = setup.features & feature::EVENT_IDX != 0;
        let event = if event_idx { 2 } else { 0 };
        Split {
            size: setup.size,
            desc: Area::new(setup.desc, slots * DESC),
            avail: Area::new(setup.driver, RING + slots * 2 + event),
            used: Area::new(setup.device, RING + slots * USED + event),
            indirect: setup.features & feature::INDIRECT_DESC != 0,
            event_idx,
            next: setup.base.index,
            told: None,
            hushed: None,
        }
    }

    pub(super) fn base(&self) -> Base {
        Base { index: self.next, wrap: false }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    #[inline]
    fn waiting(&self, session: &mut Session<'_>) -> Result<u16, DmaFault> {
        Ok(self.avail.load(session, INDEX)?.wrapping_sub(self.next))
    }

    #[inline]
    pub(super) fn fetch(&self, session: &mut Session<'_>, batch: &mut Batch, limit: usize) -> Result<(), RingError> {
        let moved = self.waiting(session)?;
        if moved == 0 {
            return Ok(());
        }
        if moved > self.size {
            return Err(RingError::IndexJump { moved, size: self.size });
        }
        let mut heads = [0_u16; BURST];
        let Some(heads) = heads.get_mut(..limit.min(usize::from(moved))) else { return Ok(()) };
        self.read_heads(session, heads)?;
        match self.desc.direct(session, Access::Read)? {
            Some(slice) => self.fetch_direct(&slice, heads, batch),
            None => self.fetch_copied(session, heads, batch),
        }
    }

    #[inline]
    fn read_heads(&self, session: &mut Session<'_>, heads: &mut [u16]) -> Result<(), DmaFault> {
        let first = self.slot(self.next);
        let (now, wrapped) = heads.split_at_mut(heads.len().min(usize::from(self.size) - first));
        if let Some(slice) = self.avail.direct(session, Access::Read)? {
            for (part, slot) in [(now, first), (wrapped, 0)] {
                if let Ok(array) = slice.get_array_ref::<u16>(RING + slot * 2, part.len()) {
                    array.copy_to(part);
                }
            }
        } else {
            self.avail.read(session, RING + first * 2, now.as_mut_bytes())?;
            self.avail.read(session, RING, wrapped.as_mut_bytes())?;
        }
        heads.iter_mut().for_each(|head| *head = u16::from_le(*head));
        Ok(())
    }

    #[inline]
    fn fetch_direct(&self, slice: &VolatileSlice<'_>, heads: &[u16], batch: &mut Batch) -> Result<(), RingError> {
        let Ok(table) = slice.get_array_ref::<[u64; 2]>(0, usize::from(self.size)) else { return Ok(()) };
        // The table has as many entries as `walk` allows.
        self.walk_all(heads, batch, |index| Ok(table.load(usize::from(index))))
    }

    #[cold]
    fn fetch_copied(&self, session: &mut Session<'_>, heads: &[u16], batch: &mut Batch) -> Result<(), RingError> {
        let len = usize::from(self.size) * DESC;
        if len > COPIED {
            return self.walk_all(heads, batch, |index| {
                let mut words = [0; 2];
                self.desc.read(session, usize::from(index) * DESC, words.as_mut_bytes())?;
                Ok(words)
            });
        }
        let mut table = vec![[0_u64; 2]; usize::from(self.size)];
        self.desc.read(session, 0, table.as_mut_bytes())?;
        self.walk_all(heads, batch, |index| Ok(table.get(usize::from(index)).copied().unwrap_or_default()))
    }

    #[inline]
    fn walk_all(
        &self,
        heads: &[u16],
        batch: &mut Batch,
        mut load: impl FnMut(u16) -> Result<[u64; 2], DmaFault>,
    ) -> Result<(), RingError> {
        batch.reserve(heads.len());
        for head in heads {
            let mut open = batch.open();
            let walked = match self.only(*head, &mut load) {
                Some(only) => {
                    batch.push_only(&mut open, only);
                    Ok(())
                }
                None => self.walk(*head, &mut |index| {
                    let next = Desc::from_words(load(index)?);
                    let last = batch.add(&mut open, next, self.indirect)?;
                    Ok((!last).then_some(next.next))
                }),
            };
            if let Err(error) = walked {
                return batch.stop(&open, error);
            }
            batch.close(open, *head, 1);
            if batch.is_full() {
                break;
            }
        }
        Ok(())
    }

    /// The descriptor of a chain that has only one, and no table.
    #[inline]
    fn only(&self, head: u16, load: &mut impl FnMut(u16) -> Result<[u64; 2], DmaFault>) -> Option<Desc> {
        if head >= self.size {
            return None;
        }
        let next = Desc::from_words(load(head).ok()?);
        (next.flags & (desc::NEXT | desc::INDIRECT) == 0).then_some(next)
    }

    /// Visits the descriptors of a chain; each gives the next one.
    #[inline]
    fn walk(&self, head: u16, visit: &mut impl FnMut(u16) -> Result<Option<u16>, RingError>) -> Result<(), RingError> {
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingError::OutsideTable { index, size: self.size });
            }
            match visit(index)? {
                Some(next) => index = next,
                None => return Ok(()),
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
        let mut elements = [[0_u32; 2]; BURST];
        for ((element, chain), written) in elements.iter_mut().zip(chains).zip(written) {
            *element = [u32::from(chain.id).to_le(), written.to_le()];
        }
        let elements = elements.get(..chains.len()).unwrap_or_default();
        let first = self.slot(self.next);
        let (now, wrapped) = elements.split_at(elements.len().min(usize::from(self.size) - first));
        let next = self.next.wrapping_add(chains.len() as u16);
        let stored = match self.used.direct(session, Access::Write)? {
            Some(slice) => {
                for (part, slot) in [(now, first), (wrapped, 0)] {
                    if let Ok(array) = slice.get_array_ref::<[u32; 2]>(RING + slot * USED, part.len()) {
                        array.copy_from(part);
                    }
                }
                slice.store(next.to_le(), INDEX, Ordering::Release).is_ok()
            }
            None => {
                self.used.write(session, RING + first * USED, now.as_bytes())?;
                self.used.write(session, RING, wrapped.as_bytes())?;
                false
            }
        };
        if !stored {
            self.used.store(session, INDEX, next)?;
        }
        self.next = next;
        // The elements are out. Not being able to ask is not a reason to be silent.
        Ok(self.wants_event(session).unwrap_or(true))
    }

    #[inline]
    fn wants_event(&mut self, session: &mut Session<'_>) -> Result<bool, DmaFault> {
        // The driver asks, then looks at the index; here it is the other way round.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(self.avail.load(session, FLAGS)? & NO_INTERRUPT == 0);
        }
        let old = self.told.replace(self.next);
        let event = self.avail.load(session, RING + usize::from(self.size) * 2)?;
        Ok(old.is_none_or(|old| needs_event(event, self.next, old)))
    }

    pub(super) fn listen(&mut self, session: &mut Session<'_>) -> Result<bool, DmaFault> {
        if self.event_idx {
            self.used.store(session, RING + usize::from(self.size) * USED, self.next)?;
        } else if self.hushed != Some(false) {
            self.used.store(session, FLAGS, 0)?;
            self.hushed = Some(false);
        }
        fence(Ordering::SeqCst);
        Ok(self.waiting(session)? != 0)
    }

    pub(super) fn hush(&mut self, session: &mut Session<'_>) -> Result<(), DmaFault> {
        // An event index that is behind asks for nothing.
        if !self.event_idx && self.hushed != Some(true) {
            self.used.store(session, FLAGS, NO_NOTIFY)?;
            self.hushed = Some(true);
        }
        Ok(())
    }
}
