// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The binary forms of the interfaces that programs use: request numbers,
//! structure layouts, size rules and error numbers. Nothing here decides
//! anything; the rules live in the crates that own the objects.
#![forbid(unsafe_code)]

mod errno;
pub mod iommufd;
pub mod iommufd_events;
pub mod iommufd_hw;
pub mod iommufd_test;
pub mod region;
pub mod vfio;
pub mod vhost;

pub use errno::Errno;
