// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse aer-bridge`: errors of a lab's devices become errors of a port in a
//! QEMU guest, so that the guest's own AER code runs recovery
//! (vfio-error-recovery.md section 7).
//!
//! QEMU itself stops the machine at any uncorrectable error of a device. The
//! bridge takes the notices instead of QEMU (`POST /v1/aer/take`), waits until
//! the host has recovered, and has QEMU's monitor inject an error at the
//! guest's port above the device. If it ends before, QEMU is told after all.
//!
//! The error is always the same: Completion Timeout, non-fatal, or Malformed
//! TLP, fatal. The host has cleared the status by then (ERR-089), and to the
//! guest's drivers only the severity counts.

mod machine;
mod ports;
mod qmp;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use host::survey::ResetReport;
use pci::Address;

use crate::args::AerBridge;
use crate::control;
use crate::listen::Lines;
use machine::Machine;
use ports::{Action, Ports};
use qmp::Monitor;

/// Errors as QEMU's monitor names them.
const NONFATAL: &str = "COMP_TIME";
const FATAL: &str = "MALF_TLP";

/// Runs until QEMU or the lab ends.
pub(crate) fn run(arguments: &AerBridge) -> Result<ExitCode> {
    // Asked before there is a runtime: the question has one of its own.
    let groups = groups(&arguments.control)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bridge(arguments, &groups))
}

/// What is reset together, at the host.
fn groups(socket: &Path) -> Result<Vec<ResetReport>> {
    serde_json::from_str(&control::ask(socket, "/v1/reset-groups")?).context("the lab's answer")
}

async fn bridge(arguments: &AerBridge, groups: &[ResetReport]) -> Result<ExitCode> {
    let mut monitor = Monitor::connect(&arguments.qmp).await?;
    let machine = Machine::read(&mut monitor).await?;
    let devices = if arguments.device.is_empty() { machine.addresses() } else { arguments.device.clone() };
    ensure!(!devices.is_empty(), "the guest has no device of a lab");
    let mut ports = Ports::default();
    for device in &devices {
        let name = device.to_string();
        let group = groups.iter().find(|group| group.functions.iter().any(|member| member.address == name));
        let group = group.with_context(|| format!("the lab has no function at {device}"))?;
        let port = machine.port(&mut monitor, *device, group).await?;
        println!("{device} is behind the guest's port {port}");
        ports.add(&port, *device);
    }
    let list = list(&devices);
    let path = format!("/v1/aer/take?device={list}&fatal={}", arguments.fatal);
    let mut lines = Lines::open(&arguments.control, "POST", &path).await?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            event = monitor.event() => match event? {
                Some(_) => continue,
                None => None,
            },
        };
        let Some(line) = line else { break };
        let event: serde_json::Value = serde_json::from_str(&line).context("the lab's events")?;
        match event.get("event").and_then(|name| name.as_str()) {
            Some("events.start") => println!("ready"),
            // It is told by the eventfd now, as whatever else was lost.
            Some("events.lost") => bail!("the lab's events came too fast"),
            _ => {}
        }
        match ports.event(&event) {
            Some(Action::Inject { port, fatal, devices }) => {
                inject(&mut monitor, &port, fatal).await?;
                let list = self::list(&devices);
                answered(&arguments.control, &list).await?;
                let what = if fatal { "a fatal" } else { "a non-fatal" };
                println!("{list}: the host has recovered; port {port} reports {what} error to the guest");
            }
            Some(Action::Told { device, kind }) => println!("{device}: {kind}; QEMU itself is told"),
            None => {}
        }
    }
    println!("QEMU has ended");
    Ok(ExitCode::SUCCESS)
}

async fn inject(monitor: &mut Monitor, port: &str, fatal: bool) -> Result<()> {
    let error = if fatal { FATAL } else { NONFATAL };
    let answer = monitor.human(&format!("pcie_aer_inject_error {port} {error}")).await?;
    if !answer.starts_with("OK") {
        bail!("QEMU does not inject {error} at {port}: {answer}");
    }
    Ok(())
}

async fn answered(socket: &Path, list: &str) -> Result<()> {
    let mut answer = Lines::open(socket, "POST", &format!("/v1/aer/answered?device={list}")).await?;
    while answer.next().await?.is_some() {}
    Ok(())
}

fn list(devices: &[Address]) -> String {
    let names: Vec<String> = devices.iter().map(Address::to_string).collect();
    names.join(",")
}
