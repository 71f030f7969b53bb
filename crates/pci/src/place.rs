// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a fabric is described with: functions and where they stand.

use crate::{Address, FunctionSpec, PortType};

/// Where a function stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a root bus.
    Root {
        /// Segment.
        segment: u16,
        /// Number of the root bus.
        bus: u8,
        /// Device and function; `None` for the first free device.
        slot: Option<(u8, u8)>,
    },
    /// On the bus behind the bridge of this name.
    Below {
        /// Name of the bridge.
        port: String,
        /// Device and function; `None` for the first free device.
        slot: Option<(u8, u8)>,
    },
    /// At an address. Unless another item [leads to](Item::leads_to) that bus
    /// or it is a root bus, a root port that leads there is added.
    At(Address),
}

impl Place {
    /// On root bus 0 of segment 0.
    #[must_use]
    pub const fn root() -> Place {
        Place::Root { segment: 0, bus: 0, slot: None }
    }

    /// On the bus behind a bridge.
    #[must_use]
    pub fn below(port: &str) -> Place {
        Place::Below { port: port.to_owned(), slot: None }
    }

    /// The same bus, this device and function.
    #[must_use]
    pub fn at(self, device: u8, function: u8) -> Place {
        let slot = Some((device, function));
        match self {
            Place::Root { segment, bus, .. } => Place::Root { segment, bus, slot },
            Place::Below { port, .. } => Place::Below { port, slot },
            Place::At(a) => Place::At(Address::new(a.segment, a.bus, device, function)),
        }
    }

    pub(crate) fn slot(&self) -> Option<(u8, u8)> {
        match self {
            Place::Root { slot, .. } | Place::Below { slot, .. } => *slot,
            Place::At(address) => Some((address.device(), address.function())),
        }
    }
}

/// A function and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Name by which others are put below it, and by which
    /// [`crate::Fabric::named`] finds it.
    pub name: Option<String>,
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub spec: FunctionSpec,
    /// Number of the bus behind it, for a bridge; `None` for the first free one.
    pub secondary: Option<u8>,
    /// No IOMMU serves it: it has no group (GRP-008).
    pub no_iommu: bool,
    /// ACS control bits set at boot instead of those that Linux sets by itself
    /// (the boot option `pci=config_acs=`, GRP-026); only bits that the
    /// capability offers count.
    pub acs_control: Option<u16>,
}

impl Item {
    /// A function at a place.
    #[must_use]
    pub const fn new(place: Place, spec: FunctionSpec) -> Item {
        Item { name: None, place, spec, secondary: None, no_iommu: false, acs_control: None }
    }

    /// A port or bridge with the usual description of its kind.
    #[must_use]
    pub fn port(place: Place, kind: PortType) -> Item {
        Item::new(place, FunctionSpec::port(kind))
    }

    /// The same with a name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Item {
        self.name = Some(name.to_owned());
        self
    }

    /// The same with a fixed number of the bus behind it.
    #[must_use]
    pub const fn leads_to(mut self, bus: u8) -> Item {
        self.secondary = Some(bus);
        self
    }

    /// The same with other ACS control bits than Linux sets by itself.
    #[must_use]
    pub const fn acs_control(mut self, bits: u16) -> Item {
        self.acs_control = Some(bits);
        self
    }

    /// The same, served by no IOMMU.
    #[must_use]
    pub const fn without_iommu(mut self) -> Item {
        self.no_iommu = true;
        self
    }
}
