// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of `/dev`, `/sys` and `/proc` that a lab replaces; front doors
//! know the same types.

pub use caller::tree::{Entry, NODE_DEVICE, Node, Tree};
