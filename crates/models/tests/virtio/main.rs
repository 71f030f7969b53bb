// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtio devices and their rings.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blk;
mod net;
mod net_ways;
mod rings;
mod rings_hostile;
mod rings_model;
