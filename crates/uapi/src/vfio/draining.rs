// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draining page requests before a device is moved: an extension, of what was
//! discussed and never merged (MIG-094 to MIG-103).
//!
//! A program asks for it by `VFIO_DEVICE_FEATURE` with [`DRAIN`]. From then on
//! `SET` of `MIG_DEVICE_STATE` that ends in RUNNING_P2P or PRE_COPY_P2P gives
//! an eventfd as `data_fd` and returns at once.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Feature: [`Drain`] and as many [`DrainPages`] as it counts. GET, SET (the
/// first word only).
pub const DRAIN: u32 = 0xff03;

bitflags! {
    /// How draining stands.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DrainFlags: u32 {
        /// The program has asked for it. The only one to set.
        const ON = 1;
        /// The device drains.
        const UNDER_WAY = 2;
    }
}

/// How draining stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Drain {
    /// [`DrainFlags`].
    pub flags: u32,
    /// How many [`DrainPages`] there is room for; how many there are.
    pub count: u32,
}

/// Pages where work is submitted: while the device drains a program that wants
/// to see each submission does them by `write`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DrainPages {
    /// Offset in the device's file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}
