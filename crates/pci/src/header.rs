// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first 64 bytes: type 0 header of a function, type 1 header of a
//! bridge, and what is left of the type 0 header in a virtual function.

use crate::layout::{Layout, RO, rw, w1c};
use crate::{Bar, FunctionSpec, PortType};

/// Parity error, SERR, INTx disable; bits 3 to 5, 7 and 9 are hardwired to 0
/// in PCI Express.
const COMMAND: u32 = 0x140;
/// Error bits of status and secondary status.
const STATUS_ERRORS: u32 = 0xf900;

/// Lays out the header.
pub(crate) fn build(layout: &mut Layout, spec: &FunctionSpec) {
    if spec.port_type == PortType::VirtualFunction {
        return virtual_function(layout, spec);
    }
    identity(layout, spec.vendor, spec.device, spec);
    let bridge = spec.port_type.is_bridge();
    let io = bridge || spec.bars.iter().flatten().any(|bar| !bar.is_memory());
    let intx_disable = if spec.no_intx_disable { 0 } else { 0x400 };
    layout.set(0x04, 2, 0, rw(COMMAND | 0x006 | u32::from(io) | intx_disable));
    layout.set(0x06, 2, 0, w1c(STATUS_ERRORS));
    layout.set(0x0c, 1, 0, rw(0xff)); // cache line size
    // The latency timer is hardwired to 0 in PCI Express.
    layout.set(0x0d, 1, 0, rw(if spec.port_type.is_express() { 0 } else { 0xf8 }));
    let bars = if bridge { 2 } else { 6 };
    for (i, bar) in spec.bars.iter().take(bars).enumerate() {
        if let Some(bar) = bar {
            base_address(layout, 0x10 + 4 * i as u16, bar);
        }
    }
    rom(layout, if bridge { 0x38 } else { 0x30 }, spec.rom_size());
    layout.set(0x3c, 1, 0, rw(if spec.interrupt_pin == 0 && !bridge { 0 } else { 0xff }));
    layout.set(0x3d, 1, u32::from(spec.interrupt_pin), RO);
    if bridge {
        type1(layout);
    } else {
        layout.set(0x2c, 2, u32::from(spec.subsystem_vendor), RO);
        layout.set(0x2e, 2, u32::from(spec.subsystem_device), RO);
    }
}

fn identity(layout: &mut Layout, vendor: u16, device: u16, spec: &FunctionSpec) {
    layout.set(0x00, 2, u32::from(vendor), RO);
    layout.set(0x02, 2, u32::from(device), RO);
    layout.set(0x08, 4, spec.class << 8 | u32::from(spec.revision), RO);
    layout.set(0x0e, 1, u32::from(spec.port_type.is_bridge()), RO);
}

/// A VF's ids read FFFF; of its command register only bus master is there,
/// and its BARs read 0 (SR-IOV 1.1, 3.4.1).
fn virtual_function(layout: &mut Layout, spec: &FunctionSpec) {
    identity(layout, 0xffff, 0xffff, spec);
    layout.set(0x04, 2, 0, rw(0x004));
    layout.set(0x06, 2, 0, w1c(STATUS_ERRORS));
    layout.set(0x2c, 2, u32::from(spec.subsystem_vendor), RO);
    layout.set(0x2e, 2, u32::from(spec.subsystem_device), RO);
}

/// One base address register; also those of the SR-IOV capability.
pub(crate) fn base_address(layout: &mut Layout, offset: u16, bar: &Bar) {
    let mask = bar.size.wrapping_sub(1);
    let low = if bar.is_memory() { !(mask as u32) & !0xf } else { !(mask as u32) & !0x3 };
    layout.set(offset, 4, bar.type_bits(), rw(low));
    if bar.is_64bit() {
        layout.set(offset + 4, 4, 0, rw(!((mask >> 32) as u32)));
    }
}

fn rom(layout: &mut Layout, offset: u16, size: u64) {
    if size != 0 {
        layout.set(offset, 4, 0, rw(!(size as u32).wrapping_sub(1) & !0x7ff | 1));
    }
}

fn type1(layout: &mut Layout) {
    layout.set(0x18, 4, 0, rw(0x00ff_ffff)); // bus numbers; no secondary latency timer
    layout.set(0x1c, 2, 0x0101, rw(0xf0f0)); // I/O window, 32-bit
    layout.set(0x1e, 2, 0, w1c(STATUS_ERRORS));
    layout.set(0x20, 4, 0, rw(0xfff0_fff0)); // memory window
    layout.set(0x24, 4, 0x0001_0001, rw(0xfff0_fff0)); // prefetchable window, 64-bit
    layout.set(0x28, 4, 0, rw(!0));
    layout.set(0x2c, 4, 0, rw(!0));
    layout.set(0x30, 4, 0, rw(!0)); // upper halves of the I/O window
    layout.set(0x3e, 2, 0, rw(0x005f)); // parity, SERR, ISA, VGA, VGA 16-bit, reset
}
