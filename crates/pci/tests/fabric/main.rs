// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fabric from outside: what a lab describes and what the pretend kernel
//! then finds.
#![allow(clippy::unwrap_used)] // in a test an unwrap is an assertion

mod aer;
mod build;
mod common;
mod config;
mod groups;
mod inject;
mod link;
mod lspci;
mod peers;
mod properties;
mod recovery;
mod recovery_link;
mod recovery_random;
mod reset;
mod save;
mod sriov;
