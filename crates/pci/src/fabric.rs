// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fabric: buses, ports and functions, and who is isolated from whom.

use std::collections::BTreeMap;

use crate::{Address, Function};

/// All functions of a lab and how they are connected.
#[derive(Debug, Default)]
pub struct Fabric {
    functions: BTreeMap<Address, Function>,
}

impl Fabric {
    /// A function.
    #[must_use]
    pub fn function(&self, address: Address) -> Option<&Function> {
        self.functions.get(&address)
    }

    /// A function, to be changed.
    pub fn function_mut(&mut self, address: Address) -> Option<&mut Function> {
        self.functions.get_mut(&address)
    }

    /// All functions in address order.
    pub fn functions(&self) -> impl Iterator<Item = (Address, &Function)> {
        self.functions.iter().map(|(address, function)| (*address, function))
    }

    /// IOMMU group of a function.
    #[must_use]
    pub fn group(&self, address: Address) -> Option<u32> {
        let _ = address;
        None
    }

    /// Members of an IOMMU group in address order.
    #[must_use]
    pub fn group_members(&self, group: u32) -> Vec<Address> {
        let _ = group;
        Vec::new()
    }
}
