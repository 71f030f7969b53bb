// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device is written.
//!
//! A model implements [`Device`]. The host keeps it in an [`Endpoint`], which
//! gives it its way to memory ([`iommu::Requester`]), its interrupts
//! ([`Interrupts`]), its page requests ([`PageRequests`]) and the pages of its
//! BARs that a program has mapped ([`Window`]). A virtio device without a PCI
//! function is a [`VirtioDevice`] in a [`VirtioEndpoint`]. An executor gives
//! endpoints their turns. [`migration`] says what of a device may move,
//! [`saved`] how its state is written down, [`mediated`] how several users share
//! a function. Another device may write to it, too ([`Endpoint::peer`]).
#![forbid(unsafe_code)]

mod board;
mod disk;
mod endpoint;
mod fault_log;
mod interrupts;
pub mod mediated;
pub mod migration;
mod network;
pub mod page_requests;
mod peer;
pub mod saved;
mod steppable;
pub mod virtio;
mod window;

pub use board::{Board, Driver, Mediated, Slot};
pub use disk::{Disk, DiskError, DiskPart};
pub use endpoint::{Device, Endpoint, Io, Nanos, ResetKind};
pub use interrupts::{Event, Interrupts, Mode};
pub use network::{FRAME_HEADER, Frames, MAX_FRAME, NetPort, Offloads};
pub use page_requests::{Asked, PageRequests, PageTicket};
pub use steppable::{Steppable, Turn, Wake};
pub use virtio::{VirtioDevice, VirtioEndpoint};
pub use window::{DeviceFile, DeviceFiles, NoDeviceFile, RegionLayout, Window};
