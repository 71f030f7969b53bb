// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The selftest's accesses: files by which a program uses an IOAS as a kernel
//! driver would.

use uapi::Errno;
use uapi::iommufd_test::{self as abi, TestCmd};

use crate::context::{Context, ContextId};
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::ioas::Use;
use crate::{Call, Iommufd, Open, PAGE};

/// Longest range that is pinned, read or written in one call.
const LONGEST: u64 = 16 << 20;

impl Iommufd {
    /// Makes an access and its descriptor.
    pub(super) fn test_create_access(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let flags = cmd.u32_at(20);
        if flags & !abi::CREATE_NEEDS_PIN_PAGES != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = call.files.allocate();
        let fd = call.caller.new_handle(file).map_err(|_| Errno::ENOMEM)?;
        let context = self.context_mut(request.context)?;
        let access = match context.create_access(flags != 0) {
            Ok(access) => access,
            Err(error) => {
                call.caller.close(fd);
                return Err(error);
            }
        };
        cmd.set_u32(16, fd.cast_unsigned());
        let attached = context.attach_access(access, cmd.id);
        if let Err(error) = attached.and_then(|()| request.argument.respond(call.caller, cmd)) {
            context.destroy_access(access);
            call.caller.close(fd);
            return Err(error);
        }
        self.get_context(request.context);
        self.files.insert(file, Open::Object(request.context, access));
        Ok(())
    }

    pub(super) fn test_destroy_access_pages(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<(), Errno> {
        let (context, access) = self.test_access(cmd, call)?;
        self.context_mut(context)?.unpin_pages(access, cmd.u32_at(16))
    }

    pub(super) fn test_access_replace_ioas(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<(), Errno> {
        let (context, access) = self.test_access(cmd, call)?;
        self.context_mut(context)?.replace_access(access, cmd.u32_at(16))
    }

    /// Pins a range; each page must be the one at the address, if there is one:
    /// `EBADE`.
    pub(super) fn test_access_pages(
        &mut self,
        request: &Request,
        cmd: &mut TestCmd,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let (flags, mut iova, length, address) = (cmd.u32_at(16), cmd.u64_at(24), cmd.u64_at(32), cmd.u64_at(40));
        if length > LONGEST {
            return Err(Errno::ENOMEM);
        }
        if flags & !(abi::ACCESS_WRITE | abi::ACCESS_SYZ) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (id, access) = self.test_access(cmd, call)?;
        let context = self.context_mut(id)?;
        if !context.access_pins(access) {
            return Err(Errno::EOPNOTSUPP);
        }
        if flags & abi::ACCESS_SYZ != 0 {
            iova = context.nth_area(access, iova);
        }
        let how = if flags & abi::ACCESS_WRITE == 0 { Use::Read } else { Use::Write };
        let (pin, pieces) = context.pin_pages(access, iova, length, how)?;
        let same = || -> Result<(), Errno> {
            if address == 0 {
                return Ok(());
            }
            let start = address.wrapping_sub(iova % PAGE);
            let pages = pieces.iter().map(|piece| piece.length).sum();
            let here = call.caller.mm()?.pin(start, pages, false)?;
            let mut at = 0;
            for piece in &pieces {
                for page in (0..piece.length).step_by(PAGE as usize) {
                    let there = piece.memory.identity(piece.offset.wrapping_add(page));
                    if there.is_none() || there != here.memory.identity(here.offset.wrapping_add(at + page)) {
                        return Err(Errno::EBADE);
                    }
                }
                at += piece.length;
            }
            Ok(())
        };
        cmd.set_u32(20, pin);
        let result = same().and_then(|()| request.argument.respond(call.caller, cmd));
        if result.is_err() {
            let _ = context.unpin_pages(access, pin);
        }
        result
    }

    /// Copies between an IOAS and the caller's memory.
    pub(super) fn test_access_rw(&mut self, cmd: &TestCmd, call: &mut Call<'_>) -> Result<(), Errno> {
        let (mut iova, length, address, flags) = (cmd.u64_at(16), cmd.u64_at(24), cmd.u64_at(32), cmd.u32_at(40));
        if length > LONGEST {
            return Err(Errno::ENOMEM);
        }
        if flags & !(abi::ACCESS_WRITE | abi::RW_SLOW_PATH | abi::ACCESS_SYZ) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (context, access) = self.test_access(cmd, call)?;
        let context = self.context_mut(context)?;
        let mut bytes = vec![0; length as usize];
        let how = if flags & abi::ACCESS_WRITE == 0 { Use::Read } else { Use::Write };
        if how == Use::Write {
            call.caller.read(address, &mut bytes)?;
        }
        if flags & abi::ACCESS_SYZ != 0 {
            iova = context.nth_area(access, iova);
        }
        let slow = flags & abi::RW_SLOW_PATH != 0;
        context.rw(access, iova, &mut bytes, how, slow, call.caller)?;
        if how == Use::Read { call.caller.write(address, &bytes) } else { Ok(()) }
    }

    /// The access whose descriptor a command names: `EBADFD`.
    fn test_access(&self, cmd: &TestCmd, call: &Call<'_>) -> Result<(ContextId, ObjectId), Errno> {
        let file = call.caller.file(cmd.id.cast_signed()).ok().flatten().ok_or(Errno::EBADFD)?;
        let Some(Open::Object(context, id)) = self.files.get(&file) else { return Err(Errno::EBADFD) };
        let kind = self.contexts.get(context).and_then(|context| context.ids.kind(*id));
        if kind == Some(Kind::Access) { Ok((*context, *id)) } else { Err(Errno::EBADFD) }
    }
}

impl Context {
    /// An IOVA as fuzzers give it: in the lower half the number of an area, in
    /// the upper an offset from its start. 0 if there is none.
    fn nth_area(&self, access: ObjectId, iova: u64) -> u64 {
        let (nth, offset) = (iova as u32, iova >> 32);
        let space = self.access_ioas(access).and_then(|ioas| self.ioases.get(&ioas)).map(|ioas| ioas.space());
        let mut next = Some(0);
        let mut areas = std::iter::from_fn(|| {
            let mapping = space?.at_or_after(next?)?;
            next = mapping.last.checked_add(1);
            Some(mapping.first)
        });
        areas.nth(nth as usize).map_or(0, |first| first.wrapping_add(offset))
    }
}
