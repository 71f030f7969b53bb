// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A group: its devices attach together.

use std::collections::{BTreeMap, BTreeSet};

use crate::driver::Driver;
use crate::ids::ObjectId;

/// The devices of an IOMMU group that are bound to a context.
#[derive(Debug)]
pub(crate) struct Group {
    /// The IOMMU in front of them.
    pub(crate) driver: Box<dyn Driver>,
    /// How many are bound.
    pub(crate) bound: u32,
    /// What each PASID is attached to, 0 for requests without one.
    pub(crate) attached: BTreeMap<u32, Attached>,
}

/// What a PASID of a group is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) hwpt: ObjectId,
    /// Names this attachment: no other ever has the number.
    pub(crate) handle: u64,
    /// The device that attached it, which records of page requests name.
    pub(crate) by: ObjectId,
    /// The devices that have attached to it. Not empty.
    pub(crate) devices: BTreeSet<ObjectId>,
}

impl Group {
    /// No device, nothing attached.
    pub(crate) fn new(driver: Box<dyn Driver>) -> Group {
        Group { driver, bound: 0, attached: BTreeMap::new() }
    }

    /// What a device has a PASID attached to.
    pub(crate) fn attached_to(&self, device: ObjectId, pasid: u32) -> Option<&Attached> {
        self.attached.get(&pasid).filter(|attached| attached.devices.contains(&device))
    }

    /// The PASIDs that a device has attached.
    pub(crate) fn pasids_of(&self, device: ObjectId) -> Vec<u32> {
        let attached = self.attached.iter().filter(|(_, attached)| attached.devices.contains(&device));
        attached.map(|(pasid, _)| *pasid).collect()
    }
}
