// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vDEVICEs: devices as a vIOMMU's guest knows them (IOMMUFD-11.7, 2.8).

use uapi::Errno;
use uapi::iommufd::VdeviceAlloc;

use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::{Call, Iommufd};

/// A device on a vIOMMU.
#[derive(Debug)]
pub(crate) struct Vdevice {
    viommu: ObjectId,
    device: ObjectId,
    number: u64,
}

impl Iommufd {
    /// `IOMMU_VDEVICE_ALLOC`.
    pub(crate) fn vdevice_alloc(
        &mut self,
        request: &Request,
        cmd: &mut VdeviceAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        let context = self.context_mut(request.context)?;
        let viommu = context.ids.expect(cmd.viommu_id, Kind::Viommu)?;
        let device = context.ids.expect(cmd.dev_id, Kind::Device)?;
        let on = context.viommus.get(&viommu).ok_or(Errno::ENOENT)?;
        if on.iommu != context.driver(device)?.iommu() {
            return Err(Errno::EINVAL);
        }
        if context.devices.get(&device).ok_or(Errno::ENOENT)?.vdevice.is_some() {
            return Err(Errno::EEXIST);
        }
        if on.vdevices.contains_key(&cmd.virt_id) {
            return Err(Errno::EEXIST);
        }
        let id = context.ids.add(Kind::Vdevice)?;
        cmd.out_vdevice_id = id.0;
        if let Err(error) = request.argument.respond(call.caller, cmd) {
            context.ids.remove(id);
            return Err(error);
        }
        context.ids.get(viommu);
        if let Some(on) = context.viommus.get_mut(&viommu) {
            on.vdevices.insert(cmd.virt_id, (id, device));
        }
        if let Some(device) = context.devices.get_mut(&device) {
            device.vdevice = Some(id);
        }
        context.vdevices.insert(id, Vdevice { viommu, device, number: cmd.virt_id });
        Ok(())
    }
}

impl Context {
    pub(crate) fn destroy_vdevice(&mut self, id: ObjectId) {
        self.remove_vdevice(id);
        self.ids.remove(id);
    }

    /// Takes a vDEVICE apart; what becomes of its id is the caller's.
    pub(crate) fn remove_vdevice(&mut self, id: ObjectId) {
        let Some(Vdevice { viommu, device, number }) = self.vdevices.remove(&id) else { return };
        if let Some(on) = self.viommus.get_mut(&viommu) {
            on.vdevices.remove(&number);
        }
        if let Some(device) = self.devices.get_mut(&device) {
            device.vdevice = None;
        }
        self.ids.put(viommu);
    }
}
