// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bound devices: what `vfio` tells of a device, and the object that a program
//! sees (iommufd-api.md, sections 2 and 8).

use std::sync::Arc;

use iommu::Requester;
use uapi::Errno;

use crate::Iommufd;
use crate::context::ContextId;
use crate::fault::PageResponder;
use crate::ids::{Kind, ObjectId};

/// A device to bind.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Its IOMMU group: devices of one attach together.
    pub group: u64,
    /// Its way into the IOMMU.
    pub requester: Arc<Requester>,
    /// Those of all functions of the group, this one's among them.
    pub members: Vec<Arc<Requester>>,
    /// What it can do.
    pub properties: DeviceProperties,
}

/// What a device and the IOMMU in front of it can do.
#[derive(Clone, Debug, Default)]
pub struct DeviceProperties {
    /// The IOMMU tracks its writes.
    pub dirty_tracking: bool,
    /// PASIDs that it may use, 0 without: a power of two, at most 2^20.
    pub max_pasids: u32,
    /// Its PASIDs have execute permission.
    pub pasid_exec: bool,
    /// Its PASIDs have privileged mode.
    pub pasid_priv: bool,
    /// Address translation services can be used.
    pub ats: bool,
    /// It is a VF whose PF has page requests (IOMMUFD-8.15).
    pub vf_of_pri_pf: bool,
    /// IOVAs that it cannot use, first and last: on x86 the interrupt window
    /// 0xfee00000-0xfeefffff.
    pub reserved: Vec<(u64, u64)>,
    /// Where answers to its page requests go; nowhere with `None`.
    pub responder: Option<Arc<dyn PageResponder>>,
}

impl Iommufd {
    /// Binds a device to a context; the id that names it there.
    pub fn bind(&mut self, context: ContextId, binding: Binding) -> Result<ObjectId, Errno> {
        let _ = binding;
        let id = self.context_mut(context)?.ids.add(Kind::Device)?;
        self.context_mut(context)?.ids.get(id);
        self.get_context(context);
        Ok(id)
    }

    /// Undoes [`bind`](Self::bind). Attachments must be gone.
    pub fn unbind(&mut self, context: ContextId, device: ObjectId) {
        if let Ok(context) = self.context_mut(context) {
            context.ids.remove(device);
        }
        self.put_context(context);
    }

    /// Attaches a PASID of a device, 0 for requests without one, to an IOAS or
    /// HWPT; the HWPT that it is attached to (IOMMUFD-8.10 to 8.15). `ENOENT`,
    /// `EBUSY` if it is attached, `EINVAL`, `EADDRINUSE`, `EFAULT`, `ENOMEM`.
    pub fn attach(&mut self, context: ContextId, device: ObjectId, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        let _ = (context, device, pasid, pt_id);
        Err(Errno::ENOENT)
    }

    /// Attaches to something else, for the whole group; a failure changes
    /// nothing (IOMMUFD-8.16, 8.17). As [`attach`](Self::attach), `EINVAL` if it
    /// is not attached.
    pub fn replace(&mut self, context: ContextId, device: ObjectId, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        let _ = (context, device, pasid, pt_id);
        Err(Errno::ENOENT)
    }

    /// Detaches a PASID of a device, if it is attached (IOMMUFD-8.18).
    pub fn detach(&mut self, context: ContextId, device: ObjectId, pasid: u32) {
        let _ = (context, device, pasid);
    }

    /// A function was plugged into a group: if it has a bound device, its DMA
    /// goes where that of the group goes.
    pub fn group_member_added(&mut self, group: u64, requester: &Arc<Requester>) {
        let _ = (group, requester);
    }
}
