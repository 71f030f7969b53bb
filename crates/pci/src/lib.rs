// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a PCI fabric is: functions and their configuration space, ports,
//! buses, isolation groups and reset reach.
#![forbid(unsafe_code)]

mod address;
mod builder;
pub mod cap;
mod error;
mod express;
mod extended;
mod fabric;
mod facts;
mod function;
mod groups;
mod header;
mod layout;
mod numbering;
mod place;
mod plan;
mod preset;
mod quirks;
mod reset;
pub mod resource;
mod save;
pub mod spec;
mod sriov;
mod standard;
pub mod vpd;

pub use address::{Address, AddressError};
pub use builder::FabricBuilder;
pub use error::FabricError;
pub use fabric::{Bus, Fabric};
pub use function::{Effect, Function};
pub use groups::{MSI_WINDOW, ReservedRegion};
pub use place::{Item, Place};
pub use quirks::{AcsQuirk, Alias, Id, Quirks};
pub use reset::{NotResettable, ResetMethod, ResetScope};
pub use resource::Resource;
pub use save::SavedConfig;
pub use spec::{Bar, BarKind, FunctionSpec, Link, Msix, PortType, Slot, SpecError};
pub use sriov::VfError;
