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
}
