// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which queue a page request goes to, and what happens to it when an
//! attachment goes (FAULT-2.1 to 2.9, 3.1, 3.2).

use std::sync::Arc;

use iommu::{PageRequest, PageResponse, PageResponseCode};
use uapi::Errno;

use crate::Iommufd;
use crate::context::{Context, ContextId};
use crate::device::Attached;
use crate::fault::FaultReset;
use crate::fault::inbox::What;
use crate::fault::queue::{Answered, FaultGroup};
use crate::hwpt::{Form, Hwpt};
use crate::ids::ObjectId;

/// Requests of incomplete groups that are kept for a device of which nobody has
/// said how many it may have outstanding; Linux has no limit.
const PARTIALS: usize = 4096;
/// Unanswered requests that are kept for such a device.
const OUTSTANDING: u32 = 1 << 16;

impl Iommufd {
    /// A device has sent a page request. If nobody takes such requests it is
    /// answered at once, and `EINVAL` returned; `ENOMEM` if it is dropped.
    ///
    /// Stop markers must not come here (FAULT-2.8).
    pub fn report(&mut self, context: ContextId, device: ObjectId, request: PageRequest) -> Result<(), Errno> {
        let deadline = self.request_deadline();
        self.context_mut(context)?.report(device, request, deadline)
    }

    /// Takes in what devices have sent. Done before anything else, so that
    /// requests and what happens to attachments keep their order.
    pub(crate) fn collect(&mut self) {
        let mut entries = self.inbox.take();
        if entries.is_empty() {
            return;
        }
        let (deadline, reset) = (self.request_deadline(), self.options.fault_reset);
        while let Some(entry) = entries.pop_front() {
            let (context, device) = (entry.port.context, entry.port.device);
            let mut delivered = false;
            // One that was unbound meanwhile had its answers then.
            if let Ok(context) = self.context_mut(context) {
                match entry.what {
                    What::Request(request) => delivered = context.take_request(device, request, deadline),
                    What::Reset => context.device_reset(device, reset),
                }
            }
            if let Some(bell) = entry.done().filter(|_| !delivered) {
                // Rung in vain: its attachment went in between.
                let mut queues = self.contexts.values().flat_map(|context| context.faults.values());
                if let Some(queue) = queues.find(|queue| Arc::ptr_eq(queue.bell(), &bell)) {
                    queue.show();
                }
            }
        }
        if self.inbox.take_overflow() {
            tracing::info!(target: "vfuse::iommufd", "page requests were lost: the queue was full");
            self.contexts.values_mut().for_each(Context::discard_partials);
        }
    }

    /// When [`elapse`](Self::elapse) must be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.options.fault_timeout?;
        let queues = self.contexts.values().flat_map(|context| context.faults.values());
        queues.filter_map(crate::fault::FaultQueue::deadline).min()
    }

    /// Takes in what devices have sent, and answers what has waited too long.
    pub fn elapse(&mut self) {
        self.collect();
        if self.options.fault_timeout.is_none() {
            return;
        }
        let now = self.platform.now();
        for context in self.contexts.values_mut() {
            let answered: Vec<Answered> = context.faults.values_mut().flat_map(|queue| queue.expire(now)).collect();
            context.answered(&answered);
        }
    }

    pub(crate) fn request_deadline(&self) -> Option<u64> {
        self.options.fault_timeout.map(|timeout| self.platform.now().saturating_add(timeout))
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

/// What VT-d's driver refuses (FAULT-4.7): addresses that are none, privileged
/// requests, and execute with read.
fn is_wrong(request: &PageRequest) -> bool {
    let bits = request.addr.cast_signed() >> 47;
    let access = request.perm & (PageRequest::READ | PageRequest::WRITE) != 0;
    let privileged = request.perm & PageRequest::PRIV != 0 && access;
    let both = PageRequest::EXEC | PageRequest::READ;
    !(bits == 0 || bits == -1) || privileged || request.perm & both == both
}

impl Context {
    /// A request as it comes from a device: what VT-d's driver does with it.
    /// Whether somebody has it; else it has been answered if it must be.
    fn take_request(&mut self, device: ObjectId, request: PageRequest, deadline: Option<u64>) -> bool {
        let Some(from) = self.devices.get(&device) else { return false };
        if is_wrong(&request) {
            tracing::info!(target: "vfuse::iommufd", device = device.0, ?request, "page request refused: no such access");
            if let Some(responder) = &from.properties.responder {
                responder.respond(PageResponse::to(&request, PageResponseCode::Invalid));
            }
            return false;
        }
        !request.is_stop_marker() && self.report(device, request, deadline).is_ok()
    }

    /// A device was reset, and knows of no request. Groups that were not complete
    /// go.
    fn device_reset(&mut self, device: ObjectId, reset: FaultReset) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.partials.clear();
            device.outstanding = 0;
        }
        let answered: Vec<Answered> =
            self.faults.values_mut().flat_map(|queue| queue.device_reset(device, reset)).collect();
        self.answered(&answered);
    }

    fn discard_partials(&mut self) {
        self.devices.values_mut().for_each(|device| device.partials.clear());
    }

    pub(crate) fn report(
        &mut self,
        device: ObjectId,
        request: PageRequest,
        deadline: Option<u64>,
    ) -> Result<(), Errno> {
        let taker = self.taker(device, request.pasid);
        tracing::debug!(target: "vfuse::iommufd", device = device.0, ?request, taken = taker.is_some(), "page request");
        let from = self.devices.get_mut(&device).ok_or(Errno::ENODEV)?;
        let responder = from.properties.responder.clone();
        let Some((queue, handle, by)) = taker else {
            tracing::info!(target: "vfuse::iommufd", device = device.0, ?request, "page request refused: nobody takes it");
            if let Some(responder) = responder {
                responder.respond(PageResponse::to(&request, PageResponseCode::Invalid));
            }
            return Err(Errno::EINVAL);
        };
        let limit = from.properties.page_requests;
        if limit > 0 && from.partials.len() as u32 + from.outstanding >= limit {
            // The device has more out than it may: as if the IOMMU's queue were
            // full (FAULT-4.4).
            tracing::info!(target: "vfuse::iommufd", device = device.0, limit, "page request dropped: too many outstanding");
            from.partials.clear();
            if let Some(responder) = responder.filter(|_| request.last) {
                responder.respond(PageResponse::to(&request, PageResponseCode::Success));
            }
            return Err(Errno::ENOMEM);
        }
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
        let count = requests.len() as u32;
        let group = FaultGroup { handle, by, from: device, requests, responder, arrival: 0, forgotten: false };
        match self.faults.get_mut(&queue) {
            Some(queue) if from.unanswered < OUTSTANDING => {
                from.outstanding += count;
                from.unanswered += count;
                let answered = queue.push(group, deadline);
                self.answered(&answered);
            }
            // A failure would end the requests of all that share the function.
            _ if from.properties.pasids.is_some() => drop(group.respond(PageResponseCode::Invalid)),
            _ => drop(group.respond(PageResponseCode::Failure)),
        }
        Ok(())
    }

    /// Requests of a PASID of a group go elsewhere: their devices are to ring
    /// the bell there.
    pub(crate) fn reroute(&self, device: ObjectId, pasid: u32) {
        let Ok((this, group)) = self.device_group(device) else { return };
        let hwpt = group.attached.get(&pasid).and_then(|attached| self.hwpts.get(&attached.hwpt));
        let bell = hwpt.and_then(|hwpt| self.faults.get(&hwpt.fault?)).map(|queue| queue.bell());
        let nested = hwpt.is_some_and(|hwpt| matches!(hwpt.form, Form::Nested { .. }));
        let number = this.group;
        for port in
            self.devices.values().filter(|device| device.group == number).filter_map(|device| device.port.as_ref())
        {
            port.set_route(pasid, bell.cloned(), nested);
        }
    }

    /// The queue that requests of a PASID go to, and the attachment that they
    /// come through (FAULT-2.2).
    fn taker(&self, device: ObjectId, pasid: Option<u32>) -> Option<(ObjectId, u64, ObjectId)> {
        let (this, group) = self.device_group(device).ok()?;
        let own = this.properties.pasids.as_ref().map(::device::mediated::Pasids::own);
        let pasid = pasid.filter(|pasid| own != Some(*pasid));
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

    /// Devices have their answers.
    pub(crate) fn answered(&mut self, answered: &[Answered]) {
        for Answered { device, requests, forgotten } in answered {
            if let Some(device) = self.devices.get_mut(device) {
                device.outstanding = device.outstanding.saturating_sub(if *forgotten { 0 } else { *requests });
                device.unanswered = device.unanswered.saturating_sub(*requests);
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
