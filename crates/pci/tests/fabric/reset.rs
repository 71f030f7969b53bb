// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset methods and how far a hot reset reaches.

use pci::{
    Fabric, FabricBuilder, FunctionSpec, Id, Item, NotResettable, Place, PortType, Quirks, ResetMethod, ResetScope,
};

use crate::common::{all, at, mixed, nvme, plain};

fn build(describe: impl FnOnce(&mut FabricBuilder)) -> Fabric {
    let mut builder = FabricBuilder::new();
    describe(&mut builder);
    builder.build().unwrap()
}

fn hotplug() -> FunctionSpec {
    let mut spec = FunctionSpec::port(PortType::RootPort);
    spec.slot = Some(pci::Slot { number: 1, power: 25, hotplug: true });
    spec
}

/// ERR-068: the order of the methods, and what proves each.
#[test]
fn methods_in_order() {
    use ResetMethod::{AfFlr, Bus, DeviceSpecific, Flr, Pm};
    let soft = |spec: FunctionSpec| FunctionSpec { no_soft_reset: false, ..spec };
    for (spec, methods) in [
        (nvme(), vec![Flr, Bus]),
        (plain(), vec![Bus]),
        (soft(nvme()), vec![Flr, Pm, Bus]),
        (soft(FunctionSpec { af_flr: true, ..nvme() }), vec![Flr, AfFlr, Pm, Bus]),
        (FunctionSpec { vendor: 0x144d, device: 0xa804, ..nvme() }, vec![DeviceSpecific, Flr, Bus]),
        (soft(FunctionSpec { no_power_management: true, ..plain() }), vec![Bus]),
        (FunctionSpec { vendor: 0x8086, device: 0x1502, ..nvme() }, vec![Bus]),
        (FunctionSpec { vendor: 0x168c, device: 0x0030, ..nvme() }, vec![Flr]),
    ] {
        let fabric = build(|b| {
            b.plug_auto(at("01:00.0"), spec);
        });
        assert_eq!(fabric.reset_methods(at("01:00.0")), methods);
    }
    let names = [DeviceSpecific, Flr, AfFlr, Pm, Bus].map(|m| m.to_string());
    assert_eq!(names.join(" "), "device_specific flr af_flr pm bus");
}

/// ERR-070: several functions and no reset of their own: no method; nor on a
/// root bus (ERR-069).
#[test]
fn no_method_left() {
    let fabric = build(|b| {
        b.plug_auto(at("01:00.0"), plain()).plug_auto(at("01:00.1"), plain()).plug_auto(at("00:05.0"), plain());
    });
    for address in all(&["01:00.0", "01:00.1", "00:05.0"]) {
        assert_eq!(fabric.reset_methods(address), []);
    }
    // In a hot-plug slot neither: several functions.
    let fabric = build(|b| {
        b.add(Item::new(Place::root(), hotplug()).named("p"));
        b.add(Item::new(Place::below("p").at(0, 0), plain()));
        b.add(Item::new(Place::below("p").at(0, 1), plain()));
    });
    assert_eq!(fabric.reset_methods(at("01:00.1")), []);
}

/// HOT-001, HOT-003, HOT-008: the whole bus and what is below, in walk order.
#[test]
fn reach_of_a_hot_reset() {
    let fabric = build(|b| {
        b.plug_auto(at("01:00.0"), plain()).plug_auto(at("01:00.1"), plain());
        b.add(Item::port(Place::root(), PortType::RootPort).named("p"));
        b.switch("s", Place::below("p"), 2, &FunctionSpec::port(PortType::DownstreamPort));
        b.add(Item::new(Place::below("s.0"), plain()));
        b.add(Item::new(Place::below("s.1"), plain()));
    });
    assert_eq!(fabric.hot_reset_scope(at("01:00.1")), Ok(all(&["01:00.0", "01:00.1"])));
    assert_eq!(
        fabric.hot_reset_scope(fabric.named("s").unwrap()),
        Ok(all(&["02:00.0", "03:00.0", "04:00.0", "03:01.0", "05:00.0"])),
    );
    assert_eq!(fabric.hot_reset_scope(at("04:00.0")), Ok(all(&["04:00.0"])));
}

/// HOT-002: on a root bus, and where a device forbids it.
#[test]
fn what_cannot_be_hot_reset() {
    let fabric = mixed();
    assert_eq!(fabric.hot_reset_scope(at("00:09.0")), Err(NotResettable(at("00:09.0"))));
    let forbid = Quirks { no_bus_reset: vec![Id::new(0x1b36, 0x7777)], ..Quirks::default() };
    let fabric = build(|b| {
        b.quirks(forbid);
        b.add(Item::port(Place::root(), PortType::RootPort).named("p"));
        b.switch("s", Place::below("p"), 2, &FunctionSpec::port(PortType::DownstreamPort));
        b.add(Item::new(Place::below("s.0"), FunctionSpec { device: 0x7777, ..plain() }));
        b.add(Item::new(Place::below("s.1"), plain()).named("other"));
    });
    let switch = fabric.named("s").unwrap();
    assert_eq!(fabric.hot_reset_scope(switch), Err(NotResettable(switch)));
    assert!(fabric.hot_reset_scope(fabric.named("other").unwrap()).is_ok());
}

/// HOT-034
#[test]
fn who_is_reset_together() {
    let mut fabric = build(|b| {
        b.plug_auto(at("05:00.0"), FunctionSpec { total_vfs: 2, ..nvme() });
        b.plug_auto(at("00:09.0"), nvme());
        b.add(Item::new(Place::root(), hotplug()).named("slot").leads_to(7));
        b.plug_auto(at("07:00.0"), nvme());
    });
    let vf = fabric.enable_vfs(at("05:00.0"), 1).unwrap()[0].0;
    assert_eq!(fabric.reset_scope(vf), ResetScope::Function(vf));
    assert_eq!(fabric.reset_scope(at("05:00.0")), ResetScope::Bus(0, 5));
    assert_eq!(fabric.reset_scope(at("00:09.0")), ResetScope::Function(at("00:09.0")));
    assert_eq!(fabric.reset_scope(at("07:00.0")), ResetScope::Slot(fabric.named("slot").unwrap()));
    // A VF on the bus of its PF: the list is every function of it.
    assert_eq!(fabric.hot_reset_scope(vf), Ok(vec![at("05:00.0"), vf]));
}

/// A VF on a bus that only VFs are on.
#[test]
fn a_virtual_bus_cannot_be_reset() {
    let mut fabric = build(|b| {
        b.plug_auto(at("05:00.0"), FunctionSpec { total_vfs: 1, vf_offset: 256, ..nvme() });
    });
    let vf = fabric.enable_vfs(at("05:00.0"), 1).unwrap()[0].0;
    assert_eq!(vf, at("06:00.0"));
    assert_eq!(fabric.hot_reset_scope(vf), Err(NotResettable(vf)));
    assert_eq!(fabric.reset_methods(vf), [ResetMethod::Flr]);
}

#[test]
fn a_secondary_bus_reset_resets_what_is_below() {
    let mut fabric = mixed();
    let bridge = fabric.named("root").unwrap();
    let below = fabric.below(bridge);
    let other = at("01:00.0");
    fabric.function_mut(other).unwrap().write(4, 2, 6);
    assert_eq!(fabric.secondary_bus_reset(bridge), below);
    for address in below {
        assert_eq!(fabric.function(address).unwrap().command(), 0, "{address}");
    }
    assert_eq!(fabric.function(other).unwrap().command(), 6);
}
