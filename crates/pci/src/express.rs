// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI Express capability, version 2 (PCI Express 5.0, 7.5.3).

use crate::layout::{Bits, Layout, RO, rw, rws, w1c, w1cs};
use crate::{FunctionSpec, PortType, cap};

/// Bytes of the version 2 capability.
const LENGTH: u16 = 0x3c;

/// Lays out the capability. A virtual function has the fields that are its
/// own; the rest is its physical function's.
pub(crate) fn build(layout: &mut Layout, spec: &FunctionSpec, vf: bool) {
    let kind = spec.port_type;
    let Some(at) = layout.add(cap::EXPRESS, 0x70, LENGTH) else { return };
    let port = matches!(kind, PortType::RootPort | PortType::DownstreamPort);
    let slot = spec.slot.filter(|_| port);
    layout.set(at + 2, 2, 2 | u32::from(kind.code()) << 4 | u32::from(slot.is_some()) << 8, RO);
    device(layout, at, spec, vf);
    // Integrated endpoints and event collectors have no link.
    if !matches!(kind, PortType::IntegratedEndpoint | PortType::EventCollector) {
        link(layout, at, spec, port, vf);
    }
    if let Some(slot) = slot {
        let hotplug = if slot.hotplug { 0x7b } else { 0 };
        // No command completed; power limit in watts; physical number.
        let value = u32::from(slot.number & 0x1fff) << 19 | 1 << 18 | u32::from(slot.power) << 7 | hotplug;
        layout.set(at + 0x14, 4, value, RO);
        layout.set(at + 0x18, 2, if slot.hotplug { 0x03c0 } else { 0 }, rw(if slot.hotplug { 0x17fb } else { 0 }));
        layout.set(at + 0x1a, 2, 0, w1c(if slot.hotplug { 0x011f } else { 0 }));
    }
    if matches!(kind, PortType::RootPort | PortType::EventCollector) {
        layout.set(at + 0x1c, 2, 0, rw(0x001f)); // root control
        layout.set(at + 0x1e, 2, 1, RO); // root capabilities: CRS software visibility
        layout.set(at + 0x20, 4, 0, w1c(0x0001_0000)); // root status: PME
    }
}

fn device(layout: &mut Layout, at: u16, spec: &FunctionSpec, vf: bool) {
    let bridge = spec.port_type.is_bridge();
    // 256 bytes of payload, extended tags, role-based error reporting.
    let flr = spec.flr && !bridge;
    layout.set(at + 0x04, 4, 0x0000_8021 | u32::from(flr) << 28, RO);
    let (value, bits) = if vf {
        (0, rw(0x8000)) // only the reset is a VF's own
    } else if bridge {
        (0x0000, rw(0x00ef))
    } else {
        // Relaxed ordering, extended tags, no snoop, 512-byte read requests.
        (0x2910, rw(0x79ff))
    };
    let reset = if flr { 0x8000 } else { 0 };
    layout.set(at + 0x08, 2, value, Bits { rw: bits.rw & 0x7fff | reset, ..bits });
    layout.set(at + 0x0a, 2, 0, w1c(0x000f));

    let forwards_ari = matches!(spec.port_type, PortType::RootPort | PortType::DownstreamPort);
    let prefixes = bridge || spec.pasid.is_some();
    let mut capabilities2 = 0x0000_001f; // completion timeout ranges A to D, disable
    if forwards_ari {
        capabilities2 |= 0x20;
    }
    if prefixes {
        capabilities2 |= 0x0020_0000 | if bridge { 0 } else { 0x0040_0000 };
    }
    layout.set(at + 0x24, 4, capabilities2, RO);
    let control2 = if vf { 0 } else { 0x031f | if forwards_ari { 0x20 } else { 0 } };
    layout.set(at + 0x28, 2, 0, rw(control2));
}

fn link(layout: &mut Layout, at: u16, spec: &FunctionSpec, port: bool, vf: bool) {
    let (speed, width) = (u32::from(spec.link.speed & 0xf), u32::from(spec.link.width & 0x3f));
    // ASPM L1 with 64 µs exit, ASPM optionality; ports report surprise down,
    // link active and bandwidth changes.
    let reports = if port { 0x0038_0000 } else { 0 };
    layout.set(at + 0x0c, 4, speed | width << 4 | 2 << 10 | 6 << 15 | 1 << 22 | reports, RO);
    let control = match (vf, port) {
        (true, _) => 0,
        (false, true) => 0x0cd3,
        (false, false) => 0x00cb,
    };
    layout.set(at + 0x10, 2, 0, rw(control));
    let up = if vf || port { 0 } else { speed | width << 4 };
    let slot_clock = if vf { 0 } else { 0x1000 };
    layout.set(at + 0x12, 2, up | slot_clock, w1c(if port { 0xc000 } else { 0 }));
    if vf {
        return;
    }
    layout.set(at + 0x2c, 4, ((1 << speed) - 1) << 1, RO);
    layout.set(at + 0x30, 2, speed, rws(0xffff));
    // Equalisation is done on links of 8 GT/s and more.
    let equalised = if speed >= 3 && !port { 0x001e } else { 0 };
    layout.set(at + 0x32, 2, equalised, w1cs(if speed >= 3 { 0x0020 } else { 0 }));
}
