// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where events go: to standard error for people, to a file for programs.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Starts logging. `RUST_LOG` wins over `verbose`; the trace file gets
/// everything whatever either says.
pub(crate) fn start(verbose: u8, trace: Option<&Path>) -> Result<()> {
    let default = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(default.into()).from_env().context("RUST_LOG")?;
    let people = fmt::layer().with_writer(std::io::stderr).with_filter(filter);
    let file = match trace {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write the trace {}", path.display()))?;
            let filter = EnvFilter::new("vfuse=trace");
            Some(fmt::layer().json().flatten_event(true).with_writer(Mutex::new(file)).with_filter(filter))
        }
        None => None,
    };
    tracing_subscriber::registry().with(people).with(file).try_init().context("cannot start logging")
}
