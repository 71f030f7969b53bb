// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which functions reach one another without the root complex: requests are
//! routed by address at each port, and where Access Control Services do not
//! redirect them a peer answers before any IOMMU is asked (PCIe 6.12).

use crate::{Address, Fabric, PortType, cap};

impl Fabric {
    /// Functions whose BARs a request of this one reaches by their bus
    /// addresses, whatever the IOMMU maps there; in address order.
    ///
    /// Root ports of different devices do not pass requests to one another:
    /// that is up to a root complex, and ours asks the IOMMU.
    #[must_use]
    pub fn direct_peers(&self, address: Address) -> Vec<Address> {
        let mut found = Vec::new();
        let mut at = address;
        loop {
            let shared = self.bus_is_shared(at);
            for peer in self.bus(at.segment, at.bus).map(|bus| bus.devices.as_slice()).unwrap_or_default() {
                let direct = shared || peer.device() == at.device() || self.is_switch_port(at);
                if *peer != at && direct && (shared || !self.acs_enabled(at, cap::ACS_RR)) {
                    found.push(*peer);
                    found.extend(self.below(*peer));
                }
            }
            match self.parent(at) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        found.retain(|peer| *peer != address && !self.is_bridge(*peer));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// A downstream port, whose peers are the other ports of its switch.
    fn is_switch_port(&self, address: Address) -> bool {
        self.port_type(address) == Some(PortType::DownstreamPort)
    }

    /// A conventional bus, on which each device sees all that is sent.
    fn bus_is_shared(&self, address: Address) -> bool {
        let bridge = self.parent(address).and_then(|parent| self.port_type(parent));
        matches!(bridge, Some(PortType::PcieToPciBridge | PortType::ConventionalBridge))
    }
}
