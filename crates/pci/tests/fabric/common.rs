// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions and fabrics that several tests use.

use pci::{Address, Bar, BarKind, Fabric, FabricBuilder, FunctionSpec, Item, Msix, Place, PortType, cap};

/// An address from its text.
pub(crate) fn at(text: &str) -> Address {
    text.parse().unwrap()
}

/// Addresses from their texts.
pub(crate) fn all(texts: &[&str]) -> Vec<Address> {
    texts.iter().map(|text| at(text)).collect()
}

/// A BAR.
pub(crate) fn bar(size: u64, kind: BarKind) -> Option<Bar> {
    Some(Bar { size, kind, mmap: true })
}

/// An NVMe drive: one 64-bit BAR, FLR, MSI-X in BAR 0.
pub(crate) fn nvme() -> FunctionSpec {
    let memory = bar(0x4000, BarKind::Memory64 { prefetchable: false });
    FunctionSpec {
        vendor: 0x1b36,
        device: 0x0010,
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        class: 0x01_08_02,
        revision: 2,
        bars: [memory, None, None, None, None, None],
        interrupt_pin: 1,
        msix: Some(Msix { vectors: 65, table: (0, 0x2000), pba: (0, 0x3000) }),
        flr: true,
        aer: true,
        no_soft_reset: true,
        ..FunctionSpec::default()
    }
}

/// The same, with nothing to reset it by itself.
pub(crate) fn plain() -> FunctionSpec {
    FunctionSpec { flr: false, ..nvme() }
}

/// Something of everything.
pub(crate) fn rich() -> FunctionSpec {
    FunctionSpec {
        vendor: 0x8086,
        device: 0x0b25,
        subsystem_vendor: 0x8086,
        subsystem_device: 1,
        class: 0x08_80_00,
        revision: 1,
        bars: [
            bar(0x2_0000, BarKind::Memory64 { prefetchable: true }),
            None,
            bar(0x20, BarKind::Io),
            bar(0x4000, BarKind::Memory32 { prefetchable: false }),
            bar(0x1000, BarKind::Memory64 { prefetchable: false }),
            None,
        ],
        rom: vec![0x55; 5000],
        interrupt_pin: 2,
        msi: Some(3),
        msix: Some(Msix { vectors: 16, table: (3, 0), pba: (3, 0x2000) }),
        flr: true,
        aer: true,
        acs: Some(cap::ACS_ISOLATED | cap::ACS_EC),
        total_vfs: 7,
        pasid: Some(20),
        pri: Some(512),
        serial: Some(0x0123_4567_89ab_cdef),
        ats: true,
        vpd: pci::vpd::image("Test adapter", &[(*b"PN", "1234"), (*b"SN", "ABC")]),
        vendor_specific: vec![vec![1, 2, 3, 4, 5]],
        ..FunctionSpec::default()
    }
}

/// A root or downstream port whose ACS offers these bits.
pub(crate) fn port(kind: PortType, acs: Option<u16>) -> FunctionSpec {
    FunctionSpec { acs, ..FunctionSpec::port(kind) }
}

/// A bit of each kind: root ports with ACS, a switch, a conventional bus,
/// several functions, an integrated endpoint.
pub(crate) fn mixed() -> Fabric {
    let mut builder = FabricBuilder::new();
    builder.add(Item::new(Place::root().at(0, 0), FunctionSpec::host_bridge()));
    builder.plug_auto(at("0000:01:00.0"), nvme());
    builder.plug_auto(at("0000:05:00.0"), rich());
    builder.plug_auto(at("0000:05:00.1"), rich());
    builder.add(Item::port(Place::root(), PortType::RootPort).named("root"));
    builder.switch("switch", Place::below("root"), 2, &FunctionSpec::port(PortType::DownstreamPort));
    builder.add(Item::new(Place::below("switch.1"), nvme()));
    builder.add(Item::port(Place::root(), PortType::PcieToPciBridge).named("pci"));
    builder.add(Item::new(Place::below("pci").at(3, 0), FunctionSpec { af_flr: true, ..nvme() }));
    builder.add(Item::new(Place::root().at(9, 0), nvme()));
    builder.build().unwrap()
}
