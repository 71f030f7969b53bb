// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands where: a description of a fabric, checked and turned into one.
//!
//! Everything is an [`Item`]: a function's description and its [`Place`].
//! Items may come in any order and name each other. [`FabricBuilder::build`]
//! finds their parents, numbers devices and buses as firmware would, sets up
//! windows and BARs, and lets the pretend Linux enumerate what it made.

use std::collections::BTreeSet;

use crate::fabric::Node;
use crate::plan::Plan;
use crate::{Address, Fabric, FabricError, Function, FunctionSpec, Item, Place, PortType, Quirks, numbering};

/// A fabric to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricBuilder {
    items: Vec<Item>,
    roots: BTreeSet<(u16, u8)>,
    quirks: Quirks,
    iommu: bool,
    native_errors: bool,
}

impl Default for FabricBuilder {
    fn default() -> FabricBuilder {
        FabricBuilder {
            items: Vec::new(),
            roots: BTreeSet::new(),
            quirks: Quirks::linux(),
            iommu: true,
            native_errors: true,
        }
    }
}

impl FabricBuilder {
    /// An empty fabric with an IOMMU and Linux's quirks.
    #[must_use]
    pub fn new() -> FabricBuilder {
        FabricBuilder::default()
    }

    /// Adds a root bus: another root complex. Root buses that a [`Place`] names,
    /// and bus 0 of a segment where an address needs it, are there without it.
    pub fn root_bus(&mut self, segment: u16, bus: u8) -> &mut FabricBuilder {
        self.roots.insert((segment, bus));
        self
    }

    /// Adds a function or a port.
    pub fn add(&mut self, item: Item) -> &mut FabricBuilder {
        self.items.push(item);
        self
    }

    /// Adds a switch: the upstream port `name` and the downstream ports
    /// `name.0`, `name.1` and so on, described by `downstream`.
    pub fn switch(&mut self, name: &str, place: Place, ports: u8, downstream: &FunctionSpec) -> &mut FabricBuilder {
        self.add(Item::port(place, PortType::UpstreamPort).named(name));
        for port in 0..ports.min(32) {
            let place = Place::below(name).at(port, 0);
            self.add(Item::new(place, downstream.clone()).named(&format!("{name}.{port}")));
        }
        self
    }

    /// Adds a function at an address, with a root port above it where nothing
    /// leads there.
    pub fn plug_auto(&mut self, address: Address, spec: FunctionSpec) -> &mut FabricBuilder {
        self.add(Item::new(Place::At(address), spec))
    }

    /// Replaces the quirks.
    pub fn quirks(&mut self, quirks: Quirks) -> &mut FabricBuilder {
        self.quirks = quirks;
        self
    }

    /// Whether there is an IOMMU at all; without one there are no groups.
    pub fn iommu(&mut self, present: bool) -> &mut FabricBuilder {
        self.iommu = present;
        self
    }

    /// Whether firmware grants the system the errors of PCI Express (`_OSC`); if
    /// not, Linux enables no reports and has no service for them (ERR-042).
    pub fn native_errors(&mut self, granted: bool) -> &mut FabricBuilder {
        self.native_errors = granted;
        self
    }

    /// The items added so far.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The fabric after power on, firmware and enumeration.
    pub fn build(&self) -> Result<Fabric, FabricError> {
        let plan = Plan::new(self.items.clone(), self.roots.clone())?;
        let tree = plan.tree();
        let buses = numbering::number(&tree)?;
        let addresses = plan.addresses(&buses)?;
        plan.check_functions(&addresses)?;
        let mut fabric = Fabric::empty(self.clone(), self.quirks.clone(), self.iommu);
        fabric.native_errors = self.native_errors;
        for &(segment, bus) in &plan.roots {
            let last = tree.root_end(segment, bus);
            fabric.insert_bus((segment, bus), None, None, last);
        }
        for (i, numbers) in buses.iter().enumerate() {
            if let Some((first, last)) = *numbers {
                let address = addresses[i];
                let bus = (address.segment, address.bus);
                fabric.insert_bus((address.segment, first), Some(bus), Some(address), last);
            }
        }
        for (i, item) in plan.items.into_iter().enumerate() {
            let name = item.name.clone().unwrap_or_else(|| addresses[i].to_string());
            let function = Function::checked(item.spec).map_err(|error| FabricError::Spec { name, error })?;
            let node = Node { no_iommu: item.no_iommu, acs_control: item.acs_control, ..Node::default() };
            fabric.insert_function(addresses[i], function, item.name, node, buses[i]);
        }
        fabric.power_on()?;
        Ok(fabric)
    }
}
