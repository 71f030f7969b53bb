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

/// The largest queue of a device that is told nothing else. It is the largest
/// that QEMU has: all virtio devices of QEMU 10.0.13 offer a guest queues of
/// that size, whatever the vhost-vdpa device says, and a smaller device would
/// refuse what the guest then takes (VDPA-6.1).
pub const QUEUE_SIZE: u16 = 1024;
