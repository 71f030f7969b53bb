// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux knows of single devices that their registers do not say.

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

/// Lists of devices with quirks. In each the first match counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// Isolated or not, whatever the ACS registers say (GRP-010, GRP-024).
    pub acs: Vec<(Id, bool)>,
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

/// Intel NICs whose functions have no way to each other inside (GRP-025):
/// 82571, 82575, 82576, 82580, 82598, 82599, I350.
const INTEL_NICS: [u16; 50] = [
    0x105e, 0x105f, 0x1060, 0x10d9, // 82571, 82572
    0x10a7, 0x10a9, 0x10d6, // 82575
    0x10c9, 0x10e6, 0x10e7, 0x10e8, 0x150a, 0x150d, 0x1518, 0x1526, // 82576
    0x150e, 0x150f, 0x1510, 0x1511, 0x1516, 0x1527, // 82580
    0x10c6, 0x10db, 0x10dd, 0x10e1, 0x10f1, 0x10f7, 0x10f8, 0x10f9, 0x10fa, 0x10fb, 0x10fc, 0x1507, 0x1514, 0x151c,
    0x1529, 0x152a, 0x154d, 0x154f, 0x1551, 0x1558, // 82598, 82599
    0x1521, 0x1522, 0x1523, 0x1524, // I350
    0x1438, 0x144f, 0x151f, 0x10f0, 0x155d,
];

impl Quirks {
    /// The part of Linux's lists that a software device is likely to meet.
    #[must_use]
    pub fn linux() -> Quirks {
        let isolated = |id| (id, true);
        let solarflare = [0x0903, 0x0923, 0x0a03, 0x0a13].map(|device| Id::new(0x1924, device));
        let intel = INTEL_NICS.map(|device| Id::new(0x8086, device));
        let function1 =
            [0x9120, 0x9123, 0x9128, 0x9130, 0x9172, 0x917a, 0x9182, 0x9183, 0x91a0, 0x9215, 0x9220, 0x9230];
        let function0 = [Id::new(0x1180, 0xe832), Id::new(0x1180, 0xe476)];
        let mut aliases: Vec<(Id, Alias)> = function0.map(|id| (id, Alias::Function(0))).to_vec();
        aliases.extend(function1.map(|device| (Id::new(0x1b4b, device), Alias::Function(1))));
        aliases.push((Id::new(0x197b, 0x2362), Alias::Function(1)));
        aliases.push((Id::new(0x9005, 0x0285), Alias::Devfn(1 << 3)));
        let own_reset = [(0x8086, 0x10ed), (0x8086, 0x0953), (0x8086, 0x0a54), (0x144d, 0xa804)];
        Quirks {
            acs: solarflare.into_iter().chain(intel).map(isolated).collect(),
            aliases,
            device_specific_reset: own_reset.map(|(vendor, device)| Id::new(vendor, device)).to_vec(),
            ..Quirks::default()
        }
    }

    /// Isolated or not by quirk.
    #[must_use]
    pub fn isolated(&self, vendor: u16, device: u16) -> Option<bool> {
        self.acs.iter().find(|(id, _)| id.matches(vendor, device)).map(|(_, isolated)| *isolated)
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
