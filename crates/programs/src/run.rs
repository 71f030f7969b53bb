// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse run` with its options, in each of the ways in which it can be run.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;

use crate::{Live, Network, Outcome, Place, need_program, run_child, vfuse_binary};

/// The unprivileged user and group of the tests that root starts.
const NOBODY: u32 = 65534;

/// Who runs the program, and how it gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Root, in a mount namespace.
    RootNamespaces,
    /// Root, with path names redirected.
    RootPaths,
    /// An unprivileged user, in a user namespace.
    NobodyUserns,
    /// An unprivileged user, with path names redirected.
    NobodyPaths,
}

impl Way {
    /// The value of `--isolation`.
    #[must_use]
    pub fn isolation(self) -> &'static str {
        match self {
            Way::RootNamespaces => "namespaces",
            Way::NobodyUserns => "userns",
            Way::RootPaths | Way::NobodyPaths => "paths",
        }
    }

    /// What the way is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Way::RootNamespaces => "root-namespaces",
            Way::RootPaths => "root-paths",
            Way::NobodyUserns => "nobody-userns",
            Way::NobodyPaths => "nobody-paths",
        }
    }

    /// Whether the program runs as root.
    #[must_use]
    pub fn is_root(self) -> bool {
        matches!(self, Way::RootNamespaces | Way::RootPaths)
    }

    /// A command that runs `program` as this user. What lies in the way of
    /// becoming root is `sudo`'s to say.
    #[must_use]
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        if self.is_root() {
            return as_root(program);
        }
        let mut command = Command::new(program);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

fn as_root(program: impl AsRef<OsStr>) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", "--"]).arg(program);
    command
}

/// One `vfuse run`.
#[derive(Debug)]
pub struct Vfuse {
    /// Where its files are, and the program's working directory.
    pub place: Place,
    way: Way,
    options: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    network: Option<String>,
    limit: Duration,
}

impl Vfuse {
    /// With the default lab.
    #[must_use]
    pub fn new(way: Way) -> Vfuse {
        Vfuse {
            place: Place::new(),
            way,
            options: Vec::new(),
            environment: Vec::new(),
            network: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds options.
    #[must_use]
    pub fn options<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Vfuse {
        self.options.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// Adds a device.
    #[must_use]
    pub fn device(self, spec: impl AsRef<OsStr>) -> Vfuse {
        self.options([OsStr::new("--device"), spec.as_ref()])
    }

    /// Adds a device with a file in the run's place.
    #[must_use]
    pub fn disk(self, addr: &str, file: &Path) -> Vfuse {
        self.device(format!("nvme,addr={addr},file={}", file.display()))
    }

    /// Sets a variable of the program's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Vfuse {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs in this network; only root can.
    #[must_use]
    pub fn in_network(mut self, network: &Network) -> Vfuse {
        self.network = Some(network.path());
        self
    }

    /// The program's accesses to mapped BARs trap.
    #[must_use]
    pub fn traps(self) -> Vfuse {
        self.options(["--traps"])
    }

    /// How long it may take; a minute if not said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Vfuse {
        self.limit = limit;
        self
    }

    /// Runs in the lab of this description; the lab has only its devices and
    /// those that are added.
    #[must_use]
    pub fn lab(self, text: &str) -> Vfuse {
        let lab = self.place.write("lab.toml", text.as_bytes());
        self.options([OsStr::new("--lab"), lab.as_os_str()])
    }

    /// Writes all events to a file of the run's place.
    #[must_use]
    pub fn traced(self) -> Vfuse {
        let trace = self.place.write("trace.json", b"");
        self.options([OsStr::new("--trace"), trace.as_os_str()])
    }

    /// How many events of this name the trace of the last run has.
    ///
    /// # Panics
    /// If it was not [`traced`](Self::traced).
    #[must_use]
    pub fn events(&self, name: &str) -> usize {
        let trace = std::fs::read_to_string(self.place.path("trace.json")).expect("a trace was asked for");
        let word = format!("\"event\":\"{name}\"");
        trace.lines().filter(|line| line.contains(&word)).count()
    }

    /// Lets the program map more memory for DMA than the 8 MiB that a user may
    /// usually lock. The lab has only the devices that are added.
    #[must_use]
    pub fn locks_memory(self) -> Vfuse {
        self.lab("[vfio]\nunlimited_memlock = true\n")
    }

    /// The command, not yet started.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, program: impl IntoIterator<Item = S>) -> Command {
        let vfuse = self.place.program(&vfuse_binary());
        let mut command = match &self.network {
            None => self.way.command(vfuse),
            Some(path) => {
                let mut command = self.way.command(need_program("nsenter"));
                command.arg(format!("--net={path}")).arg("--").arg(vfuse);
                command
            }
        };
        command.arg("run").arg("--isolation").arg(self.way.isolation()).args(&self.options).arg("--");
        command.args(program).current_dir(self.place.path("")).env_remove("RUST_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// If it takes too long.
    #[track_caller]
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, program: impl IntoIterator<Item = S>) -> Outcome {
        run_child(self.command(program), self.limit)
    }

    /// Starts the program; what it prints goes to `output.txt` of the run's
    /// place.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(&self, program: impl IntoIterator<Item = S>) -> Live {
        Live::start(self.command(program), self.place.path("output.txt"), self.limit)
    }

    /// Another `vfuse` command of the same user, run to its end.
    ///
    /// # Panics
    /// If it takes too long.
    #[track_caller]
    #[must_use]
    pub fn also<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        run_child(self.other(arguments), self.limit)
    }

    /// Another `vfuse` command of the same user, not yet started.
    #[must_use]
    pub fn other<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.way.command(self.place.program(&vfuse_binary()));
        command.args(arguments).current_dir(self.place.path("")).env_remove("RUST_LOG");
        command
    }

    /// Runs lines of shell.
    ///
    /// # Panics
    /// If they take too long.
    #[track_caller]
    #[must_use]
    pub fn shell(&self, lines: &str) -> Outcome {
        self.run(["sh", "-ec", lines])
    }
}
