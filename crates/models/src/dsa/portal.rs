// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Portals: where descriptors are stored.
//!
//! A queue has four pages of them: with and without the limit that its
//! threshold is, for MSI-X and for interrupt message storage, of which there
//! is none. A page has 64 places for a descriptor; which one is used makes no
//! difference.
//!
//! A store that traps is a submission as soon as it has filled its place. A
//! page that is mapped is looked at instead: its first eight bytes, which no
//! descriptor that does anything has all zero, say that there is one in a
//! place, and are zeroed when it has been taken. See the crate's description
//! for what that means to a program.

use device::Io;
use zerocopy::FromBytes as _;

use super::pages::Pages;
use super::queue::Answer;
use super::registers::SoftwareError;
use super::spec::{DESCRIPTOR_BYTES, Descriptor, PAGE, PORTAL_BAR, Refusal, field, wqcfg};
use super::{Accelerator, bits};

/// Pages of a queue.
const PORTALS: u64 = 4;
/// Places of a page.
const PLACES: usize = PAGE as usize / DESCRIPTOR_BYTES;
/// Looks at the next place to one at all of them.
const ROUNDS: u32 = 8;
/// The same while the next place has something.
const BUSY_ROUNDS: u32 = 64;
/// Offset in a place of what became of its descriptor.
pub const ANSWER: u64 = 8;

/// A place that is being filled by trapped stores.
#[derive(Debug)]
pub(super) struct Filling {
    /// Offset of the place in the BAR.
    pub(super) place: u64,
    pub(super) bytes: [u8; DESCRIPTOR_BYTES],
}

impl Default for Filling {
    fn default() -> Filling {
        Filling { place: 0, bytes: [0; DESCRIPTOR_BYTES] }
    }
}

/// Queue and portal of an offset in the BAR.
fn split(offset: u64) -> (usize, u64) {
    ((offset / PAGE / PORTALS) as usize, offset / PAGE % PORTALS)
}

/// Whether a portal has the limit of its queue's threshold.
fn is_limited(portal: u64) -> bool {
    portal & 1 != 0
}

/// Forgets what was stored to the mapped portals of a queue.
pub(super) fn clear(io: &Io<'_>, queue: usize) {
    let pages = Pages::of(io, PORTAL_BAR);
    if pages.exist() {
        let start = queue as u64 * PORTALS * PAGE;
        (start..start + PORTALS * PAGE).step_by(DESCRIPTOR_BYTES).for_each(|place| pages.store_long(place, 0));
    }
}

/// Pages have just appeared. While the device did not answer they were full of
/// ones; what the program has stored otherwise is for the next look.
pub(super) fn publish(io: &Io<'_>, queues: usize) {
    let pages = Pages::of(io, PORTAL_BAR);
    if pages.exist() {
        for place in (0..queues as u64 * PORTALS * PAGE).step_by(DESCRIPTOR_BYTES) {
            pages.take_long(place, u64::MAX, 0);
        }
    }
}

impl Accelerator {
    /// A descriptor for a queue.
    pub(super) fn submit(&mut self, io: &Io<'_>, number: usize, limited: bool, mut descriptor: Descriptor) -> Answer {
        let mode = self.wqcfg(number, wqcfg::MODE);
        let dedicated = mode & wqcfg::DEDICATED != 0;
        if dedicated && mode & wqcfg::PASID_ENABLE != 0 {
            // The PASID is the queue's, whatever the descriptor says.
            descriptor.pasid = descriptor.pasid & !0xf_ffff | field(mode, wqcfg::PASID);
        }
        let threshold = self.wqcfg(number, wqcfg::THRESHOLD) as usize;
        let Some(queue) = self.queues.get_mut(number) else { return Answer::Dropped };
        let room = if limited && !dedicated { threshold.min(queue.size) } else { queue.size };
        let refusal = match (queue.enabled, queue.occupancy() < room) {
            (true, true) => None,
            (true, false) => Some(Refusal::Full),
            (false, _) => Some(Refusal::Disabled),
        };
        let answer = match refusal {
            None => {
                queue.waiting.push_back(descriptor);
                Answer::Accepted
            }
            // Who stores to a shared queue is told.
            Some(_) if !dedicated => Answer::Retry,
            Some(_) => Answer::Dropped,
        };
        queue.answer = answer;
        if let (Answer::Dropped, Some(refusal)) = (answer, refusal) {
            let error = SoftwareError { queue: Some(number), descriptor: Some(descriptor), ..refusal.into() };
            self.software_error(io, &error);
        }
        answer
    }

    /// A trapped store.
    pub(super) fn store_portal(&mut self, io: &Io<'_>, offset: u64, data: &[u8]) {
        let size = DESCRIPTOR_BYTES as u64;
        let (place, at) = (offset / size * size, (offset % size) as usize);
        if self.filling.place != place {
            self.filling = Filling { place, ..Filling::default() };
        }
        let Some(to) = self.filling.bytes.get_mut(at..at + data.len()) else { return };
        to.copy_from_slice(data);
        if at + data.len() < DESCRIPTOR_BYTES {
            return;
        }
        let filling = std::mem::take(&mut self.filling);
        let (queue, portal) = split(filling.place);
        if let Ok(descriptor) = Descriptor::read_from_bytes(&filling.bytes) {
            self.submit(io, queue, is_limited(portal), descriptor);
            self.show_queue(io, queue);
        }
    }

    /// A trapped load: behind the first eight bytes of a place stands what
    /// became of the last submission to the queue.
    pub(super) fn load_portal(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (queue, _) = split(offset);
        if let Some(first) = data.first_mut().filter(|_| offset % DESCRIPTOR_BYTES as u64 == ANSWER) {
            *first = self.answer(queue) as u8;
        }
    }

    /// Takes descriptors from the mapped portals of the enabled queues;
    /// whether there were any.
    pub(super) fn scan_portals(&mut self, io: &Io<'_>) -> bool {
        let pages = Pages::of(io, PORTAL_BAR);
        if !pages.exist() {
            return false;
        }
        // The first portal is what everybody uses: the others in turns.
        self.portal = self.portal % (PORTALS - 1) + 1;
        // Who goes round has stored in the next place, who does not in the one
        // before. The others are looked at now and then.
        let rounds = if self.found { BUSY_ROUNDS } else { ROUNDS };
        let quickly = !self.looks.is_multiple_of(rounds);
        let mut found = false;
        // A queue that has no engine is not enabled.
        for number in bits(self.served) {
            if self.queues.get(number).is_some_and(|queue| queue.enabled) {
                found |= self.scan_portal(io, pages, number, 0, quickly);
                found |= self.scan_portal(io, pages, number, self.portal, quickly);
            }
        }
        self.found = found;
        found
    }

    /// Takes descriptors from one page. Not all places are looked at `quickly`.
    fn scan_portal(&mut self, io: &Io<'_>, pages: Pages<'_>, number: usize, portal: u64, quickly: bool) -> bool {
        let page = pages.page((number as u64 * PORTALS + portal) * PAGE);
        let first = self.queues.get(number).map_or(0, |queue| queue.next);
        let is_free = |index: usize| page.load_long((index * DESCRIPTOR_BYTES) as u64) == 0;
        let mut found = false;
        for n in 0..PLACES {
            let index = (first + n) % PLACES;
            if is_free(index) {
                if !quickly {
                    continue;
                }
                let before = (index + PLACES - 1) % PLACES;
                if n > 0 || is_free(before) {
                    break;
                }
                return self.take_if_room(io, page, number, portal, before);
            }
            if !self.take_if_room(io, page, number, portal, index) {
                break;
            }
            found = true;
        }
        found
    }

    /// Takes what is in a place of a page, unless the queue is a dedicated one
    /// and full: then it stays where it is until there is room.
    fn take_if_room(&mut self, io: &Io<'_>, page: Pages<'_>, number: usize, portal: u64, index: usize) -> bool {
        let dedicated = self.wqcfg(number, wqcfg::MODE) & wqcfg::DEDICATED != 0;
        let Some(queue) = self.queues.get_mut(number) else { return false };
        if dedicated && queue.occupancy() >= queue.size {
            return false;
        }
        queue.next = (index + 1) % PLACES;
        self.take_place(io, page, number, portal, (index * DESCRIPTOR_BYTES) as u64);
        true
    }

    fn take_place(&mut self, io: &Io<'_>, page: Pages<'_>, number: usize, portal: u64, place: u64) {
        let words = page.load_place(place);
        let descriptor: Descriptor = zerocopy::transmute!(words);
        let answer = self.submit(io, number, is_limited(portal), descriptor);
        page.store_long(place + ANSWER, answer as u64);
        if !page.take_long(place, words[0], 0) {
            // What is there now is the next one's beginning, or all of it.
            tracing::warn!(target: "vfuse::dsa", queue = number, "a store to a portal came over another one");
            let error = SoftwareError { queue: Some(number), ..Refusal::Overwritten.into() };
            self.software_error(io, &error);
        }
    }
}
