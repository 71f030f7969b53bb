// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a described fabric cannot be.

use crate::{Address, SpecError};

/// Why a fabric cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// Two functions at one address.
    #[error("{0} is in use already")]
    AddressInUse(Address),
    /// Two items of one name.
    #[error("there are two items named `{0}`")]
    NameInUse(String),
    /// The bridge does not exist.
    #[error("there is no port or bridge named `{0}`")]
    NoParent(String),
    /// What should have something below it is no bridge.
    #[error("`{0}` is not a port or bridge; nothing can stand below it")]
    NotABridge(String),
    /// Ports that are below each other.
    #[error("`{0}` is below itself")]
    Cycle(String),
    /// Linux does not look for functions of a device without function 0.
    #[error("{0} has no function 0 beside it; a device has to have one")]
    FunctionZeroMissing(Address),
    /// A kind of port that cannot be there.
    #[error("`{name}`: {rule}")]
    WrongPlace {
        /// Name or address of the item.
        name: String,
        /// What would be right.
        rule: &'static str,
    },
    /// More than device 0 on a link.
    #[error("`{0}`: a link has device 0 only; put it behind a switch, or on a root bus")]
    DeviceNumber(String),
    /// No device number is left.
    #[error("`{0}`: all 32 device numbers of its bus are taken")]
    NoFreeDevice(String),
    /// A bus number that cannot be: used twice, or outside what the bridge
    /// above reaches.
    #[error("bus {segment:04x}:{bus:02x} is used twice, or cannot be reached through the bridge above it")]
    BusConflict {
        /// Segment.
        segment: u16,
        /// Bus.
        bus: u8,
    },
    /// Bus numbers are used up.
    #[error("segment {0:04x} has no bus number left")]
    NoFreeBus(u16),
    /// Memory windows are used up.
    #[error("{address}: there is no room for {size:#x} bytes of memory space")]
    OutOfSpace {
        /// Function or bridge.
        address: Address,
        /// Bytes.
        size: u64,
    },
    /// The function's description is wrong.
    #[error("`{name}`: {error}")]
    Spec {
        /// Name or address.
        name: String,
        /// What is wrong.
        #[source]
        error: SpecError,
    },
}
