// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is plugged in, for people and tools.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::host::Host;

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Address, `DDDD:BB:DD.F`.
    pub address: String,
    /// Vendor and device id, `vvvv:dddd` in hex.
    pub id: String,
    /// Class code, six hex digits.
    pub class: String,
    /// The bridge above, if there is one.
    pub parent: Option<String>,
    /// IOMMU group.
    pub group: Option<u32>,
    /// The bound driver.
    pub driver: Option<String>,
    /// The physical function, if it is a virtual one.
    pub physical_function: Option<String>,
    /// The function that it is a part of, and its UUID, if it is mediated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mediated: Option<(String, String)>,
    /// Whether a program has it open.
    pub open: bool,
}

impl Host {
    /// Every function in address order.
    #[must_use]
    pub fn functions(&self) -> Vec<FunctionInfo> {
        let board = &self.board;
        let text = |address: pci::Address| address.to_string();
        let info = |(address, function): (pci::Address, &pci::Function)| {
            let spec = function.spec();
            FunctionInfo {
                address: text(address),
                id: format!("{:04x}:{:04x}", spec.vendor, spec.device),
                class: format!("{:06x}", spec.class),
                parent: board.fabric.parent(address).map(text),
                group: board.fabric.group(address),
                driver: board.driver(address).map(|driver| driver.name().to_owned()),
                physical_function: board.fabric.physical_function(address).map(text),
                mediated: board.mediated(address).map(|part| (text(part.parent), part.uuid.clone())),
                open: self.is_open(address),
            }
        };
        board.fabric.functions().map(info).collect()
    }
}

/// Functions as a table for people.
#[must_use]
pub fn table(functions: &[FunctionInfo]) -> String {
    let mut table = String::from("address       id         class   group  driver    below\n");
    let dash = || "-".to_owned();
    for f in functions {
        let group = f.group.map_or_else(dash, |g| g.to_string());
        let driver = f.driver.clone().unwrap_or_else(dash);
        let physical = f.physical_function.as_ref().map(|pf| format!("VF of {pf}"));
        let part = f.mediated.as_ref().map(|(parent, uuid)| format!("part of {parent}, {uuid}"));
        let below = part.or(physical).or_else(|| f.parent.clone()).unwrap_or_else(dash);
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{}  {}  {}  {group:5}  {driver:8}  {below}", f.address, f.id, f.class);
    }
    table
}
