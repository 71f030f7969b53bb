// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of devices that programs pass on by file (Linux: dma-buf), as far as
//! address spaces map them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use caller::Pinned;

/// A buffer. Lives as long as its file or a mapping of it.
#[derive(Debug)]
pub struct DmaBuf {
    /// Bytes.
    pub(crate) size: u64,
    /// What it is: its first byte.
    first: Pinned,
    /// It is one piece, which is what an address space can map (API-212).
    pub(crate) single: bool,
    revoked: AtomicBool,
    /// How often it was taken away.
    losses: AtomicU64,
    /// That it was is to be looked at.
    lost: Arc<AtomicBool>,
}

impl DmaBuf {
    #[cfg(test)]
    pub(crate) fn new(size: u64, memory: Arc<dyn iommu::Memory>) -> Arc<DmaBuf> {
        DmaBuf::of(size, Pinned { memory, offset: 0 }, true, &Arc::default())
    }

    /// A buffer that is not revoked. `lost` is set when it is.
    pub(crate) fn of(size: u64, first: Pinned, single: bool, lost: &Arc<AtomicBool>) -> Arc<DmaBuf> {
        let (revoked, losses) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(DmaBuf { size, first, single, revoked, losses, lost: Arc::clone(lost) })
    }

    /// The memory of the byte at `offset`.
    pub(crate) fn memory(&self, offset: u64) -> Pinned {
        Pinned { memory: Arc::clone(&self.first.memory), offset: self.first.offset.wrapping_add(offset) }
    }

    /// Whether its exporter has taken it away for now.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// How often it was taken away so far. What was mapped before leads nowhere.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Its exporter takes it away, or gives it back. What is mapped of it leads
    /// nowhere from the next [`follow_buffers`](crate::Iommufd::follow_buffers) on.
    pub fn set_revoked(&self, on: bool) {
        if !self.revoked.swap(on, Ordering::Relaxed) && on {
            self.losses.fetch_add(1, Ordering::Relaxed);
            self.lost.store(true, Ordering::Release);
        }
    }
}
