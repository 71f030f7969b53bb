// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands where: a description of a fabric, checked and turned into one.
//!
//! Everything is an [`Item`]: a function's description and its [`Place`].
//! Items may come in any order and name each other. [`FabricBuilder::build`]
//! finds their parents, numbers devices and buses as firmware would, sets up
//! windows and BARs, and lets the pretend Linux enumerate what it made.

use std::collections::{BTreeMap, BTreeSet};

use crate::numbering::{self, Tree};
use crate::{Address, Fabric, Function, FunctionSpec, PortType, Quirks, Slot, SpecError, cap};

/// Where a function stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a root bus.
    Root {
        /// Segment.
        segment: u16,
        /// Number of the root bus.
        bus: u8,
        /// Device and function; `None` for the first free device.
        slot: Option<(u8, u8)>,
    },
    /// On the bus behind the bridge of this name.
    Below {
        /// Name of the bridge.
        port: String,
        /// Device and function; `None` for the first free device.
        slot: Option<(u8, u8)>,
    },
    /// At an address. Unless another item [leads to](Item::leads_to) that bus
    /// or it is a root bus, a root port that leads there is added.
    At(Address),
}

impl Place {
    /// On root bus 0 of segment 0.
    #[must_use]
    pub const fn root() -> Place {
        Place::Root { segment: 0, bus: 0, slot: None }
    }

    /// On the bus behind a bridge.
    #[must_use]
    pub fn below(port: &str) -> Place {
        Place::Below { port: port.to_owned(), slot: None }
    }

    /// The same bus, this device and function.
    #[must_use]
    pub fn at(self, device: u8, function: u8) -> Place {
        let slot = Some((device, function));
        match self {
            Place::Root { segment, bus, .. } => Place::Root { segment, bus, slot },
            Place::Below { port, .. } => Place::Below { port, slot },
            Place::At(a) => Place::At(Address::new(a.segment, a.bus, device, function)),
        }
    }

    fn slot(&self) -> Option<(u8, u8)> {
        match self {
            Place::Root { slot, .. } | Place::Below { slot, .. } => *slot,
            Place::At(address) => Some((address.device(), address.function())),
        }
    }
}

/// A function and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name by which others are put below it, and by which
    /// [`Fabric::named`] finds it.
    pub name: Option<String>,
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub spec: FunctionSpec,
    /// Number of the bus behind it, for a bridge; `None` for the first free one.
    pub secondary: Option<u8>,
    /// No IOMMU serves it: it has no group (GRP-008).
    pub no_iommu: bool,
}

impl Item {
    /// A function at a place.
    #[must_use]
    pub const fn new(place: Place, spec: FunctionSpec) -> Item {
        Item { name: None, place, spec, secondary: None, no_iommu: false }
    }

    /// A port or bridge with the usual description of its kind.
    #[must_use]
    pub fn port(place: Place, kind: PortType) -> Item {
        Item::new(place, FunctionSpec::port(kind))
    }

    /// The same with a name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Item {
        self.name = Some(name.to_owned());
        self
    }

    /// The same with a fixed number of the bus behind it.
    #[must_use]
    pub const fn leads_to(mut self, bus: u8) -> Item {
        self.secondary = Some(bus);
        self
    }

    /// The same, served by no IOMMU.
    #[must_use]
    pub const fn without_iommu(mut self) -> Item {
        self.no_iommu = true;
        self
    }
}

/// Why a fabric cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// Two functions at one address.
    #[error("{0} is in use already")]
    AddressInUse(Address),
    /// Two items of one name.
    #[error("there are two items named `{0}`")]
    NameInUse(String),
    /// The bridge does not exist.
    #[error("there is no port or bridge named `{0}`")]
    NoParent(String),
    /// What should have something below it is no bridge.
    #[error("`{0}` is not a port or bridge; nothing can stand below it")]
    NotABridge(String),
    /// Ports that are below each other.
    #[error("`{0}` is below itself")]
    Cycle(String),
    /// Linux does not look for functions of a device without function 0.
    #[error("{0} has no function 0 beside it; a device has to have one")]
    FunctionZeroMissing(Address),
    /// A kind of port that cannot be there.
    #[error("`{name}`: {rule}")]
    WrongPlace {
        /// Name or address of the item.
        name: String,
        /// What would be right.
        rule: &'static str,
    },
    /// More than device 0 on a link.
    #[error("`{0}`: a link has device 0 only; put it behind a switch, or on a root bus")]
    DeviceNumber(String),
    /// No device number is left.
    #[error("`{0}`: all 32 device numbers of its bus are taken")]
    NoFreeDevice(String),
    /// A bus number that cannot be: used twice, or outside what the bridge
    /// above reaches.
    #[error("bus {segment:04x}:{bus:02x} is used twice, or cannot be reached through the bridge above it")]
    BusConflict {
        /// Segment.
        segment: u16,
        /// Bus.
        bus: u8,
    },
    /// Bus numbers are used up.
    #[error("segment {0:04x} has no bus number left")]
    NoFreeBus(u16),
    /// Memory windows are used up.
    #[error("{address}: there is no room for {size:#x} bytes of memory space")]
    OutOfSpace {
        /// Function or bridge.
        address: Address,
        /// Bytes.
        size: u64,
    },
    /// The function's description is wrong.
    #[error("`{name}`: {error}")]
    Spec {
        /// Name or address.
        name: String,
        /// What is wrong.
        #[source]
        error: SpecError,
    },
}

/// A fabric to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricBuilder {
    items: Vec<Item>,
    roots: BTreeSet<(u16, u8)>,
    quirks: Quirks,
    iommu: bool,
}

impl Default for FabricBuilder {
    fn default() -> FabricBuilder {
        FabricBuilder { items: Vec::new(), roots: BTreeSet::new(), quirks: Quirks::linux(), iommu: true }
    }
}

impl FabricBuilder {
    /// An empty fabric with an IOMMU and Linux's quirks.
    #[must_use]
    pub fn new() -> FabricBuilder {
        FabricBuilder::default()
    }

    /// Adds a root bus: another root complex, or a segment. Bus 0 of a segment
    /// that is named anywhere is there without it.
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

    /// The items added so far.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The fabric after power on, firmware and enumeration.
    pub fn build(&self) -> Result<Fabric, FabricError> {
        let mut plan = Plan { items: self.items.clone(), ..Plan::default() };
        plan.roots = self.roots.clone();
        plan.find_parents()?;
        plan.check_places()?;
        plan.number_devices()?;
        let tree = plan.tree();
        let buses = numbering::number(&tree)?;
        let addresses = plan.addresses(&buses)?;
        plan.check_functions(&addresses)?;
        let mut fabric = Fabric::empty(self.clone(), self.quirks.clone(), self.iommu);
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
            fabric.insert_function(addresses[i], function, item.name, item.no_iommu, buses[i]);
        }
        fabric.power_on()?;
        Ok(fabric)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Parent {
    Root(u16, u8),
    Item(usize),
}

#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    roots: BTreeSet<(u16, u8)>,
    parents: Vec<Parent>,
    segments: Vec<u16>,
    slots: Vec<(u8, u8)>,
    doubles: Vec<usize>,
}

impl Plan {
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
            if !self.roots.range((address.segment, 0)..=(address.segment, 255)).any(|_| true) {
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

    fn tree(&self) -> Tree {
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

    fn addresses(&self, buses: &[Option<(u8, u8)>]) -> Result<Vec<Address>, FabricError> {
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

    fn check_functions(&self, addresses: &[Address]) -> Result<(), FabricError> {
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

impl FunctionSpec {
    /// The usual description of a port or bridge: AER, and ACS with all that
    /// isolation takes on root and downstream ports. `acs: None` makes a port
    /// that isolates nothing.
    #[must_use]
    pub fn port(kind: PortType) -> FunctionSpec {
        let (vendor, device) = match kind {
            PortType::UpstreamPort => (0x104c, 0x8232),
            PortType::DownstreamPort => (0x104c, 0x8233),
            PortType::PcieToPciBridge | PortType::PciToPcieBridge => (0x1b36, 0x000e),
            PortType::ConventionalBridge => (0x1b36, 0x0001),
            _ => (0x1b36, 0x000c),
        };
        let switch = matches!(kind, PortType::RootPort | PortType::DownstreamPort);
        let isolation = cap::ACS_ISOLATED | cap::ACS_TB | cap::ACS_DT;
        FunctionSpec {
            vendor,
            device,
            class: 0x06_04_00,
            interrupt_pin: u8::from(kind == PortType::RootPort),
            msi: (switch || kind == PortType::UpstreamPort).then_some(0),
            aer: kind.is_express(),
            acs: switch.then_some(isolation),
            slot: switch.then_some(Slot { number: 0, power: 75, hotplug: false }),
            port_type: kind,
            no_soft_reset: true,
            link: crate::Link { speed: 4, width: 16 },
            ..FunctionSpec::default()
        }
    }

    /// The host bridge that stands at device 0 of root bus 0 in most machines.
    #[must_use]
    pub fn host_bridge() -> FunctionSpec {
        FunctionSpec {
            vendor: 0x8086,
            device: 0x29c0,
            class: 0x06_00_00,
            port_type: PortType::Conventional,
            no_power_management: true,
            ..FunctionSpec::default()
        }
    }
}
