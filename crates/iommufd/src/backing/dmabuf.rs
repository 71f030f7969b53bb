// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of devices that programs pass on by file (Linux: dma-buf), as far as
//! address spaces map them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iommu::Memory;

/// A buffer. Lives as long as its file or a mapping of it.
#[derive(Debug)]
pub(crate) struct DmaBuf {
    /// Bytes.
    pub(crate) size: u64,
    /// What it is; offset 0 is its first byte.
    pub(crate) memory: Arc<dyn Memory>,
    revoked: AtomicBool,
}

impl DmaBuf {
    pub(crate) fn new(size: u64, memory: Arc<dyn Memory>) -> Arc<DmaBuf> {
        Arc::new(DmaBuf { size, memory, revoked: AtomicBool::new(false) })
    }

    /// Whether its exporter has taken it away for now.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    pub(crate) fn set_revoked(&self, on: bool) {
        self.revoked.store(on, Ordering::Relaxed);
    }
}
