// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a PCI fabric is: functions and their configuration space, ports,
//! buses, isolation groups and reset reach.
#![forbid(unsafe_code)]

mod address;
pub mod cap;
mod express;
mod extended;
mod fabric;
mod function;
mod header;
mod layout;
mod save;
pub mod spec;
mod standard;
pub mod vpd;

pub use address::{Address, AddressError};
pub use fabric::Fabric;
pub use function::{Effect, Function};
pub use save::SavedConfig;
pub use spec::{Bar, BarKind, FunctionSpec, Link, Msix, PortType, Slot, SpecError};
