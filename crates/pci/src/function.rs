// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One function's physical configuration space.

use crate::FunctionSpec;

/// What a write to configuration space set off outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Bus master enable changed.
    BusMaster(bool),
    /// Memory space enable changed.
    Memory(bool),
    /// I/O space enable changed.
    Io(bool),
    /// Interrupt disable changed.
    IntxDisable(bool),
    /// The power state changed.
    Power {
        /// State left (0 is D0, 3 is D3hot).
        from: u8,
        /// State entered.
        to: u8,
    },
    /// Initiate Function Level Reset was written.
    FunctionLevelReset,
    /// MSI enable changed.
    Msi(bool),
    /// MSI-X enable or function mask changed.
    Msix {
        /// MSI-X enable.
        enable: bool,
        /// Function mask.
        mask: bool,
    },
    /// SR-IOV VF enable changed.
    VfEnable(bool),
}

/// Configuration space of a function, as the hardware has it.
#[derive(Clone, Debug)]
pub struct Function {
    spec: FunctionSpec,
    bytes: Vec<u8>,
}

impl Function {
    /// The state after power on.
    #[must_use]
    pub fn new(spec: FunctionSpec) -> Function {
        let mut bytes = vec![0; 4096];
        bytes[0..2].copy_from_slice(&spec.vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&spec.device.to_le_bytes());
        Function { spec, bytes }
    }

    /// What the model said.
    #[must_use]
    pub fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    /// Bytes of configuration space: 256 or 4096.
    #[must_use]
    pub fn size(&self) -> u16 {
        4096
    }

    /// Reads 1, 2 or 4 aligned bytes.
    #[must_use]
    pub fn read(&self, offset: u16, len: u8) -> u32 {
        (0..u16::from(len)).rev().fold(0, |value, i| {
            value << 8 | u32::from(self.bytes.get(usize::from(offset + i)).copied().unwrap_or(0xff))
        })
    }

    /// Writes 1, 2 or 4 aligned bytes, as the hardware takes them.
    pub fn write(&mut self, offset: u16, len: u8, value: u32) -> Vec<Effect> {
        let _ = (offset, len, value);
        Vec::new()
    }

    /// Offset of a capability.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<u16> {
        let _ = id;
        None
    }

    /// Offset of an extended capability.
    #[must_use]
    pub fn extended_capability(&self, id: u16) -> Option<u16> {
        let _ = id;
        None
    }

    /// Registers as after a reset of the function; what the host configured
    /// is lost (who resets saves and restores it).
    pub fn reset(&mut self) {}
}
