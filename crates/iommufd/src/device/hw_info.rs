// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `GET_HW_INFO` (iommufd-api.md, section 10).

use uapi::Errno;
use uapi::iommufd::{GetHwInfo, HwCapabilities};
use uapi::iommufd_hw::NONE;

use crate::dispatch::Request;
use crate::ids::Kind;
use crate::{Call, Iommufd};

const INPUT_TYPE: u32 = 1;
/// Zeros that are written in one go.
const STEP: usize = 4096;

impl Iommufd {
    /// `IOMMU_GET_HW_INFO`.
    pub(crate) fn get_hw_info(
        &mut self,
        request: &Request,
        cmd: &mut GetHwInfo,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags & !INPUT_TYPE != 0 || cmd.reserved != [0; 3] {
            return Err(Errno::EOPNOTSUPP);
        }
        let context = self.context_mut(request.context)?;
        let id = context.ids.expect(cmd.dev_id, Kind::Device)?;
        let wanted = if cmd.flags & INPUT_TYPE == 0 { NONE } else { cmd.data_type };
        let (kind, info) = context.driver(id)?.hw_info(wanted)?;
        let properties = &context.devices.get(&id).ok_or(Errno::ENOENT)?.properties;

        let room = cmd.data_len as usize;
        let given = room.min(info.len());
        call.caller.write(cmd.data_uptr, &info[..given])?;
        let mut at = given;
        while at < room {
            let address = cmd.data_uptr.checked_add(at as u64).ok_or(Errno::EFAULT)?;
            let part = (STEP - (address % STEP as u64) as usize).min(room - at);
            call.caller.write(address, &[0; STEP][..part])?;
            at += part;
        }
        cmd.data_type = kind;
        cmd.data_len = info.len() as u32;

        let mut capabilities = HwCapabilities::empty();
        capabilities.set(HwCapabilities::DIRTY_TRACKING, properties.dirty_tracking);
        capabilities.set(HwCapabilities::PCI_ATS_NOT_SUPPORTED, !properties.ats);
        cmd.out_max_pasid_log2 = 0;
        if properties.max_pasids > 0 {
            cmd.out_max_pasid_log2 = properties.max_pasids.ilog2() as u8;
            capabilities.set(HwCapabilities::PCI_PASID_EXEC, properties.pasid_exec);
            capabilities.set(HwCapabilities::PCI_PASID_PRIV, properties.pasid_priv);
        }
        cmd.out_capabilities = capabilities.bits();
        request.argument.respond(call.caller, cmd)
    }
}
