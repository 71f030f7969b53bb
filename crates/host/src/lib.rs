// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pretend kernel: builds a lab from its description, opens files,
//! dispatches calls by kind of file, and shows the lab in `/dev` and `/sys`.
#![forbid(unsafe_code)]

mod assemble;
mod drivers;
mod errors;
mod host;
mod inventory;
pub mod lab;
mod mediated;
mod migration;
mod peers;
mod store;
pub mod survey;
mod sysfs;
mod sysfs_vdpa;
pub mod tree;
mod unbind;
mod vdpa_bus;
mod virtio;

pub use assemble::Storage;
pub use errors::{ErrorPolicy, Injected, NotInjected, NotTaken, TakerId};
pub use host::{FileKind, Host};
pub use inventory::{FunctionInfo, table};
pub use lab::{Lab, LabError};
pub use migration::{MigrationInfo, NotPlanned, migration_table};
pub use vdpa_bus::{VdpaConfig, VdpaError, VdpaInfo, vdpa_table};
pub use virtio::VirtioMaker;
