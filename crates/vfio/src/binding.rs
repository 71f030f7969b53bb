// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices bound to contexts of `/dev/iommu`, by their own node or through a
//! group whose container is an iommufd, and what they are attached to.
//!
//! What a program may attach where is iommufd's to say. Here is what Linux
//! keeps in `drivers/vfio/iommufd.c`: whether an attach is a first one or a
//! replacement, and who owns a group's DMA.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::device::{Board, Endpoint};
use iommufd::{Binding, ContextId, DeviceProperties, Iommufd, ObjectId, PageResponder};
use pci::{Address, PortType, cap};
use uapi::Errno;

use crate::Options;
use crate::ownership::GroupTable;

/// A bound device.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) context: ContextId,
    pub(crate) id: ObjectId,
    group: u32,
    /// Through the device's own node.
    cdev: bool,
    /// It claims the reset of all that falls with it.
    claims_reset: bool,
    attached: bool,
    /// Attached by requests that named a PASID, 0 among them (API-119).
    pasids: BTreeSet<u32>,
}

impl Bound {
    /// Its IOMMU group.
    pub(crate) fn group(&self) -> u32 {
        self.group
    }
}

/// All bound devices.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    devices: BTreeMap<Address, Bound>,
}

/// What is asked of the rest when a device is bound.
pub(crate) struct Around<'a> {
    pub(crate) options: &'a Options,
    pub(crate) table: &'a GroupTable,
    pub(crate) board: &'a Board,
}

impl Bindings {
    /// Binds; the device's id in the context (API-106, API-110). `EINVAL`,
    /// `EPERM` if somebody else owns the DMA of its group.
    pub(crate) fn bind(
        &mut self,
        address: Address,
        context: ContextId,
        cdev: bool,
        around: &Around<'_>,
        iommufd: &mut Iommufd,
    ) -> Result<ObjectId, Errno> {
        let group = around.table.group_of(around.board, address).ok_or(Errno::EINVAL)?;
        let owned = self.in_group(group).any(|bound| bound.context != context);
        if owned || around.table.kernel_owns_dma(around.board, group) {
            return Err(Errno::EPERM);
        }
        let id = iommufd.bind(context, binding(address, group, around)?)?;
        let bound = Bound { context, id, group, cdev, claims_reset: false, attached: false, pasids: BTreeSet::new() };
        self.devices.insert(address, bound);
        Ok(id)
    }

    /// Detaches and unbinds, if the device is bound (API-269).
    pub(crate) fn unbind(&mut self, address: Address, iommufd: &mut Iommufd) {
        let Some(bound) = self.devices.remove(&address) else { return };
        for pasid in bound.pasids {
            iommufd.detach(bound.context, bound.id, pasid);
        }
        if bound.attached {
            iommufd.detach(bound.context, bound.id, 0);
        }
        iommufd.unbind(bound.context, bound.id);
    }

    /// Attaches, or replaces what it is attached to (API-114, API-119); the
    /// HWPT. Without `pasid` the device's requests that have none.
    pub(crate) fn attach(
        &mut self,
        address: Address,
        pasid: Option<u32>,
        pt_id: u32,
        iommufd: &mut Iommufd,
    ) -> Result<u32, Errno> {
        let bound = self.devices.get_mut(&address).ok_or(Errno::EINVAL)?;
        let present = match pasid {
            None => bound.attached,
            Some(pasid) => bound.pasids.contains(&pasid),
        };
        let number = pasid.unwrap_or(0);
        if present {
            return iommufd.replace(bound.context, bound.id, number, pt_id);
        }
        if number > i32::MAX as u32 {
            return Err(Errno::ENOSPC); // no number of Linux's table
        }
        let hwpt = iommufd.attach(bound.context, bound.id, number, pt_id)?;
        match pasid {
            None => bound.attached = true,
            Some(pasid) => drop(bound.pasids.insert(pasid)),
        }
        Ok(hwpt)
    }

    /// Detaches if it is attached (API-118).
    pub(crate) fn detach(&mut self, address: Address, pasid: Option<u32>, iommufd: &mut Iommufd) {
        let Some(bound) = self.devices.get_mut(&address) else { return };
        let attached = match pasid {
            None => std::mem::take(&mut bound.attached),
            Some(pasid) => bound.pasids.remove(&pasid),
        };
        if attached {
            iommufd.detach(bound.context, bound.id, pasid.unwrap_or(0));
        }
    }

    /// The device, if it is bound.
    pub(crate) fn get(&self, address: Address) -> Option<&Bound> {
        self.devices.get(&address)
    }

    /// The device claims the reset of all that falls with it.
    pub(crate) fn claim_reset(&mut self, address: Address) {
        if let Some(bound) = self.devices.get_mut(&address) {
            bound.claims_reset = true;
        }
    }

    /// Devices with such a claim, and whose it is.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (Address, ContextId)> {
        self.devices.iter().filter(|(_, bound)| bound.claims_reset).map(|(address, bound)| (*address, bound.context))
    }

    /// Bound devices of a context.
    pub(crate) fn in_context(&self, context: ContextId) -> impl Iterator<Item = (Address, &Bound)> {
        self.devices.iter().filter(move |(_, bound)| bound.context == context).map(|(address, bound)| (*address, bound))
    }

    /// Bound devices of a group: who has one owns the group's DMA.
    pub(crate) fn in_group(&self, group: u32) -> impl Iterator<Item = &Bound> {
        self.devices.values().filter(move |bound| bound.group == group)
    }

    /// Whether a device of the group is bound through its own node (API-036).
    pub(crate) fn has_cdev(&self, group: u32) -> bool {
        self.in_group(group).any(|bound| bound.cdev)
    }

    /// Whether no device is bound.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}

fn binding(address: Address, group: u32, around: &Around<'_>) -> Result<Binding, Errno> {
    let board = around.board;
    let requester = |address| Some(Arc::clone(&board.endpoint(address)?.requester));
    Ok(Binding {
        group: u64::from(group),
        requester: requester(address).ok_or(Errno::EINVAL)?,
        members: around.table.members(board, group).into_iter().filter_map(requester).collect(),
        properties: properties(address, board, around.options),
    })
}

fn responder(endpoint: &Arc<Endpoint>) -> Arc<dyn PageResponder> {
    Arc::clone(&endpoint.page_requests) as _
}

/// Page requests that the host has allocated to the function (FAULT-4.3).
fn page_requests(function: Option<&pci::Function>) -> u32 {
    let allocation = |f: &pci::Function| Some(f.read(f.extended_capability(cap::EXT_PRI)? + 12, 4));
    function.and_then(allocation).unwrap_or(0)
}

/// What the device and the lab's IOMMU can do together.
fn properties(address: Address, board: &Board, options: &Options) -> DeviceProperties {
    let function = board.fabric.function(address);
    let is_virtual = function.is_some_and(|f| f.spec().port_type == PortType::VirtualFunction);
    // A VF uses the PASID and page request capabilities of its PF.
    let physical = board.fabric.physical_function(address).and_then(|pf| board.fabric.function(pf)).or(function);
    let pasid = physical.and_then(|f| Some(f.read(f.extended_capability(cap::EXT_PASID)? + 4, 2)));
    let width = pasid.map_or(0, |register| (register >> 8 & 0x1f) as u8).min(options.pasid_bits).min(20);
    let has = |f: Option<&pci::Function>, id| f.is_some_and(|f| f.extended_capability(id).is_some());
    DeviceProperties {
        coherent: options.cache_coherency,
        isolated_msi: options.interrupt_remapping,
        dirty_tracking: options.dirty_tracking,
        max_pasids: if width == 0 { 0 } else { 1 << width },
        pasid_exec: width > 0 && pasid.is_some_and(|register| register & 2 != 0),
        pasid_priv: width > 0 && pasid.is_some_and(|register| register & 4 != 0),
        ats: has(function, cap::EXT_ATS),
        vf_of_pri_pf: is_virtual && has(physical, cap::EXT_PRI),
        reserved: vec![(pci::MSI_WINDOW.start, pci::MSI_WINDOW.end)],
        responder: board.endpoint(address).filter(|_| has(function, cap::EXT_PRI)).map(responder),
        page_requests: page_requests(function),
        pasids: board.mediated(address).map(|part| part.pasids.clone()),
    }
}
