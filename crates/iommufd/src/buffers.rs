// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of devices as files (Linux: dma-buf), and what becomes of their
//! mappings when they are taken away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use caller::{Caller, FileIds, Pinned};
use uapi::Errno;

use crate::Iommufd;
use crate::backing::{DmaBuf, PagesOrigin};
use crate::context::Context;

impl Iommufd {
    /// A descriptor for a buffer of `size` bytes that begins at `first`;
    /// `single` if it is one piece. `EMFILE`.
    pub fn export(
        &mut self,
        size: u64,
        first: Pinned,
        single: bool,
        caller: &dyn Caller,
        files: &mut FileIds,
    ) -> Result<(i32, Arc<DmaBuf>), Errno> {
        let file = files.allocate();
        let fd = caller.new_handle(file)?;
        let buffer = DmaBuf::of(size, first, single, &self.buffers_lost);
        self.dma_bufs.insert(file, Arc::clone(&buffer));
        Ok((fd, buffer))
    }

    /// Buffers may have been taken away: what was mapped of them before leads
    /// nowhere at the return, though they may be there again (IOMMUFD-5.11).
    pub fn follow_buffers(&mut self) {
        if self.buffers_lost.swap(false, Ordering::Acquire) {
            for context in self.contexts.values_mut() {
                context.lose_pages(|buffer, losses| buffer.losses() != losses);
            }
        }
    }
}

impl Context {
    /// What is mapped of a buffer leads nowhere any more (IOMMUFD-5.11).
    pub(crate) fn lose_buffer(&mut self, which: &Arc<DmaBuf>) {
        self.lose_pages(|buffer, _| Arc::ptr_eq(buffer, which));
    }

    /// The same for the buffers that are lost, by how often they had been when
    /// they were mapped.
    fn lose_pages(&mut self, is_lost: impl Fn(&Arc<DmaBuf>, u64) -> bool) {
        let mut lost_pages = Vec::new();
        for (id, pages) in &mut self.backing.pages {
            if let PagesOrigin::DmaBuf { buffer, lost, losses } = &mut pages.origin
                && !*lost
                && is_lost(buffer, *losses)
            {
                *lost = true;
                lost_pages.push(*id);
            }
        }
        if lost_pages.is_empty() {
            return;
        }
        for ioas in self.ioases.values_mut() {
            ioas.revoke(&lost_pages, &mut self.backing);
        }
    }
}
