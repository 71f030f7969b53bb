// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which queue a page request goes to, and what happens to it when an
//! attachment goes (FAULT-2.1 to 2.9, 3.1, 3.2).

use uapi::Errno;

use crate::Iommufd;
use crate::context::{Context, ContextId};
use crate::device::Attached;
use crate::fault::queue::FaultGroup;
use crate::fault::{PageRequest, PageResponse, PageResponseCode};
use crate::hwpt::{Form, Hwpt};
use crate::ids::ObjectId;

/// Requests of incomplete groups that are kept for a device; Linux has no limit.
const PARTIALS: usize = 4096;
/// Unanswered groups that are kept for a device; Linux has no limit.
const OUTSTANDING: u32 = 1 << 16;

impl Iommufd {
    /// A device has sent a page request. If nobody takes such requests it is
    /// answered at once, and `EINVAL` returned; `ENOMEM` if it is dropped.
    ///
    /// Stop markers must not come here (FAULT-2.8).
    pub fn report(&mut self, context: ContextId, device: ObjectId, request: PageRequest) -> Result<(), Errno> {
        self.context_mut(context)?.report(device, request)
    }

    /// The IOMMU has lost requests of a device: those of groups that are not
    /// complete are forgotten (FAULT-2.7).
    pub fn discard_partial_requests(&mut self, context: ContextId, device: ObjectId) {
        if let Ok(context) = self.context_mut(context)
            && let Some(device) = context.devices.get_mut(&device)
        {
            device.partials.clear();
        }
    }
}

impl Context {
    pub(crate) fn report(&mut self, device: ObjectId, request: PageRequest) -> Result<(), Errno> {
        let taker = self.taker(device, request.pasid);
        tracing::debug!(target: "vfuse::iommufd", device = device.0, ?request, taken = taker.is_some(), "page request");
        let from = self.devices.get_mut(&device).ok_or(Errno::ENODEV)?;
        let responder = from.properties.responder.clone();
        let Some((queue, handle, by)) = taker else {
            if let Some(responder) = responder {
                let code = PageResponseCode::Invalid;
                responder.respond(PageResponse { pasid: request.pasid, group: request.group, code });
            }
            return Err(Errno::EINVAL);
        };
        if !request.last {
            if from.partials.len() >= PARTIALS {
                return Err(Errno::ENOMEM);
            }
            from.partials.push(request);
            return Ok(());
        }
        // Whatever their PASID: they have the index (FAULT-2.4).
        let mut requests: Vec<PageRequest> =
            from.partials.extract_if(.., |partial| partial.group == request.group).collect();
        requests.push(request);
        let group = FaultGroup { handle, by, from: device, requests, responder };
        match self.faults.get_mut(&queue) {
            Some(queue) if from.outstanding < OUTSTANDING => {
                from.outstanding += 1;
                queue.push(group);
            }
            _ => drop(group.respond(PageResponseCode::Failure)),
        }
        Ok(())
    }

    /// The queue that requests of a PASID go to, and the attachment that they
    /// come through (FAULT-2.2).
    fn taker(&self, device: ObjectId, pasid: Option<u32>) -> Option<(ObjectId, u64, ObjectId)> {
        let (_, group) = self.device_group(device).ok()?;
        let nested = |attached: &&Attached| {
            matches!(self.hwpts.get(&attached.hwpt), Some(Hwpt { form: Form::Nested { .. }, .. }))
        };
        let attached = match pasid {
            // The program's own table may have PASIDs that nobody else knows.
            Some(pasid) => group.attached.get(&pasid).or_else(|| group.attached.get(&0).filter(nested)),
            None => group.attached.get(&0),
        }?;
        let queue = self.hwpts.get(&attached.hwpt)?.fault?;
        Some((queue, attached.handle, attached.by))
    }

    /// A group has left a HWPT: what came through the attachment is answered,
    /// and with its last HWPT that has a fault queue its devices' incomplete
    /// groups are forgotten.
    pub(crate) fn left_hwpt(&mut self, device: ObjectId, hwpt: ObjectId, handle: u64) {
        let Some(queue) = self.hwpts.get(&hwpt).and_then(|hwpt| hwpt.fault) else { return };
        let answered = self.faults.get_mut(&queue).map(|queue| queue.drop_handle(handle)).unwrap_or_default();
        self.answered(&answered);
        let Ok((this, group)) = self.device_group(device) else { return };
        let number = this.group;
        let takes_faults = |to: &Attached| self.hwpts.get(&to.hwpt).is_some_and(|hwpt| hwpt.fault.is_some());
        if !group.attached.values().any(takes_faults) {
            for device in self.devices.values_mut().filter(|device| device.group == number) {
                device.partials.clear();
            }
        }
    }

    /// So many groups of devices have their answers.
    pub(crate) fn answered(&mut self, devices: &[ObjectId]) {
        for device in devices {
            if let Some(device) = self.devices.get_mut(device) {
                device.outstanding = device.outstanding.saturating_sub(1);
            }
        }
    }

    /// A fault queue that nobody uses is destroyed.
    pub(crate) fn destroy_fault(&mut self, id: ObjectId) {
        if let Some(mut queue) = self.faults.remove(&id) {
            let answered = queue.drop_all();
            self.answered(&answered);
        }
        self.ids.remove(id);
    }
}
