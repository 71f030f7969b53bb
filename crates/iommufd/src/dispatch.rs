// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which request means what, in the order of checks of iommufd-api.md, 1.3.

use caller::{Caller, Reply};
use uapi::Errno;
use uapi::iommufd::{self as abi, Command};

use crate::context::{Context, ContextId};
use crate::envelope::Argument;
use crate::{Call, Iommufd};

/// What a command works with.
pub(crate) struct Request {
    pub(crate) context: ContextId,
    pub(crate) number: u32,
    pub(crate) argument: Argument,
}

impl Iommufd {
    pub(crate) fn dispatch(
        &mut self,
        context: ContextId,
        number: u32,
        address: u64,
        call: &mut Call<'_>,
    ) -> Result<Reply, Errno> {
        let nr = number as u8;
        if !(abi::BASE..=self.last_nr()).contains(&nr) {
            return self.context_mut(context)?.compat_ioctl(number, address, call.caller);
        }
        let argument = Argument::at(address, call.caller)?;
        let request = Request { context, number, argument };
        match nr {
            0x80 => {
                self.run(&request, call, |s, r, c: &mut abi::Destroy, call| s.destroy(r.context, c.id, call.caller))
            }
            0x81 => self.on_context(&request, call, Context::ioas_alloc),
            0x82 => self.on_context(&request, call, |s, _, c: &mut _, caller| s.ioas_allow_iovas(c, caller)),
            0x83 => self.on_context(&request, call, Context::ioas_copy),
            0x84 => self.on_context(&request, call, Context::ioas_iova_ranges),
            0x85 => self.on_context(&request, call, Context::ioas_map),
            0x86 => self.on_context(&request, call, Context::ioas_unmap),
            0x87 => self.on_context(&request, call, Context::option),
            0x88 => self.on_context(&request, call, Context::vfio_ioas),
            0x89 => self.run(&request, call, Iommufd::hwpt_alloc),
            0x8a => self.run(&request, call, Iommufd::get_hw_info),
            0x8b => self.run(&request, call, Iommufd::hwpt_set_dirty_tracking),
            0x8c => self.run(&request, call, Iommufd::hwpt_get_dirty_bitmap),
            0x8d => self.run(&request, call, Iommufd::hwpt_invalidate),
            0x8e => self.run(&request, call, Iommufd::fault_queue_alloc),
            0x8f => self.run(&request, call, Iommufd::ioas_map_file),
            0x90 => self.run(&request, call, Iommufd::viommu_alloc),
            0x91 => self.run(&request, call, Iommufd::vdevice_alloc),
            0x92 => self.on_context(&request, call, |s, _, c: &mut _, caller| s.ioas_change_process(c, caller)),
            0x93 => self.run(&request, call, Iommufd::veventq_alloc),
            0x94 => self.run(&request, call, Iommufd::hw_queue_alloc),
            0xa0 => {
                // The one call that returns a number.
                let mut value = 0;
                self.run(&request, call, |s, r, c, call| {
                    value = s.test(r, c, call)?;
                    Ok(())
                })?;
                Ok(Reply::Value(value))
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    /// The end of Linux's table: the selftest's number is apart.
    fn last_nr(&self) -> u8 {
        if self.options.selftest { 0xa0 } else { 0x94 }
    }

    fn ioas_map_file(
        &mut self,
        request: &Request,
        cmd: &mut abi::IoasMapFile,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let caller = call.caller;
        let buffers = &self.dma_bufs;
        let buffer = |fd| Ok(caller.file(fd)?.and_then(|file| buffers.get(&file).cloned()));
        let context = self.contexts.get_mut(&request.context).ok_or(Errno::EBADF)?;
        context.ioas_map_file(request, cmd, buffer, caller)
    }

    /// [`run`](Self::run) for a command that needs only the context.
    fn on_context<T: Command>(
        &mut self,
        request: &Request,
        call: &mut Call<'_>,
        command: impl FnOnce(&mut Context, &Request, &mut T, &dyn Caller) -> Result<(), Errno>,
    ) -> Result<Reply, Errno> {
        self.run(request, call, |s, request, value, call| {
            command(s.context_mut(request.context)?, request, value, call.caller)
        })
    }

    /// Checks the request's number, reads the structure and runs the command,
    /// which writes it back itself.
    fn run<T: Command>(
        &mut self,
        request: &Request,
        call: &mut Call<'_>,
        command: impl FnOnce(&mut Iommufd, &Request, &mut T, &mut Call<'_>) -> Result<(), Errno>,
    ) -> Result<Reply, Errno> {
        if request.number != T::REQUEST {
            return Err(Errno::ENOTTY);
        }
        let mut value = request.argument.read::<T>(call.caller)?;
        command(self, request, &mut value, call)?;
        Ok(Reply::Value(0))
    }
}
