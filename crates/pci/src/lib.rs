// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a PCI fabric is: functions and their configuration space, ports,
//! buses, isolation groups and reset reach.
//!
//! Two things are built here. A [`Function`] is the configuration space of one
//! function as its hardware has it, laid out from what a model says of it
//! ([`FunctionSpec`]): which bits there are, what a write does to them, and
//! what it sets off elsewhere ([`Effect`]). A [`Fabric`] is all functions of a
//! lab with the buses between them, in the state in which firmware and Linux
//! leave them after boot; a [`FabricBuilder`] makes it from a description.
//! What Linux derives from the registers stands beside: IOMMU groups
//! ([`Fabric::group`]), reset methods and the reach of a reset
//! ([`Fabric::reset_methods`], [`Fabric::hot_reset_scope`]), virtual functions
//! ([`Fabric::enable_vfs`]), lines of sysfs files.
//!
//! Errors ([`aer`]) are logged and their messages routed as hardware does it,
//! links go down and come back ([`Signal`], [`Fabric::advance`]), and
//! [`recovery`] is what Linux does about it.
//!
//! What is not here: who may see or change a register (`vfio` virtualises it),
//! BAR contents (a model's), drivers. Not modelled: functions that appear while
//! the lab runs, TLP prefix logs, root port extensions of containment, CXL,
//! resizable BARs, ACPI reset methods.
#![forbid(unsafe_code)]

mod address;
pub mod aer;
mod builder;
pub mod cap;
pub mod dpc;
mod error;
mod express;
mod extended;
mod fabric;
mod facts;
mod function;
mod groups;
mod header;
mod layout;
mod link;
mod numbering;
mod peers;
mod place;
mod plan;
mod preset;
mod quirks;
pub mod recovery;
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
pub use link::{Answers, Signal, Timing};
pub use place::{Item, Place};
pub use quirks::{AcsQuirk, Alias, Id, Quirks};
pub use reset::{NotResettable, ResetMethod, ResetScope};
pub use resource::Resource;
pub use save::SavedConfig;
pub use spec::{Bar, BarKind, FunctionSpec, Link, Msix, PortType, Slot, SpecError};
pub use sriov::VfError;
