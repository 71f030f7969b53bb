// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attaching and detaching a HWPT (IOMMUFD-8.10 to 8.15, 8.18).

use uapi::Errno;

use crate::context::Context;
use crate::device::{Attached, Device, Group};
use crate::driver::{Nested, Target};
use crate::hwpt::Form;
use crate::ids::ObjectId;
use crate::ioas::Owner;

impl Context {
    /// Attaches a PASID of a device to a HWPT.
    pub(crate) fn attach_hwpt(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId) -> Result<(), Errno> {
        let (_, group) = self.device_group(device)?;
        let first = match group.attached.get(&pasid) {
            Some(attached) if attached.devices.contains(&device) => return Err(Errno::EBUSY),
            // The whole group goes to one HWPT.
            Some(attached) if attached.hwpt != hwpt => return Err(Errno::EINVAL),
            Some(_) => false,
            None => true,
        };
        self.reserve_regions(device, pasid, hwpt)?;
        if first && let Err(error) = self.attach_group(device, pasid, hwpt) {
            self.unreserve_regions(device, pasid, hwpt);
            return Err(error);
        }
        let handle = self.next_handle();
        let (_, group) = self.device_group_mut(device)?;
        let attached = group.attached.entry(pasid).or_insert_with(|| Attached {
            hwpt,
            handle,
            by: device,
            devices: std::collections::BTreeSet::new(),
        });
        attached.devices.insert(device);
        self.ids.get(hwpt);
        self.reroute(device, pasid);
        Ok(())
    }

    /// Detaches a PASID of a device, if it is attached. With the group's last
    /// its DMA is blocked.
    pub(crate) fn detach(&mut self, device: ObjectId, pasid: u32) {
        let Ok((_, group)) = self.device_group_mut(device) else { return };
        let Some(attached) = group.attached.get_mut(&pasid) else { return };
        if !attached.devices.remove(&device) {
            return;
        }
        let (hwpt, handle, last) = (attached.hwpt, attached.handle, attached.devices.is_empty());
        tracing::debug!(target: "vfuse::iommufd", device = device.0, pasid, hwpt = hwpt.0, "detach");
        if last {
            // Blocking cannot fail.
            let _ = group.driver.attach(pasid, None);
            group.attached.remove(&pasid);
            self.reroute(device, pasid);
            self.left_hwpt(device, hwpt, handle);
        }
        self.unreserve_regions(device, pasid, hwpt);
        self.put_hwpt(hwpt);
        self.ids.put(device);
    }

    /// Makes the driver attach a group, which may have something else attached.
    pub(crate) fn attach_group(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId) -> Result<(), Errno> {
        self.check_attach(device, pasid, hwpt)?;
        let Context { devices, groups, hwpts, viommus, .. } = self;
        let group = groups.get_mut(&devices.get(&device).ok_or(Errno::ENOENT)?.group).ok_or(Errno::ENOENT)?;
        let hwpt = hwpts.get(&hwpt).ok_or(Errno::ENOENT)?;
        let domain = hwpt.domain();
        let mut target = Target { domain: &domain, dirty: false, viommu: None, nested: None };
        match &hwpt.form {
            Form::Paging(_) => target.dirty = domain.log.is_some(),
            Form::Nested { viommu, table, .. } => {
                target.nested = Some(&**table as &dyn Nested);
                let number = |on: &ObjectId| viommus.get(on)?.number_of(device);
                target.viommu = viommu.map(|on| (on, number(&on)));
            }
        }
        group.driver.attach(pasid, Some(&target))
    }

    /// What is asked before a driver is: in this order `EINVAL` for a fault
    /// queue and a VF that shares its page requests, for PASIDs and HWPTs that
    /// are not for them, for another IOMMU's HWPT, and for a PASID that a device
    /// of the group does not have or that is not the part's of a shared function.
    fn check_attach(&self, device: ObjectId, pasid: u32, hwpt: ObjectId) -> Result<(), Errno> {
        let to = self.hwpt(hwpt)?;
        let (this, group) = self.device_group(device)?;
        if to.fault.is_some() && this.properties.vf_of_pri_pf {
            return Err(Errno::EINVAL);
        }
        if pasid == 0 {
            if !to.pasid_compatible && group.attached.keys().any(|pasid| *pasid != 0) {
                return Err(Errno::EINVAL);
            }
        } else {
            let rid = group.attached.get(&0).and_then(|attached| self.hwpts.get(&attached.hwpt));
            if !to.pasid_compatible || rid.is_some_and(|rid| !rid.pasid_compatible) {
                return Err(Errno::EINVAL);
            }
        }
        if to.iommu != group.driver.iommu() {
            return Err(Errno::EINVAL);
        }
        // Devices without PASIDs do not count: no request of theirs has one.
        let number = this.group;
        let members = self.devices.values().filter(|device| device.group == number);
        let mut limits = members.map(|device| device.properties.max_pasids).filter(|limit| *limit > 0);
        let others = this.properties.pasids.as_ref().is_some_and(|pasids| !pasids.may_use(pasid));
        if pasid != 0 && (limits.any(|limit| pasid >= limit) || others) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Keeps IOVAs that a device cannot use out of the IOAS behind a HWPT. Only
    /// requests without a PASID count (IOMMUFD-8.14).
    pub(crate) fn reserve_regions(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId) -> Result<(), Errno> {
        let Some(ioas) = self.ioas_of(hwpt).filter(|_| pasid == 0) else { return Ok(()) };
        let Context { devices, ioases, backing, .. } = self;
        let reserved = &devices.get(&device).ok_or(Errno::ENOENT)?.properties.reserved;
        let ioas = ioases.get_mut(&ioas).ok_or(Errno::ENOENT)?;
        for (first, last) in reserved {
            if let Err(error) = ioas.reserve(Owner::Device(device), *first, *last, backing) {
                ioas.unreserve(Owner::Device(device), backing);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes [`reserve_regions`](Self::reserve_regions).
    pub(crate) fn unreserve_regions(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId) {
        if let Some(ioas) = self.ioas_of(hwpt).filter(|_| pasid == 0)
            && let Some(ioas) = self.ioases.get_mut(&ioas)
        {
            ioas.unreserve(Owner::Device(device), &self.backing);
        }
    }

    /// A device and its group.
    pub(crate) fn device_group(&self, device: ObjectId) -> Result<(&Device, &Group), Errno> {
        let device = self.devices.get(&device).ok_or(Errno::ENOENT)?;
        Ok((device, self.groups.get(&device.group).ok_or(Errno::ENOENT)?))
    }

    pub(crate) fn device_group_mut(&mut self, device: ObjectId) -> Result<(&mut Device, &mut Group), Errno> {
        let device = self.devices.get_mut(&device).ok_or(Errno::ENOENT)?;
        let group = self.groups.get_mut(&device.group).ok_or(Errno::ENOENT)?;
        Ok((device, group))
    }

    pub(crate) fn next_handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }
}
