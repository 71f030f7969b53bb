// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests of device models need, here and in other crates: memory that
//! devices reach, a disk, counted interrupts, a [`Bench`] that wires a device
//! to them, and a small NVMe driver.
//!
//! Nothing here is meant for a running lab: out of memory is a panic.

mod bench;
mod disk;
mod event;
mod memory;
pub mod nvme;
pub mod virtio;
mod virtio_bench;

pub use bench::{Access, Bench};
pub use disk::{DiskCalls, MemoryDisk};
pub use event::CountedEvent;
pub use memory::{TestFile, TestMemory, TestWindow};
pub use virtio_bench::VirtioBench;
