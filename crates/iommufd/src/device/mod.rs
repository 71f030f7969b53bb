// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bound devices: what `vfio` tells of a device, and the object that a program
//! sees (iommufd-api.md, sections 2 and 8).

mod attach;
mod change;
mod group;
mod hw_info;

use std::sync::Arc;

use ::device::mediated::Pasids;
use iommu::{PageRequest, PageResponder, Requester};
use uapi::Errno;

use crate::Iommufd;
use crate::context::{Context, ContextId};
use crate::driver::Driver;
use crate::fault::{Connection, Port};
use crate::ids::{Kind, ObjectId};
use crate::vtd::{LabIommu, Vtd};

pub(crate) use group::{Attached, Group};

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
#[derive(Clone, Debug)]
pub struct DeviceProperties {
    /// Its DMA is cache coherent.
    pub coherent: bool,
    /// Its interrupts cannot be forged by other devices' DMA.
    pub isolated_msi: bool,
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
    /// Page requests that it may have outstanding; 0 if nobody knows.
    pub page_requests: u32,
    /// It is a part of a function, with these of its PASIDs. Attached as PASID
    /// 0 is the one that its requests carry if they name none.
    pub pasids: Option<Pasids>,
}

impl Default for DeviceProperties {
    /// A coherent device with isolated interrupts and nothing else.
    fn default() -> DeviceProperties {
        DeviceProperties {
            coherent: true,
            isolated_msi: true,
            dirty_tracking: false,
            max_pasids: 0,
            pasid_exec: false,
            pasid_priv: false,
            ats: false,
            vf_of_pri_pf: false,
            reserved: Vec::new(),
            responder: None,
            page_requests: 0,
            pasids: None,
        }
    }
}

/// Entries of VT-d's queue for page requests, as Linux makes it.
const PRQ_DEPTH: u32 = 2048;

/// A bound device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) group: u64,
    pub(crate) properties: DeviceProperties,
    /// Its vDEVICE (IOMMUFD-11.7).
    pub(crate) vdevice: Option<ObjectId>,
    /// Requests of groups that are not complete.
    pub(crate) partials: Vec<PageRequest>,
    /// Requests of complete groups that the device waits for.
    pub(crate) outstanding: u32,
    /// And those that it has forgotten in a reset.
    pub(crate) unanswered: u32,
    /// Its way to send them.
    pub(crate) port: Option<Arc<Port>>,
    /// Whether it holds its context, which a mock device does not.
    holds_context: bool,
}

impl Iommufd {
    /// Binds a device to a context; the id that names it there (API-106).
    /// `EINVAL` if it is not coherent, `EPERM` if its interrupts are not
    /// isolated or its group belongs to another context.
    pub fn bind(&mut self, context: ContextId, binding: Binding) -> Result<ObjectId, Errno> {
        let Binding { group, requester: _, members, properties } = binding;
        let dirty_tracking = self.options.iommu.dirty_tracking && properties.dirty_tracking;
        let iommu = LabIommu { dirty_tracking, ..self.options.iommu };
        let driver = Vtd::new(iommu, members, properties.pasids.clone());
        let id = self.bind_to(context, group, properties, Box::new(driver), true)?;
        self.get_context(context);
        Ok(id)
    }

    /// Binds a device behind any IOMMU. `driver` is forgotten if its group has one.
    pub(crate) fn bind_to(
        &mut self,
        context: ContextId,
        group: u64,
        properties: DeviceProperties,
        driver: Box<dyn Driver>,
        holds_context: bool,
    ) -> Result<ObjectId, Errno> {
        if !properties.coherent {
            return Err(Errno::EINVAL);
        }
        if !properties.isolated_msi && !self.options.allow_unsafe_interrupts {
            return Err(Errno::EPERM);
        }
        if self.contexts.iter().any(|(id, other)| *id != context && other.groups.contains_key(&group)) {
            return Err(Errno::EPERM);
        }
        let inbox = Arc::clone(&self.inbox);
        let number = context;
        let context = self.context_mut(context)?;
        let id = context.ids.add(Kind::Device)?;
        // The driver that binds it is a user until it unbinds.
        context.ids.get(id);
        context.groups.entry(group).or_insert_with(|| Group::new(driver)).bound += 1;
        let limit = if properties.page_requests == 0 { PRQ_DEPTH } else { properties.page_requests };
        let own_pasid = properties.pasids.as_ref().map(Pasids::own);
        let connect = |responder: &Arc<dyn PageResponder>| {
            let port = Port::new(&inbox, number, id, limit, own_pasid);
            responder.connect(Some(Arc::new(Connection(Arc::clone(&port)))));
            port
        };
        let port = properties.responder.as_ref().map(connect);
        let device = Device {
            group,
            properties,
            vdevice: None,
            partials: Vec::new(),
            outstanding: 0,
            unanswered: 0,
            port,
            holds_context,
        };
        context.devices.insert(id, device);
        // Its group may be attached already.
        let attached = context.device_group(id).map(|(_, group)| group.attached.keys().copied().collect());
        let attached: Vec<u32> = attached.unwrap_or_default();
        attached.into_iter().for_each(|pasid| context.reroute(id, pasid));
        Ok(id)
    }

    /// Undoes [`bind`](Self::bind). What is still attached is detached; a
    /// vDEVICE goes by force and leaves its id behind (IOMMUFD-2.8).
    pub fn unbind(&mut self, context: ContextId, device: ObjectId) {
        self.collect();
        if let Some(device) = self.contexts.get(&context).and_then(|context| context.devices.get(&device))
            && let Some(responder) = &device.properties.responder
        {
            responder.connect(None);
        }
        // What came in between.
        self.collect();
        let gone = self.context_mut(context).ok().and_then(|at| at.remove_device(device));
        if gone.is_some_and(|gone| gone.holds_context) {
            self.put_context(context);
        }
    }

    /// Whether a device of the group is bound to the context.
    #[must_use]
    pub fn has_group(&self, context: ContextId, group: u64) -> bool {
        self.contexts.get(&context).is_some_and(|context| context.groups.contains_key(&group))
    }

    /// A function was plugged into a group: if it has a bound device, its DMA
    /// goes where that of the group goes.
    pub fn group_member_added(&mut self, group: u64, requester: &Arc<Requester>) {
        for context in self.contexts.values_mut() {
            let Context { groups, hwpts, .. } = context;
            if let Some(group) = groups.get_mut(&group) {
                let domain = |hwpt| hwpts.get(&hwpt).map(|hwpt| hwpt.domain());
                let attached: Vec<_> =
                    group.attached.iter().filter_map(|(pasid, to)| Some((*pasid, domain(to.hwpt)?))).collect();
                group.driver.add_member(requester, &attached);
            }
        }
    }
}

impl Context {
    /// Takes a bound device apart, and all that hangs on it.
    pub(crate) fn remove_device(&mut self, device: ObjectId) -> Option<Device> {
        let group = self.devices.get(&device)?.group;
        let pasids: Vec<u32> = self.groups.get(&group).map(|group| group.pasids_of(device)).unwrap_or_default();
        for pasid in pasids {
            self.detach(device, pasid);
        }
        if let Some(vdevice) = self.devices.get(&device).and_then(|device| device.vdevice) {
            self.remove_vdevice(vdevice);
            self.ids.bury(vdevice);
        }
        if let Some(bound) = self.groups.get_mut(&group) {
            bound.bound = bound.bound.saturating_sub(1);
            if bound.bound == 0 {
                self.groups.remove(&group);
            }
        }
        self.ids.remove(device);
        self.devices.remove(&device)
    }

    /// The IOMMU in front of a device.
    pub(crate) fn driver(&self, device: ObjectId) -> Result<&dyn Driver, Errno> {
        let group = self.devices.get(&device).ok_or(Errno::ENOENT)?.group;
        Ok(&*self.groups.get(&group).ok_or(Errno::ENOENT)?.driver)
    }
}
