// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `HWPT_ALLOC`: making HWPTs (IOMMUFD-8.1 to 8.9).

use iommu::Domain;
use uapi::Errno;
use uapi::iommufd::{HwptAlloc, HwptFlags};
use uapi::iommufd_hw::NONE;

use crate::context::Context;
use crate::dispatch::Request;
use crate::driver::{Nested, UserData};
use crate::hwpt::{Form, Hwpt, PagingHwpt};
use crate::ids::{Kind, ObjectId};
use crate::ioas::DomainProperties;
use crate::{Call, Iommufd};

impl Iommufd {
    /// `IOMMU_HWPT_ALLOC`.
    pub(crate) fn hwpt_alloc(
        &mut self,
        request: &Request,
        cmd: &mut HwptAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if (cmd.data_type == NONE) != (cmd.data_len == 0) {
            return Err(Errno::EINVAL);
        }
        let context = self.context_mut(request.context)?;
        let device = context.ids.expect(cmd.dev_id, Kind::Device)?;
        let pt = ObjectId(cmd.pt_id);
        let flags = HwptFlags::from_bits_retain(cmd.flags);
        let data = UserData { kind: cmd.data_type, address: cmd.data_uptr, len: cmd.data_len, caller: call.caller };
        let id = match context.ids.kind(pt) {
            Some(Kind::Ioas) => {
                let data = (data.len != 0).then_some(&data);
                let id = context.alloc_paging(pt, device, flags, data)?;
                context.fill_paging(id).inspect_err(|_| context.destroy_hwpt(id))?;
                id
            }
            Some(Kind::HwptPaging) => context.alloc_nested(pt, device, flags, &data)?,
            Some(Kind::Viommu) => context.alloc_nested_on_viommu(pt, device, flags, &data)?,
            _ => return Err(Errno::EINVAL),
        };
        cmd.out_hwpt_id = id.0;
        let rest = context.set_fault(id, flags, cmd.fault_id).and_then(|()| request.argument.respond(call.caller, cmd));
        rest.inspect_err(|_| context.destroy_hwpt(id))
    }
}

impl Context {
    /// A paging HWPT of an IOAS for the IOMMU of a device. It is no domain of
    /// the IOAS before [`fill_paging`](Self::fill_paging).
    pub(crate) fn alloc_paging(
        &mut self,
        ioas: ObjectId,
        device: ObjectId,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<ObjectId, Errno> {
        let properties = &self.devices.get(&device).ok_or(Errno::ENOENT)?.properties;
        if !HwptFlags::all().contains(flags)
            || (flags.contains(HwptFlags::DIRTY_TRACKING) && !properties.dirty_tracking)
            || flags.contains(HwptFlags::FAULT_ID_VALID | HwptFlags::NEST_PARENT)
        {
            return Err(Errno::EOPNOTSUPP);
        }
        let driver = self.driver(device)?;
        let made = driver.alloc_paging(flags - HwptFlags::FAULT_ID_VALID, data)?;
        let iommu = driver.iommu();
        let space = self.ioases.get(&ioas).ok_or(Errno::ENOENT)?.space().clone();
        let id = self.ids.add(Kind::HwptPaging)?;
        self.ids.get(ioas);
        let paging = PagingHwpt {
            ioas,
            automatic: false,
            nest_parent: flags.contains(HwptFlags::NEST_PARENT),
            domain: Domain { space, log: made.log.clone(), stage1: None },
            properties: DomainProperties {
                page_sizes: made.page_sizes,
                aperture: made.aperture.0..=made.aperture.1,
                log: made.log,
                coherent: made.enforces_coherency,
                force_writeable: made.force_writeable,
            },
        };
        self.add_hwpt(id, iommu, flags, Form::Paging(paging));
        Ok(id)
    }

    /// Makes a paging HWPT a domain of its IOAS: all that is mapped there is
    /// mapped in it. `EADDRINUSE`, `EFAULT`, `ENOMEM`.
    pub(crate) fn fill_paging(&mut self, id: ObjectId) -> Result<(), Errno> {
        let paging = self.hwpts.get(&id).and_then(Hwpt::paging).ok_or(Errno::ENOENT)?;
        let ioas = self.ioases.get_mut(&paging.ioas).ok_or(Errno::ENOENT)?;
        ioas.add_domain(id, &paging.properties, &mut self.backing)
    }

    fn alloc_nested(
        &mut self,
        parent: ObjectId,
        device: ObjectId,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<ObjectId, Errno> {
        if !(HwptFlags::FAULT_ID_VALID | HwptFlags::PASID).contains(flags) || data.len == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let driver = self.driver(device)?;
        let iommu = driver.iommu();
        let behind = self.hwpt(parent)?;
        let paging = behind.paging().ok_or(Errno::EINVAL)?;
        if paging.automatic || !paging.nest_parent || behind.iommu != iommu {
            return Err(Errno::EINVAL);
        }
        let table = driver.alloc_nested(&paging.domain, flags - HwptFlags::FAULT_ID_VALID, data)?;
        let id = self.ids.add(Kind::HwptNested)?;
        self.ids.get(parent);
        self.add_nested(id, (parent, None), flags, table);
        Ok(id)
    }

    fn alloc_nested_on_viommu(
        &mut self,
        viommu: ObjectId,
        device: ObjectId,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<ObjectId, Errno> {
        let on = self.viommus.get(&viommu).ok_or(Errno::ENOENT)?;
        if on.iommu != self.driver(device)?.iommu() {
            return Err(Errno::EINVAL);
        }
        if !(HwptFlags::FAULT_ID_VALID | HwptFlags::PASID).contains(flags) || data.len == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let parent = on.hwpt;
        let behind = self.hwpt(parent)?.domain();
        let table = on.driver.alloc_nested(&behind, flags - HwptFlags::FAULT_ID_VALID, data)?;
        let id = self.ids.add(Kind::HwptNested)?;
        self.ids.get(viommu);
        self.add_nested(id, (parent, Some(viommu)), flags, table);
        Ok(id)
    }

    fn add_nested(
        &mut self,
        id: ObjectId,
        (parent, viommu): (ObjectId, Option<ObjectId>),
        flags: HwptFlags,
        table: Box<dyn Nested>,
    ) {
        if let Some(iommu) = self.hwpts.get(&parent).map(|hwpt| hwpt.iommu) {
            self.add_hwpt(id, iommu, flags, Form::Nested { parent, viommu, table });
        }
    }

    fn add_hwpt(&mut self, id: ObjectId, iommu: crate::driver::Iommu, flags: HwptFlags, form: Form) {
        self.hwpts_made += 1;
        let pasid_compatible = flags.contains(HwptFlags::PASID);
        self.hwpts.insert(id, Hwpt { form, iommu, pasid_compatible, fault: None, order: self.hwpts_made });
    }

    /// Gives a new HWPT its fault queue (IOMMUFD-8.7): `ENOENT`.
    fn set_fault(&mut self, id: ObjectId, flags: HwptFlags, fault: u32) -> Result<(), Errno> {
        if !flags.contains(HwptFlags::FAULT_ID_VALID) {
            return Ok(());
        }
        let fault = self.ids.expect(fault, Kind::Fault)?;
        if let Some(hwpt) = self.hwpts.get_mut(&id) {
            hwpt.fault = Some(fault);
            self.ids.get(fault);
        }
        Ok(())
    }
}
