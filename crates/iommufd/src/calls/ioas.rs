// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_ALLOC`, and the end of an IOAS (iommufd-api.md, section 3).

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::IoasAlloc;

use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::ioas::Ioas;

impl Context {
    pub(crate) fn ioas_alloc(
        &mut self,
        request: &Request,
        cmd: &mut IoasAlloc,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if cmd.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let id = self.add_ioas()?;
        cmd.out_ioas_id = id.0;
        request.argument.respond(caller, cmd).inspect_err(|_| self.destroy_ioas(id))
    }

    /// A new, empty IOAS.
    pub(crate) fn add_ioas(&mut self) -> Result<ObjectId, Errno> {
        let id = self.ids.add(Kind::Ioas)?;
        self.ioases.insert(id, Ioas::new());
        Ok(id)
    }

    /// Unmaps everything and gives the id back. Nobody uses it (IOMMUFD-3.3).
    pub(crate) fn destroy_ioas(&mut self, id: ObjectId) {
        if let Some(ioas) = self.ioases.remove(&id) {
            ioas.release(&mut self.backing);
        }
        if self.compat_ioas == Some(id) {
            self.compat_ioas = None; // IOMMUFD-2.11
        }
        self.ids.remove(id);
    }

    /// The IOAS with an id: `ENOENT`.
    pub(crate) fn ioas(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        let id = self.ids.expect(id, Kind::Ioas)?;
        self.ioases.get_mut(&id).ok_or(Errno::ENOENT)
    }
}
