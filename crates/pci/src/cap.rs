// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capability ids and the registers of the header that others name.

/// Power management.
pub const PM: u8 = 0x01;
/// Vital product data.
pub const VPD: u8 = 0x03;
/// Message signalled interrupts.
pub const MSI: u8 = 0x05;
/// Vendor specific.
pub const VENDOR: u8 = 0x09;
/// Subsystem ids of a bridge.
pub const SSVID: u8 = 0x0d;
/// PCI Express.
pub const EXPRESS: u8 = 0x10;
/// MSI-X.
pub const MSIX: u8 = 0x11;
/// Advanced features of conventional PCI.
pub const AF: u8 = 0x13;

/// Extended: advanced error reporting.
pub const EXT_AER: u16 = 0x01;
/// Extended: device serial number.
pub const EXT_DSN: u16 = 0x03;
/// Extended: access control services (GRP-017).
pub const EXT_ACS: u16 = 0x0d;
/// Extended: alternative routing id.
pub const EXT_ARI: u16 = 0x0e;
/// Extended: address translation services.
pub const EXT_ATS: u16 = 0x0f;
/// Extended: single root I/O virtualisation.
pub const EXT_SRIOV: u16 = 0x10;
/// Extended: page request interface.
pub const EXT_PRI: u16 = 0x13;
/// Extended: downstream port containment.
pub const EXT_DPC: u16 = 0x1d;
/// Extended: process address space ids.
pub const EXT_PASID: u16 = 0x1b;

/// ACS Source Validation (GRP-017).
pub const ACS_SV: u16 = 0x01;
/// ACS Translation Blocking.
pub const ACS_TB: u16 = 0x02;
/// ACS P2P Request Redirect.
pub const ACS_RR: u16 = 0x04;
/// ACS P2P Completion Redirect.
pub const ACS_CR: u16 = 0x08;
/// ACS Upstream Forwarding.
pub const ACS_UF: u16 = 0x10;
/// ACS P2P Egress Control.
pub const ACS_EC: u16 = 0x20;
/// ACS Direct Translated P2P.
pub const ACS_DT: u16 = 0x40;
/// The set that isolation takes (GRP-001), and that Linux enables (GRP-019).
pub const ACS_ISOLATED: u16 = ACS_SV | ACS_RR | ACS_CR | ACS_UF;

/// Command register.
pub const COMMAND: u16 = 0x04;
/// Command: I/O space.
pub const COMMAND_IO: u16 = 0x001;
/// Command: memory space.
pub const COMMAND_MEMORY: u16 = 0x002;
/// Command: bus master.
pub const COMMAND_MASTER: u16 = 0x004;
/// Command: INTx disable.
pub const COMMAND_INTX_DISABLE: u16 = 0x400;
/// Status register.
pub const STATUS: u16 = 0x06;
/// Status: interrupt.
pub const STATUS_INTERRUPT: u16 = 0x008;
/// First base address register.
pub const BAR0: u16 = 0x10;
/// Expansion ROM base address of a type 0 header.
pub const ROM: u16 = 0x30;
/// Expansion ROM base address of a type 1 header.
pub const BRIDGE_ROM: u16 = 0x38;
/// Bridge control of a type 1 header.
pub const BRIDGE_CONTROL: u16 = 0x3e;
/// Bridge control: error messages from below pass upwards.
pub const BRIDGE_CONTROL_SERR: u16 = 0x02;
/// Bridge control: secondary bus reset.
pub const BRIDGE_CONTROL_RESET: u16 = 0x40;
