// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libblkio's `virtio-blk-vhost-vdpa` on a lab's disk, beside its
//! `virtio-blk-vhost-user` on a minimal backend and its `io_uring`, on the same
//! file: 4 KiB at random, 32 at a time, from the page cache.
//!
//! A driver of virtio shares its ring with another thread on either backend;
//! `io_uring` has none. A last row has bare `pread`s beside the device, one
//! after the other.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{vfuse, vfuse_run};
use crate::table::{Figures, Goal, Table};
use crate::timing::{each, in_turn};

const ROUNDS: usize = 5;
const READS: &str = "300000";
const SIZE: usize = 256 << 20;

pub(super) fn rows(table: &mut Table) {
    row(table, "libblkio 4 KiB reads, QD32: vdpa blk / vhost-user-blk, minimal", Goal::AtLeast(0.8, ""), on_backend);
    row(table, "libblkio 4 KiB reads, QD32: vdpa blk / io_uring", Goal::AtLeast(0.8, ""), on_ring);
    row(table, "  the same / bare preads, one after the other", Goal::None, by_pread);
}

fn row(table: &mut Table, name: &str, goal: Goal, other: fn(&Path, &Path) -> Result<f64>) {
    table.row(name, goal, || {
        let file = std::env::temp_dir().join(format!("vfuse-bench-{}", std::process::id()));
        let figures = measure(&file, other);
        let _ = std::fs::remove_file(&file);
        figures
    });
}

/// The client on a lab's disk, beside something else on the same file.
fn measure(file: &Path, other: fn(&Path, &Path) -> Result<f64>) -> Result<Figures> {
    std::fs::write(file, vec![1u8; SIZE]).context("room for a disk")?;
    let client = vfuse()?.with_file_name("blkio_client");
    ensure!(client.exists(), "there is no {}: cargo build --release -p vfuse-programs", client.display());
    let device = format!("blk,file={}", file.display());
    let (ours, other) = in_turn(
        ROUNDS,
        || {
            let mut command = vfuse_run(["--vdpa", &*device])?;
            command.arg(&client).args(["virtio-blk-vhost-vdpa", "/dev/vhost-vdpa-0", "read", READS]);
            rate(command)
        },
        || other(&client, file),
    )?;
    let text = |rate: f64| format!("{:.0}k/s", rate / 1e3);
    Ok(Figures { ours: text(ours), other: text(other), figure: ours / other })
}

fn on_backend(client: &Path, file: &Path) -> Result<f64> {
    let backend = client.with_file_name("vhost_user_blk");
    ensure!(backend.exists(), "there is no {}: cargo build --release -p vfuse-programs", backend.display());
    let socket = file.with_extension("sock");
    let mut backend = Command::new(backend).arg(&socket).arg(file).spawn()?;
    while !socket.exists() {
        ensure!(backend.try_wait()?.is_none(), "the backend has ended");
        std::thread::yield_now();
    }
    let mut command = Command::new(client);
    command.arg("virtio-blk-vhost-user").arg(&socket).args(["read", READS]);
    let rate = rate(command);
    let _ = backend.kill();
    backend.wait()?;
    let _ = std::fs::remove_file(&socket);
    rate
}

fn on_ring(client: &Path, file: &Path) -> Result<f64> {
    let mut command = Command::new(client);
    command.arg("io_uring").arg(file).args(["cached-read", READS]);
    rate(command)
}

fn by_pread(_client: &Path, file: &Path) -> Result<f64> {
    const BLOCK: usize = 4096;
    let (file, mut block) = (File::open(file)?, [0; BLOCK]);
    let reads = READS.parse()?;
    // The client's order.
    let at = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE / BLOCK) as u64 * BLOCK as u64;
    Ok(1e9 / each(reads, |n| Ok(file.read_exact_at(&mut block, at(n))?))?)
}

/// Reads a second, as the client says.
fn rate(mut command: Command) -> Result<f64> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let number = said.lines().find_map(|line| line.strip_prefix("reads a second "));
    let erred = String::from_utf8_lossy(&output.stderr);
    number.with_context(|| format!("{command:?}: {said}{erred}"))?.parse().context("a number")
}
