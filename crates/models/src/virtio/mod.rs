// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio devices (virtio 1.3), as vDPA parents have them.
//!
//! [`ring`] is the device's side of a virtqueue, which all of them share;
//! [`blk`] and [`net`] are the devices, and [`spec`] is the specification as
//! typed data, for drivers and tests too.

pub mod blk;
pub mod net;
mod parts;
mod queue;
pub mod ring;
pub mod spec;
