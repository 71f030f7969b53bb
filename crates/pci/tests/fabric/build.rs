// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a description to addresses, bus numbers, windows and sysfs lines.

use pci::{Address, BarKind, Fabric, FabricBuilder, FabricError, FunctionSpec, Item, Place, PortType, SpecError, cap};

use crate::common::{all, at, bar, mixed, nvme, port, rich};

fn build(describe: impl FnOnce(&mut FabricBuilder)) -> Result<Fabric, FabricError> {
    let mut builder = FabricBuilder::new();
    describe(&mut builder);
    builder.build()
}

fn fails(describe: impl FnOnce(&mut FabricBuilder)) -> FabricError {
    build(describe).unwrap_err()
}

#[test]
fn a_root_port_appears_above_a_chosen_address() {
    let mut fabric = Fabric::default();
    fabric.plug_auto(at("0000:01:00.0"), nvme()).unwrap();
    let endpoint = at("01:00.0");
    assert_eq!(fabric.parent(endpoint), Some(at("00:01.0")));
    assert_eq!(fabric.port_type(at("00:01.0")), Some(PortType::RootPort));
    assert_eq!(fabric.port_type(endpoint), Some(PortType::Endpoint));
    assert_eq!(fabric.path(endpoint), all(&["00:01.0", "01:00.0"]));
    // A second one goes on; what is there stays where it is.
    fabric.plug_auto(at("0000:03:00.0"), nvme()).unwrap();
    assert_eq!(fabric.parent(at("03:00.0")), Some(at("00:02.0")));
    assert_eq!(fabric.parent(endpoint), Some(at("00:01.0")));
    assert_eq!(fabric.plug_auto(at("0000:03:00.0"), nvme()), Err(FabricError::AddressInUse(at("03:00.0"))),);
    assert!(fabric.function(at("03:00.0")).is_some());
}

#[test]
fn an_endpoint_on_a_root_bus_is_integrated_and_on_a_conventional_bus_conventional() {
    let fabric = mixed();
    assert_eq!(fabric.port_type(at("00:09.0")), Some(PortType::IntegratedEndpoint));
    let below_bridge = fabric.children(fabric.named("pci").unwrap())[0];
    assert_eq!(fabric.port_type(below_bridge), Some(PortType::Conventional));
    assert_eq!(fabric.function(below_bridge).unwrap().size(), 256);
}

#[test]
fn buses_are_numbered_depth_first_in_device_order() {
    let fabric = build(|b| {
        b.add(Item::port(Place::root(), PortType::RootPort).named("a"));
        b.add(Item::port(Place::root(), PortType::RootPort).named("b"));
        b.switch("s", Place::below("a"), 2, &FunctionSpec::port(PortType::DownstreamPort));
        b.add(Item::new(Place::below("s.0"), nvme()).named("x"));
        b.add(Item::new(Place::below("b"), nvme()).named("y"));
    })
    .unwrap();
    assert_eq!(fabric.named("a"), Some(at("00:01.0")));
    assert_eq!(fabric.named("s"), Some(at("01:00.0")));
    assert_eq!(fabric.named("s.1"), Some(at("02:01.0")));
    assert_eq!(fabric.named("x"), Some(at("03:00.0")));
    assert_eq!(fabric.named("y"), Some(at("05:00.0")));
    let registers = |name: &str| {
        let f = fabric.function(fabric.named(name).unwrap()).unwrap();
        (f.read(0x18, 1), f.read(0x19, 1), f.read(0x1a, 1))
    };
    assert_eq!(registers("a"), (0, 1, 4));
    assert_eq!(registers("s"), (1, 2, 4));
    assert_eq!(registers("s.1"), (2, 4, 4));
    assert_eq!(fabric.bus(0, 2).unwrap().subordinate, 4);
    assert_eq!(
        fabric.enumeration(),
        all(&["00:01.0", "00:02.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "05:00.0"]),
    );
    assert_eq!(fabric.below(at("00:01.0")), all(&["01:00.0", "02:00.0", "03:00.0", "02:01.0"]));
}

#[test]
fn told_numbers_stand_and_the_rest_is_put_around_them() {
    let fabric = build(|b| {
        b.add(Item::port(Place::root(), PortType::RootPort).named("free"));
        b.switch("s", Place::below("free"), 1, &FunctionSpec::port(PortType::DownstreamPort));
        b.add(Item::port(Place::root(), PortType::RootPort).named("told").leads_to(2));
        b.plug_auto(at("0000:02:00.0"), nvme());
        b.add(Item::port(Place::root(), PortType::RootPort).named("deep"));
        b.switch("d", Place::below("deep"), 0, &FunctionSpec::default());
        b.add(Item::port(Place::below("d"), PortType::DownstreamPort).leads_to(0x20));
    })
    .unwrap();
    assert_eq!(fabric.parent(at("02:00.0")), fabric.named("told"));
    // The switch under `deep` takes 03-20, so the free one comes after it.
    assert_eq!(fabric.named("d"), Some(at("03:00.0")));
    assert_eq!(fabric.secondary(fabric.named("deep").unwrap()).unwrap().subordinate, 0x20);
    assert_eq!(fabric.secondary(fabric.named("free").unwrap()).unwrap().number, 0x21);
}

#[test]
fn segments_and_root_buses_stand_apart() {
    let fabric = build(|b| {
        b.root_bus(0, 0x80);
        b.plug_auto(at("0001:01:00.0"), nvme());
        b.plug_auto(at("0000:81:00.0"), nvme());
        b.plug_auto(at("0000:01:00.0"), nvme());
        b.plug_auto(at("0000:80:05.0"), nvme());
    })
    .unwrap();
    assert_eq!(fabric.parent(at("0000:81:00.0")), Some(at("0000:80:00.0")));
    assert_eq!(fabric.parent(at("0001:01:00.0")), Some(at("0001:00:01.0")));
    assert_eq!(fabric.root_bus(at("0000:81:00.0")).unwrap().number, 0x80);
    assert_eq!(fabric.bus(0, 0).unwrap().subordinate, 0x7f);
    let order = fabric.enumeration();
    assert_eq!(order[0], at("0000:00:01.0"));
    assert_eq!(order[5..], all(&["0001:00:01.0", "0001:01:00.0"]));
}

#[test]
fn what_cannot_be_has_an_error_of_its_own() {
    let x = nvme;
    assert_eq!(
        fails(|b| {
            b.plug_auto(at("00:05.0"), x()).plug_auto(at("00:05.0"), x());
        }),
        FabricError::AddressInUse(at("00:05.0")),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::RootPort).named("p"));
            b.add(Item::new(Place::root(), x()).named("p"));
        }),
        FabricError::NameInUse("p".into()),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::new(Place::below("nowhere"), x()));
        }),
        FabricError::NoParent("nowhere".into()),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::new(Place::root(), x()).named("nvme"));
            b.add(Item::new(Place::below("nvme"), x()));
        }),
        FabricError::NotABridge("nvme".into()),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::port(Place::below("b"), PortType::DownstreamPort).named("a"));
            b.add(Item::port(Place::below("a"), PortType::UpstreamPort).named("b"));
        }),
        FabricError::Cycle("a".into()),
    );
    assert_eq!(
        fails(|b| {
            b.plug_auto(at("01:00.1"), x());
        }),
        FabricError::FunctionZeroMissing(at("01:00.1")),
    );
    assert_eq!(
        fails(|b| {
            b.plug_auto(at("01:03.0"), x());
        }),
        FabricError::DeviceNumber("0000:01:03.0".into()),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::RootPort).leads_to(3));
            b.add(Item::port(Place::root(), PortType::RootPort).leads_to(3));
        }),
        FabricError::BusConflict { segment: 0, bus: 3 },
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::RootPort).named("p").leads_to(9));
            b.add(Item::port(Place::below("p"), PortType::UpstreamPort).leads_to(4));
        }),
        FabricError::BusConflict { segment: 0, bus: 4 },
    );
    assert!(matches!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::DownstreamPort));
        }),
        FabricError::WrongPlace { .. },
    ));
    assert!(matches!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::RootPort).named("p"));
            b.add(Item::port(Place::below("p"), PortType::UpstreamPort).named("up"));
            b.add(Item::new(Place::below("up"), x()));
        }),
        FabricError::WrongPlace { .. },
    ));
    let wrong = FunctionSpec { bars: [bar(0x3000, BarKind::Io), None, None, None, None, None], ..x() };
    assert_eq!(
        fails(|b| {
            b.plug_auto(at("01:00.0"), FunctionSpec { msix: None, ..wrong });
        }),
        FabricError::Spec { name: "0000:01:00.0".into(), error: SpecError::BarSize(0, 0x3000) },
    );
    let huge = FunctionSpec {
        bars: [bar(1 << 62, BarKind::Memory64 { prefetchable: true }), None, None, None, None, None],
        ..x()
    };
    assert!(matches!(
        fails(|b| {
            b.plug_auto(at("01:00.0"), huge);
        }),
        FabricError::OutOfSpace { .. },
    ));
    assert_eq!(
        fails(|b| {
            for _ in 0..32 {
                b.add(Item::new(Place::root(), x()));
            }
        }),
        FabricError::NoFreeDevice("function on bus 0000:00".into()),
    );
    assert_eq!(
        fails(|b| {
            b.add(Item::port(Place::root(), PortType::RootPort).named("p").leads_to(255));
            b.add(Item::port(Place::below("p"), PortType::UpstreamPort));
        }),
        FabricError::NoFreeBus(0),
    );
}

#[test]
fn contradictory_numbers_end_in_time() {
    // A chain of switches whose last bus is told to lie before what is above.
    let error = fails(|b| {
        b.add(Item::port(Place::root().at(0, 0), PortType::RootPort).named("p0"));
        for n in 0..40 {
            b.add(Item::port(Place::below(&format!("p{n}")), PortType::UpstreamPort).named(&format!("u{n}")));
            let mut down = Item::port(Place::below(&format!("u{n}")), PortType::DownstreamPort);
            down.name = Some(format!("p{}", n + 1));
            b.add(down);
        }
        b.add(Item::port(Place::below("p40"), PortType::UpstreamPort).leads_to(5));
        for bus in (10..250).step_by(2) {
            b.add(
                Item::port(Place::root().at((bus / 8) as u8, (bus / 2 % 4) as u8), PortType::RootPort)
                    .leads_to(bus as u8),
            );
        }
    });
    assert!(matches!(
        error,
        FabricError::BusConflict { .. } | FabricError::NoFreeBus(_) | FabricError::AddressInUse(_)
    ));
}

#[test]
fn windows_hold_what_is_behind_them() {
    let fabric = mixed();
    for (address, function) in fabric.functions() {
        for resource in fabric.resources(address).iter().filter(|r| !r.is_empty()) {
            let Some(bridge) = fabric.parent(address) else { continue };
            let held = fabric.resources(bridge)[13..].iter().any(|w| {
                !w.is_empty()
                    && w.start <= resource.start
                    && resource.end <= w.end
                    && w.flags & 0x300 == resource.flags & 0x300
            });
            assert!(held, "{address}: {resource}");
        }
        for (i, bar) in function.spec().bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let offset = cap::BAR0 + 4 * i as u16;
            let low = u64::from(function.read(offset, 4));
            let high = if bar.is_64bit() { u64::from(function.read(offset + 4, 4)) << 32 } else { 0 };
            let start = fabric.resources(address)[i].start;
            assert_eq!(high | low, start | u64::from(bar.type_bits()), "{address} BAR {i}");
            assert_eq!(start % bar.size, 0, "{address} BAR {i}");
        }
    }
}

#[test]
fn windows_are_packed_from_the_largest() {
    let memory = |size| bar(size, BarKind::Memory32 { prefetchable: false });
    let spec = FunctionSpec {
        bars: [memory(0x1000), memory(8 << 20), memory(0x1000), memory(1 << 20), None, None],
        msix: None,
        ..nvme()
    };
    let fabric = build(|b| {
        b.plug_auto(at("01:00.0"), spec);
    })
    .unwrap();
    assert_eq!(fabric.resources(at("00:01.0"))[14].len(), 10 << 20);
}

#[test]
fn big_bars_go_above_4_gib_and_many_small_ones_follow() {
    let memory = |size| FunctionSpec {
        bars: [bar(size, BarKind::Memory64 { prefetchable: false }), None, None, None, None, None],
        ..nvme()
    };
    let fabric = build(|b| {
        b.plug_auto(at("01:00.0"), memory(256 << 30));
    })
    .unwrap();
    assert!(fabric.resources(at("01:00.0"))[0].start >= 1 << 32);
    let fabric = build(|b| {
        for bus in 1..60 {
            b.plug_auto(Address::new(1 + bus / 30, bus as u8 % 30 + 1, 0, 0), memory(32 << 20));
        }
    })
    .unwrap();
    assert!(fabric.resources(at("0001:02:00.0"))[0].start >= 1 << 32);
}

/// GRP-037
#[test]
fn resource_lines_are_those_of_sysfs() {
    let mut fabric = mixed();
    let lines = fabric.resource_lines(at("05:00.0"));
    assert_eq!(lines.len(), 13);
    assert_eq!(lines[0], "0x0000380000000000 0x000038000001ffff 0x000000000014220c");
    assert_eq!(lines[1], "0x0000000000000000 0x0000000000000000 0x0000000000000000");
    assert_eq!(lines[2], "0x0000000000001000 0x000000000000101f 0x0000000000040101");
    assert!(lines[6].ends_with("0x0000000000046200"), "{}", lines[6]);
    // Seven times the size of a VF's BAR.
    assert_eq!(lines[7], "0x0000380000020000 0x00003800000fffff 0x000000000014220c");
    let bridge = fabric.parent(at("05:00.0")).unwrap();
    let lines = fabric.resource_lines(bridge);
    assert_eq!(lines.len(), 17);
    assert_eq!(lines[13], "0x0000000000001000 0x0000000000001fff 0x0000000000000101");
    assert!(lines[14].ends_with("0x0000000000000200"), "{}", lines[14]);
    assert_eq!(lines[15], "0x0000380000000000 0x00003800001fffff 0x0000000000102201");
    assert!(lines[16].starts_with("0x0000000000000000 0x0000000000000000"));
    // Closed windows are all zeros.
    let other = fabric.parent(at("01:00.0")).unwrap();
    assert_eq!(fabric.resource_lines(other)[13], lines[16]);
    let (vf, _) = fabric.enable_vfs(at("05:00.0"), 2).unwrap().remove(1);
    assert_eq!(fabric.resource_lines(vf)[0], "0x0000380000040000 0x000038000005ffff 0x000000000014220c");
    assert_eq!(fabric.resource_lines(vf).len(), 13);
}

/// GRP-036
#[test]
fn texts_are_those_of_sysfs() {
    assert_eq!(nvme().modalias(), "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02");
    assert_eq!(nvme().class_text(), "0x010802");
    let fabric = mixed();
    let function = |text| fabric.function(at(text)).unwrap();
    // GRP-043, GRP-044
    assert_eq!(function("01:00.0").power_text(), "D0");
    assert_eq!(function("01:00.0").current_link(), Some(("8.0 GT/s PCIe", 4)));
    assert_eq!(function("01:00.0").max_link(), Some(("8.0 GT/s PCIe", 4)));
    let port = fabric.function(fabric.parent(at("01:00.0")).unwrap()).unwrap();
    assert_eq!((port.current_link(), port.max_link()), (Some(("8.0 GT/s PCIe", 4)), Some(("16.0 GT/s PCIe", 16))));
    assert_eq!(function("00:09.0").current_link(), None);
}

#[test]
fn ports_come_up_with_linux_settings() {
    let fabric = build(|b| {
        b.add(Item::new(Place::root(), port(PortType::RootPort, Some(0x7f))).named("p"));
        b.add(Item::new(Place::below("p"), rich()).named("rich"));
    })
    .unwrap();
    let port = fabric.function(fabric.named("p").unwrap()).unwrap();
    let express = port.capability(cap::EXPRESS).unwrap();
    assert_eq!(port.command() & 7, 7);
    assert_eq!(port.read(express + 0x28, 2) & 0x20, 0x20, "ARI forwarding");
    assert_eq!(port.read(express + 0x12, 2) & 0x2000, 0x2000, "link active");
    assert_eq!(port.read(express + 0x1a, 2) & 0x40, 0x40, "presence detected");
    let aer = port.extended_capability(cap::EXT_AER).unwrap();
    assert_eq!(port.read(aer + 0x2c, 4), 7);
    let rich = fabric.function(fabric.named("rich").unwrap()).unwrap();
    assert_eq!(rich.command(), 0);
    assert_eq!(rich.read(rich.capability(cap::EXPRESS).unwrap() + 8, 2) & 0xf, 0xf, "error reports");
}
