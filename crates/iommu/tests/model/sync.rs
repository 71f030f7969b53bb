// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's `sync` for the model checker, with a way to break it.

use std::cell::Cell;
pub(crate) use std::sync::OnceLock;
use std::sync::PoisonError;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};

thread_local! {
    static BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether fences, in tests on this thread, do not wait for open sessions.
pub(crate) fn set_broken(broken: bool) {
    BROKEN.set(broken);
}

/// Few, since the checker counts each atomic.
pub(crate) const FIRST: u32 = 2;
pub(crate) const CHUNKS: usize = 4;
pub(crate) const WINDOW: u64 = 1;

pub(crate) trait Blank: Sized {
    fn blank(count: usize) -> Option<Box<[Self]>>;
}

impl<A: Default, const N: usize> Blank for [A; N] {
    fn blank(count: usize) -> Option<Box<[Self]>> {
        Some((0..count).map(|_| std::array::from_fn(|_| A::default())).collect())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock().ok()
}

pub(crate) fn pass<T>(mutex: &Mutex<T>) {
    drop(lock(mutex));
}

pub(crate) fn visit<T>(mutex: &Mutex<T>, wanted: &AtomicU32, change: impl FnOnce(&mut T)) {
    if BROKEN.get() {
        if let Some(mut guard) = try_lock(mutex) {
            change(&mut guard);
        }
    } else {
        wanted.fetch_add(1, Ordering::Relaxed);
        let mut guard = lock(mutex);
        wanted.fetch_sub(1, Ordering::Relaxed);
        change(&mut guard);
    }
}

pub(crate) fn pause(_: u32) {
    shuttle::thread::yield_now();
}
