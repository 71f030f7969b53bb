// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pretend kernel: builds a lab from its description, opens files,
//! dispatches calls by kind of file, and shows the lab in `/dev` and `/sys`.
#![forbid(unsafe_code)]

pub mod lab;

pub use lab::{Lab, LabError};
