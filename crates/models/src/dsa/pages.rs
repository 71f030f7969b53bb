// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapped pages of a BAR, if a program has them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use device::Io;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::spec::DESCRIPTOR_BYTES;

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

    /// All of a descriptor, 64 bits at a time.
    pub(super) fn load_place(&self, offset: u64) -> [u64; DESCRIPTOR_BYTES / 8] {
        let place = self.0.as_ref().zip(usize::try_from(offset).ok());
        let place = place.and_then(|(slice, at)| slice.subslice(at, DESCRIPTOR_BYTES).ok());
        std::array::from_fn(|n| {
            let long = place.as_ref().and_then(|place| place.get_atomic_ref::<AtomicU64>(8 * n).ok());
            long.map_or(0, |long| long.load(Ordering::Acquire))
        })
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
