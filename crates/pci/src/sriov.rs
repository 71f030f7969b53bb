// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtual functions: how they appear and go.

use crate::fabric::{Bus, Node};
use crate::resource::{IOV, Resource};
use crate::{Address, Fabric, Function, FunctionSpec, cap};

/// Why virtual functions cannot be enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VfError {
    /// The function has no SR-IOV capability (Linux: ENOENT).
    #[error("{0} has no virtual functions")]
    NotPhysical(Address),
    /// More than there are (ERANGE, GRP-050).
    #[error("{wanted} virtual functions wanted; there are {total}")]
    TooMany {
        /// Number wanted.
        wanted: u16,
        /// Number there are.
        total: u16,
    },
    /// Some are enabled already (EBUSY, GRP-050).
    #[error("{0} virtual functions are enabled already")]
    Enabled(u16),
    /// One of them would be on a bus that cannot be reached, or where another
    /// function is (ENOMEM).
    #[error("a virtual function cannot be at {0}")]
    Place(Address),
}

impl Fabric {
    /// Address of a virtual function, 0 the first: the physical function's
    /// routing id plus offset and stride.
    fn vf_address(pf: Address, spec: &FunctionSpec, index: u16) -> Option<Address> {
        let step = u32::from(spec.vf_stride()) * u32::from(index);
        let id = u32::from(pf.requester_id()) + u32::from(spec.first_vf_offset()) + step;
        let id = u16::try_from(id).ok()?;
        Some(Address::from_devfn(pf.segment, (id >> 8) as u8, id as u8))
    }

    /// Enables the first `count` virtual functions of a physical one, as a
    /// write to `sriov_numvfs` does; 0 is nothing to do. Their addresses and
    /// what they are. In their own registers vendor and device read FFFF, as
    /// in hardware; the description has what sysfs shows.
    pub fn enable_vfs(&mut self, pf: Address, count: u16) -> Result<Vec<(Address, FunctionSpec)>, VfError> {
        let spec = self.functions.get(&pf).map(|f| f.spec().clone()).filter(|spec| spec.total_vfs != 0);
        let spec = spec.ok_or(VfError::NotPhysical(pf))?;
        if count > spec.total_vfs {
            return Err(VfError::TooMany { wanted: count, total: spec.total_vfs });
        }
        let enabled = self.virtual_functions(pf).len();
        if enabled != 0 {
            return Err(VfError::Enabled(enabled as u16));
        }
        let addresses = self.vf_addresses(pf, &spec, count)?;
        if let Some(function) = self.functions.get_mut(&pf)
            && let Some(sriov) = function.extended_capability(cap::EXT_SRIOV)
            && count != 0
        {
            function.write(sriov + 0x10, 2, u32::from(count));
            let control = function.read(sriov + 8, 2);
            function.write(sriov + 8, 2, control | 0x09); // VF enable, VF memory
        }
        let vf = spec.virtual_function();
        let prototype = Function::new(vf.clone());
        let pf_node = self.nodes.get(&pf).cloned().unwrap_or_default();
        for (index, &address) in (0u64..).zip(&addresses) {
            let mut node = Node { physfn: Some(pf), no_iommu: pf_node.no_iommu, ..Node::default() };
            for (i, bar) in vf.bars.iter().enumerate() {
                let all = pf_node.resources[IOV + i];
                if let Some(bar) = bar.as_ref().filter(|_| !all.is_empty()) {
                    let start = all.start + index * bar.size;
                    node.resources[i] = Resource { start, end: start + (bar.size - 1), flags: all.flags };
                }
            }
            self.functions.insert(address, prototype.clone());
            self.nodes.insert(address, node);
            self.vf_bus(pf, address);
            self.enable_isolation(address);
            self.join_group(address);
        }
        if let Some(node) = self.nodes.get_mut(&pf) {
            node.virtfns.clone_from(&addresses);
        }
        Ok(addresses.into_iter().map(|address| (address, vf.clone())).collect())
    }

    /// Disables the virtual functions of a physical one; where they were.
    pub fn disable_vfs(&mut self, pf: Address) -> Vec<Address> {
        let gone = self.nodes.get_mut(&pf).map(|node| std::mem::take(&mut node.virtfns)).unwrap_or_default();
        for address in &gone {
            self.leave_group(*address);
            self.functions.remove(address);
            self.nodes.remove(address);
            let key = (address.segment, address.bus);
            if let Some(bus) = self.buses.get_mut(&key) {
                bus.devices.retain(|other| other != address);
                let only_vfs = bus.bridge.is_none() && bus.parent.is_some();
                if only_vfs && bus.devices.is_empty() {
                    self.buses.remove(&key);
                }
            }
        }
        if let Some(function) = self.functions.get_mut(&pf)
            && let Some(sriov) = function.extended_capability(cap::EXT_SRIOV)
        {
            let control = function.read(sriov + 8, 2);
            function.write(sriov + 8, 2, control & !0x09);
            function.write(sriov + 0x10, 2, 0);
        }
        gone
    }

    /// Where the virtual functions will be: reachable and not taken.
    fn vf_addresses(&self, pf: Address, spec: &FunctionSpec, count: u16) -> Result<Vec<Address>, VfError> {
        let home = self.buses.get(&(pf.segment, pf.bus)).ok_or(VfError::NotPhysical(pf))?;
        let mut addresses = Vec::new();
        for index in 0..count {
            let address = Fabric::vf_address(pf, spec, index).ok_or(VfError::Place(pf))?;
            // Another bus than the physical function's has nothing but VFs.
            let foreign = self
                .buses
                .get(&(address.segment, address.bus))
                .is_some_and(|bus| bus.number != pf.bus && (bus.bridge.is_some() || bus.parent != Some(pf.bus)));
            if address.bus > home.subordinate || foreign || self.functions.contains_key(&address) {
                return Err(VfError::Place(address));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    /// Puts a virtual function on its bus, which appears with the first one.
    fn vf_bus(&mut self, pf: Address, address: Address) {
        let bus = self.buses.entry((address.segment, address.bus)).or_insert_with(|| Bus {
            segment: address.segment,
            number: address.bus,
            subordinate: address.bus,
            bridge: None,
            parent: Some(pf.bus),
            devices: Vec::new(),
        });
        bus.devices.push(address);
    }
}
