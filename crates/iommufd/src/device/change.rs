// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attaching and replacing by id, be it a HWPT's or an IOAS's
//! (IOMMUFD-8.10, 8.12, 8.16, 8.17).

use uapi::Errno;
use uapi::iommufd::HwptFlags;

use crate::Iommufd;
use crate::context::{Context, ContextId};
use crate::hwpt::Hwpt;
use crate::ids::{Kind, ObjectId};

/// What is done with a HWPT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Attach,
    Replace,
}

impl Iommufd {
    /// Attaches a PASID of a device, 0 for requests without one, to an IOAS or
    /// HWPT; the HWPT that it is attached to (IOMMUFD-8.10 to 8.15). `ENOENT`,
    /// `EBUSY` if it is attached, `EINVAL`, `EADDRINUSE`, `EFAULT`, `ENOMEM`.
    pub fn attach(&mut self, context: ContextId, device: ObjectId, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        self.collect();
        let context = self.context_mut(context)?;
        let hwpt = context.change(device, pasid, ObjectId(pt_id), Change::Attach)?;
        context.ids.get(device);
        tracing::debug!(target: "vfuse::iommufd", device = device.0, pasid, hwpt = hwpt.0, "attach");
        Ok(hwpt.0)
    }

    /// Attaches to something else, for the whole group; a failure changes
    /// nothing (IOMMUFD-8.16, 8.17). As [`attach`](Self::attach), `EINVAL` if it
    /// is not attached.
    pub fn replace(&mut self, context: ContextId, device: ObjectId, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        self.collect();
        let context = self.context_mut(context)?;
        let hwpt = context.change(device, pasid, ObjectId(pt_id), Change::Replace)?;
        tracing::debug!(target: "vfuse::iommufd", device = device.0, pasid, hwpt = hwpt.0, "replace");
        Ok(hwpt.0)
    }

    /// Detaches a PASID of a device, if it is attached (IOMMUFD-8.18).
    pub fn detach(&mut self, context: ContextId, device: ObjectId, pasid: u32) {
        self.collect();
        if let Ok(context) = self.context_mut(context) {
            context.detach(device, pasid);
        }
    }
}

impl Context {
    fn change(&mut self, device: ObjectId, pasid: u32, pt: ObjectId, change: Change) -> Result<ObjectId, Errno> {
        match self.ids.kind(pt).ok_or(Errno::ENOENT)? {
            Kind::HwptPaging | Kind::HwptNested => {
                self.change_hwpt(device, pasid, pt, change)?;
                Ok(pt)
            }
            Kind::Ioas => self.change_automatically(device, pasid, pt, change),
            _ => Err(Errno::EINVAL),
        }
    }

    fn change_hwpt(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId, change: Change) -> Result<(), Errno> {
        match change {
            Change::Attach => self.attach_hwpt(device, pasid, hwpt),
            Change::Replace => self.replace_hwpt(device, pasid, hwpt),
        }
    }

    /// Uses an automatic HWPT of the IOAS, or makes one (IOMMUFD-8.12).
    fn change_automatically(
        &mut self,
        device: ObjectId,
        pasid: u32,
        ioas: ObjectId,
        change: Change,
    ) -> Result<ObjectId, Errno> {
        let automatic = |(id, hwpt): (&ObjectId, &Hwpt)| {
            let paging = hwpt.paging().filter(|paging| paging.automatic && paging.ioas == ioas)?;
            Some((hwpt.order, *id)).filter(|_| paging.automatic)
        };
        let mut candidates: Vec<(u64, ObjectId)> = self.hwpts.iter().filter_map(automatic).collect();
        candidates.sort_unstable();
        for (_, hwpt) in candidates {
            match self.change_hwpt(device, pasid, hwpt, change) {
                // This one is not for the device; another may be.
                Err(Errno::EINVAL) => {}
                other => return other.map(|()| hwpt),
            }
        }
        let hwpt = self.alloc_paging(ioas, device, HwptFlags::empty(), None)?;
        let made = match change {
            // The device is attached first, so what it refuses comes first.
            Change::Attach => self.attach_hwpt(device, pasid, hwpt).and_then(|()| {
                self.fill_paging(hwpt).inspect_err(|_| {
                    // What `detach` takes back and `attach_hwpt` alone does not give.
                    self.ids.get(device);
                    self.detach(device, pasid);
                })
            }),
            Change::Replace => self.fill_paging(hwpt).and_then(|()| self.replace_hwpt(device, pasid, hwpt)),
        };
        made.inspect_err(|_| self.destroy_hwpt(hwpt))?;
        self.set_automatic(hwpt);
        Ok(hwpt)
    }

    fn replace_hwpt(&mut self, device: ObjectId, pasid: u32, hwpt: ObjectId) -> Result<(), Errno> {
        let (_, group) = self.device_group(device)?;
        let old = group.attached_to(device, pasid).ok_or(Errno::EINVAL)?.clone();
        if old.hwpt == hwpt {
            return Ok(());
        }
        // Regions are of an IOAS: another HWPT of the same has them.
        let moves = self.ioas_of(hwpt) != self.ioas_of(old.hwpt);
        if moves {
            for (done, member) in old.devices.iter().enumerate() {
                if let Err(error) = self.reserve_regions(*member, pasid, hwpt) {
                    old.devices.iter().take(done).for_each(|member| self.unreserve_regions(*member, pasid, hwpt));
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.attach_group(device, pasid, hwpt) {
            if moves {
                old.devices.iter().for_each(|member| self.unreserve_regions(*member, pasid, hwpt));
            }
            return Err(error);
        }
        if moves {
            old.devices.iter().for_each(|member| self.unreserve_regions(*member, pasid, old.hwpt));
        }
        let handle = self.next_handle();
        let (_, group) = self.device_group_mut(device)?;
        if let Some(attached) = group.attached.get_mut(&pasid) {
            (attached.hwpt, attached.handle, attached.by) = (hwpt, handle, device);
        }
        self.reroute(device, pasid);
        self.left_hwpt(device, old.hwpt, old.handle);
        for _ in &old.devices {
            self.ids.get(hwpt);
        }
        for _ in &old.devices {
            self.put_hwpt(old.hwpt);
        }
        Ok(())
    }
}
