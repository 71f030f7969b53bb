// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_VFIO_IOAS`: which IOAS the VFIO calls work on (iommufd-api.md, 12.2).

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::{VfioIoas, vfio_ioas};

use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};

impl Context {
    pub(crate) fn vfio_ioas(
        &mut self,
        request: &Request,
        cmd: &mut VfioIoas,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match cmd.op {
            vfio_ioas::GET => {
                cmd.ioas_id = self.compat_ioas()?.0;
                request.argument.respond(caller, cmd)
            }
            vfio_ioas::SET => {
                self.compat_ioas = Some(self.ids.expect(cmd.ioas_id, Kind::Ioas)?);
                Ok(())
            }
            vfio_ioas::CLEAR => {
                self.compat_ioas = None;
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// The IOAS of the VFIO calls: `ENODEV`.
    pub(crate) fn compat_ioas(&self) -> Result<ObjectId, Errno> {
        self.compat_ioas.ok_or(Errno::ENODEV)
    }
}
