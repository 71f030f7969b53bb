// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a program is to be run.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{Hold, Waker};

/// How the program is made to see the fake tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// The first of the others that works here.
    #[default]
    Auto,
    /// A mount namespace; needs `CAP_SYS_ADMIN`.
    Namespaces,
    /// A user namespace with a mount namespace; needs no rights.
    Userns,
    /// No namespace: calls with paths are intercepted too.
    Paths,
}

impl Isolation {
    /// The name that the command line has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Auto => "auto",
            Isolation::Namespaces => "namespaces",
            Isolation::Userns => "userns",
            Isolation::Paths => "paths",
        }
    }
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(name: &str) -> Result<Isolation, String> {
        [Isolation::Auto, Isolation::Namespaces, Isolation::Userns, Isolation::Paths]
            .into_iter()
            .find(|isolation| isolation.name() == name)
            .ok_or_else(|| format!("'{name}' is none of auto, namespaces, userns, paths"))
    }
}

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program: a path, or a name to look for in `PATH`.
    pub program: OsString,
    /// Its arguments, without the name of the program.
    pub args: Vec<OsString>,
    /// Variables set for it over the inherited ones.
    pub env: Vec<(OsString, OsString)>,
    /// How it is made to see the fake tree.
    pub isolation: Isolation,
    /// Whether attributes of the fake tree take stores (`driver_override`,
    /// `sriov_numvfs`, `bind`). Costs 3 µs for each `write` of up to 4096
    /// bytes that the program makes anywhere.
    pub sysfs_writable: bool,
    /// Whether files take messages that are written to them
    /// ([`FileKind::VhostVdpa`](crate::FileKind)). Costs 3 µs for each `writev`
    /// and each `write` of 40 to 128 bytes that the program makes anywhere.
    pub messages: bool,
    /// Whether short records are written to files
    /// ([`FileKind::AerInject`](crate::FileKind)). Costs 3 µs for each `writev`
    /// and each `write` of up to 64 bytes, eventfds' 8 excepted.
    pub records: bool,
    /// Whether `/proc/PID/status` shows the pretend kernel's figures
    /// ([`Figures`](crate::Figures)). Costs 3 µs for each file that the program
    /// opens for reading.
    pub process_figures: bool,
    /// Whether this process does nothing but run the program: then signals
    /// are passed on, orphans of the program are reaped, and the process
    /// stops and continues with it. One run at a time.
    pub whole_process: bool,
    /// Wakes the front door from elsewhere.
    pub waker: Option<Waker>,
    /// Readable while there is something for
    /// [`Kernel::attend`](crate::Kernel::attend) to take.
    pub events: Option<Arc<OwnedFd>>,
    /// Holds threads at mapped BARs of devices that cannot be reached, where
    /// device files ask it to.
    pub hold: Option<Hold>,
    /// A shared library that is loaded into it, and into the programs that it
    /// executes, before all others (`LD_PRELOAD`). It lies in a private
    /// directory during the run. A program that is linked statically is
    /// refused ([`Error::Static`](crate::Error::Static)).
    pub preload: Option<&'static [u8]>,
}

impl Options {
    /// Runs `program` with `args`, everything else as by default.
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Options {
        Options {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            isolation: Isolation::Auto,
            sysfs_writable: false,
            messages: false,
            records: false,
            process_figures: false,
            whole_process: false,
            waker: None,
            events: None,
            hold: None,
            preload: None,
        }
    }
}
