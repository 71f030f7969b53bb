// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `vfuse` command: reads the command line and the lab, puts the pretend
//! kernel behind the front door, and exits as the program did.

mod args;
mod bridge;
mod control;
mod events;
mod kernel;
mod listen;
mod log;
mod migration;
mod platform;
mod storage;
mod topology;
mod vdpa;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use clap::Parser;
use host::{FunctionInfo, Host, Lab};

use crate::args::{AerCommand, Arguments, Command, DeviceCommand, LabCommand, Run};

/// Usage errors, a lab that cannot be used among them, as in most commands.
const USAGE: u8 = 2;

/// The library of `--traps` (crate `traps`, compiled by the build script).
const TRAPS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libtraps.so"));

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Run(run) => self::run(run, arguments.verbose),
        Command::Lab(LabCommand::Check { file }) => {
            log::start(arguments.verbose, None, false).and_then(|_| check(file))
        }
        Command::Device(DeviceCommand::List { control, json }) => list(control, *json),
        Command::Group(command) => topology::group(command),
        Command::ResetGroup(command) => topology::reset_group(command),
        Command::Migration(command) => migration::command(command),
        Command::Vdpa(command) => vdpa::command(command),
        Command::Aer(AerCommand::Inject { file, id, control }) => inject(file.as_deref(), *id, control),
        Command::AerBridge(arguments) => bridge::run(arguments),
        Command::Events(arguments) => listen::events(arguments),
    };
    result.unwrap_or_else(|error| match error.downcast_ref::<intercept::Error>() {
        // Its message has the cause in it.
        Some(error) => {
            eprintln!("vfuse: {error}");
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
        None => {
            eprintln!("vfuse: {error:#}");
            ExitCode::from(USAGE)
        }
    })
}

fn run(run: &Run, verbose: u8) -> Result<ExitCode> {
    let events = log::start(verbose, run.trace.as_deref(), run.control.is_some())?;
    let lab = read_lab(run)?;
    let process_figures = lab.iommu.process_figures;
    // Devices may come later, through the control socket.
    let records = lab.aer.inject;
    let messages = !lab.vdpa.is_empty() || run.control.is_some();
    let waker = intercept::Waker::new().context("cannot make an eventfd")?;
    let hold = intercept::Hold::new();
    let platform = platform::Real::new(waker.clone(), hold.clone())?;
    let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(storage::Real))?;
    let host = Arc::new(Mutex::new(host));
    let control = match run.control.as_ref().zip(events) {
        Some((path, events)) => {
            let shared = control::Shared { host: Arc::clone(&host), waker: waker.clone(), events };
            Some(control::Control::serve(path, shared)?)
        }
        None => None,
    };
    let (program, rest) = run.program.split_first().context("no program given")?;
    let mut options = intercept::Options::new(program, rest);
    options.isolation = match run.isolation {
        args::Isolation::Auto => intercept::Isolation::Auto,
        args::Isolation::Namespaces => intercept::Isolation::Namespaces,
        args::Isolation::Userns => intercept::Isolation::Userns,
        args::Isolation::Paths => intercept::Isolation::Paths,
    };
    options.sysfs_writable = run.sysfs_writable;
    options.messages = messages;
    options.records = records;
    options.process_figures = process_figures;
    options.whole_process = true;
    if run.traps {
        anyhow::ensure!(!TRAPS.is_empty(), "--traps is for x86-64 programs; run this one without");
        options.preload = Some(TRAPS);
    }
    options.waker = Some(waker);
    options.hold = Some(hold);
    options.events = Some(platform.events());
    let status = intercept::run(options, Box::new(kernel::Running::new(host, platform)))?;
    drop(control);
    intercept::exit_like(status)
}

fn read_lab(run: &Run) -> Result<Lab> {
    let mut lab = match &run.lab {
        Some(file) => parse(file)?,
        None if run.device.is_empty() && run.vdpa.is_empty() => Lab::standard(),
        None => Lab::default(),
    };
    for device in &run.device {
        lab.add_device(device)?;
    }
    for device in &run.vdpa {
        lab.add_vdpa(device)?;
    }
    Ok(lab)
}

fn parse(file: &Path) -> Result<Lab> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the lab file {name}"))?;
    Ok(Lab::parse(&name, &text)?)
}

fn list(control: &Path, json: bool) -> Result<ExitCode> {
    let answer = control::ask(control, "/v1/functions")?;
    if json {
        println!("{answer}");
    } else {
        let functions: Vec<FunctionInfo> = serde_json::from_str(&answer).context("the lab's answer")?;
        print!("{}", host::table(&functions));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file of the aer-inject tool and has its errors injected.
fn inject(file: Option<&Path>, id: Option<pci::Address>, control: &Path) -> Result<ExitCode> {
    let (name, text) = match file {
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
            (name, text)
        }
        None => ("standard input".to_owned(), std::io::read_to_string(std::io::stdin())?),
    };
    pci::aer::parse(&text).map_err(|error| anyhow::anyhow!("{name}:{error}"))?;
    let id = id.map_or_else(String::new, |id| format!("?id={id}"));
    let answer = control::post_to(control, &format!("/v1/aer/inject{id}"), text)?;
    let done: Vec<String> = serde_json::from_str(&answer).context("the lab's answer")?;
    for address in done {
        println!("{address}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the lab without disks and shows what is plugged in.
fn check(file: &Path) -> Result<ExitCode> {
    let lab = parse(file)?;
    let platform =
        platform::Real::new(intercept::Waker::new().context("cannot make an eventfd")?, intercept::Hold::new())?;
    let host = Host::new(lab, platform, Box::new(storage::None))?;
    print!("{}", host::table(&host.functions()));
    Ok(ExitCode::SUCCESS)
}
