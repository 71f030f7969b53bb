// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `HWPT_INVALIDATE` (IOMMUFD-11.1 to 11.5).

use uapi::Errno;
use uapi::iommufd::HwptInvalidate;

use crate::context::Context;
use crate::dispatch::Request;
use crate::driver::Entries;
use crate::hwpt::Form;
use crate::ids::{Kind, ObjectId};
use crate::{Call, Iommufd};

/// Most entries of a call.
const MOST: u32 = 1 << 19;
/// Longest entry.
const PAGE: u32 = 4096;

impl Iommufd {
    /// `IOMMU_HWPT_INVALIDATE`. The structure is written back whatever comes:
    /// `entry_num` says how many were handled.
    pub(crate) fn hwpt_invalidate(
        &mut self,
        request: &Request,
        cmd: &mut HwptInvalidate,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let mut done = 0;
        let result = self.context_mut(request.context).and_then(|context| context.invalidate(cmd, call, &mut done));
        cmd.entry_num = done;
        request.argument.respond(call.caller, cmd)?;
        result
    }
}

impl Context {
    fn invalidate(&mut self, cmd: &HwptInvalidate, call: &Call<'_>, done: &mut u32) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if cmd.entry_num != 0
            && (cmd.data_uptr == 0 || cmd.entry_len == 0 || cmd.entry_len > PAGE || cmd.entry_num > MOST)
        {
            return Err(Errno::EINVAL);
        }
        let id = ObjectId(cmd.hwpt_id);
        let mut entries = Entries {
            kind: cmd.data_type,
            address: cmd.data_uptr,
            len: cmd.entry_len,
            count: cmd.entry_num,
            done: 0,
            caller: call.caller,
        };
        let result = match self.ids.kind(id).ok_or(Errno::ENOENT)? {
            Kind::HwptNested => match self.hwpts.get_mut(&id).map(|hwpt| &mut hwpt.form) {
                Some(Form::Nested { table, .. }) => table.invalidate(&mut entries),
                _ => Err(Errno::EINVAL),
            },
            Kind::Viommu => self.invalidate_viommu(id, &mut entries),
            _ => return Err(Errno::EINVAL),
        };
        *done = entries.done;
        result
    }
}
