// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of a domain were written.
//!
//! Each place of each port keeps bits of its own ([`Marks`]), so marking costs
//! what an `or` into private memory costs. Whoever wants to know goes through
//! the places like a fence: that ends the writes whose bits it takes, so a page
//! that is then copied holds what was reported, and a later write has a bit of
//! its own. Taking moves a chunk's box; no bit is looked at while a place is
//! held. A place that leaves the log hands its bits over.
//!
//! Chunks exist only where something is dirty, and there is a most for all of
//! a log's. Beyond it nothing is lost: the log remembers from where to where it
//! could not record, and says of all in between that it is dirty.

use std::fmt::{self, Debug, Formatter};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use crate::chunk::{Budget, CHUNK, Chunk, WORD, WORDS, covers, words};
use crate::marks::{Hull, Marks};
use crate::port::{Port, State};
use crate::ports::Ports;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// Bytes of bitmap that a log keeps at most: as much as 2 TiB of pages have.
const MOST: u64 = 64 << 20;
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

    /// Turns the log on, with nothing dirty, or off, which frees the bitmaps. On
    /// return all writes under way are noted, or none.
    pub fn set_enabled(&self, on: bool) {
        let inner = &mut *lock(&self.inner);
        self.enabled.store(on, Ordering::Release);
        self.each(inner, &mut |state, _| state.set_marks(on.then(|| self.marks())));
        self.forget(&mut inner.bits);
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
        self.collect(&mut inner.bits, &mut marks, &self.granules(first, last));
        self.settle(&mut inner.bits);
    }

    /// `first..=last` is clean again, since it was unmapped: the granules that
    /// lie wholly in it.
    pub fn clear(&self, first: u64, last: u64) {
        let inner = &mut *lock(&self.inner);
        if !self.is_enabled() {
            return;
        }
        let within = (1 << self.shift) - 1;
        let start = (first >> self.shift) + u64::from(first & within != 0);
        let Some(end) = ((last >> self.shift) + u64::from(last & within == within)).checked_sub(1) else { return };
        let granules = start..=end;
        if granules.is_empty() {
            return;
        }
        self.each(inner, &mut |state, _| {
            if let Some(marks) = state.marks_mut() {
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
        let inner = &mut *lock(&self.inner);
        let granules = self.granules(first, last);
        self.each(inner, &mut |state, bits| {
            if let Some(marks) = state.marks_mut() {
                self.collect(bits, marks, &granules);
            }
        });
        self.settle(&mut inner.bits);
        self.report(&mut inner.bits, &granules, clear, each)
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
        change(&mut |marks| self.collect(bits, marks, &(0..=u64::MAX >> self.shift)));
        self.settle(bits);
    }

    /// Visits the places of all ports that use this log.
    fn each(&self, inner: &mut Inner, change: &mut dyn FnMut(&mut State, &mut Bits)) {
        let Inner { ports, bits } = inner;
        for port in ports.iter() {
            port.visit(&mut |state| {
                if state.uses_log(self) {
                    change(state, bits);
                }
            });
        }
    }

    fn collect(&self, bits: &mut Bits, marks: &mut Marks, granules: &RangeInclusive<u64>) {
        marks.take(granules, &mut bits.chunks, &mut bits.unrecorded);
    }

    /// After [`collect`](Self::collect): makes one of the chunks with one number.
    fn settle(&self, bits: &mut Bits) {
        if bits.chunks.is_sorted_by(|(a, _), (b, _)| a < b) {
            return;
        }
        bits.chunks.sort_by_key(|(number, _)| *number);
        let before = bits.chunks.len();
        bits.chunks.dedup_by(|(number, chunk), (kept, into)| {
            let same = number == kept;
            if same {
                into.iter_mut().zip(chunk.iter()).for_each(|(into, word)| *into |= word);
            }
            same
        });
        self.budget.give(before - bits.chunks.len());
    }

    fn forget(&self, bits: &mut Bits) {
        self.budget.give(bits.chunks.len());
        *bits = Bits::default();
    }

    fn report(
        &self,
        bits: &mut Bits,
        granules: &RangeInclusive<u64>,
        clear: bool,
        each: &mut dyn FnMut(u64, &[u64]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Bits { chunks, unrecorded } = bits;
        let end = granules.end() >> CHUNK;
        let mut number = granules.start() >> CHUNK;
        let mut index = chunks.partition_point(|(chunk, _)| *chunk < number);
        let mut result = ControlFlow::Continue(());
        // What has been passed on.
        let mut until = None;
        let hull = unrecorded.get().cloned();
        while result.is_continue() {
            let chunk = chunks.get_mut(index).map(|(number, chunk)| (*number, &mut **chunk));
            let unknown = hull.as_ref().and_then(|hull| next_in(hull, number));
            number = match (&chunk, unknown) {
                (Some((chunk, _)), Some(unknown)) => unknown.min(*chunk),
                (Some((chunk, _)), None) => *chunk,
                (None, Some(unknown)) => unknown,
                (None, None) => break,
            };
            if number > end {
                break;
            }
            let chunk = chunk.and_then(|(at, chunk)| (at == number).then_some(chunk));
            index += usize::from(chunk.is_some());
            let whole = covers(number, granules);
            let unknown = hull.as_ref().filter(|_| unknown == Some(number));
            let mut own = [0; WORDS];
            let shown = match &chunk {
                Some(chunk) if whole && unknown.is_none() => &**chunk,
                _ => {
                    words(number, granules, |word, bits| {
                        own[word] = chunk.as_ref().map_or(0, |chunk| chunk[word]) & bits;
                    });
                    if let Some(unknown) = unknown {
                        words(number, unknown, |word, bits| own[word] |= bits);
                        // Those asked for among them.
                        let mut asked = [0; WORDS];
                        words(number, granules, |word, bits| asked[word] = bits);
                        own.iter_mut().zip(asked).for_each(|(word, asked)| *word &= asked);
                    }
                    &own
                }
            };
            if let Some(from) = shown.iter().position(|word| *word != 0) {
                let to = shown.iter().rposition(|word| *word != 0).unwrap_or(from);
                let granule = (number << CHUNK) + ((from as u64) << WORD);
                result = each(granule << self.shift, &shown[from..=to]);
            }
            if clear && let Some(chunk) = chunk {
                words(number, granules, |word, bits| chunk[word] &= !bits);
            }
            until = Some(number);
            number += 1;
        }
        if clear {
            // If `each` broke off, what comes after the last chunk is not clear.
            let last = match (result, until) {
                (ControlFlow::Continue(()), _) => Some(*granules.end()),
                (_, Some(number)) => Some(granules.end().min(&(number << CHUNK | ((1 << CHUNK) - 1))).to_owned()),
                _ => None,
            };
            if let Some(last) = last {
                unrecorded.remove(&(*granules.start()..=last));
            }
            let before = chunks.len();
            chunks.retain(|(_, chunk)| chunk.iter().any(|word| *word != 0));
            self.budget.give(before - chunks.len());
        }
        result
    }
}

/// The first chunk not before `number` that has granules in `hull`.
fn next_in(hull: &RangeInclusive<u64>, number: u64) -> Option<u64> {
    let number = number.max(hull.start() >> CHUNK);
    (number <= hull.end() >> CHUNK).then_some(number)
}

impl Bits {
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
