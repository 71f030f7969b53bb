// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI fabrics: any descriptions of functions in any places, then any accesses
//! to their configuration space.

use std::collections::BTreeSet;

use arbitrary::Unstructured;
use pci::{Bar, BarKind, Fabric, FabricBuilder, Function, FunctionSpec, Item, Link, Msix, Place, PortType, cap};

use crate::wire::{Blob, Wire, operations, seed, wire};

wire! {
    /// A step of a description, or what happens to the fabric.
    enum Op {
        /// Begins a function.
        Function { kind: u8, vendor: u16, device: u16, class: u32, bits: u16 },
        Bar { index: u8, log2: u8, kind: u8 },
        Msix { vectors: u16, table: u32, pba: u32, bars: u8 },
        Capabilities { msi: u8, pasid: u8, acs: u16, vfs: u16, pri: u32 },
        Vf { offset: u16, stride: u16, own: bool },
        Link { speed: u8, width: u8 },
        Image { rom: bool, times: u16, bytes: Blob },
        Vendor { bytes: Blob },
        /// Puts the function somewhere.
        Root { segment: u8, bus: u8, slot: u8 },
        Below { item: u8, slot: u8 },
        At { segment: u8, bus: u8, devfn: u8 },
        /// Builds, if that is not done, and then:
        Read { function: u8, offset: u16, len: u8 },
        Write { function: u8, offset: u16, len: u8, value: u32 },
        Reset { function: u8, kind: u8 },
        Vfs { function: u8, count: u16 },
    }
}

const KINDS: [PortType; 12] = [
    PortType::Endpoint,
    PortType::LegacyEndpoint,
    PortType::RootPort,
    PortType::UpstreamPort,
    PortType::DownstreamPort,
    PortType::PcieToPciBridge,
    PortType::PciToPcieBridge,
    PortType::IntegratedEndpoint,
    PortType::EventCollector,
    PortType::Conventional,
    PortType::ConventionalBridge,
    PortType::VirtualFunction,
];

/// The most items of a fabric.
const ITEMS: usize = 40;

#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    spec: FunctionSpec,
    fabric: Option<Fabric>,
}

/// The body of the target `fabric`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let mut plan = Plan::default();
    for op in operations(&mut u, 200) {
        if plan.describe(&op) {
            continue;
        }
        if plan.fabric.is_none() {
            plan.build(settings & 1 == 0);
        }
        if let Some(fabric) = &mut plan.fabric {
            act(fabric, &op);
        }
    }
    if plan.fabric.is_none() {
        plan.build(settings & 1 == 0);
    }
    if let Some(fabric) = &plan.fabric {
        check(fabric);
    }
}

impl Plan {
    /// Takes a step of the description; whether it is one.
    fn describe(&mut self, op: &Op) -> bool {
        let spec = &mut self.spec;
        let slot = |slot: u8| (slot != 0xff).then_some((slot >> 3, slot & 7));
        match op {
            Op::Function { kind, vendor, device, class, bits } => {
                let port_type = KINDS[usize::from(*kind) % KINDS.len()];
                let base = if *kind & 0x80 != 0 { FunctionSpec::port(port_type) } else { FunctionSpec::default() };
                *spec = FunctionSpec {
                    vendor: *vendor,
                    device: *device,
                    class: class & 0xff_ffff,
                    port_type,
                    flr: bits & 1 != 0,
                    aer: bits & 2 != 0,
                    no_soft_reset: bits & 4 != 0,
                    no_power_management: bits & 8 != 0,
                    af_flr: bits & 16 != 0,
                    ats: bits & 32 != 0,
                    ari: bits & 64 != 0,
                    serial: (bits & 128 != 0).then_some(u64::from(*class)),
                    no_intx_disable: bits & 256 != 0,
                    interrupt_pin: (bits >> 9 & 7) as u8,
                    ..base
                };
            }
            Op::Bar { index, log2, kind } => {
                let kind = match kind % 5 {
                    0 => BarKind::Memory32 { prefetchable: false },
                    1 => BarKind::Memory32 { prefetchable: true },
                    2 => BarKind::Memory64 { prefetchable: false },
                    3 => BarKind::Memory64 { prefetchable: true },
                    _ => BarKind::Io,
                };
                let size = (1_u64 << (log2 & 63)) + u64::from(log2 >> 7);
                spec.bars[usize::from(*index % 6)] = Some(Bar { size, kind, mmap: true });
            }
            Op::Msix { vectors, table, pba, bars } => {
                spec.msix = Some(Msix { vectors: *vectors, table: (bars & 7, *table), pba: (bars >> 4 & 7, *pba) });
            }
            Op::Capabilities { msi, pasid, acs, vfs, pri } => {
                spec.msi = (*msi != 0xff).then_some(*msi);
                spec.pasid = (*pasid != 0xff).then_some(*pasid);
                spec.acs = (*acs != 0xffff).then_some(*acs);
                spec.pri = (*pri != u32::MAX).then_some(*pri);
                spec.total_vfs = *vfs;
            }
            Op::Vf { offset, stride, own } => {
                (spec.vf_offset, spec.vf_stride) = (*offset, *stride);
                spec.vf = own.then(|| Box::new(FunctionSpec { vf: None, ..spec.clone() }));
            }
            Op::Link { speed, width } => spec.link = Link { speed: *speed, width: *width },
            Op::Image { rom, times, bytes } => {
                let image = bytes.0.repeat(usize::from(*times));
                *(if *rom { &mut spec.rom } else { &mut spec.vpd }) = image;
            }
            Op::Vendor { bytes } => spec.vendor_specific.push(bytes.0.clone()),
            Op::Root { segment, bus, slot: s } => {
                self.put(Place::Root { segment: (*segment).into(), bus: *bus, slot: slot(*s) });
            }
            Op::Below { item, slot: s } => self.put(Place::Below { port: item.to_string(), slot: slot(*s) }),
            Op::At { segment, bus, devfn } => {
                self.put(Place::At(pci::Address::from_devfn((*segment).into(), *bus, *devfn)));
            }
            Op::Read { .. } | Op::Write { .. } | Op::Reset { .. } | Op::Vfs { .. } => return false,
        }
        true
    }

    fn put(&mut self, place: Place) {
        alone(&self.spec);
        if self.items.len() < ITEMS {
            self.items.push(Item::new(place, self.spec.clone()).named(&self.items.len().to_string()));
        }
    }

    fn build(&mut self, iommu: bool) {
        let mut builder = FabricBuilder::new();
        builder.iommu(iommu);
        for item in self.items.drain(..) {
            builder.add(item);
        }
        match builder.build() {
            Ok(fabric) => {
                check(&fabric);
                self.fabric = Some(fabric);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                self.fabric = Some(Fabric::default());
            }
        }
    }
}

/// A function outside of any fabric: capability chains end, inside.
fn alone(spec: &FunctionSpec) {
    // What cannot be built makes an odd device, never a panic.
    let odd = Function::new(spec.clone());
    let _ = (odd.command(), odd.power_state(), odd.save());
    let Ok(function) = Function::checked(spec.clone()) else { return };
    let mut end = 0x40;
    for (id, at, len) in function.capabilities() {
        assert!(at >= end && at + len <= 0x100, "capability {id:#x} at {at:#x}, {len} bytes");
        assert_eq!(function.read(at, 1), u32::from(id));
        end = at;
    }
    for (id, at, len) in function.extended_capabilities() {
        assert!(at >= 0x100 && u32::from(at) + u32::from(len) <= 0x1000, "capability {id:#x} at {at:#x}, {len} bytes");
        assert_eq!(function.read(at, 2), u32::from(id));
    }
}

fn act(fabric: &mut Fabric, op: &Op) {
    let all: Vec<pci::Address> = fabric.functions().map(|(address, _)| address).collect();
    let of = |n: &u8| all.get(usize::from(*n).checked_rem(all.len())?).copied();
    match op {
        Op::Read { function, offset, len } => {
            let Some(function) = of(function).and_then(|address| fabric.function(address)) else { return };
            let len = len % 5;
            let value = function.read(*offset, len);
            assert!(len == 4 || value < 1 << (8 * len));
        }
        Op::Write { function, offset, len, value } => {
            let Some(function) = of(function).and_then(|address| fabric.function_mut(address)) else { return };
            let before = function.bytes().to_vec();
            function.write(*offset, *len, *value);
            for (at, old) in (0..).zip(before) {
                let (writable, clear) = function.write_masks(at);
                let kept = !(writable | clear);
                let new = function.bytes()[usize::from(at)];
                assert_eq!(new & kept, old & kept, "{op:?} changed bits at {at:#x} that are not writable");
            }
        }
        Op::Reset { function, kind } => {
            let Some(address) = of(function) else { return };
            match kind % 3 {
                0 => {
                    let _ = fabric.function_mut(address).map(Function::reset);
                }
                1 if fabric.is_bridge(address) => {
                    let reset: BTreeSet<_> = fabric.secondary_bus_reset(address).into_iter().collect();
                    let below: BTreeSet<_> = fabric.below(address).into_iter().collect();
                    assert!(reset.is_subset(&below));
                }
                _ => {
                    let saved = fabric.function(address).map(Function::save);
                    if let (Some(saved), Some(function)) = (saved, fabric.function_mut(address)) {
                        function.restore(&saved);
                    }
                }
            }
        }
        Op::Vfs { function, count } => {
            let Some(address) = of(function) else { return };
            if *count == 0 {
                fabric.disable_vfs(address);
            } else if let Ok(vfs) = fabric.enable_vfs(address, *count) {
                assert_eq!(vfs.len(), usize::from(*count));
                assert_eq!(fabric.virtual_functions(address).len(), vfs.len());
            }
            check(fabric);
        }
        _ => {}
    }
}

/// Groups part the functions; what a fabric says of itself agrees.
fn check(fabric: &Fabric) {
    let mut seen = BTreeSet::new();
    for (group, members) in fabric.groups() {
        assert!(!members.is_empty(), "group {group} is empty");
        for member in members {
            assert!(seen.insert(member), "{member} is in two groups");
            assert_eq!(fabric.group(member), Some(group));
        }
    }
    for (address, function) in fabric.functions() {
        assert!(fabric.group(address).is_none_or(|_| seen.contains(&address)));
        assert!(!fabric.resources(address).is_empty());
        assert!(fabric.bus(address.segment, address.bus).is_some_and(|bus| bus.devices.contains(&address)));
        assert!(function.size() == 256 || function.size() == 4096);
        let _ = (fabric.reset_methods(address), fabric.reset_scope(address), fabric.requester_ids(address));
        let _ = (fabric.path(address), fabric.resource_lines(address), function.spec().modalias());
        assert!(fabric.acs_enabled(address, 0) || !fabric.acs_enabled(address, cap::ACS_ISOLATED));
        if let Ok(scope) = fabric.hot_reset_scope(address) {
            assert!(scope.contains(&address), "{address} is not in its own reset");
        }
    }
    assert_eq!(fabric.enumeration().len(), fabric.functions().count());
}

/// Seeds: each names what it describes.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |ops: &[Op]| seed(&0_u8, ops);
    let function = |kind: u8, bits: u16| Op::Function { kind, vendor: 0x1234, device: 1, class: 0x01_0802, bits };
    let port = |kind: u8| function(kind | 0x80, 2 | 4);
    let bar = |index, log2, kind| Op::Bar { index, log2, kind };
    let none = || Op::Capabilities { msi: 0xff, pasid: 0xff, acs: 0xffff, vfs: 0, pri: u32::MAX };
    let at = |bus, devfn| Op::At { segment: 0, bus, devfn };
    let root = |slot| Op::Root { segment: 0, bus: 0, slot };
    let below = |item, slot| Op::Below { item, slot };
    let ones = |n: u8| -> Vec<Op> {
        (0..40).map(|at| Op::Write { function: n, offset: at * 4, len: 4, value: u32::MAX }).collect()
    };
    // 0x82: a root port, 0x83: upstream, 0x84: downstream.
    let switch = || vec![port(2), root(8), port(3), below(0, 0), port(4), below(1, 0), below(1, 8), below(1, 0xff)];
    let with = |mut ops: Vec<Op>, more: Vec<Op>| {
        ops.extend(more);
        s(&ops)
    };
    vec![
        ("endpoint", with(vec![function(0, 0x87), bar(0, 14, 2), bar(2, 12, 0), at(1, 0)], ones(1))),
        (
            "every-capability",
            with(
                vec![
                    function(0, 0xff | 1 << 9),
                    bar(0, 14, 2),
                    Op::Msix { vectors: 65, table: 0x2000, pba: 0x3000, bars: 0 },
                    Op::Capabilities { msi: 5, pasid: 20, acs: 0x7f, vfs: 4, pri: 64 },
                    Op::Image { rom: true, times: 30, bytes: Blob(vec![0x55; 200]) },
                    Op::Image { rom: false, times: 2, bytes: Blob(vec![0x82; 100]) },
                    Op::Vendor { bytes: Blob(vec![1, 2, 3]) },
                    at(1, 0),
                ],
                ones(1),
            ),
        ),
        (
            "no-room",
            s(&[
                function(0, 0),
                Op::Vendor { bytes: Blob(vec![0; 200]) },
                Op::Vendor { bytes: Blob(vec![0; 200]) },
                at(1, 0),
            ]),
        ),
        (
            "bars-wrong",
            s(&[
                function(0, 0),
                bar(5, 14, 2),
                at(1, 0),
                function(0, 0),
                bar(0, 0x80 | 12, 0),
                at(2, 0),
                function(0, 0),
                bar(0, 12, 2),
                bar(1, 12, 0),
                at(3, 0),
            ]),
        ),
        (
            "bars-huge",
            s(&[
                function(0, 0),
                bar(0, 62, 3),
                at(1, 0),
                function(0, 0),
                bar(0, 31, 0),
                bar(1, 31, 0),
                bar(2, 31, 0),
                at(2, 0),
            ]),
        ),
        (
            "io",
            s(&[
                function(1, 0),
                bar(0, 8, 4),
                bar(1, 2, 4),
                at(1, 0),
                Op::Write { function: 1, offset: 0x10, len: 4, value: u32::MAX },
            ]),
        ),
        (
            "switch",
            with(
                switch(),
                vec![function(0, 1), below(2, 0), below(3, 0), below(4, 0), Op::Reset { function: 0, kind: 1 }],
            ),
        ),
        (
            "bridge",
            s(&[
                port(5),
                root(0x10),
                function(9, 16),
                below(0, 0),
                below(0, 1),
                below(0, 0xff),
                Op::Reset { function: 0, kind: 1 },
            ]),
        ),
        (
            "conventional-bridges",
            s(&[
                port(10),
                root(0x10),
                port(10),
                below(0, 0),
                port(10),
                below(1, 0),
                function(9, 0),
                bar(0, 12, 1),
                below(2, 0),
            ]),
        ),
        ("link-of-two", s(&[port(2), root(8), function(0, 0), below(0, 0), below(0, 8)])),
        ("cycle", s(&[port(3), below(1, 0), port(4), below(0, 0)])),
        ("itself", s(&[port(2), below(0, 0)])),
        ("nowhere", s(&[function(0, 0), below(9, 0), at(0, 0)])),
        ("same-place", s(&[function(0, 0), at(1, 0), at(1, 0)])),
        ("functions", s(&[function(0, 64), none(), at(1, 0), at(1, 3), at(1, 7), at(1, 8), at(1, 0xff)])),
        (
            "segments",
            s(&[
                function(7, 1),
                Op::Root { segment: 9, bus: 0x40, slot: 0 },
                Op::Root { segment: 9, bus: 0x41, slot: 0xff },
                Op::At { segment: 255, bus: 255, devfn: 255 },
            ]),
        ),
        (
            "vfs",
            s(&[
                function(0, 1),
                bar(0, 14, 2),
                Op::Capabilities { msi: 0xff, pasid: 0xff, acs: 5, vfs: 8, pri: u32::MAX },
                at(1, 0),
                Op::Vfs { function: 1, count: 3 },
                Op::Vfs { function: 1, count: 3 },
                Op::Vfs { function: 1, count: 0 },
                Op::Vfs { function: 1, count: 8 },
            ]),
        ),
        (
            "vfs-far",
            s(&[
                function(0, 1),
                bar(0, 14, 2),
                Op::Capabilities { msi: 0xff, pasid: 0xff, acs: 5, vfs: 8, pri: u32::MAX },
                Op::Vf { offset: 0x100, stride: 0x80, own: true },
                at(1, 0),
                Op::Vfs { function: 1, count: 8 },
                Op::Vfs { function: 1, count: 0 },
            ]),
        ),
        (
            "vfs-overflow",
            s(&[
                function(0, 1),
                Op::Capabilities { msi: 0xff, pasid: 0xff, acs: 5, vfs: 0xffff, pri: u32::MAX },
                Op::Vf { offset: 0xffff, stride: 0xffff, own: false },
                at(255, 0xff),
                Op::Vfs { function: 1, count: 0xffff },
            ]),
        ),
        (
            "vfs-on-others",
            s(&[
                function(0, 1),
                Op::Capabilities { msi: 0xff, pasid: 0xff, acs: 5, vfs: 4, pri: u32::MAX },
                Op::Vf { offset: 1, stride: 1, own: false },
                at(1, 0),
                function(0, 0),
                none(),
                at(1, 1),
                Op::Vfs { function: 1, count: 4 },
            ]),
        ),
        (
            "links",
            s(&[function(0, 0), Op::Link { speed: 6, width: 32 }, at(1, 0), Op::Link { speed: 0, width: 3 }, at(2, 0)]),
        ),
        ("many-ports", with((0..30).flat_map(|slot| [port(2), root(slot * 8)]).collect(), vec![])),
        (
            "resets",
            s(&[
                function(0, 1),
                bar(0, 12, 0),
                at(1, 0),
                Op::Write { function: 1, offset: 4, len: 2, value: 7 },
                Op::Reset { function: 1, kind: 0 },
                Op::Reset { function: 1, kind: 2 },
                Op::Read { function: 1, offset: 4, len: 2 },
            ]),
        ),
        ("collectors", s(&[function(8, 0), root(0xf8), function(7, 1), root(0xf9), function(11, 0), root(0xfa)])),
    ]
}
