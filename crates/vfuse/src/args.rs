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
    /// IOMMU groups: which functions must go to one user, and why.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Reset groups: which functions a hot reset takes down, and who may do one.
    #[command(subcommand)]
    ResetGroup(ResetGroupCommand),
    /// Errors of devices in a running lab.
    #[command(subcommand)]
    Aer(AerCommand),
    /// Have a QEMU guest recover from errors of its assigned devices.
    ///
    /// Without it QEMU stops the machine at such an error. The guest's ports
    /// have to be pcie-root-port,x-speed=5,x-width=1, each with an id and with
    /// exactly the functions that are reset together at the host.
    AerBridge(AerBridge),
    /// Show what happens in a running lab, one JSON object a line.
    Events(Events),
    /// Live migration of devices in a running lab.
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// The vdpa bus of a running lab.
    #[command(subcommand)]
    Vdpa(VdpaCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VdpaCommand {
    /// Devices of the bus, as the vdpa tool has them.
    #[command(subcommand)]
    Dev(VdpaDevCommand),
    /// Explain what a reset, a release and SET_GROUP_ASID do to a device's
    /// mappings now, and why.
    Explain {
        /// The device.
        name: String,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VdpaDevCommand {
    /// Add a device.
    Add {
        /// `MODEL[,name=NAME][,key=value]...`, as for `vfuse run --vdpa`.
        device: String,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
    /// Delete a device; waits until nobody has it open.
    Del {
        /// The device.
        name: String,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
    /// Show devices.
    Show {
        /// Only this one.
        name: Option<String>,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a device's configuration.
    Config {
        /// The device.
        name: String,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
    /// Show vendor statistics of a queue.
    Vstats {
        /// The device.
        name: String,
        /// The queue.
        qidx: u32,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AerBridge {
    /// The control socket of the lab in which QEMU runs.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: PathBuf,
    /// QEMU's monitor: its option -qmp unix:SOCKET,server=on,wait=off.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// A device of the guest, by its address at the host; all if not given.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) device: Vec<pci::Address>,
    /// Fatal errors too.
    #[arg(long)]
    pub(crate) fatal: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The control socket of the lab.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: PathBuf,
    /// How much: error, warn, info, debug, trace.
    #[arg(long, default_value = "info")]
    pub(crate) level: String,
    /// Only events whose names begin so, for example aer. or vfio.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Where topology is read from; without either, this machine's /sys.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The control socket of a running lab.
    #[arg(long, value_name = "SOCKET", conflicts_with = "sysfs")]
    pub(crate) control: Option<PathBuf>,
    /// The root of a sysfs; read only. Reasons need configuration space, which
    /// only root may read whole.
    #[arg(long, value_name = "ROOT")]
    pub(crate) sysfs: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List IOMMU groups: members, what holds them, whether a user can have
    /// the group, why they are together.
    List {
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ResetGroupCommand {
    /// List what is reset together, what holds it, and whether a hot reset
    /// would be done.
    List {
        /// Functions that a user has: whether he may, and if not, who is in
        /// the way.
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
        user: Vec<pci::Address>,
        #[command(flatten)]
        source: Source,
    },
    /// Show what is reset together with a function.
    Show {
        /// The function, DDDD:BB:DD.F or BB:DD.F.
        address: pci::Address,
        /// Functions that a user has.
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
        user: Vec<pci::Address>,
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AerCommand {
    /// Inject errors, as the aer-inject tool does.
    Inject {
        /// A file in that tool's format; standard input if there is none.
        file: Option<PathBuf>,
        /// The function, whatever the file says.
        #[arg(short = 's', long, value_name = "PCI_ID")]
        id: Option<pci::Address>,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrationCommand {
    /// List the devices that migrate: state, stream, what is planned to fail.
    List {
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have a device's migration fail from now on.
    Fail {
        /// The function, DDDD:BB:DD.F or BB:DD.F.
        address: pci::Address,
        /// As `migration_fails` of a lab file, for example
        /// 'PRE_COPY_P2P>STOP_COPY:before' or stream-breaks:1M.
        #[arg(required = true)]
        what: Vec<String>,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Nothing of a device's migration fails any more.
    Mend {
        /// The function.
        address: pci::Address,
        /// The control socket of the lab.
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
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

    /// A device of the vdpa bus, `net` or `blk` with key=value pairs; may be repeated.
    #[arg(long, value_name = "MODEL[,key=value]...")]
    pub(crate) vdpa: Vec<String>,

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

    /// Have each access of the program to a mapped BAR reach the device, for
    /// programs that read a status right behind a store, or store one command
    /// after the other to the same address. Costs some microseconds an access.
    /// Not for programs that are linked statically.
    #[arg(long)]
    pub(crate) traps: bool,

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
