// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// VFIO in user space: run unmodified device-passthrough programs on software devices.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,

    /// Say more: -v what happens, -vv every call and what each device does.
    ///
    /// RUST_LOG, if set, decides instead.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program in a lab and exit with its exit status.
    Run(Run),
    /// Look at lab files.
    #[command(subcommand)]
    Lab(LabCommand),
}

#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Check a lab file and show what it makes.
    Check {
        /// The lab file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Run {
    /// The lab file. Without it and without --device: an NVMe controller with
    /// a RAM disk of 1 GiB at 0000:01:00.0.
    #[arg(long, value_name = "FILE")]
    pub lab: Option<PathBuf>,

    /// A device, besides those of the lab file: MODEL[,key=value]..., for
    /// example nvme,addr=02:00.0,file=disk.img or nvme,size=1G. May be repeated.
    #[arg(long, value_name = "SPEC")]
    pub device: Vec<String>,

    /// How the program's view of /dev and /sys is made: by mounts as root, by
    /// mounts in a user namespace, or by redirecting path names.
    #[arg(long, value_enum, default_value_t)]
    pub isolation: Isolation,

    /// Let the program write sysfs attributes (bind drivers, enable VFs).
    /// Costs a few microseconds for each short write() of the program.
    #[arg(long)]
    pub sysfs_writable: bool,

    /// Write every call and device event to this file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
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
