// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program for tests of the core: memory with holes, files in memory that
//! have an identity, descriptors, rights and limits, which can end; and the machine that it runs on.

mod client;
mod memory;
mod platform;

pub use client::{Client, Counter, Limit, TestReadiness};
pub use memory::{ClientMemory, MemFile};
pub use platform::{Listener, TestFile, TestPlatform};
