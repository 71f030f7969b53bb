// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long QEMU says that a machine stood still: two QEMUs, each under a
//! `vfuse run` of its own, a Unix socket between them, devices of 64 MiB of
//! state that changes while they run. The machine runs its firmware, so that
//! its own memory has next to no part in it.
//!
//! QEMU stops the machine as soon as what is left would pass within the limit
//! of downtime, by the speed that it has seen. Devices without PRE_COPY need a
//! limit that 64 MiB of each pass in, and with as much PRE_COPY would be left
//! as soon as it begins. What makes use of it is QEMU's `switchover-ack`: the
//! machine is stopped once the other side has all initial data. It is on in
//! both, and nothing where there is no PRE_COPY. The speed is set in both, too
//! (`avail-switchover-bandwidth`): QEMU sees next to none once the machine's
//! memory is over, and would never stop it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::vfuse_run;
use crate::table::{Figures, Goal, Table};
use crate::timing::median;

const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);

/// Rows of downtime.
pub(super) fn rows(table: &mut Table) {
    for devices in [1, 4] {
        let what = format!("QEMU's downtime, {devices} × 64 MiB, with PRE_COPY / without");
        table.row(&what, Goal::AtMost(0.35, ""), || {
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                with.push(downtime(devices, "pre-copy-p2p")?);
                without.push(downtime(devices, "p2p")?);
            }
            let (with, without) = (median(with), median(without));
            Ok(Figures { ours: format!("{with} ms"), other: format!("{without} ms"), figure: with / without })
        });
    }
}

/// One move; ms.
fn downtime(devices: usize, migration: &str) -> Result<f64> {
    let place = Place::new()?;
    let mut source = Side::start(&place.0, "source", devices, migration, None)?;
    let uri = format!("unix:{}", place.0.join("move").display());
    let mut target = Side::start(&place.0, "target", devices, migration, Some(&uri))?;
    let on = |capability: &str| json!({ "capability": capability, "state": true });
    let waits = json!({ "capabilities": [on("return-path"), on("switchover-ack")] });
    for side in [&mut source, &mut target] {
        side.tell("migrate-set-capabilities", &waits)?;
    }
    let limits = json!({
        "downtime-limit": 5000, "max-bandwidth": 1_u64 << 40, "avail-switchover-bandwidth": 1_u64 << 30
    });
    source.tell("migrate-set-parameters", &limits)?;
    source.tell("migrate", &json!({ "uri": uri }))?;
    let start = Instant::now();
    loop {
        let migration = source.tell("query-migrate", &json!({}))?;
        match migration["status"].as_str() {
            Some("completed") => return migration["downtime"].as_f64().context("QEMU does not say how long"),
            Some("failed" | "cancelled") => bail!("the migration has failed: {migration}"),
            _ => ensure!(start.elapsed() < LIMIT, "the migration does not end: {migration}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory that goes away.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Place> {
        let place = std::env::temp_dir().join(format!("vfuse-bench-{}", std::process::id()));
        fs::create_dir_all(&place)?;
        Ok(Place(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A QEMU and its monitor.
struct Side {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Side {
    fn start(place: &Path, name: &str, devices: usize, migration: &str, incoming: Option<&str>) -> Result<Side> {
        let device = |n: usize| {
            format!(
                "[[device]]\nmodel = \"dsa\"\naddr = \"{:02x}:00.0\"\nmigration = \"{migration}\"\n\
                 state_size = \"64M\"\nstate_dirty_rate = \"4M\"\n",
                n + 1
            )
        };
        let lab = place.join(format!("{name}.toml"));
        let text: String = (0..devices).map(device).collect();
        fs::write(&lab, format!("[vfio]\nunlimited_memlock = true\n{text}"))?;
        let socket = place.join(format!("{name}.qmp"));
        let mut command = vfuse_run(["--lab", lab.to_str().context("path")?])?;
        command.args(["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "128", "-nodefaults", "-nographic"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        for n in 0..devices {
            command.args(["-device", &format!("vfio-pci,host=0000:{:02x}:00.0,enable-migration=on", n + 1)]);
        }
        command.args(incoming.into_iter().flat_map(|uri| ["-incoming", uri]));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = child.try_wait()? {
                bail!("QEMU ended with {status}");
            }
            ensure!(start.elapsed() < LIMIT, "QEMU has no monitor");
            std::thread::sleep(Duration::from_millis(10));
        };
        let _ = fs::remove_file(&socket);
        stream.set_read_timeout(Some(LIMIT))?;
        let mut side = Side { child, monitor: BufReader::new(stream) };
        side.line()?;
        side.tell("qmp_capabilities", &json!({}))?;
        Ok(side)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.monitor.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn tell(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(self.monitor.get_mut(), "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut line = self.line()?;
            if let Some(result) = line.get_mut("return") {
                return Ok(result.take());
            }
            ensure!(line.get("event").is_some(), "{command}: {line}");
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let quit = json!({ "execute": "quit" });
        let _ = writeln!(self.monitor.get_mut(), "{quit}");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
