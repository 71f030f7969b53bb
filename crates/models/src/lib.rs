// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of a lab.
//!
//! Each model knows only the `device` crate: it is given its way to memory,
//! its interrupts and the pages of its BARs, and gives back what a program
//! would see on hardware. [`testing`] holds what tests of models need: memory,
//! disks and small drivers.
#![forbid(unsafe_code)]

pub mod dsa;
pub mod ioat;
pub mod nvme;
pub mod testing;
pub mod virtio;
