// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapped pages of a BAR, if a program has them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use device::Io;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::spec::{DESCRIPTOR_BYTES, PAGE};

/// Pages that the program loads from and stores to at any time.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a>(Option<VolatileSlice<'a>>);

impl<'a> Pages<'a> {
    pub(super) fn of(io: &Io<'a>, bar: usize) -> Pages<'a> {
        Pages(io.windows.get(bar).copied().flatten().map(|window| window.slice()))
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        self.0.is_some()
    }

    /// One of the pages, as far as there is such a one.
    pub(super) fn page(&self, offset: u64) -> Pages<'a> {
        self.part(offset, PAGE as usize)
    }

    #[inline]
    fn part(&self, offset: u64, len: usize) -> Pages<'a> {
        let at = usize::try_from(offset).ok();
        Pages(self.0.as_ref().zip(at).and_then(|(slice, at)| slice.subslice(at, len).ok()))
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        self.0.as_ref()?.get_atomic_ref(usize::try_from(offset).ok()?).ok()
    }

    fn long(&self, offset: u64) -> Option<&AtomicU64> {
        self.0.as_ref()?.get_atomic_ref(usize::try_from(offset).ok()?).ok()
    }

    /// What the program sees.
    pub(super) fn load(&self, offset: u64) -> Option<u32> {
        self.word(offset).map(|word| u32::from_le(word.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Shows `value` unless the program has stored something since `seen` was
    /// there.
    pub(super) fn replace(&self, offset: u64, seen: u32, value: u32) {
        if seen != value
            && let Some(word) = self.word(offset)
        {
            let _ = word.compare_exchange(seen.to_le(), value.to_le(), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// 64 bits of a descriptor.
    pub(super) fn load_long(&self, offset: u64) -> u64 {
        self.long(offset).map_or(0, |long| long.load(Ordering::Acquire))
    }

    /// All of a descriptor, 64 bits at a time, as two looks in a row have found
    /// it: a store of 64 bytes at once may come in between. A place that never
    /// rests is what the last look found.
    pub(super) fn load_place(&self, offset: u64) -> [u64; DESCRIPTOR_BYTES / 8] {
        let place = self.part(offset, DESCRIPTOR_BYTES).0;
        let look = || {
            let mut words = [0; DESCRIPTOR_BYTES / 8];
            if let Some(place) = place {
                place.copy_to(&mut words);
            }
            // This look is over before the next one, and before the place is freed.
            fence(Ordering::Acquire);
            words
        };
        let mut words: [u64; DESCRIPTOR_BYTES / 8] = look();
        for _ in 0..8 {
            let again = look();
            // Comparing arrays is a call.
            let differs = words.iter().zip(&again).fold(0, |bits, (one, other)| bits | one ^ other) != 0;
            words = again;
            if !differs {
                break;
            }
        }
        words
    }

    pub(super) fn store_long(&self, offset: u64, value: u64) {
        if let Some(long) = self.long(offset) {
            long.store(value, Ordering::Release);
        }
    }

    /// Replaces `seen` by `value`; whether it was still there.
    pub(super) fn take_long(&self, offset: u64, seen: u64, value: u64) -> bool {
        self.long(offset)
            .is_some_and(|long| long.compare_exchange(seen, value, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }
}
