// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `qemu-img bench` on `nvme://` inside `vfuse run`, beside the same on QEMU's
//! `null-co://`, which answers without doing anything.
//!
//! The disk is in memory and filled first, so that each read has bytes to copy.
//! `null-co://` copies none, whatever the length; a second peer fills the
//! buffers with zeros.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::vfuse_run;
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 5;

/// Does nothing.
const NULL: &str = "null-co://";
/// Fills the buffer.
const ZEROS: &str = r#"json:{"driver":"raw","file":{"driver":"null-co","read-zeroes":true}}"#;

struct Load {
    what: &'static str,
    goal: Goal,
    requests: u32,
    depth: u32,
    size: u32,
    peer: &'static str,
}

const SMALL: Load = Load {
    what: "qemu-img 4 KiB reads, QD32: nvme:// / null-co://",
    goal: Goal::AtLeast(0.6, ""),
    requests: 200_000,
    depth: 32,
    size: 4 << 10,
    peer: NULL,
};
const LARGE: Load = Load {
    what: "qemu-img 128 KiB reads, QD8: nvme:// / null-co://",
    goal: Goal::AtLeast(0.6, ""),
    requests: 40_000,
    depth: 8,
    size: 128 << 10,
    peer: NULL,
};
const FILLING: Load =
    Load { what: "  nvme:// / null-co:// that fills its buffers", goal: Goal::None, peer: ZEROS, ..LARGE };

/// Rows of QEMU.
pub(crate) fn rows(table: &mut Table) {
    for load in [SMALL, LARGE, FILLING] {
        table.row(load.what, load.goal, || {
            let (ours, null) = in_turn(ROUNDS, || nvme(&load), || null(&load))?;
            let text = |rate: f64| format!("{:.0}k/s, {:.2} GB/s", rate / 1e3, rate * f64::from(load.size) / 1e9);
            Ok(Figures { ours: text(ours), other: text(null), figure: ours / null })
        });
    }
}

/// Requests a second.
fn nvme(load: &Load) -> Result<f64> {
    const DISK: &str = "nvme://0000:01:00.0/1";
    let bench = bench(load, DISK).join(" ");
    let script = format!("qemu-io -f raw -c 'write -P 1 0 256M' {DISK} && exec {bench}");
    let mut command = vfuse_run(["--device", "nvme,addr=01:00.0,size=256M"])?;
    command.args(["sh", "-c", &script]);
    rate(load, command)
}

/// Requests a second.
fn null(load: &Load) -> Result<f64> {
    let words = bench(load, load.peer);
    let mut command = Command::new("qemu-img");
    command.args(words.iter().skip(1));
    rate(load, command)
}

fn bench(load: &Load, image: &str) -> Vec<String> {
    let Load { requests, depth, size, .. } = load;
    format!("qemu-img bench -f raw -t none -c {requests} -d {depth} -s {size} {image}")
        .split(' ')
        .map(str::to_owned)
        .collect()
}

/// QEMU says how long the requests took, without start and end.
fn rate(load: &Load, mut command: Command) -> Result<f64> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let (said, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}", erred.trim());
    let seconds: f64 = said
        .lines()
        .find_map(|line| line.strip_prefix("Run completed in ")?.strip_suffix(" seconds."))
        .with_context(|| format!("qemu-img did not say how long it took: {said}"))?
        .parse()?;
    Ok(f64::from(load.requests) / seconds)
}
