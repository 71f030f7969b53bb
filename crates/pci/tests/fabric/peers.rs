// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which functions a request reaches without the root complex (PCIe 6.12).

use pci::{Fabric, FabricBuilder, Item, Place, PortType, cap};

use crate::common::{all, at, nvme, port};

/// A switch with two devices, and a third one below another root port.
fn switch(acs: [Option<u16>; 2]) -> Fabric {
    let mut b = FabricBuilder::new();
    let place = |text: &str| Place::At(at(text));
    b.add(Item::new(place("00:01.0"), port(PortType::RootPort, None)).leads_to(1));
    b.add(Item::new(place("01:00.0"), port(PortType::UpstreamPort, None)).leads_to(2));
    for (n, acs) in acs.into_iter().enumerate() {
        let item = Item::new(place(&format!("02:0{n}.0")), port(PortType::DownstreamPort, acs));
        b.add(item.leads_to(3 + n as u8));
        b.plug_auto(at(&format!("0{}:00.0", 3 + n)), nvme());
    }
    b.add(Item::new(place("00:02.0"), port(PortType::RootPort, None)).leads_to(5));
    b.plug_auto(at("05:00.0"), nvme());
    b.build().unwrap()
}

/// GRP-001: a downstream port redirects what comes from below it, so it is the
/// sender's port that counts.
#[test]
fn a_switch_passes_on_what_it_does_not_redirect() {
    let isolated = Some(cap::ACS_ISOLATED);
    let fabric = switch([None, None]);
    assert_eq!(fabric.direct_peers(at("03:00.0")), all(&["04:00.0"]));
    assert_eq!(fabric.direct_peers(at("04:00.0")), all(&["03:00.0"]));
    assert_eq!(fabric.direct_peers(at("05:00.0")), all(&[]));
    let fabric = switch([isolated, None]);
    assert_eq!(fabric.direct_peers(at("03:00.0")), all(&[]));
    assert_eq!(fabric.direct_peers(at("04:00.0")), all(&["03:00.0"]));
    let fabric = switch([isolated, isolated]);
    assert_eq!(fabric.direct_peers(at("04:00.0")), all(&[]));
    // Redirection is one bit of the four.
    let mut fabric = switch([isolated, isolated]);
    let function = fabric.function_mut(at("02:01.0")).unwrap();
    let acs = function.extended_capability(cap::EXT_ACS).unwrap();
    function.write(acs + 6, 2, u32::from(cap::ACS_ISOLATED & !cap::ACS_RR));
    assert_eq!(fabric.direct_peers(at("04:00.0")), all(&["03:00.0"]));
}

/// GRP-005, GRP-014: functions of one device, by the sender's own ACS.
#[test]
fn functions_of_one_device() {
    let mut b = FabricBuilder::new();
    for (n, acs) in [None, Some(cap::ACS_ISOLATED), None].into_iter().enumerate() {
        b.plug_auto(at(&format!("01:00.{n}")), pci::FunctionSpec { acs, ..nvme() });
    }
    b.plug_auto(at("02:00.0"), nvme());
    let fabric = b.build().unwrap();
    assert_eq!(fabric.direct_peers(at("01:00.0")), all(&["01:00.1", "01:00.2"]));
    assert_eq!(fabric.direct_peers(at("01:00.1")), all(&[]));
    assert_eq!(fabric.direct_peers(at("02:00.0")), all(&[]), "a device of one function");
}

/// GRP-020: on a conventional bus each device hears the others.
#[test]
fn a_conventional_bus() {
    let mut b = FabricBuilder::new();
    let place = |text: &str| Place::At(at(text));
    b.add(Item::new(place("00:01.0"), port(PortType::RootPort, Some(cap::ACS_ISOLATED))).leads_to(1));
    b.add(Item::new(place("01:00.0"), port(PortType::PcieToPciBridge, None)).leads_to(2));
    for slot in 0..2 {
        let spec = pci::FunctionSpec { port_type: PortType::Conventional, ..nvme() };
        b.add(Item::new(place(&format!("02:0{slot}.0")), spec));
    }
    let fabric = b.build().unwrap();
    assert_eq!(fabric.direct_peers(at("02:00.0")), all(&["02:01.0"]));
}
