// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOMMU groups: which functions can reach each other's memory behind the
//! IOMMU's back, or cannot be told apart by it.
//!
//! A function joins a group when it is found, in enumeration order, so what a
//! group's number is depends on what was found before (GRP-007). The steps and
//! their names are those of the fact sheet (GRP-002 to GRP-006).

use std::collections::BTreeSet;

use crate::{Address, Fabric, Function, PortType, cap};

/// A range of I/O addresses that a group cannot map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedRegion {
    /// First address.
    pub start: u64,
    /// Last address.
    pub end: u64,
    /// `msi`, `direct`, `direct-relaxable` or `reserved` (GRP-055).
    pub kind: &'static str,
}

/// Where message signalled interrupts are written to on x86.
pub const MSI_WINDOW: ReservedRegion = ReservedRegion { start: 0xfee0_0000, end: 0xfeef_ffff, kind: "msi" };

impl Fabric {
    /// IOMMU group of a function; `None` if no IOMMU serves it (GRP-008).
    #[must_use]
    pub fn group(&self, address: Address) -> Option<u32> {
        self.nodes.get(&address)?.group
    }

    /// Members of an IOMMU group in address order.
    #[must_use]
    pub fn group_members(&self, group: u32) -> Vec<Address> {
        self.groups.get(&group).map(|members| members.iter().copied().collect()).unwrap_or_default()
    }

    /// All groups in order of their numbers.
    pub fn groups(&self) -> impl Iterator<Item = (u32, Vec<Address>)> + '_ {
        self.groups.iter().map(|(id, members)| (*id, members.iter().copied().collect()))
    }

    /// Ranges that a group cannot map, sorted by start.
    #[must_use]
    pub fn reserved_regions(&self, group: u32) -> &'static [ReservedRegion] {
        if self.groups.contains_key(&group) { &[MSI_WINDOW] } else { &[] }
    }

    /// Puts a function that was just found into its group.
    pub(crate) fn join_group(&mut self, address: Address) {
        let served = self.iommu && self.nodes.get(&address).is_some_and(|node| !node.no_iommu);
        if !served {
            return;
        }
        let group = self.find_group(address).unwrap_or_else(|| self.free_group());
        self.groups.entry(group).or_default().insert(address);
        if let Some(node) = self.nodes.get_mut(&address) {
            node.group = Some(group);
        }
    }

    /// Makes a group of one for a function that no IOMMU serves, as VFIO does
    /// for its no-IOMMU mode (GRP-057): its number, or `None` if it has a group.
    pub fn form_group(&mut self, address: Address) -> Option<u32> {
        if self.group(address).is_some() {
            return None;
        }
        let group = self.free_group();
        self.nodes.get_mut(&address)?.group = Some(group);
        self.groups.entry(group).or_default().insert(address);
        Some(group)
    }

    /// Takes such a group away.
    pub fn dissolve_group(&mut self, group: u32) {
        for member in self.group_members(group) {
            if self.nodes.get(&member).is_some_and(|node| node.no_iommu) {
                self.leave_group(member);
            }
        }
    }

    /// Takes a function that goes away out of its group; an empty group's
    /// number is free again.
    pub(crate) fn leave_group(&mut self, address: Address) {
        let Some(group) = self.nodes.get_mut(&address).and_then(|node| node.group.take()) else { return };
        if let Some(members) = self.groups.get_mut(&group) {
            members.remove(&address);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    fn free_group(&self) -> u32 {
        (0..)
            .zip(self.groups.keys())
            .find(|(free, used)| free != *used)
            .map_or(self.groups.len() as u32, |(free, _)| free)
    }

    fn find_group(&self, address: Address) -> Option<u32> {
        // Step A (GRP-002): up the DMA aliases, to the topmost that is one.
        let mut device = address;
        for alias in self.dma_alias_bridges(address) {
            if let Some(group) = self.group(alias) {
                return Some(group);
            }
            device = alias;
        }
        // Step B (GRP-003): up to where everything above is isolated.
        let mut at = device;
        while let Some(bridge) = self.parent(at) {
            if self.path_isolated(bridge) {
                break;
            }
            if let Some(group) = self.group(bridge) {
                return Some(group);
            }
            device = bridge;
            at = bridge;
        }
        // Steps C and D (GRP-004, GRP-005); with neither a new group (GRP-006).
        let mut seen = BTreeSet::new();
        self.alias_group(device, &mut seen).or_else(|| self.function_group(device, &mut seen))
    }

    /// Bridges above a function that put their own requester id, or their
    /// secondary bus's, in place of the function's (GRP-020); lowest first.
    fn dma_alias_bridges(&self, address: Address) -> Vec<Address> {
        let mut bridges = Vec::new();
        let mut at = address;
        while let Some(bridge) = self.parent(at) {
            let kind = self.port_type(bridge);
            if !matches!(kind, Some(PortType::RootPort | PortType::UpstreamPort | PortType::DownstreamPort)) {
                bridges.push(bridge);
            }
            at = bridge;
        }
        bridges
    }

    /// Requester ids under which the IOMMU sees a function: its own and those
    /// of its aliases (GRP-020, GRP-021).
    #[must_use]
    pub fn requester_ids(&self, address: Address) -> Vec<u16> {
        let mut ids = vec![address.requester_id()];
        let on_bus = |devfn| Address::from_devfn(address.segment, address.bus, devfn).requester_id();
        ids.extend(self.alias_devfns(address).into_iter().map(on_bus));
        for bridge in self.dma_alias_bridges(address) {
            let id = match (self.port_type(bridge), self.secondary(bridge)) {
                (Some(PortType::PcieToPciBridge), Some(bus)) => u16::from(bus.number) << 8,
                _ => bridge.requester_id(),
            };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn alias_devfns(&self, address: Address) -> Vec<u8> {
        let Some(spec) = self.functions.get(&address).map(Function::spec) else { return Vec::new() };
        self.quirks.aliases(spec.vendor, spec.device, address.devfn()).collect()
    }

    fn are_aliases(&self, one: Address, other: Address) -> bool {
        self.alias_devfns(one).contains(&other.devfn()) || self.alias_devfns(other).contains(&one.devfn())
    }

    fn neighbours(&self, address: Address) -> impl Iterator<Item = Address> + '_ {
        let devices = self.buses.get(&(address.segment, address.bus)).map(|bus| bus.devices.as_slice());
        devices.unwrap_or_default().iter().copied().filter(move |other| *other != address)
    }

    /// Group of the function or of one that it shares a requester id with.
    fn alias_group(&self, address: Address, seen: &mut BTreeSet<u8>) -> Option<u32> {
        if !seen.insert(address.devfn()) {
            return None;
        }
        if let Some(group) = self.group(address) {
            return Some(group);
        }
        self.neighbours(address)
            .filter(|other| self.are_aliases(address, *other))
            .find_map(|other| self.alias_group(other, seen).or_else(|| self.function_group(other, seen)))
    }

    /// Group of a function of the same device that, like this one, is not
    /// isolated.
    fn function_group(&self, address: Address, seen: &mut BTreeSet<u8>) -> Option<u32> {
        if !self.is_multifunction(address) || self.acs_enabled(address, cap::ACS_ISOLATED) {
            return None;
        }
        self.neighbours(address)
            .filter(|other| other.device() == address.device() && !self.acs_enabled(*other, cap::ACS_ISOLATED))
            .find_map(|other| self.alias_group(other, seen))
    }

    /// Whether requests of a function cannot reach its peers without the
    /// IOMMU, as far as it is up to the function (GRP-010 to GRP-016).
    #[must_use]
    pub fn acs_enabled(&self, address: Address, flags: u16) -> bool {
        let Some(function) = self.functions.get(&address) else { return false };
        let spec = function.spec();
        if let Some(isolated) = self.quirks.isolated(spec.vendor, spec.device, spec.port_type) {
            return isolated;
        }
        match spec.port_type {
            PortType::Conventional | PortType::ConventionalBridge => false,
            PortType::PcieToPciBridge | PortType::PciToPcieBridge | PortType::EventCollector => false,
            PortType::RootPort | PortType::DownstreamPort => acs_flags(function, flags),
            PortType::Endpoint
            | PortType::LegacyEndpoint
            | PortType::UpstreamPort
            | PortType::IntegratedEndpoint
            | PortType::VirtualFunction => !self.is_multifunction(address) || acs_flags(function, flags),
        }
    }

    /// Whether a bridge and everything from it to the root bus is isolated
    /// (GRP-018).
    #[must_use]
    pub fn path_isolated(&self, bridge: Address) -> bool {
        let mut at = Some(bridge);
        while let Some(address) = at {
            if !self.acs_enabled(address, cap::ACS_ISOLATED) {
                return false;
            }
            at = self.parent(address);
        }
        true
    }
}

/// The ACS registers: what the capability does not offer is deemed fulfilled,
/// but for egress control (GRP-015).
fn acs_flags(function: &Function, flags: u16) -> bool {
    let Some(acs) = function.extended_capability(cap::EXT_ACS) else { return false };
    let offered = function.read(acs + 4, 2) as u16;
    let needed = flags & (offered | cap::ACS_EC);
    function.read(acs + 6, 2) as u16 & needed == needed
}
