// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Data Streaming Accelerator, driven as a program would.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batches;
mod checks;
mod commands;
mod compares;
mod crcs;
mod deltas;
mod faults;
mod fixture;
mod interrupts;
mod migration;
mod missing;
mod moves;
mod pasids;
mod portals;
mod random;
mod registers;
