// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much of the supervisor's memory programs can make it use. On Linux the
//! memory control group says so, and says `ENOMEM`, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uapi::Errno;

/// What is left for all contexts of a lab. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<AtomicU64>);

/// An area: a record of the address space and its share of the table.
pub(crate) const AREA: u64 = 64;
/// What an area has besides if its pages are shared.
pub(crate) const SHARED: u64 = 512;
/// A reserved or an allowed range.
pub(crate) const RANGE: u64 = 64;
/// An object, and what it comes with.
pub(crate) const OBJECT: u64 = 4096;

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        Budget(Arc::new(AtomicU64::new(bytes)))
    }

    /// `ENOMEM` if there are not so many bytes left.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Errno> {
        let take = |left: u64| left.checked_sub(bytes);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::ENOMEM),
        }
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
