// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration that Linux keeps over a reset: which registers, and in
//! which order they come back (ERR-075, ERR-077, ERR-058).

use crate::{Effect, Function, cap, dpc};

/// Registers kept over a reset. Belongs to the function that made it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedConfig {
    writes: Vec<(u16, u8, u32)>,
}

impl SavedConfig {
    /// The value that a register will be written with: 2 or 4 bytes at
    /// `offset`.
    #[must_use]
    pub fn get(&self, offset: u16) -> Option<u32> {
        self.writes.iter().rev().find(|w| w.0 == offset).map(|w| w.2)
    }

    /// Makes the command register come back with another value (API-270).
    pub fn set_command(&mut self, command: u16) {
        for write in &mut self.writes {
            if write.0 == cap::COMMAND {
                write.2 = write.2 & 0xffff_0000 | u32::from(command);
            }
        }
    }
}

impl Function {
    /// Reads what a reset will lose.
    #[must_use]
    pub fn save(&self) -> SavedConfig {
        let mut order = Vec::new();
        let mut keep = |offset: u16, len: u8| order.push((offset, len));
        if let Some(at) = self.capability(cap::EXPRESS) {
            // Device, link, slot and root control, then their second halves.
            for control in [0x08, 0x10, 0x18, 0x1c, 0x28, 0x30, 0x38] {
                keep(at + control, 2);
            }
        }
        let extended = |id| self.extended_capability(id);
        if let Some(at) = extended(cap::EXT_PASID) {
            keep(at + 6, 2);
        }
        if let Some(at) = extended(cap::EXT_PRI) {
            keep(at + 12, 4);
            keep(at + 4, 2);
        }
        if let Some(at) = extended(cap::EXT_ATS) {
            keep(at + 6, 2);
        }
        if let Some(at) = extended(cap::EXT_AER) {
            for register in [0x08, 0x0c, 0x14, 0x18] {
                keep(at + register, 4);
            }
            if self.write_masks(at + 0x2c).0 != 0 {
                keep(at + 0x2c, 4);
            }
        }
        if let Some(at) = extended(cap::EXT_DPC) {
            keep(at + dpc::CONTROL, 2);
        }
        // The header from its end, so that windows and BARs are back before
        // the command register enables them.
        for dword in (1..16).rev() {
            keep(dword * 4, 4);
        }
        if let Some(at) = self.capability(cap::MSI) {
            for (offset, len) in [(4, 4), (8, 4), (12, 2), (16, 4), (2, 2)] {
                keep(at + offset, len);
            }
        }
        if let Some(at) = self.capability(cap::MSIX) {
            keep(at + 2, 2);
        }
        if let Some(at) = extended(cap::EXT_ACS) {
            keep(at + 6, 2);
        }
        if let Some(at) = extended(cap::EXT_SRIOV) {
            for (offset, len) in (0x24..0x3c).step_by(4).map(|bar| (bar, 4)).chain([(0x20, 4), (0x10, 2), (0x08, 2)]) {
                keep(at + offset, len);
            }
        }
        SavedConfig { writes: order.into_iter().map(|(offset, len)| (offset, len, self.peek(offset, len))).collect() }
    }

    /// Writes back what was saved; error status is cleared, not brought back.
    /// What the writes set off.
    pub fn restore(&mut self, saved: &SavedConfig) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(at) = self.extended_capability(cap::EXT_AER) {
            for status in [0x04, 0x10] {
                let set = self.read(at + status, 4);
                effects.extend(self.write(at + status, 4, set));
            }
        }
        for &(offset, len, value) in &saved.writes {
            // What stands already is not written: a status register beside it
            // would lose its error bits.
            if self.read(offset, len) != value {
                effects.extend(self.write(offset, len, value));
            }
        }
        effects
    }
}
