// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_IOVA_RANGES` and `_ALLOW_IOVAS` (iommufd-api.md, section 4).

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::{IoasAllowIovas, IoasIovaRanges, IovaRange};
use zerocopy::IntoBytes;

use crate::backing::{Budget, RANGE};
use crate::context::Context;
use crate::dispatch::Request;
use crate::ioas::Allowed;

/// Where entry `n` of a program's array is.
fn entry(array: u64, n: u32) -> u64 {
    array.wrapping_add(u64::from(n) * size_of::<IovaRange>() as u64)
}

impl Context {
    pub(crate) fn ioas_iova_ranges(
        &mut self,
        request: &Request,
        cmd: &mut IoasIovaRanges,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let ioas = self.ioas(cmd.ioas_id)?;
        let capacity = cmd.num_iovas;
        cmd.num_iovas = 0;
        cmd.out_iova_alignment = ioas.alignment();
        for (start, last) in ioas.holes() {
            if cmd.num_iovas < capacity {
                let range = IovaRange { start, last };
                caller.write(entry(cmd.allowed_iovas, cmd.num_iovas), range.as_bytes())?;
            }
            cmd.num_iovas += 1;
        }
        request.argument.respond(caller, cmd)?;
        if cmd.num_iovas > capacity { Err(Errno::EMSGSIZE) } else { Ok(()) }
    }

    pub(crate) fn ioas_allow_iovas(&mut self, cmd: &IoasAllowIovas, caller: &dyn Caller) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (ioas, backing) = self.ioas_and_backing(cmd.ioas_id)?;
        let mut allowed = Allowed::default();
        let done = read_allowed(&mut allowed, cmd, caller, &backing.budget);
        let done = done.and_then(|()| ioas.set_allowed(&mut allowed));
        // What is left is the old list, or a new one that was refused.
        backing.budget.give(allowed.len() as u64 * RANGE);
        done
    }
}

/// `EFAULT`, `EINVAL`, in the order of the entries.
fn read_allowed(
    allowed: &mut Allowed,
    cmd: &IoasAllowIovas,
    caller: &dyn Caller,
    budget: &Budget,
) -> Result<(), Errno> {
    for n in 0..cmd.num_iovas {
        let mut range = IovaRange::default();
        caller.read(entry(cmd.allowed_iovas, n), range.as_mut_bytes())?;
        if range.start >= range.last {
            return Err(Errno::EINVAL);
        }
        budget.take(RANGE)?;
        allowed.add(range.start, range.last).inspect_err(|_| budget.give(RANGE))?;
    }
    Ok(())
}
