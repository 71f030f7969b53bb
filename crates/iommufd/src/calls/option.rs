// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_OPTION` (iommufd-api.md, section 6).

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::{SetOption, option};

use crate::context::Context;
use crate::dispatch::Request;

impl Context {
    pub(crate) fn option(&mut self, request: &Request, cmd: &mut SetOption, caller: &dyn Caller) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match cmd.option_id {
            option::RLIMIT_MODE => self.option_rlimit_mode(cmd, caller)?,
            option::HUGE_PAGES => self.option_huge_pages(cmd)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        // Nothing but the value, and all of it.
        request.argument.put(caller, std::mem::offset_of!(SetOption, val64), &cmd.val64)
    }

    fn option_rlimit_mode(&mut self, cmd: &mut SetOption, caller: &dyn Caller) -> Result<(), Errno> {
        if cmd.object_id != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match cmd.op {
            option::GET => {
                cmd.val64 = u64::from(self.process_accounting);
                Ok(())
            }
            option::SET => {
                if !self.backing.accounts.may_choose_limit(caller) {
                    return Err(Errno::EPERM);
                }
                if !self.ids.is_empty() {
                    return Err(Errno::EBUSY);
                }
                self.process_accounting = match cmd.val64 {
                    0 => false,
                    1 => true,
                    _ => return Err(Errno::EINVAL),
                };
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn option_huge_pages(&mut self, cmd: &mut SetOption) -> Result<(), Errno> {
        let (ioas, backing) = self.ioas_and_backing(cmd.object_id)?;
        match (cmd.op, cmd.val64) {
            (option::GET, _) => {
                cmd.val64 = u64::from(ioas.huge_pages());
                Ok(())
            }
            (option::SET, 0) => ioas.disable_huge_pages(backing),
            (option::SET, 1) => {
                ioas.enable_huge_pages(backing);
                Ok(())
            }
            (option::SET, _) => Err(Errno::EINVAL),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}
