// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `qemu-img bench` on `nvme://` inside `vfuse run`, beside the same on QEMU's
//! `null-co://`, which answers without doing anything.
//!
//! The disk is in memory and filled first, so that each read has bytes to copy.
//!
//! Two rows say what any device could reach. QEMU's own driver for NVMe takes
//! processor time for each request; with a device that answers at once, QEMU
//! would be as fast as that, so the ratio of the times is a ceiling.
//! `null-co://` copies nothing, whatever the length: what it "reads" in a
//! second is beside what memory can be copied, and our rate beside what the
//! kernel copies into another program, which is the least that must be done.
#![allow(unsafe_code)] // the bare copy

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::client::{LOOKED_AT, MEMORY, PRIVATE};
use crate::process::{Client, own, vfuse_run};
use crate::table::{Figures, Goal, Table};
use crate::timing::{each, in_turn};

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
        if load.what == SMALL.what {
            table.row("  its ceiling: QEMU's own time, null-co:// / nvme://", Goal::None, || {
                let (ours, null) = in_turn(ROUNDS, || spent(&load, true), || spent(&load, false))?;
                let text = |seconds: f64| format!("{:.2} µs a request", seconds * 1e6);
                Ok(Figures { ours: text(ours), other: text(null), figure: null / ours })
            });
        }
    }
    table.row("  null-co://'s 128 KiB reads / memcpy", Goal::None, || {
        let (mut from, mut to) = (vec![1u8; LOOKED_AT], vec![0u8; LARGE.size as usize]);
        let copy = |call| {
            let part = place(call, LARGE.size as usize);
            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&mut from).get(part).context("window")?);
            Ok(())
        };
        against(copy, || null(&LARGE))
    });
    table.row("  nvme://'s 128 KiB reads / process_vm_writev", Goal::None, || {
        let mut program = Client::start(own(MEMORY)?)?;
        let to = program.ask(PRIVATE, 1)? as usize;
        let pid = i32::try_from(program.pid())?;
        let mut from = vec![1u8; LOOKED_AT];
        let len = LARGE.size as usize;
        let copy = |call| {
            let part = from.get_mut(place(call, len)).context("window")?;
            let local = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: len };
            // As many buffers as there are requests under way.
            let at = to + (call as usize % LARGE.depth as usize) * len;
            let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: len };
            // SAFETY: `part` has as many bytes; the other address is another program's.
            let moved = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
            ensure!(moved == len as isize, "process_vm_writev: {}", std::io::Error::last_os_error());
            Ok(())
        };
        against(copy, || nvme(&LARGE))
    });
}

/// The part of a window that a copy takes: one after the other, as the reads.
fn place(call: u64, len: usize) -> std::ops::Range<usize> {
    let start = call as usize * len % LOOKED_AT;
    start..start + len
}

/// A rate of large reads, beside that of a bare copy of as many bytes.
fn against(mut copy: impl FnMut(u64) -> Result<()>, mut reads: impl FnMut() -> Result<f64>) -> Result<Figures> {
    const CALLS: u64 = 4000;
    each(CALLS, &mut copy)?;
    let (reads, copies) = in_turn(ROUNDS, &mut reads, || Ok(1e9 / each(CALLS, &mut copy)?))?;
    let text = |rate: f64| format!("{:.1} GB/s", rate * f64::from(LARGE.size) / 1e9);
    Ok(Figures { ours: text(reads), other: text(copies), figure: reads / copies })
}

/// Requests a second.
fn nvme(load: &Load) -> Result<f64> {
    rate(load, &output(on_nvme(&format!("exec {}", bench(load, DISK)))?)?)
}

/// Requests a second.
fn null(load: &Load) -> Result<f64> {
    let words = bench(load, load.peer);
    let mut command = Command::new("qemu-img");
    command.args(words.split(' ').skip(1));
    rate(load, &output(command)?)
}

const DISK: &str = "nvme://0000:01:00.0/1";

/// A shell in a lab with a full disk.
fn on_nvme(script: &str) -> Result<Command> {
    let script = format!("qemu-io -f raw -c 'write -P 1 0 256M' {DISK} && {script}");
    let mut command = vfuse_run(["--device", "nvme,addr=01:00.0,size=256M"])?;
    command.args(["bash", "-c", &script]);
    Ok(command)
}

/// Seconds of processor time that QEMU takes for a request, without start and
/// end, which a run of few requests has as well.
fn spent(load: &Load, on_disk: bool) -> Result<f64> {
    let few = Load { requests: load.depth, ..*load };
    let image = if on_disk { DISK } else { load.peer };
    let timed = |load: &Load| format!("time {} >/dev/null", bench(load, image));
    let script = format!("TIMEFORMAT='spent %3U %3S'; {}; {}", timed(&few), timed(load));
    let mut command = match on_disk {
        true => on_nvme(&script)?,
        false => {
            let mut command = Command::new("bash");
            command.args(["-c", &script]);
            command
        }
    };
    command.stderr(Stdio::piped());
    let times: Vec<f64> = output(command)?
        .lines()
        .filter_map(|line| line.strip_prefix("spent "))
        .map(|line| line.split(' ').map(str::parse::<f64>).sum::<Result<f64, _>>())
        .collect::<Result<_, _>>()?;
    let [few, all] = times[..] else { anyhow::bail!("bash did not say how long QEMU ran") };
    Ok((all - few) / f64::from(load.requests))
}

fn bench(load: &Load, image: &str) -> String {
    let Load { requests, depth, size, .. } = load;
    format!("qemu-img bench -f raw -t none -c {requests} -d {depth} -s {size} {image}")
}

/// What a command says, errors too.
fn output(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let (said, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}", erred.trim());
    Ok(format!("{said}{erred}"))
}

/// QEMU says how long the requests took, without start and end.
fn rate(load: &Load, said: &str) -> Result<f64> {
    let seconds: f64 = said
        .lines()
        .find_map(|line| line.strip_prefix("Run completed in ")?.strip_suffix(" seconds."))
        .with_context(|| format!("qemu-img did not say how long it took: {said}"))?
        .parse()?;
    Ok(f64::from(load.requests) / seconds)
}
