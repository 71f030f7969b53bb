// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a function can be reset, and what else a reset takes down.

use std::fmt;

use crate::quirks::{Id, listed};
use crate::{Address, Fabric, cap};

/// A way to reset one function, in Linux's order (vfio-error-recovery §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResetMethod {
    /// A procedure for this device.
    DeviceSpecific,
    /// Function level reset of the PCI Express capability.
    Flr,
    /// Function level reset of the Advanced Features capability.
    AfFlr,
    /// To D3hot and back.
    Pm,
    /// Reset of its slot or bus, which it has for itself.
    Bus,
}

impl ResetMethod {
    /// Its name in the sysfs file `reset_method` (ERR-072).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ResetMethod::DeviceSpecific => "device_specific",
            ResetMethod::Flr => "flr",
            ResetMethod::AfFlr => "af_flr",
            ResetMethod::Pm => "pm",
            ResetMethod::Bus => "bus",
        }
    }
}

impl fmt::Display for ResetMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The function's slot or bus cannot be reset (HOT-002; Linux: ENODEV).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: neither its slot nor its bus can be reset")]
pub struct NotResettable(pub Address);

/// What a hot reset of a function goes through, and with whom it is done
/// together (HOT-001, HOT-034).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResetScope {
    /// The function alone: it is on a root bus or virtual.
    Function(Address),
    /// The hot-plug slot behind this port: all that is on its bus.
    Slot(Address),
    /// The bus.
    Bus(u16, u8),
}

impl Fabric {
    /// The methods that were proven at enumeration, in the order in which they
    /// are tried (ERR-068).
    #[must_use]
    pub fn reset_methods(&self, address: Address) -> Vec<ResetMethod> {
        let Some(function) = self.functions.get(&address) else { return Vec::new() };
        let quirk = |ids| self.has_quirk(address, ids);
        let mut methods = Vec::new();
        if quirk(&self.quirks.device_specific_reset) {
            methods.push(ResetMethod::DeviceSpecific);
        }
        let express = function.capability(cap::EXPRESS);
        if express.is_some_and(|at| function.read(at + 4, 4) & 1 << 28 != 0) && !quirk(&self.quirks.no_flr) {
            methods.push(ResetMethod::Flr);
        }
        if function.capability(cap::AF).is_some_and(|at| function.read(at + 3, 1) & 3 == 3)
            && !quirk(&self.quirks.no_flr)
        {
            methods.push(ResetMethod::AfFlr);
        }
        if function.capability(cap::PM).is_some_and(|at| function.read(at + 4, 2) & 8 == 0)
            && !quirk(&self.quirks.no_pm_reset)
        {
            methods.push(ResetMethod::Pm);
        }
        if self.function_has_slot(address) || self.function_has_bus(address) {
            methods.push(ResetMethod::Bus);
        }
        methods
    }

    /// All functions that a hot reset of this one takes down, itself among
    /// them, in bus walk order (HOT-003, HOT-008).
    pub fn hot_reset_scope(&self, address: Address) -> Result<Vec<Address>, NotResettable> {
        // A hot-plug port's slot is all of its bus, so the reach is the same.
        if self.slot_resettable(address) || self.bus_resettable(address.segment, address.bus) {
            return Ok(self.bus_walk(address.segment, address.bus));
        }
        Err(NotResettable(address))
    }

    /// Whom VFIO puts the function together with for hot resets (HOT-034).
    #[must_use]
    pub fn reset_scope(&self, address: Address) -> ResetScope {
        let root = self.buses.get(&(address.segment, address.bus)).is_none_or(|bus| bus.parent.is_none());
        if root || self.physical_function(address).is_some() {
            return ResetScope::Function(address);
        }
        match self.hotplug_port(address) {
            Some(port) if self.slot_resettable(address) => ResetScope::Slot(port),
            _ => ResetScope::Bus(address.segment, address.bus),
        }
    }

    /// Asserts and releases secondary bus reset of a bridge: every function
    /// below, in bus walk order, is as after power on but for its sticky bits.
    /// Saving and restoring is the caller's. The functions that were reset.
    pub fn secondary_bus_reset(&mut self, bridge: Address) -> Vec<Address> {
        let below = self.below(bridge);
        for address in &below {
            if let Some(function) = self.functions.get_mut(address) {
                function.reset();
            }
        }
        self.revive(bridge);
        below
    }

    fn has_quirk(&self, address: Address, ids: &[Id]) -> bool {
        self.functions.get(&address).is_some_and(|f| listed(ids, f.spec().vendor, f.spec().device))
    }

    /// The port whose hot-plug slot a function is in: the slot takes in every
    /// device number of the bus.
    fn hotplug_port(&self, address: Address) -> Option<Address> {
        let port = self.buses.get(&(address.segment, address.bus))?.bridge?;
        self.functions.get(&port)?.spec().slot.filter(|slot| slot.hotplug).map(|_| port)
    }

    fn function_has_slot(&self, address: Address) -> bool {
        self.hotplug_port(address).is_some()
            && !self.is_multifunction(address)
            && !self.is_bridge(address)
            && !self.has_quirk(address, &self.quirks.no_bus_reset)
    }

    fn function_has_bus(&self, address: Address) -> bool {
        let Some(bus) = self.buses.get(&(address.segment, address.bus)) else { return false };
        bus.bridge.is_some()
            && !self.is_bridge(address)
            && bus.devices == [address]
            && !self.has_quirk(address, &self.quirks.no_bus_reset)
    }

    fn slot_resettable(&self, address: Address) -> bool {
        self.hotplug_port(address).is_some() && self.bus_resettable(address.segment, address.bus)
    }

    /// Whether nothing forbids a reset of the bus behind a bridge.
    #[must_use]
    pub fn is_bus_resettable_behind(&self, bridge: Address) -> bool {
        self.secondary(bridge).is_some_and(|bus| self.bus_resettable(bus.segment, bus.number))
    }

    fn bus_resettable(&self, segment: u16, number: u8) -> bool {
        let Some(bus) = self.buses.get(&(segment, number)) else { return false };
        bus.bridge.is_some_and(|bridge| !self.has_quirk(bridge, &self.quirks.no_bus_reset))
            && bus.devices.iter().all(|a| self.below_resettable(*a))
    }

    fn below_resettable(&self, address: Address) -> bool {
        !self.has_quirk(address, &self.quirks.no_bus_reset)
            && self.secondary(address).is_none_or(|bus| self.bus_resettable(bus.segment, bus.number))
    }
}
