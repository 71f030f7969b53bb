// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything the crate uses of `std` to work between threads, in one place.
//!
//! The model checker (`tests/model`) compiles the crate's other files against
//! its own version of this one.

use std::sync::PoisonError;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock, RwLock, TryLockError};

use zerocopy::FromZeros;

/// Cells in an arena's first chunk; a power of two.
pub(crate) const FIRST: u32 = 32;
/// Number of an arena's chunks: enough for 2^27 cells.
pub(crate) const CHUNKS: usize = 22;
/// Chunks that a window of a bitmap has at first: 1 GiB of pages.
pub(crate) const WINDOW: u64 = 8;

/// A cell of an arena: all its bytes may be zero.
pub(crate) trait Blank: Sized {
    /// `count` zeroed cells, or nothing if there is no memory for them. The
    /// pages of a large piece cost nothing until they are written to.
    fn blank(count: usize) -> Option<Box<[Self]>>;
}

impl<T: FromZeros> Blank for T {
    fn blank(count: usize) -> Option<Box<[T]>> {
        <[T]>::new_box_zeroed_with_elems(count).ok()
    }
}

/// Locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks unless somebody else has it.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Waits until whoever has the mutex, for a moment, has let go of it.
pub(crate) fn pass<T>(mutex: &Mutex<T>) {
    drop(lock(mutex));
}

/// Waits for whoever has the mutex, perhaps for microseconds, and changes what
/// is in it. `wanted` is not zero while it waits.
pub(crate) fn visit<T>(mutex: &Mutex<T>, wanted: &AtomicU32, change: impl FnOnce(&mut T)) {
    if let Some(mut guard) = try_lock(mutex) {
        return change(&mut guard);
    }
    wanted.fetch_add(1, Ordering::Relaxed);
    let mut guard = wait(mutex);
    wanted.fetch_sub(1, Ordering::Relaxed);
    change(&mut guard);
}

fn wait<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for round in 0..200 {
        if let Some(guard) = try_lock(mutex) {
            return guard;
        }
        pause(round);
    }
    lock(mutex)
}

/// Passes a moment of waiting number `round`.
pub(crate) fn pause(round: u32) {
    if round < 100 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}
