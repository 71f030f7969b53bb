// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which request means what, in the order of checks of iommufd-api.md, 1.3.

use caller::Reply;
use uapi::Errno;
use uapi::iommufd::{self as abi, Command};

use crate::context::ContextId;
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
        if nr < abi::BASE {
            return Err(Errno::ENOTTY);
        }
        let argument = Argument::at(address, call.caller)?;
        let request = Request { context, number, argument };
        match nr {
            0x80 => self.run(&request, call, |s, _, c: &mut abi::Destroy, _| s.destroy(context, c.id)),
            _ => Err(Errno::ENOTTY),
        }
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
