// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door for unmodified programs: runs a program under a seccomp
//! filter with user notification and answers its calls.

mod bpf;
mod error;
mod files;
mod filter;
mod kernel;
mod listener;
mod options;
mod waker;

use std::process::ExitStatus;

pub use error::Error;
pub use kernel::{Entry, FileKind, Kernel, NODE_DEVICE, Node, Tree};
pub use options::{Isolation, Options};
pub use waker::Waker;

/// Runs a program in front of `kernel` and returns when it and all its
/// descendants are gone, with the status of the program itself.
pub fn run(options: Options, kernel: Box<dyn Kernel>) -> Result<ExitStatus, Error> {
    let _ = (options, kernel);
    Err(Error::Nested)
}
