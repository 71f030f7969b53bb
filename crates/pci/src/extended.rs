// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended capabilities, from 100 on, in the order in which devices have
//! them: AER, serial number, ARI, ACS, SR-IOV, ATS, PRI, PASID, DPC.

use crate::aer::spec::{CORRECTABLE, DEFAULT_SEVERITY, UNCORRECTABLE};
use crate::layout::{Bits, Layout, RO, rw, rws, w1cs};
use crate::{FunctionSpec, PortType, cap, header};

/// Lays out the extended capabilities.
pub(crate) fn build(layout: &mut Layout, spec: &FunctionSpec) {
    let vf = spec.port_type == PortType::VirtualFunction;
    if spec.aer {
        advanced_errors(layout, spec);
    }
    if let Some(serial) = spec.serial
        && let Some(at) = layout.add_extended(cap::EXT_DSN, 1, 0x0c)
    {
        layout.set(at + 4, 4, serial as u32, RO);
        layout.set(at + 8, 4, (serial >> 32) as u32, RO);
    }
    if (spec.ari || spec.total_vfs != 0)
        && let Some(at) = layout.add_extended(cap::EXT_ARI, 1, 0x08)
    {
        layout.set(at + 4, 4, 0, RO); // the next function is the fabric's to fill in
    }
    if let Some(bits) = spec.acs {
        access_control(layout, bits & 0x7f);
    }
    if spec.total_vfs != 0 && !vf {
        virtualisation(layout, spec);
    }
    if spec.ats
        && let Some(at) = layout.add_extended(cap::EXT_ATS, 1, 0x08)
    {
        layout.set(at + 4, 2, 0x0020, RO); // page aligned requests
        layout.set(at + 6, 2, 0, rw(0x801f));
    }
    if let Some(capacity) = spec.pri
        && let Some(at) = layout.add_extended(cap::EXT_PRI, 1, 0x10)
    {
        layout.set(at + 4, 2, 0, rw(0x0003));
        // Stopped; responses carry the PASID where there are PASIDs.
        let status = 0x0100 | if spec.pasid.is_some() { 0x8000 } else { 0 };
        layout.set(at + 6, 2, status, Bits { w1c: 0x0003, ..RO });
        layout.set(at + 8, 4, capacity, RO);
        layout.set(at + 12, 4, 0, rw(!0));
    }
    if let Some(width) = spec.pasid
        && let Some(at) = layout.add_extended(cap::EXT_PASID, 1, 0x08)
    {
        layout.set(at + 4, 2, u32::from(width.min(20)) << 8 | 0x0006, RO); // execute, privileged
        layout.set(at + 6, 2, 0, rw(0x0007));
    }
    if spec.dpc
        && matches!(spec.port_type, PortType::RootPort | PortType::DownstreamPort)
        && let Some(at) = layout.add_extended(cap::EXT_DPC, 1, 0x0c)
    {
        layout.set(at + 4, 2, 0x0080, RO); // software trigger; no root port extensions
        layout.set(at + 6, 2, 0, rw(0x005f)); // the trigger bit reads 0
        let status = w1cs(0x0009);
        layout.set(at + 8, 2, 0, Bits { sticky: 0x006f, ..status });
        layout.set(at + 10, 2, 0, Bits { sticky: 0xffff, ..RO });
    }
}

/// The registers and their bits; errors come later,
/// see [`crate::aer`].
fn advanced_errors(layout: &mut Layout, spec: &FunctionSpec) {
    let Some(at) = layout.add_extended(cap::EXT_AER, 2, 0x48) else { return };
    layout.set(at + 0x04, 4, 0, w1cs(UNCORRECTABLE));
    // Internal errors are masked until software wants them.
    layout.set(at + 0x08, 4, 0x0040_0000, rws(UNCORRECTABLE));
    layout.set(at + 0x0c, 4, DEFAULT_SEVERITY, rws(UNCORRECTABLE));
    layout.set(at + 0x10, 4, 0, w1cs(CORRECTABLE));
    layout.set(at + 0x14, 4, 0x0000_e000, rws(CORRECTABLE));
    // ECRC generation and check, off, if they are there; the first error pointer stays.
    let (offered, enables) = if spec.no_ecrc { (0, 0) } else { (0x00a0, 0x0140) };
    layout.set(at + 0x18, 4, offered, Bits { rw: enables, w1c: 0, sticky: enables | 0x001f });
    for log in 0..4 {
        layout.set(at + 0x1c + 4 * log, 4, 0, Bits { rw: 0, w1c: 0, sticky: !0 });
    }
    if matches!(spec.port_type, PortType::RootPort | PortType::EventCollector) {
        layout.set(at + 0x2c, 4, 0, rw(0x0007));
        layout.set(at + 0x30, 4, 0, w1cs(0x007f));
        layout.set(at + 0x34, 4, 0, Bits { rw: 0, w1c: 0, sticky: !0 });
    }
}

fn access_control(layout: &mut Layout, bits: u16) {
    // Egress control brings a vector of 8 bits.
    let egress = bits & cap::ACS_EC != 0;
    let Some(at) = layout.add_extended(cap::EXT_ACS, 1, if egress { 0x0c } else { 0x08 }) else { return };
    layout.set(at + 4, 2, u32::from(bits) | if egress { 0x0800 } else { 0 }, RO);
    layout.set(at + 6, 2, 0, rw(u32::from(bits)));
    if egress {
        layout.set(at + 8, 4, 0, rw(0xff));
    }
}

fn virtualisation(layout: &mut Layout, spec: &FunctionSpec) {
    let Some(at) = layout.add_extended(cap::EXT_SRIOV, 1, 0x40) else { return };
    let vf = spec.virtual_function();
    layout.set(at + 0x04, 4, 0x0000_0002, RO); // ARI capable hierarchy is preserved
    layout.set(at + 0x08, 2, 0, rw(0x0019)); // VF enable, VF memory, ARI hierarchy
    layout.set(at + 0x0c, 2, u32::from(spec.total_vfs), RO);
    layout.set(at + 0x0e, 2, u32::from(spec.total_vfs), RO);
    layout.set(at + 0x10, 2, 0, rw(0xffff));
    layout.set(at + 0x14, 2, u32::from(spec.first_vf_offset()), RO);
    layout.set(at + 0x16, 2, u32::from(spec.vf_stride()), RO);
    layout.set(at + 0x1a, 2, u32::from(vf.device), RO);
    layout.set(at + 0x1c, 4, 0x0000_0553, RO); // 4K 8K 64K 256K 1M 4M
    layout.set(at + 0x20, 4, 0x0000_0001, rw(0x0000_0553));
    for (i, bar) in (0..).zip(&vf.bars) {
        if let Some(bar) = bar {
            header::base_address(layout, at + 0x24 + 4 * i, bar);
        }
    }
}
