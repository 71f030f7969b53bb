// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be chosen about a controller, and its PCI function.

use std::sync::Arc;

use device::Disk;
use pci::FunctionSpec;
use pci::spec::{Bar, BarKind, Msix};

use super::namespace;
use super::spec;

/// Bytes of a logical block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LbaSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

/// A block size that the controller does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block of {0} bytes is not supported; it is 512 or 4096")]
pub struct UnsupportedLbaSize(pub u64);

impl LbaSize {
    /// Its number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of its number of bytes.
    #[must_use]
    pub const fn shift(self) -> u8 {
        match self {
            LbaSize::B512 => 9,
            LbaSize::B4096 => 12,
        }
    }
}

impl TryFrom<u64> for LbaSize {
    type Error = UnsupportedLbaSize;

    fn try_from(bytes: u64) -> Result<LbaSize, UnsupportedLbaSize> {
        match bytes {
            512 => Ok(LbaSize::B512),
            4096 => Ok(LbaSize::B4096),
            _ => Err(UnsupportedLbaSize(bytes)),
        }
    }
}

/// What a controller is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Serial number, up to 20 ASCII characters. Identifiers of the namespaces
    /// are derived from it, so no two controllers should share one.
    pub serial: String,
    /// Model name, up to 40 ASCII characters.
    pub model_name: String,
    /// Firmware revision, up to 8 ASCII characters.
    pub firmware: String,
    /// Block size of every namespace.
    pub lba_size: LbaSize,
    /// I/O queue pairs, 1 to 64; other numbers count as the nearest of these.
    pub max_queue_pairs: u16,
    /// The disks of namespaces 1, 2, …; a rest smaller than a block is unused.
    pub namespaces: Vec<Arc<dyn Disk>>,
    /// Controller id in its subsystem.
    pub controller_id: u16,
    /// SR-IOV: number of VFs that the function offers; 0 for no capability.
    pub total_vfs: u16,
    /// PCI vendor and device id.
    pub pci_id: (u16, u16),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            serial: "vfuse-0".to_owned(),
            model_name: "vfuse NVMe controller".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            lba_size: LbaSize::B512,
            max_queue_pairs: MAX_QUEUE_PAIRS,
            namespaces: Vec::new(),
            controller_id: 0,
            total_vfs: 0,
            // No real controller's, so that no driver applies quirks to it.
            pci_id: (0x1234, 0x4e56),
        }
    }
}

/// Largest number of I/O queue pairs.
pub(crate) const MAX_QUEUE_PAIRS: u16 = 64;
/// MSI-X vectors: one for each queue pair and one for the admin queues.
pub(crate) const VECTORS: u16 = MAX_QUEUE_PAIRS + 1;
/// log2 of the MSI messages, for programs that know no MSI-X.
const MSI_LOG2: u8 = 5;
/// Bytes of BAR 0.
pub(crate) const BAR_SIZE: u64 = 0x4000;
/// Where the MSI-X table lies in BAR 0.
pub(crate) const MSIX_TABLE: u32 = 0x2000;
/// Where the MSI-X pending bits lie in BAR 0.
pub(crate) const MSIX_PBA: u32 = 0x3000;

impl Config {
    pub(crate) fn function(&self) -> FunctionSpec {
        let mut bars: [Option<Bar>; 6] = Default::default();
        bars[0] = Some(Bar { size: BAR_SIZE, kind: BarKind::Memory64 { prefetchable: false }, mmap: true });
        FunctionSpec {
            vendor: self.pci_id.0,
            device: self.pci_id.1,
            subsystem_vendor: self.pci_id.0,
            subsystem_device: self.pci_id.1,
            class: spec::CLASS,
            revision: 1,
            bars,
            interrupt_pin: 1,
            msi: Some(MSI_LOG2),
            msix: Some(Msix { vectors: VECTORS, table: (0, MSIX_TABLE), pba: (0, MSIX_PBA) }),
            flr: true,
            aer: true,
            total_vfs: self.total_vfs,
            serial: Some(namespace::serial_number(&self.serial)),
            ..FunctionSpec::default()
        }
    }
}
