// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Advanced Error Reporting in hardware: what a function logs of an error,
//! and how its message finds the root port.
//!
//! [`Fabric::raise`](crate::Fabric::raise) is an error as a function detects it: masks, severities
//! and enables decide what comes of it. [`Fabric::inject`](crate::Fabric::inject) is Linux's
//! `aer_inject`, which goes past them. Either way software is told by a
//! [`Signal`](crate::Signal), as by an interrupt of the port.

mod format;
mod inject;
mod log;
mod route;
pub mod spec;

pub use format::{CORRECTABLE_KEYWORDS, ParseError, UNCORRECTABLE_KEYWORDS, parse};
pub use inject::{InjectError, Injection};
pub use log::{AerError, Raised};
pub use route::RaiseError;
pub use spec::Severity;
