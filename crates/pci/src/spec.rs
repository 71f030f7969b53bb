// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device model says of its PCI function; the configuration space is
//! built from it.

/// One base address register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Length in bytes, a power of two.
    pub size: u64,
    /// What address space it decodes.
    pub kind: BarKind,
    /// Whether a program may map it. Ignored for I/O BARs, which never are.
    pub mmap: bool,
}

/// Address space and width of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit memory.
    Memory32 {
        /// Prefetchable.
        prefetchable: bool,
    },
    /// 64-bit memory; takes the next BAR register as well.
    Memory64 {
        /// Prefetchable.
        prefetchable: bool,
    },
    /// I/O ports.
    Io,
}

/// MSI-X table of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR and offset of the table.
    pub table: (u8, u32),
    /// BAR and offset of the pending bit array.
    pub pba: (u8, u32),
}

/// What a function is in the fabric: the device/port type of its PCI Express
/// capability, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PortType {
    /// PCI Express endpoint. Directly on a root bus it becomes a
    /// root-complex integrated endpoint, on a conventional bus a conventional
    /// function.
    #[default]
    Endpoint,
    /// PCI Express endpoint with I/O BARs and the like.
    LegacyEndpoint,
    /// Root port.
    RootPort,
    /// Upstream port of a switch.
    UpstreamPort,
    /// Downstream port of a switch.
    DownstreamPort,
    /// PCI Express to conventional PCI bridge.
    PcieToPciBridge,
    /// Conventional PCI to PCI Express bridge.
    PciToPcieBridge,
    /// Root-complex integrated endpoint.
    IntegratedEndpoint,
    /// Root-complex event collector.
    EventCollector,
    /// Conventional PCI function: no PCI Express capability, 256 bytes.
    Conventional,
    /// Conventional PCI-to-PCI bridge.
    ConventionalBridge,
    /// SR-IOV virtual function.
    VirtualFunction,
}

impl PortType {
    /// Whether there is a bus behind it (type 1 header).
    #[must_use]
    pub const fn is_bridge(self) -> bool {
        matches!(
            self,
            PortType::RootPort
                | PortType::UpstreamPort
                | PortType::DownstreamPort
                | PortType::PcieToPciBridge
                | PortType::PciToPcieBridge
                | PortType::ConventionalBridge
        )
    }

    /// Whether it has a PCI Express capability.
    #[must_use]
    pub const fn is_express(self) -> bool {
        !matches!(self, PortType::Conventional | PortType::ConventionalBridge)
    }

    /// Whether its secondary bus is a link on which only device 0 is looked for.
    #[must_use]
    pub const fn has_link_below(self) -> bool {
        matches!(self, PortType::RootPort | PortType::DownstreamPort | PortType::PciToPcieBridge)
    }

    /// Whether the bus behind it is a conventional one.
    #[must_use]
    pub const fn has_conventional_bus(self) -> bool {
        matches!(self, PortType::PcieToPciBridge | PortType::ConventionalBridge)
    }

    /// Device/port type field of the PCI Express capability.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            PortType::Endpoint | PortType::VirtualFunction => 0,
            PortType::LegacyEndpoint => 1,
            PortType::RootPort => 4,
            PortType::UpstreamPort => 5,
            PortType::DownstreamPort => 6,
            PortType::PcieToPciBridge => 7,
            PortType::PciToPcieBridge => 8,
            PortType::IntegratedEndpoint => 9,
            PortType::EventCollector => 10,
            PortType::Conventional | PortType::ConventionalBridge => 15,
        }
    }
}

/// Speed and width of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Speed code: 1 is 2.5 GT/s, 2 is 5, 3 is 8, 4 is 16, 5 is 32, 6 is 64.
    pub speed: u8,
    /// Lanes: 1, 2, 4, 8, 12, 16 or 32.
    pub width: u8,
}

impl Default for Link {
    fn default() -> Link {
        Link { speed: 3, width: 4 }
    }
}

/// The slot behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Physical slot number, 13 bits.
    pub number: u16,
    /// Slot power limit in watts, up to 239.
    pub power: u8,
    /// Whether devices can come and go: then the slot can be reset on its own.
    pub hotplug: bool,
}

/// Identity, BARs and capabilities of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem_device: u16,
    /// Class code: base class, subclass, programming interface (24 bits).
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// Base address registers by index. The slot after a 64-bit BAR is empty.
    pub bars: [Option<Bar>; 6],
    /// Expansion ROM image; empty for none.
    pub rom: Vec<u8>,
    /// Interrupt pin: 0 none, 1 INTA to 4 INTD.
    pub interrupt_pin: u8,
    /// MSI: log2 of the number of messages.
    pub msi: Option<u8>,
    /// MSI-X.
    pub msix: Option<Msix>,
    /// Function level reset offered in the PCI Express capability.
    pub flr: bool,
    /// Advanced Error Reporting capability.
    pub aer: bool,
    /// End-to-end checksums (ECRC) are not offered in it.
    pub no_ecrc: bool,
    /// Downstream Port Containment capability, of root and downstream ports.
    pub dpc: bool,
    /// Access Control Services capability; the bits offered, `None` for no capability.
    pub acs: Option<u16>,
    /// SR-IOV: total number of VFs; 0 for no capability.
    pub total_vfs: u16,
    /// PASID capability: log2 of the number of PASIDs.
    pub pasid: Option<u8>,
    /// PRI capability: outstanding page request capacity.
    pub pri: Option<u32>,
    /// Device serial number capability.
    pub serial: Option<u64>,
    /// What the function is.
    pub port_type: PortType,
    /// Power management: leaving D3hot keeps the registers (No_Soft_Reset). If
    /// clear, a walk through D3hot resets the function.
    pub no_soft_reset: bool,
    /// Leaves the power management capability out.
    pub no_power_management: bool,
    /// Interrupt Disable of the command register is not implemented (as before
    /// PCI 2.3).
    pub no_intx_disable: bool,
    /// Link offered.
    pub link: Link,
    /// Slot behind a root port or downstream port.
    pub slot: Option<Slot>,
    /// Advanced Features capability with function level reset (conventional PCI).
    pub af_flr: bool,
    /// Vital product data image; empty for no capability. See [`crate::vpd`].
    pub vpd: Vec<u8>,
    /// Vendor-specific capabilities: what follows id, next and length byte.
    pub vendor_specific: Vec<Vec<u8>>,
    /// Address Translation Services capability.
    pub ats: bool,
    /// Alternative Routing-ID capability; present with SR-IOV in any case.
    pub ari: bool,
    /// First VF Offset; 0 for the usual one (the routing id after the device).
    pub vf_offset: u16,
    /// VF Stride; 0 for 1.
    pub vf_stride: u16,
    /// The virtual functions: their device id, class and BARs (one VF's share)
    /// and capabilities. `None`: like this function, with function level reset.
    pub vf: Option<Box<FunctionSpec>>,
}

/// What is wrong with a function's description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A BAR's length cannot be decoded.
    #[error("BAR {0}: length {1:#x} is not a power of two that its kind can decode")]
    BarSize(usize, u64),
    /// A 64-bit BAR has no room or its upper half is taken.
    #[error("BAR {0}: a 64-bit BAR needs the next register as well")]
    BarUpperHalf(usize),
    /// A bridge has two BARs only.
    #[error("BAR {0}: a bridge has BARs 0 and 1 only")]
    BridgeBar(usize),
    /// MSI offers 1 to 32 messages.
    #[error("MSI: 2^{0} messages; the most is 2^5")]
    MsiMessages(u8),
    /// MSI-X has 1 to 2048 vectors.
    #[error("MSI-X: {0} vectors; it has 1 to 2048")]
    MsixVectors(u16),
    /// The MSI-X table or pending bits lie outside their BAR.
    #[error("MSI-X: the {what} at BAR {bar} offset {offset:#x} is misaligned or not inside a memory BAR")]
    MsixPlace {
        /// `table` or `pending bits`.
        what: &'static str,
        /// BAR.
        bar: u8,
        /// Offset.
        offset: u32,
    },
    /// The interrupt pin is 0 to 4.
    #[error("interrupt pin {0}; it is 0 (none) or 1 (INTA) to 4 (INTD)")]
    Pin(u8),
    /// PASIDs are at most 20 bits wide.
    #[error("PASID width {0}; the most is 20")]
    PasidWidth(u8),
    /// Capabilities do not fit.
    #[error("the capabilities do not fit into configuration space")]
    NoRoom,
    /// Vital product data is too long.
    #[error("{0} bytes of vital product data; the most is 32768")]
    Vpd(usize),
    /// The expansion ROM is too long.
    #[error("{0} bytes of expansion ROM; the most is 16 MiB")]
    Rom(usize),
    /// The link does not exist.
    #[error("a link of speed code {0} with {1} lanes; speeds are 1 to 6, widths 1, 2, 4, 8, 12, 16, 32")]
    Link(u8, u8),
}

impl Bar {
    /// Whether it takes two registers.
    #[must_use]
    pub const fn is_64bit(&self) -> bool {
        matches!(self.kind, BarKind::Memory64 { .. })
    }

    /// Whether it decodes memory.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        !matches!(self.kind, BarKind::Io)
    }

    /// The read-only low bits of its register.
    #[must_use]
    pub const fn type_bits(&self) -> u32 {
        match self.kind {
            BarKind::Io => 1,
            BarKind::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            BarKind::Memory64 { prefetchable } => 4 | (prefetchable as u32) << 3,
        }
    }
}

impl FunctionSpec {
    /// Bytes that the expansion ROM BAR decodes; 0 for none.
    #[must_use]
    pub fn rom_size(&self) -> u64 {
        if self.rom.is_empty() { 0 } else { (self.rom.len() as u64).next_power_of_two().max(0x800) }
    }

    /// Whether hardware could be as described.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_bars()?;
        match self.msi {
            Some(log2) if log2 > 5 => return Err(SpecError::MsiMessages(log2)),
            _ => {}
        }
        if let Some(msix) = &self.msix {
            if !(1..=2048).contains(&msix.vectors) {
                return Err(SpecError::MsixVectors(msix.vectors));
            }
            self.check_msix_place("table", msix.table, u64::from(msix.vectors) * 16)?;
            self.check_msix_place("pending bits", msix.pba, u64::from(msix.vectors).div_ceil(64) * 8)?;
        }
        if self.interrupt_pin > 4 {
            return Err(SpecError::Pin(self.interrupt_pin));
        }
        match self.pasid {
            Some(width) if width > 20 => return Err(SpecError::PasidWidth(width)),
            _ => {}
        }
        if self.vpd.len() > 0x8000 {
            return Err(SpecError::Vpd(self.vpd.len()));
        }
        if self.rom.len() > 16 << 20 {
            return Err(SpecError::Rom(self.rom.len()));
        }
        if !(1..=6).contains(&self.link.speed) || ![1, 2, 4, 8, 12, 16, 32].contains(&self.link.width) {
            return Err(SpecError::Link(self.link.speed, self.link.width));
        }
        self.vf.as_ref().map_or(Ok(()), |vf| vf.check())
    }

    fn check_bars(&self) -> Result<(), SpecError> {
        for (i, bar) in self.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let limits = match bar.kind {
                BarKind::Io => 4..=256,
                BarKind::Memory32 { .. } => 16..=1 << 31,
                BarKind::Memory64 { .. } => 16..=1 << 62,
            };
            if !bar.size.is_power_of_two() || !limits.contains(&bar.size) {
                return Err(SpecError::BarSize(i, bar.size));
            }
            if bar.is_64bit() && self.bars.get(i + 1) != Some(&None) {
                return Err(SpecError::BarUpperHalf(i));
            }
            if self.port_type.is_bridge() && i + usize::from(bar.is_64bit()) > 1 {
                return Err(SpecError::BridgeBar(i));
            }
        }
        Ok(())
    }

    fn check_msix_place(&self, what: &'static str, (bar, offset): (u8, u32), len: u64) -> Result<(), SpecError> {
        let inside = match self.bars.get(usize::from(bar)) {
            Some(Some(b)) => b.is_memory() && u64::from(offset) + len <= b.size,
            _ => false,
        };
        if inside && offset % 8 == 0 { Ok(()) } else { Err(SpecError::MsixPlace { what, bar, offset }) }
    }

    /// First VF Offset as the register reads.
    #[must_use]
    pub const fn first_vf_offset(&self) -> u16 {
        if self.vf_offset == 0 { 8 } else { self.vf_offset }
    }

    /// VF Stride as the register reads.
    #[must_use]
    pub const fn vf_stride(&self) -> u16 {
        if self.vf_stride == 0 { 1 } else { self.vf_stride }
    }

    /// The description of this function's virtual functions: the ids that
    /// Linux shows for them.
    #[must_use]
    pub fn virtual_function(&self) -> FunctionSpec {
        let mut vf = match &self.vf {
            Some(vf) => (**vf).clone(),
            None => FunctionSpec { flr: true, ..self.clone() },
        };
        vf.vendor = self.vendor;
        vf.port_type = PortType::VirtualFunction;
        vf.interrupt_pin = 0;
        vf.total_vfs = 0;
        vf.vf = None;
        vf.rom = Vec::new();
        // A VF has memory BARs only, of a page at least (SR-IOV 1.1, 2.1.1).
        for bar in &mut vf.bars {
            *bar = bar.take().filter(Bar::is_memory).map(|bar| Bar { size: bar.size.max(0x1000), ..bar });
        }
        vf.pri = None;
        vf.pasid = None;
        vf.no_power_management = true;
        vf
    }
}
