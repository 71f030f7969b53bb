// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux knows of single devices that their registers do not say.

use crate::PortType;

/// Devices of a vendor: one of them, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// Vendor id.
    pub vendor: u16,
    /// Device id; `None` for any.
    pub device: Option<u16>,
}

impl Id {
    /// One device.
    #[must_use]
    pub const fn new(vendor: u16, device: u16) -> Id {
        Id { vendor, device: Some(device) }
    }

    /// All devices of a vendor.
    #[must_use]
    pub const fn vendor(vendor: u16) -> Id {
        Id { vendor, device: None }
    }

    /// Whether the device is meant.
    #[must_use]
    pub fn matches(self, vendor: u16, device: u16) -> bool {
        self.vendor == vendor && self.device.is_none_or(|d| d == device)
    }
}

/// Which other requester id on its bus a device uses (GRP-021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alias {
    /// This function of the same device.
    Function(u8),
    /// This device and function.
    Devfn(u8),
}

impl Alias {
    /// The alias of a function at `devfn`; `None` if it is that itself.
    #[must_use]
    pub fn of(self, devfn: u8) -> Option<u8> {
        let alias = match self {
            Alias::Function(function) => devfn & !7 | function & 7,
            Alias::Devfn(devfn) => devfn,
        };
        (alias != devfn).then_some(alias)
    }
}

/// Devices whose isolation is known without ACS registers (GRP-024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcsQuirk {
    /// Which devices.
    pub id: Id,
    /// Only those that are this; `None` for all.
    pub port_type: Option<PortType>,
    /// Isolated or not.
    pub isolated: bool,
}

impl AcsQuirk {
    /// A quirk for a device whatever it is.
    #[must_use]
    pub const fn new(id: Id, isolated: bool) -> AcsQuirk {
        AcsQuirk { id, port_type: None, isolated }
    }
}

/// Lists of devices with quirks. In each the first match counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Isolated or not, whatever the ACS registers say (GRP-010, GRP-024).
    pub acs: Vec<AcsQuirk>,
    /// DMA aliases.
    pub aliases: Vec<(Id, Alias)>,
    /// A reset procedure of its own is there.
    pub device_specific_reset: Vec<Id>,
    /// Function level reset is announced and does not work.
    pub no_flr: Vec<Id>,
    /// Reset through D3hot does not work.
    pub no_pm_reset: Vec<Id>,
    /// A reset of its bus must not happen.
    pub no_bus_reset: Vec<Id>,
}

/// Intel NICs whose functions have no way to each other inside (GRP-025).
#[rustfmt::skip]
const INTEL_NICS: [u16; 46] = [
    0x105e, 0x105f, 0x1060, 0x10d9, // 82571
    0x10a7, 0x10a9, 0x10d6, // 82575
    0x10c9, 0x10e6, 0x10e7, 0x10e8, 0x150a, 0x150d, 0x1518, 0x1526, // 82576
    0x1509, 0x150e, 0x150f, 0x1510, 0x1511, 0x1516, 0x1527, // 82580
    0x10c6, 0x10db, 0x10dd, 0x10e1, 0x10f1, 0x10f7, 0x10f8, 0x10f9, 0x10fa, 0x10fb, 0x10fc, // 82598, 82599
    0x1507, 0x1514, 0x151c, 0x1529, 0x152a, 0x154d, 0x154f, 0x1551, 0x1558, // 82599
    0x1521, 0x1522, 0x1523, 0x1524, // I350
];

/// Other functions and ports that are isolated (GRP-025).
#[rustfmt::skip]
const ISOLATED: [(u16, u16); 28] = [
    (0x1002, 0x4385), (0x1002, 0x439c), (0x1002, 0x4383), (0x1002, 0x439d), (0x1002, 0x4384), (0x1002, 0x4399),
    (0x1022, 0x780f), (0x1022, 0x7809), // AMD southbridges, given an IOMMU
    (0x1924, 0x0903), (0x1924, 0x0923), (0x1924, 0x0a03), // Solarflare
    (0x8086, 0x15b7), (0x8086, 0x15b8), // I219
    (0x19a2, 0x0710), (0x10df, 0x0720), // Emulex
    (0x177d, 0xa026), (0x177d, 0xa059), (0x177d, 0xa060), // Cavium
    (0x14e4, 0x16d7), (0x14e4, 0x1750), (0x14e4, 0x1751), (0x14e4, 0x1752), (0x14e4, 0x1760), (0x14e4, 0x1761),
    (0x14e4, 0x1762), (0x14e4, 0x1763), // Broadcom
    (0x8088, 0x1001), (0x8088, 0x2001), // Wangxun
];

/// Marvell SATA controllers that use function 1's id (GRP-021).
#[rustfmt::skip]
const MARVELL: [u16; 15] = [
    0x9120, 0x9123, 0x9125, 0x9128, 0x9130, 0x9170, 0x9172, 0x917a, 0x9182, 0x9183, 0x91a0, 0x9215, 0x9220, 0x9230,
    0x9235,
];

/// Other controllers that use function 1's id.
#[rustfmt::skip]
const FUNCTION_1: [(u16, u16); 4] = [(0x1103, 0x0642), (0x1103, 0x0645), (0x197b, 0x2392), (0x1c28, 0x0122)];

/// Controllers that use function 0's id.
#[rustfmt::skip]
const FUNCTION_0: [(u16, u16); 4] = [(0x1180, 0xe832), (0x1180, 0xe476), (0x6766, 0x3d40), (0x6766, 0x3d41)];

/// Devices with a reset procedure of their own.
#[rustfmt::skip]
const OWN_RESET: [(u16, u16); 7] = [
    (0x8086, 0x10ed), (0x8086, 0x0156), (0x8086, 0x0166), (0x144d, 0xa804), (0x8086, 0x0953), (0x8086, 0x0a54),
    (0x19e5, 0x375e),
];

/// Devices that do not survive a reset of their bus.
#[rustfmt::skip]
const NO_BUS_RESET: [(u16, u16); 11] = [
    (0x10de, 0x22ce), (0x10de, 0x22d0), (0x168c, 0x0030), (0x168c, 0x0032), (0x168c, 0x003c), (0x168c, 0x0033),
    (0x168c, 0x0034), (0x168c, 0x003e), (0x177d, 0xa100), (0x104c, 0xb005), (0x1b21, 0x1164),
];

/// Devices whose function level reset hangs.
#[rustfmt::skip]
const NO_FLR: [(u16, u16); 10] = [
    (0x1022, 0x1487), (0x1022, 0x148c), (0x1022, 0x149c), (0x1022, 0x7901), (0x1022, 0x1502), (0x1022, 0x17f0),
    (0x8086, 0x1502), (0x8086, 0x1503), (0x14c3, 0x0616), (0x14c3, 0x7925),
];

fn ids(list: &[(u16, u16)]) -> Vec<Id> {
    list.iter().map(|&(vendor, device)| Id::new(vendor, device)).collect()
}

impl Quirks {
    /// The part of Linux's lists that goes by ids alone.
    #[must_use]
    pub fn linux() -> Quirks {
        let mut acs: Vec<AcsQuirk> = ids(&ISOLATED).into_iter().map(|id| AcsQuirk::new(id, true)).collect();
        acs.extend(INTEL_NICS.map(|device| AcsQuirk::new(Id::new(0x8086, device), true)));
        // Intel's root-complex integrated endpoints reach each other only with
        // translated addresses.
        acs.push(AcsQuirk { id: Id::vendor(0x8086), port_type: Some(PortType::IntegratedEndpoint), isolated: true });
        // Annapurna's root ports do not forward to each other.
        acs.push(AcsQuirk { id: Id::new(0x1c36, 0x0031), port_type: Some(PortType::RootPort), isolated: true });
        let mut aliases: Vec<(Id, Alias)> = ids(&FUNCTION_0).into_iter().map(|id| (id, Alias::Function(0))).collect();
        aliases.extend(MARVELL.map(|device| (Id::new(0x1b4b, device), Alias::Function(1))));
        aliases.extend(ids(&FUNCTION_1).into_iter().map(|id| (id, Alias::Function(1))));
        Quirks {
            acs,
            aliases,
            device_specific_reset: ids(&OWN_RESET),
            no_flr: ids(&NO_FLR),
            no_pm_reset: Vec::new(),
            no_bus_reset: ids(&NO_BUS_RESET),
        }
    }

    /// Isolated or not by quirk.
    #[must_use]
    pub fn isolated(&self, vendor: u16, device: u16, port_type: PortType) -> Option<bool> {
        let meant = |q: &&AcsQuirk| q.id.matches(vendor, device) && q.port_type.is_none_or(|t| t == port_type);
        self.acs.iter().find(meant).map(|quirk| quirk.isolated)
    }

    /// DMA aliases of a device at `devfn`.
    pub fn aliases(&self, vendor: u16, device: u16, devfn: u8) -> impl Iterator<Item = u8> + '_ {
        self.aliases.iter().filter(move |(id, _)| id.matches(vendor, device)).filter_map(move |(_, a)| a.of(devfn))
    }
}

/// Whether one of the ids is meant.
pub(crate) fn listed(ids: &[Id], vendor: u16, device: u16) -> bool {
    ids.iter().any(|id| id.matches(vendor, device))
}
