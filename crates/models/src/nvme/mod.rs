// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An NVM Express 1.4 controller.
//!
//! [`Controller`] is the device; [`spec`] is the specification as typed data,
//! for drivers and tests too. Inside, `registers` takes stores that a program
//! makes (trapped, or seen in the mapped pages), `controller` enables, resets
//! and runs the queues, `admin` and `io` execute commands, `prp` finds their
//! data. Everything happens in the caller's thread, during
//! [`turn`](device::Device::turn): a command is executed whole and in order,
//! so the only commands outstanding are Asynchronous Event Requests.
//!
//! BAR 0 is 16 KiB: registers at 0, doorbells at 1000h, the MSI-X table at
//! 2000h and its pending bits at 3000h, each in a page of its own so that a
//! program can map the first two.
//!
//! # Mapped registers
//! A program stores to a mapped register without the controller being told,
//! so each turn compares the words with what was last seen. Three things
//! follow. Storing the value that is there already does nothing, also for a
//! doorbell. Two stores to one register between two turns count as the last
//! one; disabling and enabling again in between is not noticed. A driver waits
//! for CSTS.RDY, so that can happen only where RDY was never set because the
//! settings were refused. INTMC reads as zero through a mapping, so that each
//! store to it is seen.
//!
//! # What it does not implement
//! Scatter gather lists, metadata and protection information, fused
//! operations, controller memory buffers, weighted round robin arbitration,
//! interrupt coalescing (accepted, without effect), namespace management,
//! firmware download, directives, reservations, sanitize, self test and the
//! virtualisation commands.

mod admin;
mod config;
mod controller;
mod error;
mod events;
mod features;
mod identify;
mod io;
mod logs;
mod namespace;
mod prp;
mod queue;
mod registers;
pub mod spec;
mod state;
mod transfer;

pub use config::{Config, LbaSize, UnsupportedLbaSize};
pub use controller::Controller;
