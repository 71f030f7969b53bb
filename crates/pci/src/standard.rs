// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard capabilities but PCI Express, in the places where NVMe drives and
//! NICs have them: PM 40, MSI 50, Express 70, MSI-X b0, the rest after it.

use crate::layout::{Layout, RO, add_express, rw, rws};
use crate::{FunctionSpec, Msix, PortType, cap};

/// Lays out the standard capabilities.
pub(crate) fn build(layout: &mut Layout, spec: &FunctionSpec) {
    if !spec.no_power_management {
        power_management(layout, spec);
    }
    if let Some(log2) = spec.msi {
        msi(layout, log2.min(5));
    }
    add_express(layout, spec);
    if let Some(table) = &spec.msix {
        msix(layout, table);
    }
    if spec.port_type.is_bridge() && (spec.subsystem_vendor, spec.subsystem_device) != (0, 0) {
        subsystem(layout, spec);
    }
    if !spec.vpd.is_empty()
        && let Some(at) = layout.add(cap::VPD, 0xc0, 8)
    {
        layout.set(at + 2, 2, 0, rw(0xffff));
        layout.set(at + 4, 4, 0, rw(!0));
    }
    if spec.af_flr {
        advanced_features(layout);
    }
    for body in &spec.vendor_specific {
        vendor_specific(layout, body);
    }
}

fn power_management(layout: &mut Layout, spec: &FunctionSpec) {
    let Some(at) = layout.add(cap::PM, 0x40, 8) else { return };
    // Version 3. Ports can signal PME from D0, D3hot and D3cold.
    let port = matches!(spec.port_type, PortType::RootPort | PortType::UpstreamPort | PortType::DownstreamPort);
    layout.set(at + 2, 2, if port { 0xc803 } else { 0x0003 }, RO);
    let pme = if port { 0x0100 } else { 0 };
    let value = u32::from(spec.no_soft_reset) << 3;
    let mut bits = rw(0x0003);
    bits.rw |= pme;
    bits.sticky = pme;
    bits.w1c = if port { 0x8000 } else { 0 };
    layout.set(at + 4, 2, value, bits);
}

/// 64-bit addresses and a mask and pending bit for each message.
fn msi(layout: &mut Layout, log2: u8) {
    let Some(at) = layout.add(cap::MSI, 0x50, 0x18) else { return };
    layout.set(at + 2, 2, 0x0180 | u32::from(log2) << 1, rw(0x0071));
    layout.set(at + 4, 4, 0, rw(!3));
    layout.set(at + 8, 4, 0, rw(!0));
    layout.set(at + 12, 2, 0, rw(0xffff));
    layout.set(at + 16, 4, 0, rw(u32::MAX >> (32 - (1 << log2))));
    layout.set(at + 20, 4, 0, RO);
}

fn msix(layout: &mut Layout, msix: &Msix) {
    let Some(at) = layout.add(cap::MSIX, 0xb0, 12) else { return };
    layout.set(at + 2, 2, u32::from(msix.vectors.wrapping_sub(1) & 0x7ff), rw(0xc000));
    layout.set(at + 4, 4, msix.table.1 & !7 | u32::from(msix.table.0 & 7), RO);
    layout.set(at + 8, 4, msix.pba.1 & !7 | u32::from(msix.pba.0 & 7), RO);
}

fn subsystem(layout: &mut Layout, spec: &FunctionSpec) {
    if let Some(at) = layout.add(cap::SSVID, 0xc0, 8) {
        layout.set(at + 4, 2, u32::from(spec.subsystem_vendor), RO);
        layout.set(at + 6, 2, u32::from(spec.subsystem_device), RO);
    }
}

/// Function level reset with transactions pending.
fn advanced_features(layout: &mut Layout) {
    if let Some(at) = layout.add(cap::AF, 0xc8, 6) {
        layout.set(at + 2, 1, 6, RO);
        layout.set(at + 3, 1, 3, RO);
        layout.set(at + 4, 1, 0, rw(1));
    }
}

fn vendor_specific(layout: &mut Layout, body: &[u8]) {
    let len = body.len().saturating_add(3);
    let Ok(len) = u8::try_from(len) else {
        layout.overflow = true;
        return;
    };
    if let Some(at) = layout.add(cap::VENDOR, 0xd0, u16::from(len)) {
        layout.set(at + 2, 1, u32::from(len), RO);
        for (i, byte) in (3..).zip(body) {
            layout.set(at + i, 1, u32::from(*byte), rws(0));
        }
    }
}
