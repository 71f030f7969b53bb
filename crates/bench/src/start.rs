// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What it costs to start a program in a lab and to clear up behind it.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process::vfuse_run;
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 30;

/// Rows of starting.
pub(crate) fn rows(table: &mut Table) {
    table.row("vfuse run -- true, more than true", Goal::AtMost(60.0, " ms"), || {
        let (ours, bare) = in_turn(
            ROUNDS,
            || {
                let mut command = vfuse_run([])?;
                command.arg("true");
                run(command)
            },
            || run(Command::new("true")),
        )?;
        let text = |ms: f64| format!("{ms:.1} ms");
        Ok(Figures { ours: text(ours), other: text(bare), figure: ours - bare })
    });
}

/// Milliseconds from start to end.
fn run(mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
