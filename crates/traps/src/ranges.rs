// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is mapped where. Looked into by signal handlers: no locks.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize, Ordering};

use crate::c;

/// A mapped part of a device's file. Free while its length is zero.
struct Range {
    start: AtomicUsize,
    len: AtomicUsize,
    fd: AtomicI32,
    offset: AtomicI64,
}

impl Range {
    const fn free() -> Range {
        Range {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            fd: AtomicI32::new(-1),
            offset: AtomicI64::new(0),
        }
    }
}

static RANGES: [Range; 256] = [const { Range::free() }; 256];

/// Where an address leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    fd: i32,
    offset: i64,
}

/// Adds a range; `false` if there are too many.
pub(crate) fn add(start: usize, len: usize, fd: i32, offset: i64) -> bool {
    for range in &RANGES {
        // Whoever makes the descriptor other than -1 has the range.
        if range.fd.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            range.start.store(start, Ordering::Relaxed);
            range.offset.store(offset, Ordering::Relaxed);
            range.len.store(len, Ordering::Release);
            return true;
        }
    }
    false
}

/// Forgets ranges that lie in there.
pub(crate) fn remove(start: usize, len: usize) {
    for range in &RANGES {
        let (at, own) = (range.start.load(Ordering::Relaxed), range.len.load(Ordering::Acquire));
        if own != 0 && at >= start && at + own <= start.saturating_add(len) {
            range.len.store(0, Ordering::Release);
            let fd = range.fd.swap(-1, Ordering::AcqRel);
            // SAFETY: the descriptor is the range's own.
            unsafe { c::close(fd) };
        }
    }
}

/// What lies at an address.
pub(crate) fn find(address: usize) -> Option<Place> {
    RANGES.iter().find_map(|range| {
        let len = range.len.load(Ordering::Acquire);
        let inside = address.wrapping_sub(range.start.load(Ordering::Relaxed));
        (inside < len).then(|| Place {
            fd: range.fd.load(Ordering::Relaxed),
            offset: range.offset.load(Ordering::Relaxed) + inside as i64,
        })
    })
}

impl Place {
    pub(crate) fn load(self, bytes: &mut [u8]) {
        // SAFETY: the buffer is as long as it says.
        let done = unsafe { c::pread64(self.fd, bytes.as_mut_ptr().cast(), bytes.len(), self.offset) };
        if done != bytes.len() as isize {
            // A bus answers so when nobody is there.
            bytes.fill(0xff);
        }
    }

    /// A store that nobody takes is lost, as on a bus.
    pub(crate) fn store(self, bytes: &[u8]) {
        // SAFETY: the buffer is as long as it says.
        unsafe { c::pwrite64(self.fd, bytes.as_ptr().cast(), bytes.len(), self.offset) };
    }

    /// A place some bytes further on.
    pub(crate) fn plus(self, bytes: i64) -> Place {
        Place { offset: self.offset + bytes, ..self }
    }
}
