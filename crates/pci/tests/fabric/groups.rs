// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How groups form: one test for each rule of the sheet.

use pci::{
    AcsQuirk, Address, Alias, Fabric, FabricBuilder, FunctionSpec, Id, Item, MSI_WINDOW, Place, PortType, Quirks, cap,
};

use crate::common::{all, at, mixed, nvme, port, rich};

fn build(describe: impl FnOnce(&mut FabricBuilder)) -> Fabric {
    let mut builder = FabricBuilder::new();
    builder.quirks(Quirks::default());
    describe(&mut builder);
    builder.build().unwrap()
}

fn with_acs(acs: Option<u16>) -> FunctionSpec {
    FunctionSpec { acs, ..nvme() }
}

/// Members of the group that a function is in.
fn group_of(fabric: &Fabric, address: Address) -> Vec<Address> {
    fabric.group_members(fabric.group(address).expect("a group"))
}

fn root_port(b: &mut FabricBuilder, name: &str, acs: Option<u16>) {
    b.add(Item::new(Place::root(), port(PortType::RootPort, acs)).named(name));
}

fn two_functions(acs: [Option<u16>; 2]) -> Fabric {
    build(|b| {
        b.plug_auto(at("01:00.0"), with_acs(acs[0]));
        b.plug_auto(at("01:00.1"), with_acs(acs[1]));
    })
}

/// GRP-001, GRP-017: each of the four bits counts; the others do not.
#[test]
fn all_four_bits_are_required() {
    assert_eq!((cap::ACS_SV, cap::ACS_TB, cap::ACS_RR, cap::ACS_CR), (1, 2, 4, 8));
    assert_eq!((cap::ACS_UF, cap::ACS_EC, cap::ACS_DT), (0x10, 0x20, 0x40));
    for cleared in [0, cap::ACS_SV, cap::ACS_TB, cap::ACS_RR, cap::ACS_CR, cap::ACS_UF, cap::ACS_EC, cap::ACS_DT] {
        let mut fabric = two_functions([Some(0x7f), Some(0x7f)]);
        let function = fabric.function_mut(at("01:00.0")).unwrap();
        let acs = function.extended_capability(cap::EXT_ACS).unwrap();
        let control = function.read(acs + 6, 2);
        function.write(acs + 6, 2, control & !u32::from(cleared));
        let required = cleared & (cap::ACS_SV | cap::ACS_RR | cap::ACS_CR | cap::ACS_UF);
        assert_eq!(fabric.acs_enabled(at("01:00.0"), cap::ACS_ISOLATED), required == 0, "{cleared:#x}");
    }
}

/// GRP-005, GRP-014, GRP-082: functions of one device share a group unless
/// each has ACS.
#[test]
fn functions_of_one_device() {
    let isolated = Some(cap::ACS_ISOLATED);
    assert_eq!(group_of(&two_functions([None, None]), at("01:00.0")), all(&["01:00.0", "01:00.1"]));
    for acs in [[isolated, isolated], [isolated, None], [None, isolated]] {
        // One that is isolated is alone; a single other one is alone then, too.
        assert_eq!(group_of(&two_functions(acs), at("01:00.0")), all(&["01:00.0"]), "{acs:?}");
    }
    let single = build(|b| {
        b.plug_auto(at("01:00.0"), with_acs(None)).plug_auto(at("02:00.0"), with_acs(None));
    });
    assert_ne!(single.group(at("01:00.0")), single.group(at("02:00.0")));
}

/// GRP-015, GRP-016: what the capability does not offer is deemed fulfilled,
/// but egress control; no capability at all is not.
#[test]
fn bits_not_offered_are_fulfilled() {
    assert_eq!(group_of(&two_functions([Some(0), Some(0)]), at("01:00.0")).len(), 1);
    assert_eq!(group_of(&two_functions([Some(cap::ACS_RR), Some(cap::ACS_UF)]), at("01:00.0")).len(), 1);
    let fabric = two_functions([Some(0), Some(cap::ACS_ISOLATED)]);
    assert!(fabric.acs_enabled(at("01:00.0"), cap::ACS_ISOLATED | cap::ACS_DT));
    assert!(!fabric.acs_enabled(at("01:00.0"), cap::ACS_ISOLATED | cap::ACS_EC));
}

/// GRP-003, GRP-013, GRP-084: a root port without ACS takes everything below
/// into its group; another one with ACS stays apart.
#[test]
fn a_root_port_without_acs() {
    let fabric = build(|b| {
        root_port(b, "open", None);
        root_port(b, "isolated", Some(cap::ACS_ISOLATED));
        b.switch("s", Place::below("open"), 2, &FunctionSpec::port(PortType::DownstreamPort));
        b.add(Item::new(Place::below("s.0"), nvme()));
        b.add(Item::new(Place::below("s.1"), nvme()));
        b.add(Item::new(Place::below("isolated"), nvme()).named("alone"));
    });
    let open = fabric.named("open").unwrap();
    let mut expected = fabric.below(open);
    expected.push(open);
    expected.sort();
    assert_eq!(group_of(&fabric, open), expected);
    assert_eq!(group_of(&fabric, fabric.named("alone").unwrap()).len(), 1);
    assert_eq!(group_of(&fabric, fabric.named("isolated").unwrap()).len(), 1);
}

/// GRP-013: a port whose ACS bits are off is not isolated, whatever it offers.
#[test]
fn a_port_with_its_bits_off() {
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("01:00.0"), nvme());
    let mut fabric = builder.build().unwrap();
    let root = fabric.parent(at("01:00.0")).unwrap();
    assert!(fabric.path_isolated(root));
    let function = fabric.function_mut(root).unwrap();
    let acs = function.extended_capability(cap::EXT_ACS).unwrap();
    // GRP-019: enabled at enumeration, and only the four.
    assert_eq!(function.read(acs + 6, 2), u32::from(cap::ACS_ISOLATED));
    function.write(acs + 6, 2, 0);
    assert!(!fabric.path_isolated(root));
}

/// GRP-019: without an IOMMU nothing is enabled and there are no groups.
/// GRP-008
#[test]
fn no_iommu_no_groups() {
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("01:00.0"), nvme()).iommu(false);
    let fabric = builder.build().unwrap();
    assert_eq!((fabric.group(at("01:00.0")), fabric.groups().count()), (None, 0));
    let root = fabric.function(fabric.parent(at("01:00.0")).unwrap()).unwrap();
    assert_eq!(root.read(root.extended_capability(cap::EXT_ACS).unwrap() + 6, 2), 0);
    let fabric = build(|b| {
        b.add(Item::new(Place::At(at("01:00.0")), nvme()).without_iommu());
        b.plug_auto(at("02:00.0"), nvme());
    });
    assert_eq!(fabric.group(at("01:00.0")), None);
    assert!(fabric.group(at("02:00.0")).is_some());
    assert!(fabric.groups().all(|(_, members)| !members.contains(&at("01:00.0"))));
}

/// GRP-026: boot options set other bits, and groups follow.
#[test]
fn boot_options_set_bits() {
    let port = |bits| Item::port(Place::root(), PortType::RootPort).named("p").acs_control(bits);
    let fabric = build(|b| {
        b.add(port(cap::ACS_SV));
        b.add(Item::new(Place::below("p"), nvme()));
    });
    assert_eq!(group_of(&fabric, at("01:00.0")), all(&["00:01.0", "01:00.0"]));
    // Also where there is no IOMMU; bits that are not offered stay away.
    let fabric = build(|b| {
        b.add(port(0xffff)).iommu(false);
    });
    let function = fabric.function(at("00:01.0")).unwrap();
    let acs = function.extended_capability(cap::EXT_ACS).unwrap();
    assert_eq!(function.read(acs + 6, 2), function.read(acs + 4, 2));
}

fn switch(downstream: Option<u16>) -> Fabric {
    build(|b| {
        root_port(b, "root", Some(cap::ACS_ISOLATED));
        b.switch("s", Place::below("root"), 2, &port(PortType::DownstreamPort, downstream));
        b.add(Item::new(Place::below("s.0"), nvme()).named("x"));
        b.add(Item::new(Place::below("s.1"), nvme()).named("y"));
    })
}

/// GRP-083: what is below a downstream port without ACS shares the port's
/// group. (In Linux 7.2 two such ports stay apart if they are devices of their
/// own, since the upstream port above them is isolated; as functions of one
/// device they share one group.) GRP-018
#[test]
fn downstream_ports_without_acs() {
    let fabric = switch(None);
    let named = |fabric: &Fabric, name: &str| fabric.named(name).unwrap();
    assert_eq!(group_of(&fabric, named(&fabric, "x")), [named(&fabric, "s.0"), named(&fabric, "x")]);
    assert_eq!(group_of(&fabric, named(&fabric, "y")), [named(&fabric, "s.1"), named(&fabric, "y")]);
    let fabric = switch(Some(cap::ACS_ISOLATED));
    for name in ["x", "y", "s", "s.0", "s.1"] {
        assert_eq!(group_of(&fabric, named(&fabric, name)).len(), 1, "{name}");
    }
    let fabric = build(|b| {
        root_port(b, "root", Some(cap::ACS_ISOLATED));
        b.add(Item::port(Place::below("root"), PortType::UpstreamPort).named("up"));
        for function in 0..2 {
            let place = Place::below("up").at(0, function);
            let name = format!("d{function}");
            b.add(Item::new(place, port(PortType::DownstreamPort, None)).named(&name));
            b.add(Item::new(Place::below(&name), nvme()));
        }
    });
    assert_eq!(group_of(&fabric, named(&fabric, "d0")).len(), 4);
}

/// GRP-014: an upstream port needs ACS only as one function of several.
#[test]
fn an_upstream_port_of_several_functions() {
    let fabric = build(|b| {
        root_port(b, "root", Some(cap::ACS_ISOLATED));
        b.add(Item::port(Place::below("root").at(0, 0), PortType::UpstreamPort).named("up"));
        b.add(Item::new(Place::below("root").at(0, 1), nvme()).named("beside"));
        b.add(Item::port(Place::below("up"), PortType::DownstreamPort).named("down"));
        b.add(Item::new(Place::below("down"), nvme()).named("x"));
    });
    let expected = ["up", "beside", "down", "x"].map(|name| fabric.named(name).unwrap());
    assert_eq!(group_of(&fabric, expected[0]), expected);
}

/// GRP-002, GRP-011, GRP-012, GRP-020, GRP-085: a conventional bus is one
/// group with its bridge.
#[test]
fn a_conventional_bus() {
    let fabric = build(|b| {
        root_port(b, "root", Some(cap::ACS_ISOLATED));
        b.add(Item::port(Place::below("root"), PortType::PcieToPciBridge).named("bridge"));
        b.add(Item::new(Place::below("bridge").at(1, 0), nvme()).named("x"));
        b.add(Item::port(Place::below("bridge").at(2, 0), PortType::ConventionalBridge).named("inner"));
        b.add(Item::new(Place::below("inner"), nvme()).named("y"));
    });
    let members = ["bridge", "x", "inner", "y"].map(|name| fabric.named(name).unwrap());
    assert_eq!(group_of(&fabric, members[3]), members);
    assert_eq!(group_of(&fabric, fabric.named("root").unwrap()).len(), 1);
    for address in members {
        assert!(!fabric.acs_enabled(address, cap::ACS_ISOLATED), "{address}");
    }
    let secondary = fabric.secondary(members[0]).unwrap().number;
    let ids = fabric.requester_ids(members[1]);
    assert_eq!(ids, [members[1].requester_id(), u16::from(secondary) << 8]);
    // Through the inner bridge: its own id, then the outer bus's.
    let ids = fabric.requester_ids(members[3]);
    assert_eq!(ids, [members[3].requester_id(), members[2].requester_id(), u16::from(secondary) << 8]);
    let collector = build(|b| {
        b.add(Item::new(Place::root().at(4, 0), FunctionSpec { port_type: PortType::EventCollector, ..nvme() }));
    });
    assert!(!collector.acs_enabled(at("00:04.0"), cap::ACS_ISOLATED));
}

/// GRP-004, GRP-021: a function that uses another's requester id shares its
/// group, isolated or not; the other may be nobody.
#[test]
fn requester_id_aliases() {
    let isolated = with_acs(Some(cap::ACS_ISOLATED));
    let quirks = Quirks { aliases: vec![(Id::new(0x1b36, 0x9230), Alias::Function(1))], ..Quirks::default() };
    let marvell = FunctionSpec { device: 0x9230, ..isolated.clone() };
    let fabric = build(|b| {
        b.quirks(quirks.clone());
        b.plug_auto(at("01:00.0"), marvell.clone());
        b.plug_auto(at("01:00.1"), isolated.clone());
        b.plug_auto(at("01:00.2"), isolated.clone());
    });
    assert_eq!(group_of(&fabric, at("01:00.1")), all(&["01:00.0", "01:00.1"]));
    assert_eq!(group_of(&fabric, at("01:00.2")).len(), 1);
    assert_eq!(fabric.requester_ids(at("01:00.0")), [0x100, 0x101]);
    let phantom = build(|b| {
        b.quirks(quirks).plug_auto(at("01:00.0"), marvell);
    });
    assert_eq!(group_of(&phantom, at("01:00.0")).len(), 1);
    assert!(Quirks::linux().aliases(0x1b4b, 0x9230, 0).eq([1]));
    assert!(Quirks::linux().aliases(0x1b4b, 0x9230, 1).next().is_none());
}

/// GRP-010, GRP-024, GRP-025: a quirk answers before the registers do.
#[test]
fn quirks_come_first() {
    let nic = FunctionSpec { vendor: 0x8086, device: 0x10c9, ..nvme() };
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("01:00.0"), nic.clone()).plug_auto(at("01:00.1"), nic.clone());
    let fabric = builder.build().unwrap();
    assert_ne!(fabric.group(at("01:00.0")), fabric.group(at("01:00.1")));
    let unlisted = build(|b| {
        b.plug_auto(at("01:00.0"), nic.clone()).plug_auto(at("01:00.1"), nic.clone());
    });
    assert_eq!(unlisted.group(at("01:00.0")), unlisted.group(at("01:00.1")));
    // And it can say no.
    let refuse = Quirks { acs: vec![AcsQuirk::new(Id::vendor(0x8086), false)], ..Quirks::default() };
    let fabric = build(|b| {
        b.quirks(refuse);
        b.plug_auto(at("01:00.0"), FunctionSpec { acs: Some(0), ..nic.clone() });
    });
    assert!(!fabric.acs_enabled(at("01:00.0"), cap::ACS_ISOLATED));
    // Intel's integrated endpoints are isolated, its endpoints are not.
    let intel = Quirks::linux();
    assert_eq!(intel.isolated(0x8086, 0x0b25, PortType::IntegratedEndpoint), Some(true));
    assert_eq!(intel.isolated(0x8086, 0x0b25, PortType::Endpoint), None);
}

/// GRP-023: on a root bus only the slot rule counts.
#[test]
fn integrated_endpoints() {
    let fabric = build(|b| {
        b.add(Item::new(Place::root().at(2, 0), nvme()));
        b.add(Item::new(Place::root().at(3, 0), nvme()));
        b.add(Item::new(Place::root().at(3, 1), nvme()));
        b.add(Item::new(Place::root().at(3, 2), with_acs(Some(cap::ACS_ISOLATED))));
    });
    assert_eq!(group_of(&fabric, at("00:02.0")), all(&["00:02.0"]));
    assert_eq!(group_of(&fabric, at("00:03.1")), all(&["00:03.0", "00:03.1"]));
    assert_eq!(group_of(&fabric, at("00:03.2")), all(&["00:03.2"]));
}

/// GRP-006, GRP-007: numbers go up in the order in which functions are found:
/// a bus whole, then what is behind its bridges.
#[test]
fn numbers_follow_enumeration() {
    let fabric = mixed();
    let mut seen = Vec::new();
    for address in fabric.enumeration() {
        let group = fabric.group(address).unwrap();
        if !seen.contains(&group) {
            seen.push(group);
        }
    }
    assert_eq!(seen, (0..seen.len() as u32).collect::<Vec<_>>());
    assert_eq!(fabric.group(at("00:00.0")), Some(0));
    assert_eq!(fabric.group(at("00:01.0")), Some(1));
}

/// GRP-007: a number that is free again is given to the next one.
/// GRP-022: a virtual function has a group of its own, whatever its
/// physical function shares.
#[test]
fn virtual_functions_and_their_numbers() {
    let mut fabric = build(|b| {
        b.plug_auto(at("01:00.0"), FunctionSpec { acs: None, ..rich() });
        b.plug_auto(at("01:00.1"), nvme());
        b.plug_auto(at("02:00.0"), rich());
    });
    assert_eq!(fabric.group(at("01:00.0")), fabric.group(at("01:00.1")));
    let before: Vec<u32> = fabric.groups().map(|(id, _)| id).collect();
    let next = before.len() as u32;
    let first: Vec<_> = fabric.enable_vfs(at("01:00.0"), 2).unwrap().iter().map(|(a, _)| fabric.group(*a)).collect();
    assert_eq!(first, [Some(next), Some(next + 1)]);
    let second = fabric.enable_vfs(at("02:00.0"), 1).unwrap()[0].0;
    assert_eq!(fabric.group(second), Some(next + 2));
    assert_eq!(group_of(&fabric, second), [second]);
    fabric.disable_vfs(at("01:00.0"));
    let again: Vec<_> = fabric.enable_vfs(at("01:00.0"), 3).unwrap().iter().map(|(a, _)| fabric.group(*a)).collect();
    assert_eq!(again, [Some(next), Some(next + 1), Some(next + 3)]);
    fabric.disable_vfs(at("01:00.0"));
    fabric.disable_vfs(at("02:00.0"));
    assert_eq!(fabric.groups().map(|(id, _)| id).collect::<Vec<_>>(), before);
}

/// GRP-055: the message window is the group's reserved region.
#[test]
fn reserved_regions() {
    let fabric = mixed();
    let regions = fabric.reserved_regions(0);
    assert_eq!(regions, [MSI_WINDOW]);
    assert_eq!((regions[0].start, regions[0].end, regions[0].kind), (0xfee0_0000, 0xfeef_ffff, "msi"));
    assert!(fabric.reserved_regions(9999).is_empty());
}
