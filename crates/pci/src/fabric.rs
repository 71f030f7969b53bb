// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fabric: buses, ports and functions, and how they hang together.
//!
//! A fabric is made by a [`FabricBuilder`] and is as Linux finds it after
//! boot: buses numbered, windows and BARs set, links trained, ACS enabled,
//! groups formed. What changes later (virtual functions, resets) goes through
//! methods here; each topic has a file of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::link::{Presence, Signal};
use crate::resource::{RESOURCES, Resource};
use crate::{Address, FabricBuilder, FabricError, Function, FunctionSpec, PortType, Quirks, cap, dpc};

/// All functions of a lab and how they are connected.
#[derive(Clone, Debug, Default)]
pub struct Fabric {
    pub(crate) functions: BTreeMap<Address, Function>,
    pub(crate) nodes: BTreeMap<Address, Node>,
    pub(crate) buses: BTreeMap<(u16, u8), Bus>,
    pub(crate) groups: BTreeMap<u32, BTreeSet<Address>>,
    pub(crate) names: BTreeMap<String, Address>,
    pub(crate) quirks: Quirks,
    pub(crate) iommu: bool,
    pub(crate) native_errors: bool,
    /// The time, in nanoseconds.
    pub(crate) now: u64,
    /// Functions and ports that time changes.
    pub(crate) unsettled: BTreeSet<Address>,
    pub(crate) signals: Vec<Signal>,
    pub(crate) resets: BTreeSet<Address>,
    /// Functions that began or ceased to answer.
    pub(crate) changed: BTreeSet<Address>,
    plan: FabricBuilder,
}

/// What the pretend kernel knows of a function.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) group: Option<u32>,
    pub(crate) no_iommu: bool,
    pub(crate) acs_control: Option<u16>,
    pub(crate) multifunction: bool,
    pub(crate) physfn: Option<Address>,
    pub(crate) virtfns: Vec<Address>,
    pub(crate) secondary: Option<u8>,
    pub(crate) resources: [Resource; RESOURCES],
    pub(crate) presence: Presence,
}

/// A bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bus {
    /// Segment.
    pub segment: u16,
    /// Number.
    pub number: u8,
    /// Last bus number behind the same bridge.
    pub subordinate: u8,
    /// The bridge above it; `None` for a root bus, and for a bus that exists
    /// only because virtual functions are on it.
    pub bridge: Option<Address>,
    /// Number of the bus above; `None` for a root bus.
    pub parent: Option<u8>,
    /// Functions on it in the order in which they were found.
    pub devices: Vec<Address>,
}

impl Fabric {
    pub(crate) fn empty(plan: FabricBuilder, quirks: Quirks, iommu: bool) -> Fabric {
        Fabric { plan, quirks, iommu, ..Fabric::default() }
    }

    /// Adds a function at an address, with a root port above it where nothing
    /// leads there. The lab is built anew: registers are as after power on and
    /// virtual functions are gone. To add many, use a [`FabricBuilder`].
    pub fn plug_auto(&mut self, address: Address, spec: FunctionSpec) -> Result<(), FabricError> {
        let mut plan = self.plan.clone();
        plan.plug_auto(address, spec);
        *self = plan.build()?;
        Ok(())
    }

    /// A function.
    #[must_use]
    pub fn function(&self, address: Address) -> Option<&Function> {
        self.functions.get(&address)
    }

    /// A function, to be changed.
    pub fn function_mut(&mut self, address: Address) -> Option<&mut Function> {
        self.functions.get_mut(&address)
    }

    /// Whether errors are the system's business, not firmware's (ERR-042).
    #[must_use]
    pub fn has_native_errors(&self) -> bool {
        self.native_errors
    }

    /// All functions in address order.
    pub fn functions(&self) -> impl Iterator<Item = (Address, &Function)> {
        self.functions.iter().map(|(address, function)| (*address, function))
    }

    /// The function that an item of this name became.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Address> {
        self.names.get(name).copied()
    }

    /// The bridge above a function; `None` on a root bus. A virtual function
    /// on a bus of its own has the bridge above its physical function's bus.
    #[must_use]
    pub fn parent(&self, address: Address) -> Option<Address> {
        let mut bus = self.buses.get(&(address.segment, address.bus))?;
        loop {
            match (bus.bridge, bus.parent) {
                (Some(bridge), _) => return Some(bridge),
                (None, Some(parent)) => bus = self.buses.get(&(bus.segment, parent))?,
                (None, None) => return None,
            }
        }
    }

    /// Functions directly behind a bridge, in the order in which they were
    /// found.
    #[must_use]
    pub fn children(&self, bridge: Address) -> Vec<Address> {
        self.secondary(bridge).map(|bus| bus.devices.clone()).unwrap_or_default()
    }

    /// Bridges from the root bus down to and with the function itself; what a
    /// path in `/sys/devices` is made of.
    #[must_use]
    pub fn path(&self, address: Address) -> Vec<Address> {
        let mut path = vec![address];
        let mut at = address;
        while let Some(bridge) = self.parent(at) {
            path.push(bridge);
            at = bridge;
        }
        path.reverse();
        path
    }

    /// The root bus above a function.
    #[must_use]
    pub fn root_bus(&self, address: Address) -> Option<&Bus> {
        let mut bus = self.buses.get(&(address.segment, address.bus))?;
        while let Some(parent) = bus.parent {
            bus = self.buses.get(&(bus.segment, parent))?;
        }
        Some(bus)
    }

    /// A bus.
    #[must_use]
    pub fn bus(&self, segment: u16, number: u8) -> Option<&Bus> {
        self.buses.get(&(segment, number))
    }

    /// All buses in order of segment and number.
    pub fn buses(&self) -> impl Iterator<Item = &Bus> {
        self.buses.values()
    }

    /// The bus behind a bridge.
    #[must_use]
    pub fn secondary(&self, bridge: Address) -> Option<&Bus> {
        let number = self.nodes.get(&bridge)?.secondary?;
        self.buses.get(&(bridge.segment, number))
    }

    /// Whether there is a bus behind the function.
    #[must_use]
    pub fn is_bridge(&self, address: Address) -> bool {
        self.nodes.get(&address).is_some_and(|node| node.secondary.is_some())
    }

    /// What a function is.
    #[must_use]
    pub fn port_type(&self, address: Address) -> Option<PortType> {
        Some(self.functions.get(&address)?.spec().port_type)
    }

    /// Whether Linux takes the function for one of several of its device.
    #[must_use]
    pub fn is_multifunction(&self, address: Address) -> bool {
        self.nodes.get(&address).is_some_and(|node| node.multifunction)
    }

    /// The order in which Linux finds the functions: a bus whole, then what is
    /// behind each of its bridges.
    #[must_use]
    pub fn enumeration(&self) -> Vec<Address> {
        let mut found = Vec::with_capacity(self.functions.len());
        for bus in self.buses.values().filter(|bus| bus.parent.is_none()) {
            self.scan(bus, &mut found);
        }
        found
    }

    fn scan(&self, bus: &Bus, found: &mut Vec<Address>) {
        found.extend(bus.devices.iter().filter(|a| self.physical_function(**a).is_none()));
        for bridge in &bus.devices {
            if let Some(below) = self.secondary(*bridge) {
                self.scan(below, found);
            }
        }
        // Virtual functions come when they are enabled, so last.
        for device in &bus.devices {
            if let Some(node) = self.nodes.get(device) {
                found.extend(&node.virtfns);
            }
        }
    }

    /// All functions on a bus and below it, each bridge followed by what is
    /// behind it (the bus walk of a hot reset, HOT-003).
    #[must_use]
    pub fn bus_walk(&self, segment: u16, bus: u8) -> Vec<Address> {
        let mut found = Vec::new();
        if let Some(bus) = self.buses.get(&(segment, bus)) {
            self.walk(bus, &mut found);
        }
        found
    }

    /// All functions behind a bridge, in bus walk order.
    #[must_use]
    pub fn below(&self, bridge: Address) -> Vec<Address> {
        self.secondary(bridge).map(|bus| self.bus_walk(bus.segment, bus.number)).unwrap_or_default()
    }

    /// Whether a function is one of those [`below`](Self::below) a bridge. Looks
    /// at the way up only, which is never longer than the lab is deep.
    #[must_use]
    pub fn is_below(&self, address: Address, bridge: Address) -> bool {
        let above = |at: Address| self.buses.get(&(at.segment, at.bus))?.bridge;
        std::iter::successors(above(address), |at| above(*at)).any(|at| at == bridge)
    }

    fn walk(&self, bus: &Bus, found: &mut Vec<Address>) {
        for device in &bus.devices {
            found.push(*device);
            if let Some(below) = self.secondary(*device) {
                self.walk(below, found);
            }
        }
    }

    pub(crate) fn insert_bus(&mut self, bus: (u16, u8), parent: Option<(u16, u8)>, bridge: Option<Address>, last: u8) {
        let (segment, number) = bus;
        let parent = parent.map(|p| p.1);
        self.buses.insert(bus, Bus { segment, number, subordinate: last, bridge, parent, devices: Vec::new() });
    }

    pub(crate) fn insert_function(
        &mut self,
        address: Address,
        mut function: Function,
        name: Option<String>,
        node: Node,
        buses: Option<(u8, u8)>,
    ) {
        if let Some((secondary, subordinate)) = buses {
            let numbers = [address.bus, secondary, subordinate];
            for (offset, number) in (0x18..).zip(numbers) {
                function.write(offset, 1, u32::from(number));
            }
        }
        if let Some(name) = name {
            self.names.insert(name, address);
        }
        let secondary = buses.map(|b| b.0);
        self.functions.insert(address, function);
        self.nodes.insert(address, Node { secondary, ..node });
    }

    /// What firmware and Linux do from power on to the end of boot.
    pub(crate) fn power_on(&mut self) -> Result<(), FabricError> {
        let addresses: Vec<Address> = self.functions.keys().copied().collect();
        for &address in &addresses {
            if let Some(bus) = self.buses.get_mut(&(address.segment, address.bus)) {
                bus.devices.push(address);
            }
        }
        self.mark_multifunction(&addresses);
        self.assign_resources()?;
        for &address in &addresses {
            self.train_link(address);
            self.enable_bridge(address);
            self.enable_isolation(address);
            self.enable_error_reports(address);
            if let Some(function) = self.functions.get_mut(&address)
                && function.spec().interrupt_pin != 0
            {
                // The pins are spread over the lines by device number.
                let line = 10 + (address.device() + function.spec().interrupt_pin - 1) % 2;
                function.write(0x3c, 1, u32::from(line));
            }
        }
        for address in self.enumeration() {
            self.join_group(address);
        }
        Ok(())
    }

    /// The header's multifunction bit, Linux's view of it, and the chain of
    /// ARI functions.
    fn mark_multifunction(&mut self, addresses: &[Address]) {
        for &address in addresses {
            let later = Address::new(address.segment, address.bus, address.device(), 7);
            let next = self.functions.range(address..=later).nth(1).map(|(next, _)| *next);
            let several = address.function() != 0 || next.is_some();
            if let Some(node) = self.nodes.get_mut(&address) {
                node.multifunction = several;
            }
            if let Some(function) = self.functions.get_mut(&address) {
                if several {
                    let header = function.read(0x0e, 1);
                    function.set(0x0e, 1, header | 0x80);
                }
                if let Some(ari) = function.extended_capability(cap::EXT_ARI) {
                    function.set(ari + 5, 1, u32::from(next.map_or(0, |a| a.function())));
                }
            }
        }
    }

    /// Trains the link behind a port: both ends at the lesser speed and width.
    fn train_link(&mut self, port: Address) {
        let Some(kind) = self.port_type(port) else { return };
        if !kind.has_link_below() {
            return;
        }
        let below = self.children(port);
        let ari = below.first().and_then(|a| self.functions.get(a)?.extended_capability(cap::EXT_ARI)).is_some();
        let partner = below.first().and_then(|a| self.functions.get(a)).map(|f| f.spec().link);
        let Some(function) = self.functions.get_mut(&port) else { return };
        let Some(express) = function.capability(cap::EXPRESS) else { return };
        let own = function.spec().link;
        let Some(partner) = partner else {
            function.set(express + 0x12, 2, 0x1001); // no lane, lowest speed
            return;
        };
        let (speed, width) = (u32::from(own.speed.min(partner.speed)), u32::from(own.width.min(partner.width)));
        // Slot clock, data link layer active.
        function.set(express + 0x12, 2, 0x3000 | width << 4 | speed);
        if function.spec().slot.is_some() {
            function.set(express + 0x1a, 2, 0x0040); // presence detected
        }
        if ari {
            let control = function.read(express + 0x28, 2);
            function.write(express + 0x28, 2, control | 0x20);
        }
        let equalised = if speed >= 3 { 0x001e } else { 0 };
        function.set(express + 0x32, 2, equalised);
        for address in below {
            if let Some(function) = self.functions.get_mut(&address)
                && let Some(express) = function.capability(cap::EXPRESS)
            {
                function.set(express + 0x12, 2, 0x1000 | width << 4 | speed);
                function.set(express + 0x32, 2, equalised);
            }
        }
    }

    /// Bridges forward from the start; `pcieport` has them enabled.
    fn enable_bridge(&mut self, address: Address) {
        if self.is_bridge(address)
            && let Some(function) = self.functions.get_mut(&address)
        {
            let enable = cap::COMMAND_IO | cap::COMMAND_MEMORY | cap::COMMAND_MASTER;
            function.write(cap::COMMAND, 2, u32::from(enable));
            // Linux lets error messages from below pass.
            let control = function.read(cap::BRIDGE_CONTROL, 2);
            function.write(cap::BRIDGE_CONTROL, 2, control | u32::from(cap::BRIDGE_CONTROL_SERR));
        }
    }

    /// Linux enables what isolation takes wherever it is offered, if there is
    /// an IOMMU (GRP-019); boot options have the last word, also without one
    /// (GRP-026).
    pub(crate) fn enable_isolation(&mut self, address: Address) {
        let control = self.nodes.get(&address).and_then(|node| node.acs_control);
        let control = control.unwrap_or(if self.iommu { cap::ACS_ISOLATED } else { 0 });
        if let Some(function) = self.functions.get_mut(&address)
            && let Some(acs) = function.extended_capability(cap::EXT_ACS)
        {
            function.write(acs + 6, 2, u32::from(control));
        }
    }

    /// Linux has functions with AER report all errors, and root ports tell of
    /// them by interrupt, if these are its business (ERR-042).
    fn enable_error_reports(&mut self, address: Address) {
        let Some(function) = self.functions.get_mut(&address) else { return };
        let Some(express) = function.capability(cap::EXPRESS) else { return };
        let root = function.spec().port_type == PortType::RootPort;
        if self.native_errors
            && let Some(aer) = function.extended_capability(cap::EXT_AER)
        {
            let control = function.read(express + 0x08, 2);
            function.write(express + 0x08, 2, control | 0x000f);
            if matches!(function.spec().port_type, PortType::RootPort | PortType::EventCollector) {
                function.write(aer + 0x2c, 4, 0x0007);
            }
            // ERR_FATAL and own errors contain; nothing else does.
            if let Some(dpc) = function.extended_capability(cap::EXT_DPC) {
                function.write(dpc + dpc::CONTROL, 2, dpc::CONTROL_FATAL | dpc::CONTROL_INTERRUPT);
            }
        }
        if root {
            function.write(express + 0x1c, 2, 0x0010); // CRS software visibility
        }
    }

    /// The physical function of a virtual one.
    #[must_use]
    pub fn physical_function(&self, address: Address) -> Option<Address> {
        self.nodes.get(&address)?.physfn
    }

    /// The enabled virtual functions of a physical one, in order.
    #[must_use]
    pub fn virtual_functions(&self, address: Address) -> &[Address] {
        self.nodes.get(&address).map_or(&[], |node| &node.virtfns)
    }
}
