// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NVMe controller, driven as a program would.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod batch;
mod events;
mod features;
mod fixture;
mod identify;
mod init;
mod io;
mod io_errors;
mod logs;
mod migration;
mod prp;
mod queues;
mod random;
mod registers;
mod reset;
mod threads;
