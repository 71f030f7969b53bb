// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door for unmodified programs: runs a program under a seccomp
//! filter with user notification and answers its calls.

mod bpf;
mod calls;
mod child;
mod error;
mod events;
mod farm;
mod files;
mod filter;
mod identity;
mod kernel;
mod launch;
mod listener;
mod mounts;
mod opens;
mod options;
mod paths;
mod processes;
mod program;
mod resolve;
mod run;
mod scratch;
mod side;
mod signals;
mod state;
mod supervisor;
mod thread;
mod trace;
mod waker;

pub use error::Error;
pub use kernel::{Entry, FileKind, Kernel, NODE_DEVICE, Node, Tree};
pub use options::{Isolation, Options};
pub use run::run;
pub use signals::exit_like;
pub use waker::Waker;
