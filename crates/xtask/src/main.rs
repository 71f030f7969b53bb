// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chores of the project, run as `cargo xtask NAME`.
#![forbid(unsafe_code)]

mod conformance;
mod selftests;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("conformance") => conformance::report(),
        Some("selftests") => selftests::report(),
        other => bail!("unknown chore {other:?}; there are: conformance, selftests"),
    }
}
