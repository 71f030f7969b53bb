// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// VFIO in user space: run unmodified device-passthrough programs on software devices.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Say more: -v what happens, -vv every call and what each device does.
    ///
    /// RUST_LOG, if set, decides instead.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program in a lab and exit with its exit status.
    Run(Run),
    /// Look at lab files.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Look at the devices of a running lab.
    #[command(subcommand)]
    Device(DeviceCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List every function: address, ids, group, driver.
    List {
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Check a lab file and show what it makes.
    Check {
        /// The lab file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The lab file. Without it and without --device: an NVMe controller with
    /// a RAM disk of 1 GiB at 0000:01:00.0.
    #[arg(long, value_name = "FILE")]
    pub(crate) lab: Option<PathBuf>,

    /// A device, besides those of the lab file: MODEL[,key=value]..., for
    /// example nvme,addr=02:00.0,file=disk.img or nvme,size=1G. May be repeated.
    #[arg(long, value_name = "SPEC")]
    pub(crate) device: Vec<String>,

    /// Answer questions about the running lab at this Unix socket (HTTP and JSON).
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,

    /// How the program's view of /dev and /sys is made: by mounts as root, by
    /// mounts in a user namespace, or by redirecting path names.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) isolation: Isolation,

    /// Let the program write sysfs attributes (bind drivers, enable VFs).
    /// Costs a few microseconds for each short write() of the program.
    #[arg(long)]
    pub(crate) sysfs_writable: bool,

    /// Write every call and device event to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// A mount namespace (needs root).
    Namespaces,
    /// A user namespace and a mount namespace.
    Userns,
    /// No namespace: path names are redirected.
    Paths,
}
