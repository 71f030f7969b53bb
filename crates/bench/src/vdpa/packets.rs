// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DPDK's `testpmd` on virtio-user, forwarding frames of 64 bytes that come back
//! to it: over a lab's device that hears what it sends, beside the same over
//! vhost-user to another testpmd, which forwards on DPDK's own `net_vhost`.
//! `net_vhost` offers IN_ORDER, for which DPDK's driver has quicker code, so the
//! device does, too. Each side has a core, on which `taskset` keeps the lab.
//! What testpmd receives in a second counts.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::vfuse_run;
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 5;
/// How long frames are counted.
const COUNTED: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(30);

pub(super) fn rows(table: &mut Table) {
    for (what, keys, port) in [
        ("64-byte packets, split: virtio-user on us / net_vhost", ",in_order=on", ""),
        ("64-byte packets, packed: virtio-user on us / net_vhost", ",packed=on,in_order=on", ",packed_vq=1"),
    ] {
        table.row(what, Goal::AtLeast(1.0, ""), || {
            let (ours, peer) = in_turn(ROUNDS, || on_vdpa(keys, port), || on_vhost(port))?;
            let text = |rate: f64| format!("{:.2} M/s", rate / 1e6);
            Ok(Figures { ours: text(ours), other: text(peer), figure: ours / peer })
        });
    }
}

/// A directory that goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("vfuse-packets-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A testpmd that is told what to do.
struct Testpmd {
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    /// Its forwarding thread is on `core`, the one that reads commands on the
    /// other core. What it is in is `prefix`.
    fn start(prefix: Option<Command>, name: &str, core: u32, device: &str, scratch: &Scratch) -> Result<Testpmd> {
        let log = scratch.0.join(name);
        let file = std::fs::File::create(&log)?;
        let cores = format!("0@{},1@{core}", 1 - core);
        // What it says is to be read as it says it.
        let mut command = match prefix {
            Some(mut command) => {
                command.arg("stdbuf");
                command
            }
            None => Command::new("stdbuf"),
        };
        command.args(["-oL", "dpdk-testpmd"]);
        command.args(["--lcores", &cores, "--no-telemetry", "--no-huge", "-m", "256", "--no-pci"]);
        command.args([
            "--file-prefix",
            &format!("{name}-{}", std::process::id()),
            "--vdev",
            device,
            "--",
            "-i",
            "--forward-mode=io",
        ]);
        command.args(["--total-num-mbufs=4096", "--rxd=256", "--txd=256"]);
        command.env("XDG_RUNTIME_DIR", &scratch.0);
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().context("dpdk-testpmd")?;
        let mut testpmd = Testpmd { child, log };
        testpmd.says("testpmd> ")?;
        Ok(testpmd)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn says(&mut self, words: &str) -> Result<()> {
        let start = Instant::now();
        while !self.text().contains(words) {
            if self.child.try_wait()?.is_some() || start.elapsed() > START {
                bail!("testpmd did not say {words:?}: {}", self.text());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("no pipe")?, "{line}").context("testpmd is gone")
    }

    /// Frames received so far.
    fn received(&mut self) -> Result<(Instant, f64)> {
        let before = self.text().matches("TX-bytes:").count();
        self.tell("show port stats 0")?;
        let start = Instant::now();
        while self.text().matches("TX-bytes:").count() == before {
            ensure!(start.elapsed() < START, "testpmd shows no figures: {}", self.text());
            sleep(Duration::from_millis(1));
        }
        let text = self.text();
        let number = text.rsplit_once("RX-packets:").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok((start, number.context("no figure")?.parse()?))
    }

    /// Frames a second.
    fn rate(&mut self) -> Result<f64> {
        self.tell("start tx_first 4")?;
        sleep(Duration::from_millis(500));
        let (from, before) = self.received()?;
        sleep(COUNTED);
        let (to, after) = self.received()?;
        ensure!(after > before, "no frame comes back: {}", self.text());
        Ok((after - before) / (to - from).as_secs_f64())
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.tell("stop").and_then(|()| self.tell("quit"));
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn user(path: &Path, port: &str) -> String {
    format!("net_virtio_user0,path={},queues=1,queue_size=256{port}", path.display())
}

fn on_vdpa(keys: &str, port: &str) -> Result<f64> {
    let scratch = Scratch::new()?;
    let device = format!("net,mac=02:00:00:00:00:01{keys}");
    let run = vfuse_run(["--vdpa", &*device])?;
    let mut prefix = Command::new("taskset");
    prefix.args(["-c", "0"]).arg(run.get_program()).args(run.get_args()).args(["taskset", "-c", "0,1"]);
    Testpmd::start(Some(prefix), "user", 1, &user(Path::new("/dev/vhost-vdpa-0"), port), &scratch)?.rate()
}

fn on_vhost(port: &str) -> Result<f64> {
    let scratch = Scratch::new()?;
    let socket = scratch.0.join("socket");
    let device = format!("net_vhost0,iface={},queues=1", socket.display());
    let mut vhost = Testpmd::start(None, "vhost", 0, &device, &scratch)?;
    vhost.tell("start")?;
    Testpmd::start(None, "user", 1, &user(&socket, port), &scratch)?.rate()
}
