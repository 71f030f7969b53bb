// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio specification (1.3) as typed data, for devices, drivers and
//! tests. Features and status bits that all devices share are in
//! [`device::virtio`].

pub mod blk;
pub mod net;
pub mod ring;
