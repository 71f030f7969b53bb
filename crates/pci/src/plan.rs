// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a description to addresses: who is below whom, which device numbers
//! they have, and whether hardware and Linux could have it so.

use std::collections::{BTreeMap, BTreeSet};

use crate::numbering::{self, Tree};
use crate::{Address, FabricError, FunctionSpec, Item, Place, PortType, Slot};

/// What is above an item.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Parent {
    Root(u16, u8),
    Item(usize),
}

/// A description being worked out.
#[derive(Default)]
pub(crate) struct Plan {
    /// The items; root ports that were not named are added.
    pub(crate) items: Vec<Item>,
    /// Root buses.
    pub(crate) roots: BTreeSet<(u16, u8)>,
    parents: Vec<Parent>,
    segments: Vec<u16>,
    slots: Vec<(u8, u8)>,
    doubles: Vec<usize>,
}

impl Plan {
    /// Finds parents and device numbers.
    pub(crate) fn new(items: Vec<Item>, roots: BTreeSet<(u16, u8)>) -> Result<Plan, FabricError> {
        let mut plan = Plan { items, roots, ..Plan::default() };
        plan.find_parents()?;
        plan.check_places()?;
        plan.number_devices()?;
        Ok(plan)
    }

    fn name(&self, item: usize) -> String {
        let item = &self.items[item];
        match (&item.name, &item.place) {
            (Some(name), _) => name.clone(),
            (None, Place::At(address)) => address.to_string(),
            (None, Place::Below { port, .. }) => format!("function below {port}"),
            (None, Place::Root { segment, bus, .. }) => format!("function on bus {segment:04x}:{bus:02x}"),
        }
    }

    fn find_parents(&mut self) -> Result<(), FabricError> {
        let mut names = BTreeMap::new();
        for (i, item) in self.items.iter().enumerate() {
            if let Some(name) = &item.name
                && names.insert(name.clone(), i).is_some()
            {
                return Err(FabricError::NameInUse(name.clone()));
            }
            if let Place::Root { segment, bus, .. } = item.place {
                self.roots.insert((segment, bus));
            }
        }
        self.parents = vec![Parent::Root(0, 0); self.items.len()];
        for i in 0..self.items.len() {
            self.parents[i] = match &self.items[i].place {
                Place::Root { segment, bus, .. } => Parent::Root(*segment, *bus),
                Place::Below { port, .. } => {
                    let parent = *names.get(port).ok_or_else(|| FabricError::NoParent(port.clone()))?;
                    if !self.items[parent].spec.port_type.is_bridge() {
                        return Err(FabricError::NotABridge(port.clone()));
                    }
                    Parent::Item(parent)
                }
                Place::At(_) => continue,
            };
        }
        self.find_buses()?;
        self.find_segments()
    }

    /// Parents of what stands at an address: the bridge that leads to the bus,
    /// or a root port made for it.
    fn find_buses(&mut self) -> Result<(), FabricError> {
        let mut leads = BTreeMap::new();
        for i in 0..self.items.len() {
            if let (Some(bus), Some(segment)) = (self.items[i].secondary, self.segment_of(i)) {
                leads.insert((segment, bus), i);
            }
        }
        let wanted: BTreeSet<Address> =
            self.items.iter().filter_map(|i| if let Place::At(a) = i.place { Some(a) } else { None }).collect();
        for address in &wanted {
            if self.roots.range((address.segment, 0)..=(address.segment, address.bus)).next().is_none() {
                self.roots.insert((address.segment, 0));
            }
        }
        for address in wanted {
            let key = (address.segment, address.bus);
            if self.roots.contains(&key) || leads.contains_key(&key) {
                continue;
            }
            let below = self.roots.range((address.segment, 0)..=key).next_back().copied();
            let Some((segment, bus)) = below else {
                return Err(FabricError::BusConflict { segment: address.segment, bus: address.bus });
            };
            let mut spec = FunctionSpec::port(PortType::RootPort);
            spec.slot = Some(Slot { number: u16::from(address.bus), power: 75, hotplug: false });
            leads.insert(key, self.items.len());
            self.items.push(Item::new(Place::Root { segment, bus, slot: None }, spec).leads_to(address.bus));
            self.parents.push(Parent::Root(segment, bus));
        }
        for i in 0..self.items.len() {
            if let Place::At(address) = self.items[i].place {
                let key = (address.segment, address.bus);
                self.parents[i] = match leads.get(&key) {
                    Some(&port) if !self.roots.contains(&key) => Parent::Item(port),
                    _ => Parent::Root(key.0, key.1),
                };
            }
        }
        Ok(())
    }

    /// Segment of an item while parents of items at addresses are not known.
    fn segment_of(&self, mut item: usize) -> Option<u16> {
        for _ in 0..=self.items.len() {
            match (&self.items[item].place, self.parents[item]) {
                (Place::At(address), _) => return Some(address.segment),
                (_, Parent::Root(segment, _)) => return Some(segment),
                (_, Parent::Item(parent)) => item = parent,
            }
        }
        None
    }

    fn find_segments(&mut self) -> Result<(), FabricError> {
        self.segments = Vec::with_capacity(self.items.len());
        for i in 0..self.items.len() {
            let (mut at, mut steps) = (i, 0);
            let segment = loop {
                match self.parents[at] {
                    Parent::Root(segment, _) => break segment,
                    Parent::Item(parent) => at = parent,
                }
                steps += 1;
                if steps > self.items.len() {
                    return Err(FabricError::Cycle(self.name(i)));
                }
            };
            self.segments.push(segment);
        }
        Ok(())
    }

    fn parent_kind(&self, item: usize) -> Option<PortType> {
        match self.parents[item] {
            Parent::Root(..) => None,
            Parent::Item(parent) => Some(self.items[parent].spec.port_type),
        }
    }

    /// What may stand where; an endpoint becomes what it is there.
    fn check_places(&mut self) -> Result<(), FabricError> {
        for i in 0..self.items.len() {
            let above = self.parent_kind(i);
            let wrong = |rule| Err(FabricError::WrongPlace { name: self.name(i), rule });
            let on_link = above.is_some_and(PortType::has_link_below);
            let on_conventional = above.is_some_and(PortType::has_conventional_bus);
            let kind = match self.items[i].spec.port_type {
                PortType::Endpoint | PortType::LegacyEndpoint if above.is_none() => PortType::IntegratedEndpoint,
                PortType::Endpoint | PortType::LegacyEndpoint if on_conventional => PortType::Conventional,
                kind => kind,
            };
            match kind {
                PortType::RootPort | PortType::IntegratedEndpoint | PortType::EventCollector if above.is_some() => {
                    return wrong("it can only be on a root bus");
                }
                PortType::UpstreamPort if !on_link => {
                    return wrong("an upstream port is below a root or downstream port");
                }
                PortType::DownstreamPort if above != Some(PortType::UpstreamPort) => {
                    return wrong("a downstream port is below the upstream port of its switch");
                }
                PortType::Endpoint | PortType::LegacyEndpoint if above == Some(PortType::UpstreamPort) => {
                    return wrong("only downstream ports are on the bus inside a switch");
                }
                PortType::VirtualFunction => return wrong("virtual functions appear when their PF enables them"),
                _ => {}
            }
            let item = &mut self.items[i];
            item.spec.port_type = kind;
            if item.secondary.is_some() && !kind.is_bridge() {
                return Err(FabricError::NotABridge(self.name(i)));
            }
        }
        Ok(())
    }

    fn number_devices(&mut self) -> Result<(), FabricError> {
        let mut taken: BTreeMap<Parent, BTreeSet<(u8, u8)>> = BTreeMap::new();
        self.slots = vec![(0, 0); self.items.len()];
        for i in 0..self.items.len() {
            if let Some((device, function)) = self.items[i].place.slot() {
                let slot = (device & 31, function & 7);
                if slot.0 != 0 && self.parent_kind(i).is_some_and(PortType::has_link_below) {
                    return Err(FabricError::DeviceNumber(self.name(i)));
                }
                if !taken.entry(self.parents[i]).or_default().insert(slot) {
                    self.doubles.push(i);
                }
                self.slots[i] = slot;
            }
        }
        for i in 0..self.items.len() {
            if self.items[i].place.slot().is_some() {
                continue;
            }
            let on_link = self.parent_kind(i).is_some_and(PortType::has_link_below);
            let taken = taken.entry(self.parents[i]).or_default();
            // Device 0 of root bus 0 is the host bridge's.
            let first = u8::from(
                self.parents[i] == Parent::Root(self.segments[i], 0) && self.items[i].spec.class >> 8 != 0x0600,
            );
            let free = (first..32).find(|device| !taken.iter().any(|slot| slot.0 == *device));
            match free {
                Some(device) if device == 0 || !on_link => {
                    taken.insert((device, 0));
                    self.slots[i] = (device, 0);
                }
                Some(_) => return Err(FabricError::DeviceNumber(self.name(i))),
                None => return Err(FabricError::NoFreeDevice(self.name(i))),
            }
        }
        self.place_virtual_functions();
        Ok(())
    }

    /// First VF Offset where the model gave none: after the device's own
    /// functions, one PF's VFs after the other's.
    fn place_virtual_functions(&mut self) {
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(|&i| (self.parents[i], self.slots[i]));
        let mut next: BTreeMap<(Parent, u8), u16> = BTreeMap::new();
        for i in order {
            let spec = &mut self.items[i].spec;
            if spec.total_vfs == 0 || spec.vf_offset != 0 {
                continue;
            }
            let (device, function) = self.slots[i];
            let next = next.entry((self.parents[i], device)).or_insert(8);
            spec.vf_offset = *next - u16::from(function);
            *next = next.saturating_add(spec.total_vfs.saturating_mul(spec.vf_stride()));
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree { roots: BTreeMap::new(), below: vec![Vec::new(); self.items.len()], nodes: Vec::new() };
        for &root in &self.roots {
            tree.roots.insert(root, Vec::new());
        }
        for (i, item) in self.items.iter().enumerate() {
            let (device, function) = self.slots[i];
            let spec = &item.spec;
            let devfn = u32::from(device) << 3 | u32::from(function);
            let reach = match spec.total_vfs {
                0 => devfn,
                n => devfn + u32::from(spec.first_vf_offset()) + u32::from(spec.vf_stride()) * (u32::from(n) - 1),
            };
            tree.nodes.push(numbering::Node {
                bridge: spec.port_type.is_bridge(),
                fixed: item.secondary,
                order: devfn as u8,
                extra: (reach >> 8).min(255) as u8,
            });
            match self.parents[i] {
                Parent::Root(segment, bus) => tree.roots.entry((segment, bus)).or_default().push(i),
                Parent::Item(parent) => tree.below[parent].push(i),
            }
        }
        tree
    }

    pub(crate) fn addresses(&self, buses: &[Option<(u8, u8)>]) -> Result<Vec<Address>, FabricError> {
        let mut addresses = Vec::with_capacity(self.items.len());
        for i in 0..self.items.len() {
            let (device, function) = self.slots[i];
            let segment = self.segments[i];
            let bus = match self.parents[i] {
                Parent::Root(_, bus) => bus,
                Parent::Item(parent) => buses[parent].ok_or(FabricError::NoFreeBus(segment))?.0,
            };
            addresses.push(Address::new(segment, bus, device, function));
        }
        Ok(addresses)
    }

    pub(crate) fn check_functions(&self, addresses: &[Address]) -> Result<(), FabricError> {
        if let Some(&double) = self.doubles.first() {
            return Err(FabricError::AddressInUse(addresses[double]));
        }
        let all: BTreeSet<Address> = addresses.iter().copied().collect();
        for address in addresses {
            if !all.contains(&Address::new(address.segment, address.bus, address.device(), 0)) {
                return Err(FabricError::FunctionZeroMissing(*address));
            }
        }
        Ok(())
    }
}
