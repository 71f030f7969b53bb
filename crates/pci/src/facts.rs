// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Facts of a function in the words of sysfs; pure text, without newlines.

use crate::{Address, Fabric, Function, FunctionSpec, cap};

impl FunctionSpec {
    /// `modalias` (GRP-036).
    #[must_use]
    pub fn modalias(&self) -> String {
        let class = self.class;
        format!(
            "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02X}",
            self.vendor,
            self.device,
            self.subsystem_vendor,
            self.subsystem_device,
            class >> 16 & 0xff,
            class >> 8 & 0xff,
            class & 0xff
        )
    }

    /// `class` (GRP-035).
    #[must_use]
    pub fn class_text(&self) -> String {
        format!("{:#08x}", self.class & 0xff_ffff)
    }
}

impl Function {
    /// `power_state` (GRP-043).
    #[must_use]
    pub fn power_text(&self) -> &'static str {
        match self.power_state() {
            0 => "D0",
            1 => "D1",
            2 => "D2",
            _ => "D3hot",
        }
    }

    /// `current_link_speed` and `current_link_width` (GRP-044); `None` without
    /// a link.
    #[must_use]
    pub fn current_link(&self) -> Option<(&'static str, u8)> {
        let at = self.link()?;
        let status = self.read(at + 0x12, 2);
        Some((speed(status), (status >> 4 & 0x3f) as u8))
    }

    /// `max_link_speed` and `max_link_width` (GRP-044); `None` without a link.
    #[must_use]
    pub fn max_link(&self) -> Option<(&'static str, u8)> {
        let at = self.link()?;
        let capabilities = self.read(at + 0x0c, 4);
        Some((speed(capabilities), (capabilities >> 4 & 0x3f) as u8))
    }

    fn link(&self) -> Option<u16> {
        self.capability(cap::EXPRESS).filter(|at| self.read(at + 0x0c, 4) != 0)
    }
}

fn speed(code: u32) -> &'static str {
    match code & 0xf {
        1 => "2.5 GT/s PCIe",
        2 => "5.0 GT/s PCIe",
        3 => "8.0 GT/s PCIe",
        4 => "16.0 GT/s PCIe",
        5 => "32.0 GT/s PCIe",
        6 => "64.0 GT/s PCIe",
        _ => "Unknown",
    }
}

impl Fabric {
    /// All registers in the form that `lspci -F` reads.
    #[must_use]
    pub fn hex_dump(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for (address, function) in self.functions() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{address} function");
            for (row, bytes) in function.bytes().chunks(16).enumerate() {
                let _ = write!(text, "{:02x}:", row * 16);
                for byte in bytes {
                    let _ = write!(text, " {byte:02x}");
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }

    /// The lines of `resource` (GRP-037).
    #[must_use]
    pub fn resource_lines(&self, address: Address) -> Vec<String> {
        self.resources(address).iter().map(ToString::to_string).collect()
    }
}
