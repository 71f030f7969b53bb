// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of a domain were written.
//!
//! Each place of each port keeps bits of its own ([`Marks`]), so marking costs
//! what an `or` into private memory costs. Whoever wants to know goes through
//! the places like a fence: that ends the writes whose bits it takes, so a page
//! that is then copied holds what was reported, and a later write has a bit of
//! its own. Taking moves whole bitmaps where it can; bits are read, merged and
//! cleared when no place is held. A place that leaves the log hands its bits
//! over.
//!
//! Chunks exist only where something is dirty, and there is a most for all of
//! a log's. Beyond it nothing is lost: the log remembers from where to where it
//! could not record, and says of all in between that it is dirty.

use std::fmt::{self, Debug, Formatter};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use crate::chunk::{Budget, CHUNK, Chunk, Chunks, is_clean, words};
use crate::marks::{Hull, Marks, Taken};
use crate::port::Port;
use crate::ports::Ports;
use crate::report::Report;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Bytes of bitmap that a log keeps at most: as much as 8 TiB of pages have.
const MOST: u64 = 256 << 20;
/// Granules are no larger than 2^40 bytes.
const MOST_SHIFT: u32 = 40;

/// The writes of all requesters that are attached to a [`Domain`](crate::Domain)
/// with this log, by address in the domain's space.
///
/// None of the methods may be called by a thread that has a session open on the
/// domain, nor from a method's own callback.
pub struct DirtyLog {
    shift: u32,
    enabled: AtomicBool,
    budget: Arc<Budget>,
    inner: Mutex<Inner>,
}

/// What whoever asks holds, waiting for sessions included.
#[derive(Default)]
pub(crate) struct Inner {
    ports: Ports,
    bits: Bits,
}

/// Bits that no place has any more.
#[derive(Default)]
pub(crate) struct Bits {
    /// In ascending order, each number once.
    chunks: Vec<(u64, Box<Chunk>)>,
    unrecorded: Hull,
}

impl Debug for DirtyLog {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyLog").field("shift", &self.shift).field("enabled", &self.enabled).finish_non_exhaustive()
    }
}

impl DirtyLog {
    /// A log that is off, of granules of 2^`page_shift` bytes (at most 2^40).
    #[must_use]
    pub fn new(page_shift: u32) -> Arc<DirtyLog> {
        DirtyLog::with_limit(page_shift, MOST)
    }

    /// A log whose bitmaps take no more than `bytes`.
    #[must_use]
    pub fn with_limit(page_shift: u32, bytes: u64) -> Arc<DirtyLog> {
        Arc::new(DirtyLog {
            shift: page_shift.min(MOST_SHIFT),
            enabled: AtomicBool::new(false),
            budget: Arc::new(Budget::new(bytes / size_of::<Chunk>() as u64)),
            inner: Mutex::new(Inner::default()),
        })
    }

    /// Bytes of a granule, as a power of two.
    #[must_use]
    pub fn page_shift(&self) -> u32 {
        self.shift
    }

    /// Turns the log on, with nothing dirty, or off: what is dirty by then stays
    /// so until it is read, unmapped, or the log is turned on again. On return
    /// all writes under way are noted, or none.
    pub fn set_enabled(&self, on: bool) {
        let Inner { ports, bits } = &mut *lock(&self.inner);
        self.enabled.store(on, Ordering::Release);
        if on {
            self.each(ports, &mut |marks| *marks = Some(self.marks()));
            self.forget(bits);
            return;
        }
        let mut taken = Taken::default();
        self.each(ports, &mut |marks| {
            if let Some(mut marks) = marks.take() {
                marks.take(&self.granules(0, u64::MAX), &mut taken);
            }
        });
        self.keep(bits, taken);
        self.budget.trim();
    }

    /// Whether writes are noted.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// `first..=last` was written by somebody who is no requester. Does nothing
    /// while the log is off.
    pub fn mark(&self, first: u64, last: u64) {
        let inner = &mut *lock(&self.inner);
        if !self.is_enabled() {
            return;
        }
        let mut marks = self.marks();
        marks.mark(first, last);
        let mut taken = Taken::default();
        marks.take(&self.granules(first, last), &mut taken);
        self.keep(&mut inner.bits, taken);
    }

    /// `first..=last` is clean again, since it was unmapped: the granules that
    /// lie wholly in it.
    pub fn clear(&self, first: u64, last: u64) {
        let inner = &mut *lock(&self.inner);
        let within = (1 << self.shift) - 1;
        let start = (first >> self.shift) + u64::from(first & within != 0);
        let Some(end) = ((last >> self.shift) + u64::from(last & within == within)).checked_sub(1) else { return };
        let granules = start..=end;
        if granules.is_empty() {
            return;
        }
        self.each(&inner.ports, &mut |marks| {
            if let Some(marks) = marks {
                marks.clear(&granules);
            }
        });
        for (number, chunk) in inner.bits.within(&granules) {
            words(*number, &granules, |word, bits| chunk[word] &= !bits);
        }
        inner.bits.unrecorded.remove(&granules);
    }

    /// Calls `each` with what is dirty in `first..=last`, in ascending order
    /// and each granule once: the address of a first granule, which is a
    /// multiple of 64 granules, and words of which bit `n % 64` of word `n / 64`
    /// is the granule `n` after it. Bits that are not asked for are 0, and what
    /// is left out is clean.
    ///
    /// `clear` clears what was passed on, also if `each` breaks off. Writes under
    /// way when it is called are reported, or else belong to the next time.
    pub fn read(
        &self,
        first: u64,
        last: u64,
        clear: bool,
        each: &mut dyn FnMut(u64, &[u64]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Inner { ports, bits } = &mut *lock(&self.inner);
        let asked = self.granules(first, last);
        let mut taken = Taken::default();
        self.each(ports, &mut |marks| {
            if let Some(marks) = marks {
                marks.take(&asked, &mut taken);
            }
        });
        // The bits of one window and nothing else need not be merged.
        let alone = clear && bits.is_clean() && taken.chunks.is_empty() && taken.unrecorded.get().is_none();
        let window = if alone && taken.windows.len() == 1 { taken.windows.pop() } else { None };
        self.keep(bits, taken);
        let unrecorded = bits.unrecorded.get().cloned();
        let mut report = Report::new(self.shift, asked.clone(), unrecorded, each);
        if let Some((first, mut chunks)) = window {
            let mut clean = true;
            // Others are clean, or the window would not be here.
            let inside = asked.start() >> CHUNK..=asked.end() >> CHUNK;
            for (number, chunk) in (first..).zip(&mut chunks).filter(|(number, _)| inside.contains(number)) {
                clean &= report.chunk(number, chunk) && report.clear(number, chunk);
            }
            let (result, _) = report.finish();
            if clean {
                self.budget.give_many(chunks, true);
            } else {
                self.keep_window(bits, first, chunks);
            }
            return result;
        }
        let start = bits.chunks.partition_point(|(number, _)| *number < asked.start() >> CHUNK);
        let mut clean = bits.chunks.extract_if(start.., |(number, chunk)| {
            report.chunk(*number, chunk) && clear && report.clear(*number, chunk)
        });
        clean.by_ref().for_each(|(_, chunk)| self.budget.give(chunk));
        drop(clean);
        let (result, passed_on) = report.finish();
        if clear && let Some(last) = passed_on {
            bits.unrecorded.remove(&(*asked.start()..=last));
        }
        result
    }

    fn granules(&self, first: u64, last: u64) -> RangeInclusive<u64> {
        first >> self.shift..=last >> self.shift
    }

    /// An empty bitmap for a place.
    pub(crate) fn marks(&self) -> Box<Marks> {
        Box::new(Marks::new(self.shift, self.budget.clone()))
    }

    /// From now on the log asks the places of `port`.
    pub(crate) fn add_port(&self, port: &Arc<Port>) {
        lock(&self.inner).ports.add(port);
    }

    /// No place of `port` has bits of the log any more.
    pub(crate) fn remove_port(&self, port: &Arc<Port>) {
        lock(&self.inner).ports.remove(port);
    }

    /// While `change` runs nobody asks the log. It hands over what places have.
    pub(crate) fn leave(&self, change: impl FnOnce(&mut dyn FnMut(&mut Marks))) {
        let bits = &mut lock(&self.inner).bits;
        let mut taken = Taken::default();
        change(&mut |marks| marks.take(&(0..=u64::MAX >> self.shift), &mut taken));
        self.keep(bits, taken);
    }

    /// Visits the places of all ports that use this log.
    fn each(&self, ports: &Ports, change: &mut dyn FnMut(&mut Option<Box<Marks>>)) {
        for port in ports.iter() {
            port.visit(&mut |state| {
                if let Some(marks) = state.marks_of(self) {
                    change(marks);
                }
            });
        }
    }

    /// Adds what was taken from places to what is kept here.
    fn keep(&self, bits: &mut Bits, taken: Taken) {
        bits.unrecorded.merge(taken.unrecorded);
        bits.chunks.extend(taken.chunks);
        for (first, chunks) in taken.windows {
            self.keep_window(bits, first, chunks);
        }
        if bits.chunks.is_sorted_by(|(a, _), (b, _)| a < b) {
            return;
        }
        bits.chunks.sort_by_key(|(number, _)| *number);
        // One of those with one number.
        let mut kept: Vec<(u64, Box<Chunk>)> = Vec::with_capacity(bits.chunks.len());
        for (number, chunk) in std::mem::take(&mut bits.chunks) {
            match kept.last_mut() {
                Some((last, into)) if *last == number => {
                    into.iter_mut().zip(chunk.iter()).for_each(|(into, word)| *into |= word);
                    self.budget.give(chunk);
                }
                _ => kept.push((number, chunk)),
            }
        }
        bits.chunks = kept;
    }

    /// Keeps the chunks of a window in which something is dirty.
    fn keep_window(&self, bits: &mut Bits, first: u64, mut chunks: Chunks) {
        for (number, chunk) in (first..).zip(&mut chunks) {
            if is_clean(chunk) {
                continue;
            }
            bits.chunks.push((number, self.budget.copy(chunk)));
            chunk.fill(0);
        }
        self.budget.give_many(chunks, true);
    }

    fn forget(&self, bits: &mut Bits) {
        std::mem::take(&mut bits.chunks).into_iter().for_each(|(_, chunk)| self.budget.give(chunk));
        *bits = Bits::default();
    }
}

impl Bits {
    fn is_clean(&self) -> bool {
        self.chunks.is_empty() && self.unrecorded.get().is_none()
    }

    fn within(&mut self, granules: &RangeInclusive<u64>) -> impl Iterator<Item = &mut (u64, Box<Chunk>)> {
        let first = self.chunks.partition_point(|(number, _)| *number < granules.start() >> CHUNK);
        let last = granules.end() >> CHUNK;
        self.chunks.iter_mut().skip(first).take_while(move |(number, _)| *number <= last)
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        self.forget(&mut lock(&self.inner).bits);
    }
}
