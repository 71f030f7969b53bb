// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sysfs says of one function.

use pci::{Address, PortType, Quirks, cap};

use super::Files;

/// A function as sysfs shows it.
#[derive(Clone, Debug)]
pub struct Surveyed {
    /// Vendor and device id.
    pub id: (u16, u16),
    /// The bridge above it.
    pub parent: Option<Address>,
    /// The bound driver.
    pub driver: Option<String>,
    /// IOMMU group.
    pub group: Option<u32>,
    /// The physical function of a virtual one.
    pub physical: Option<Address>,
    /// Reset methods in order of use; `None` if there is no such file.
    pub reset_methods: Option<Vec<String>>,
    /// Whether a program has it open, where that can be known.
    pub open: Option<bool>,
    config: Vec<u8>,
}

/// How well a function keeps apart what goes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    Isolated,
    /// Not isolated, and why.
    Shared(&'static str),
    /// Configuration space cannot be read that far.
    Unknown,
}

impl Surveyed {
    pub(super) fn read(files: &dyn Files, devices: &str, name: &str, address: Address) -> Surveyed {
        let directory = format!("{devices}/{name}");
        let text = |file: &str| {
            let bytes = files.read(&format!("{directory}/{file}"))?;
            Some(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        let hex = |file| {
            let text = text(file)?;
            u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()
        };
        let base = |file: &str| {
            let target = files.link(&format!("{directory}/{file}"))?;
            target.rsplit('/').next().map(str::to_owned)
        };
        let path = files.link(&directory).unwrap_or_default();
        let mut above: Vec<Address> = path.split('/').filter_map(|part| part.parse().ok()).collect();
        above.retain(|other| *other != address);
        Surveyed {
            id: (hex("vendor").unwrap_or(0xffff), hex("device").unwrap_or(0xffff)),
            parent: above.last().copied(),
            driver: base("driver"),
            group: base("iommu_group").and_then(|number| number.parse().ok()),
            physical: base("physfn").and_then(|name| name.parse().ok()),
            reset_methods: text("reset_method").map(|text| text.split_whitespace().map(str::to_owned).collect()),
            open: None,
            config: files.read(&format!("{directory}/config")).unwrap_or_default(),
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.config.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte(at)?, self.byte(at + 1)?]))
    }

    fn dword(&self, at: usize) -> Option<u32> {
        Some(u32::from(self.word(at)?) | u32::from(self.word(at + 2)?) << 16)
    }

    /// Whether it has a bus behind it.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.byte(0x0e).is_some_and(|header| header & 0x7f == 1)
    }

    /// Whether a VFIO driver has it.
    #[must_use]
    pub fn is_vfio(&self) -> bool {
        self.driver.as_ref().is_some_and(|name| name.contains("vfio"))
    }

    /// Whether its driver does DMA of its own (GRP-027, GRP-028).
    #[must_use]
    pub fn owns_dma(&self) -> bool {
        let harmless = |name: &String| matches!(name.as_str(), "pcieport" | "pci-stub");
        !self.is_vfio() && self.driver.as_ref().is_some_and(|name| !harmless(name))
    }

    /// Offset of a capability; `None` if there is none or it cannot be read.
    fn capability(&self, id: u8) -> Option<usize> {
        if self.word(0x06)? & 0x10 == 0 {
            return None;
        }
        let mut at = usize::from(self.byte(0x34)? & !3);
        // 48 fit; a longer chain is a cycle.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            if self.byte(at)? == id {
                return Some(at);
            }
            at = usize::from(self.byte(at + 1)? & !3);
        }
        None
    }

    fn extended_capability(&self, id: u16) -> Option<usize> {
        let mut at = 0x100;
        for _ in 0..960 {
            let header = self.dword(at)?;
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header as u16 == id {
                return Some(at);
            }
            at = (header >> 20) as usize & !3;
            if at < 0x100 {
                return None;
            }
        }
        None
    }

    /// What it is; `None` if configuration space cannot be read that far.
    #[must_use]
    pub fn port_type(&self) -> Option<PortType> {
        if self.physical.is_some() {
            return Some(PortType::VirtualFunction);
        }
        if self.config.len() < 256 {
            return None;
        }
        let Some(at) = self.capability(cap::EXPRESS) else {
            return Some(if self.is_bridge() { PortType::ConventionalBridge } else { PortType::Conventional });
        };
        Some(match self.word(at + 2)? >> 4 & 0xf {
            0 => PortType::Endpoint,
            1 => PortType::LegacyEndpoint,
            4 => PortType::RootPort,
            5 => PortType::UpstreamPort,
            6 => PortType::DownstreamPort,
            7 => PortType::PcieToPciBridge,
            8 => PortType::PciToPcieBridge,
            9 => PortType::IntegratedEndpoint,
            10 => PortType::EventCollector,
            _ => PortType::Endpoint,
        })
    }

    /// Whether its slot is a hot-plug one, so that it is reset as a slot.
    #[must_use]
    pub fn has_hotplug_slot(&self) -> bool {
        let hotplug = || {
            let at = self.capability(cap::EXPRESS)?;
            Some(self.word(at + 2)? & 0x100 != 0 && self.dword(at + 0x14)? & 0x40 != 0)
        };
        hotplug().unwrap_or(false)
    }

    /// GRP-010 to GRP-016. `several`: its device has other functions.
    pub(super) fn isolation(&self, quirks: &Quirks, several: bool) -> Isolation {
        let Some(kind) = self.port_type() else { return Isolation::Unknown };
        match quirks.isolated(self.id.0, self.id.1, kind) {
            Some(true) => return Isolation::Isolated,
            Some(false) => return Isolation::Shared("is known not to isolate"),
            None => {}
        }
        match kind {
            PortType::Conventional | PortType::ConventionalBridge => {
                return Isolation::Shared("is conventional PCI");
            }
            PortType::PcieToPciBridge | PortType::PciToPcieBridge => {
                return Isolation::Shared(
                    "is a bridge to conventional PCI: requester ids are not told apart behind it",
                );
            }
            PortType::EventCollector => return Isolation::Shared("is an event collector"),
            PortType::RootPort | PortType::DownstreamPort => {}
            _ if !several => return Isolation::Isolated,
            _ => {}
        }
        if self.config.len() < 0x1000 {
            return Isolation::Unknown;
        }
        let Some(at) = self.extended_capability(cap::EXT_ACS) else {
            return Isolation::Shared("has no ACS capability");
        };
        let (offered, enabled) = (self.word(at + 4).unwrap_or(0), self.word(at + 6).unwrap_or(0));
        // What is not offered counts as fulfilled (GRP-015).
        if cap::ACS_ISOLATED & offered & !enabled == 0 {
            Isolation::Isolated
        } else {
            Isolation::Shared("has ACS, but not enabled")
        }
    }

    /// What holds it, in a few words.
    #[must_use]
    pub fn holder(&self) -> String {
        match (&self.driver, self.open) {
            (None, _) => "no driver".into(),
            (Some(name), Some(true)) => format!("{name}, in use"),
            (Some(name), _) => name.clone(),
        }
    }
}
