// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a PCI fabric is: functions and their configuration space, ports,
//! buses, isolation groups and reset reach.
#![forbid(unsafe_code)]

mod address;
mod fabric;
mod function;
pub mod spec;

pub use address::{Address, AddressError};
pub use fabric::Fabric;
pub use function::{Effect, Function};
pub use spec::FunctionSpec;
