// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who drives the devices of an IOMMU group.
//!
//! VFIO claims DMA ownership of a whole group when the group enters a
//! container. It cannot while a kernel driver that does DMA has one of the
//! group's functions, and no such driver can be bound afterwards (GRP-027 to
//! GRP-030).

use std::collections::BTreeMap;

use ::device::{Board, Driver};
use pci::Address;

/// What stands behind a group node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A group of the IOMMU: `/dev/vfio/N`.
    Iommu,
    /// A device without IOMMU: `/dev/vfio/noiommu-N`.
    NoIommu,
}

/// What VFIO knows of groups besides the fabric.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    noiommu: BTreeMap<u32, Vec<Address>>,
    /// Groups that tests make up.
    #[cfg(test)]
    made_up: BTreeMap<u32, Vec<Address>>,
}

impl GroupTable {
    /// Adds a group of functions without IOMMU (GRP-057).
    pub(crate) fn add_noiommu(&mut self, group: u32, members: Vec<Address>) {
        self.noiommu.insert(group, members);
    }

    /// The group of a function without IOMMU is gone: its number.
    pub(crate) fn remove_noiommu(&mut self, address: Address) -> Option<u32> {
        let (group, _) = self.noiommu.iter().find(|(_, members)| members.contains(&address))?;
        let group = *group;
        self.noiommu.remove(&group);
        Some(group)
    }

    /// Puts a function into a group that the fabric knows nothing of.
    #[cfg(test)]
    pub(crate) fn add_member(&mut self, group: u32, address: Address) {
        self.made_up.entry(group).or_default().push(address);
    }

    /// Takes a made-up function out of its group.
    #[cfg(test)]
    pub(crate) fn remove_member(&mut self, address: Address) {
        self.made_up.values_mut().for_each(|members| members.retain(|member| *member != address));
    }

    /// The kind of a group.
    pub(crate) fn kind(&self, group: u32) -> Kind {
        if self.noiommu.contains_key(&group) { Kind::NoIommu } else { Kind::Iommu }
    }

    /// The group of a function.
    pub(crate) fn group_of(&self, board: &Board, address: Address) -> Option<u32> {
        #[cfg(test)]
        if let Some((group, _)) = self.made_up.iter().find(|(_, members)| members.contains(&address)) {
            return Some(*group);
        }
        let noiommu = self.noiommu.iter().find(|(_, members)| members.contains(&address)).map(|(group, _)| *group);
        noiommu.or_else(|| board.fabric.group(address))
    }

    /// Functions of a group, whatever driver they have.
    pub(crate) fn members(&self, board: &Board, group: u32) -> Vec<Address> {
        #[cfg(test)]
        if let Some(members) = self.made_up.get(&group) {
            return members.clone();
        }
        match self.noiommu.get(&group) {
            Some(members) => members.clone(),
            None => board.fabric.group_members(group),
        }
    }

    /// Functions of a group that a VFIO driver has; none: no node (API-034).
    pub(crate) fn vfio_devices(&self, board: &Board, group: u32) -> Vec<Address> {
        let mut members = self.members(board, group);
        members.retain(|address| board.driver(*address) == Some(&Driver::VfioPci));
        members
    }

    /// Whether a kernel driver that does DMA has a function of the group.
    /// Drivers that leave DMA to others do not count, nor do functions without
    /// driver (API-041, GRP-028).
    pub(crate) fn kernel_owns_dma(&self, board: &Board, group: u32) -> bool {
        self.members(board, group).iter().any(|address| board.driver(*address).is_some_and(owns_dma))
    }
}

/// Whether a driver does DMA of its own.
pub(crate) fn owns_dma(driver: &Driver) -> bool {
    match driver {
        Driver::VfioPci | Driver::Pcieport => false,
        Driver::Kernel(_) => true,
    }
}
