// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lab costs in which nothing happens: QEMU has the NVMe controller of
//! the default lab open, enabled and with queues, and sleeps.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::maps::resident;
use crate::process::vfuse_run;
use crate::table::{Figures, Goal, Table};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(5);
/// Size of the default lab's disk.
const DISK_KIB: u64 = 1 << 20;

/// Rows of an idle lab.
pub(crate) fn rows(table: &mut Table) {
    let idle = measure();
    let figures = || idle.as_ref().map_err(|error| anyhow!("{error:#}"));
    table.row("idle lab, supervisor's CPU", Goal::AtMost(1.0, " %"), || {
        let Idle { busy, watched, .. } = figures()?;
        Ok(Figures {
            ours: format!("{:.1} ms", busy * 1e3),
            other: format!("{watched:.2} s of one core"),
            figure: busy / watched * 100.0,
        })
    });
    table.row("idle lab, resident memory beyond disks", Goal::AtMost(24.0, " MiB"), || {
        let Idle { resident, disk, .. } = figures()?;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        Ok(Figures {
            ours: format!("VmRSS {:.1} MiB", mib(*resident)),
            other: format!("less {:.1} MiB of disk", mib(*disk)),
            figure: mib(resident - disk),
        })
    });
}

struct Idle {
    /// Seconds that all threads ran.
    busy: f64,
    watched: f64,
    resident: f64,
    disk: f64,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure() -> Result<Idle> {
    let mut command = vfuse_run([])?;
    let sleep = format!("sleep {}", (WATCHED.as_millis() + 3000));
    // Line by line: it is to sleep when its first word comes.
    command.args(["stdbuf", "-oL", "qemu-io", "-f", "raw", "-c", "read 0 4k", "-c", &sleep, "nvme://0000:01:00.0/1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let stdout = child.stdout.take().context("no pipe")?;
    let child = Ended(child);
    let pid = child.0.id();
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.starts_with("read "), "qemu-io did not read: {line}");
    // The last command's aftermath is over then.
    std::thread::sleep(Duration::from_millis(500));
    let (before, start) = (busy(pid)?, Instant::now());
    std::thread::sleep(WATCHED);
    let (busy, watched) = (busy(pid)? - before, start.elapsed().as_secs_f64());
    Ok(Idle { busy, watched, resident: resident(pid)?, disk: disk(pid)? })
}

/// Seconds that the threads of a process have run.
fn busy(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos: f64 = text.split(' ').next().context("schedstat")?.parse()?;
        total += nanos / 1e9;
    }
    Ok(total)
}

/// Resident bytes of the disk: of the mapping that has its size.
fn disk(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let kib = |line: &str, name| line.strip_prefix(name)?.trim().trim_end_matches(" kB").parse::<u64>().ok();
    let (mut size, mut total) = (0, 0);
    for line in text.lines() {
        size = kib(line, "Size:").unwrap_or(size);
        if size >= DISK_KIB {
            total += kib(line, "Rss:").unwrap_or(0);
        }
    }
    Ok((total * 1024) as f64)
}
