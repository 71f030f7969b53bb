// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! dma-bufs that the selftest makes, and takes away.

use std::sync::{Arc, Mutex, PoisonError};

use caller::Pinned;
use iommu::{Memory, MemoryFault};
use uapi::Errno;
use uapi::iommufd_test::TestCmd;
use vm_memory::VolatileSlice;

use crate::backing::DmaBuf;
use crate::{Call, Iommufd, PAGE};

/// Longest buffer.
const LONGEST: u64 = 512 * PAGE;

/// A buffer's bytes.
#[derive(Debug)]
struct Bytes(Mutex<Vec<u8>>);

impl Bytes {
    fn with(&self, offset: u64, len: usize, then: impl FnOnce(&mut [u8])) -> Result<(), MemoryFault> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).map_err(|_| MemoryFault)?;
        let part = start.checked_add(len).and_then(|end| bytes.get_mut(start..end));
        part.map(then).ok_or(MemoryFault)
    }
}

impl Memory for Bytes {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.with(offset, to.len(), |bytes| to.copy_from(bytes))
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.with(offset, from.len(), |bytes| {
            from.copy_to(bytes);
        })
    }
}

impl Iommufd {
    /// A new buffer; its descriptor.
    pub(super) fn test_dmabuf_get(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<u64, Errno> {
        let length = u64::from(cmd.u32_at(16)).next_multiple_of(PAGE);
        if length == 0 || length > LONGEST {
            return Err(Errno::EINVAL);
        }
        let file = call.files.allocate();
        let fd = call.caller.new_handle(file)?;
        let memory = Arc::new(Bytes(Mutex::new(vec![0; length as usize])));
        let buffer = DmaBuf::of(length, Pinned { memory, offset: 0 }, true, &self.buffers_lost);
        self.dma_bufs.insert(file, buffer);
        Ok(u64::from(fd.cast_unsigned()))
    }

    /// Takes a buffer away, or gives it back. Both end what is mapped of it, as
    /// both tell importers that it has moved. `EBADF`, `EINVAL` for what is no
    /// buffer.
    pub(super) fn test_dmabuf_revoke(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<(), Errno> {
        let file = call.caller.file(cmd.u32_at(16).cast_signed())?.ok_or(Errno::EINVAL)?;
        let buffer = Arc::clone(self.dma_bufs.get(&file).ok_or(Errno::EINVAL)?);
        buffer.set_revoked(cmd.u32_at(20) != 0);
        for context in self.contexts.values_mut() {
            context.lose_buffer(&buffer);
        }
        Ok(())
    }
}
