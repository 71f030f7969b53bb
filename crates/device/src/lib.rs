// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device is written.
//!
//! A model implements [`Device`]. The host keeps it in an [`Endpoint`], which
//! gives it its way to memory ([`iommu::Requester`]), its interrupts
//! ([`Interrupts`]) and the pages of its BARs that a program has mapped
//! ([`Window`]). An executor gives endpoints their turns.
#![forbid(unsafe_code)]

mod board;
mod disk;
mod endpoint;
mod interrupts;
mod window;

pub use board::{Board, Driver, Slot};
pub use disk::{Disk, DiskError, DiskPart};
pub use endpoint::{Device, Endpoint, Io, Nanos, ResetKind, Turn, Wake};
pub use interrupts::{Event, Interrupts, Mode};
pub use window::{DeviceFile, DeviceFiles, NoDeviceFile, RegionLayout, Window};
