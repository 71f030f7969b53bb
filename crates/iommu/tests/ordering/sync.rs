// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The crate's `sync` for loom, with a way to break it.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool as StdAtomicBool;

pub(crate) use loom::sync::RwLock;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Whether fences do not wait for places that are just being added.
pub(crate) static BROKEN: StdAtomicBool = StdAtomicBool::new(false);

/// A mutex that loom sees being found locked: by itself it tries no order in
/// which `try_lock` fails. The flag orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    locked: AtomicBool,
    inner: loom::sync::Mutex<T>,
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    locked: &'a AtomicBool,
    inner: loom::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex { locked: AtomicBool::new(false), inner: loom::sync::Mutex::new(value) }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.locked.store(false, Ordering::Relaxed);
    }
}

/// A cell whose publication loom sees.
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    full: AtomicBool,
    inner: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> OnceLock<T> {
        OnceLock { full: AtomicBool::new(false), inner: std::sync::OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.full.load(Ordering::Acquire) { self.inner.get() } else { None }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let result = self.inner.set(value);
        self.full.store(true, Ordering::Release);
        result
    }

    /// Under a lock, so that no two are at it.
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if self.get().is_none() {
            assert!(self.set(make()).is_ok());
        }
        self.inner.get().expect("set")
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> OnceLock<T> {
        OnceLock::new()
    }
}

/// Few, since loom counts each atomic.
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
    let inner = mutex.inner.lock().unwrap_or_else(PoisonError::into_inner);
    mutex.locked.store(true, Ordering::Relaxed);
    MutexGuard { locked: &mutex.locked, inner }
}

pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    (!mutex.locked.load(Ordering::Relaxed)).then(|| lock(mutex))
}

pub(crate) fn pass<T>(mutex: &Mutex<T>) {
    if !BROKEN.load(Ordering::Relaxed) {
        drop(lock(mutex));
    }
}

pub(crate) fn visit<T>(mutex: &Mutex<T>, _: &AtomicU32, change: impl FnOnce(&mut T)) {
    change(&mut lock(mutex));
}

pub(crate) fn pause(_: u32) {
    loom::thread::yield_now();
}
