// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random fabrics: groups agree with a reference that knows nothing of the
//! order in which functions are found, buses nest, windows hold what is
//! behind them, nothing overlaps.

use std::collections::{BTreeMap, BTreeSet};

use pci::{Address, BarKind, Fabric, FabricBuilder, FunctionSpec, Item, Place, PortType, Quirks, cap};
use proptest::prelude::*;

use crate::common::{bar, nvme};

/// A device or bridge and what is behind it.
#[derive(Clone, Debug)]
enum Thing {
    /// Functions of an endpoint: ACS, VFs, whether the IOMMU serves it, BAR.
    Endpoint(Vec<(Option<u16>, u16, bool, u32)>),
    /// ACS of the port, and what is in its slot.
    Port(Option<u16>, Option<Box<Thing>>),
    /// Functions of the upstream port, then the downstream ports.
    Switch(Vec<Option<u16>>, Vec<(Option<u16>, Option<Box<Thing>>)>),
    /// Conventional bus and what is on it.
    Bridge(Vec<Thing>),
}

fn acs() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![Just(None), Just(Some(cap::ACS_ISOLATED)), (0u16..0x80).prop_map(Some)]
}

fn endpoint() -> impl Strategy<Value = Thing> {
    let function = (acs(), 0u16..3, prop::bool::weighted(0.9), 12u32..24);
    prop::collection::vec(function, 1..4).prop_map(Thing::Endpoint)
}

fn below_link() -> impl Strategy<Value = Thing> {
    endpoint().prop_recursive(3, 12, 3, |inner| {
        let slot = prop::option::of(inner.clone().prop_map(Box::new));
        prop_oneof![
            (prop::collection::vec(acs(), 1..3), prop::collection::vec((acs(), slot), 0..3))
                .prop_map(|(up, down)| Thing::Switch(up, down)),
            prop::collection::vec(inner, 0..3).prop_map(Thing::Bridge),
        ]
    })
}

fn root_thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        endpoint(),
        (acs(), prop::option::of(below_link().prop_map(Box::new))).prop_map(|(acs, below)| Thing::Port(acs, below)),
        prop::collection::vec(endpoint(), 0..3).prop_map(Thing::Bridge),
    ]
}

struct Describe {
    builder: FabricBuilder,
    names: usize,
}

impl Describe {
    fn add(&mut self, place: Place, spec: FunctionSpec, iommu: bool) -> String {
        self.names += 1;
        let name = format!("n{}", self.names);
        let item = Item::new(place, spec).named(&name);
        self.builder.add(if iommu { item } else { item.without_iommu() });
        name
    }

    fn port(&mut self, place: Place, kind: PortType, acs: Option<u16>) -> String {
        self.add(place, FunctionSpec { acs, ..FunctionSpec::port(kind) }, true)
    }

    /// Puts a thing at a device number of a bus.
    fn put(&mut self, bus: &Place, device: u8, thing: &Thing, conventional: bool) {
        match thing {
            Thing::Endpoint(functions) => {
                for (function, (acs, vfs, iommu, log2)) in (0..).zip(functions) {
                    let memory = bar(1 << log2, BarKind::Memory64 { prefetchable: log2 % 2 == 0 });
                    let spec = FunctionSpec {
                        acs: *acs,
                        total_vfs: if conventional || matches!(bus, Place::Root { .. }) { 0 } else { *vfs },
                        bars: [memory, None, bar(64, BarKind::Io), None, None, None],
                        msix: None,
                        rom: vec![0; usize::from(function == 0)],
                        ..nvme()
                    };
                    self.add(bus.clone().at(device, function), spec, *iommu);
                }
            }
            Thing::Port(acs, below) => {
                let port = self.port(bus.clone().at(device, 0), PortType::RootPort, *acs);
                if let Some(below) = below {
                    self.put(&Place::below(&port), 0, below, false);
                }
            }
            Thing::Switch(up, down) if !conventional => {
                let mut first = None;
                for (function, acs) in (0..).zip(up) {
                    let name = self.port(bus.clone().at(device, function), PortType::UpstreamPort, *acs);
                    first.get_or_insert(name);
                }
                let Some(up) = first else { return };
                for (device, (acs, below)) in (0..).zip(down) {
                    // Two ports a device, so that some share one.
                    let place = Place::below(&up).at(device / 2, device % 2);
                    let port = self.port(place, PortType::DownstreamPort, *acs);
                    if let Some(below) = below {
                        self.put(&Place::below(&port), 0, below, false);
                    }
                }
            }
            Thing::Bridge(things) => {
                let kind = if conventional { PortType::ConventionalBridge } else { PortType::PcieToPciBridge };
                let bridge = self.port(bus.clone().at(device, 0), kind, None);
                for (device, thing) in (0..).zip(things) {
                    self.put(&Place::below(&bridge), device, thing, true);
                }
            }
            Thing::Switch(..) => {}
        }
    }
}

fn build(things: &[Thing]) -> Fabric {
    let mut describe = Describe { builder: FabricBuilder::new(), names: 0 };
    describe.builder.quirks(Quirks::default());
    for (device, thing) in (1..).zip(things) {
        describe.put(&Place::root(), device, thing, false);
    }
    describe.builder.build().unwrap()
}

/// Isolation as the registers say, written down once more.
fn isolated(fabric: &Fabric, address: Address) -> bool {
    let function = fabric.function(address).unwrap();
    let fulfilled = || {
        let Some(at) = function.extended_capability(0x0d) else { return false };
        let (offered, on) = (function.read(at + 4, 2), function.read(at + 6, 2));
        [1, 4, 8, 0x10].iter().all(|bit| offered & bit == 0 || on & bit != 0)
    };
    match function.spec().port_type {
        PortType::RootPort | PortType::DownstreamPort => fulfilled(),
        PortType::VirtualFunction => true,
        PortType::Endpoint | PortType::IntegratedEndpoint | PortType::UpstreamPort => {
            function.read(0x0e, 1) & 0x80 == 0 || fulfilled()
        }
        _ => false,
    }
}

/// Groups by joining whatever must be together until nothing changes: each
/// function with the topmost bridge above it that does not isolate, and the
/// functions of a device that do not isolate with each other.
fn reference(fabric: &Fabric) -> BTreeSet<BTreeSet<Address>> {
    let served: Vec<Address> = fabric.functions().map(|(a, _)| a).filter(|a| fabric.group(*a).is_some()).collect();
    let mut label: BTreeMap<Address, usize> = served.iter().copied().zip(0..).collect();
    let mut pairs = Vec::new();
    for &address in &served {
        let above = &fabric.path(address)[..fabric.path(address).len() - 1];
        pairs.extend(above.iter().find(|bridge| !isolated(fabric, **bridge)).map(|bridge| (address, *bridge)));
        for &other in &served {
            let same_device =
                (other.segment, other.bus, other.device()) == (address.segment, address.bus, address.device());
            let alone = |a| isolated(fabric, a) || fabric.function(a).unwrap().read(0x0e, 1) & 0x80 == 0;
            if same_device && !alone(address) && !alone(other) {
                pairs.push((address, other));
            }
        }
    }
    loop {
        let mut changed = false;
        for (one, other) in &pairs {
            let least = label[one].min(label[other]);
            for address in [one, other] {
                changed |= label.insert(*address, least) != Some(least);
            }
        }
        if !changed {
            break;
        }
    }
    let mut groups: BTreeMap<usize, BTreeSet<Address>> = BTreeMap::new();
    for (address, label) in label {
        groups.entry(label).or_default().insert(address);
    }
    groups.into_values().collect()
}

fn formed(fabric: &Fabric) -> BTreeSet<BTreeSet<Address>> {
    fabric.groups().map(|(_, members)| members.into_iter().collect()).collect()
}

fn check_groups(fabric: &Fabric) -> Result<(), TestCaseError> {
    prop_assert_eq!(formed(fabric), reference(fabric));
    let members: usize = fabric.groups().map(|(_, members)| members.len()).sum();
    let served = fabric.functions().filter(|(a, _)| fabric.group(*a).is_some()).count();
    prop_assert_eq!(members, served, "each function is in one group");
    for (id, members) in fabric.groups() {
        prop_assert!(!members.is_empty() && members.iter().all(|a| fabric.group(*a) == Some(id)));
    }
    Ok(())
}

fn check_buses(fabric: &Fabric) -> Result<(), TestCaseError> {
    for bus in fabric.buses() {
        let Some(bridge) = bus.bridge else { continue };
        let upper = fabric.bus(bridge.segment, bridge.bus).unwrap();
        prop_assert!(
            bus.number > upper.number && bus.subordinate <= upper.subordinate && bus.number <= bus.subordinate
        );
        for other in fabric.buses().filter(|b| b.bridge.is_some() && b.parent == bus.parent && b.number != bus.number) {
            prop_assert!(other.subordinate < bus.number || other.number > bus.subordinate, "siblings overlap");
        }
        let f = fabric.function(bridge).unwrap();
        let registers = [f.read(0x18, 1), f.read(0x19, 1), f.read(0x1a, 1)];
        prop_assert_eq!(registers, [upper.number, bus.number, bus.subordinate].map(u32::from));
    }
    let mut order = fabric.enumeration();
    prop_assert_eq!(order.len(), fabric.functions().count());
    order.sort();
    prop_assert!(order.into_iter().eq(fabric.functions().map(|(a, _)| a)));
    Ok(())
}

fn check_resources(fabric: &Fabric) -> Result<(), TestCaseError> {
    let mut spans: Vec<(u64, u64, u64)> = Vec::new();
    for (address, _) in fabric.functions() {
        let virtual_function = fabric.physical_function(address).is_some();
        for (i, r) in fabric.resources(address).iter().enumerate() {
            if r.is_empty() || r.flags & 0x2000_0000 != 0 {
                continue;
            }
            let space = r.flags & 0x300;
            if i < 13 && !virtual_function {
                spans.push((space, r.start, r.end));
            }
            let Some(bridge) = fabric.parent(address) else { continue };
            let windows = &fabric.resources(bridge)[13..];
            let held = windows.iter().any(|w| w.flags & 0x300 == space && w.start <= r.start && r.end <= w.end);
            prop_assert!(held, "{} {} is in no window of {}", address, r, bridge);
        }
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1, "{:x?} overlap", pair);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// GRP-003, GRP-005, GRP-018, GRP-020, GRP-022
    #[test]
    fn random_fabrics(things in prop::collection::vec(root_thing(), 0..6)) {
        let mut fabric = build(&things);
        check_groups(&fabric)?;
        check_buses(&fabric)?;
        check_resources(&fabric)?;
        let before = fabric.clone();
        let physical: Vec<(Address, u16)> =
            fabric.functions().map(|(a, f)| (a, f.spec().total_vfs)).filter(|(_, vfs)| *vfs != 0).collect();
        for (pf, vfs) in &physical {
            let found = fabric.enable_vfs(*pf, *vfs);
            prop_assert_eq!(found.map(|v| v.len()), Ok(usize::from(*vfs)));
        }
        check_groups(&fabric)?;
        check_buses(&fabric)?;
        check_resources(&fabric)?;
        for (pf, _) in physical.iter().rev() {
            fabric.disable_vfs(*pf);
        }
        prop_assert_eq!(formed(&fabric), formed(&before));
        prop_assert_eq!(fabric.hex_dump(), before.hex_dump());
    }

    /// A lab file can ask for anything; the answer is a fabric or an error.
    #[test]
    fn any_description_has_an_answer(items in prop::collection::vec(
        (0usize..9, 0u8..8, 0u16..3, prop::option::of(0u8..12), prop::option::of((0u8..40, 0u8..9)), 0u8..8), 0..24)
    ) {
        use PortType::*;
        let kinds = [RootPort, UpstreamPort, DownstreamPort, PcieToPciBridge, ConventionalBridge, Endpoint,
            IntegratedEndpoint, EventCollector, VirtualFunction];
        let mut builder = FabricBuilder::new();
        for (i, (kind, parent, segment, secondary, slot, form)) in items.into_iter().enumerate() {
            let place = match form {
                0..4 => Place::Below { port: format!("n{parent}"), slot },
                4..6 => Place::Root { segment, bus: parent * 32, slot },
                _ => Place::At(Address::new(segment, parent, slot.map_or(0, |s| s.0), slot.map_or(0, |s| s.1))),
            };
            let kind = kinds[kind];
            let spec = if kind.is_bridge() { FunctionSpec::port(kind) } else { FunctionSpec { port_type: kind, ..nvme() } };
            let mut item = Item::new(place, spec).named(&format!("n{i}"));
            item.secondary = secondary.filter(|_| kind.is_bridge());
            builder.add(item);
        }
        if let Ok(fabric) = builder.build() {
            check_groups(&fabric)?;
            check_buses(&fabric)?;
            check_resources(&fabric)?;
        }
    }
}
