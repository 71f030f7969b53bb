// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a program could not be run. Each message says what, where and what to do.

use std::io;

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such program.
    #[error("cannot run '{program}': no such program; give a path or a name that is in PATH")]
    NotFound {
        /// As the user named it.
        program: String,
    },
    /// The program cannot be executed.
    #[error("cannot run '{program}': {source}; see that the file is executable and its interpreter exists")]
    NotExecutable {
        /// As the user named it.
        program: String,
        /// What `execve` said.
        source: io::Error,
    },
    /// Nothing can be preloaded into the program.
    #[error(
        "cannot load a library into '{program}': it is linked statically; without --traps it runs, and devices see its stores a little later"
    )]
    Static {
        /// As the user named it.
        program: String,
    },
    /// An argument or variable cannot be passed to a program.
    #[error("cannot run '{program}': an argument, a variable or a path has a NUL byte in it; take it out")]
    Nul {
        /// As the user named it.
        program: String,
    },
    /// The kernel cannot notify.
    #[error(
        "this kernel has no seccomp user notification with killable waits ({source}); use Linux 5.19 or newer with CONFIG_SECCOMP_FILTER"
    )]
    NoNotification {
        /// What `seccomp` said.
        source: io::Error,
    },
    /// Some other supervisor has the program already.
    #[error(
        "another supervisor notifies on this process already (seccomp: EBUSY); run vfuse outside of it: not inside another `vfuse run`, nor a container whose runtime uses seccomp notification"
    )]
    Nested,
    /// The filter was refused.
    #[error(
        "the seccomp filter was refused ({source}); allow seccomp(2) and prctl(2), for instance with `--security-opt seccomp=unconfined`"
    )]
    Filter {
        /// What `seccomp` said.
        source: io::Error,
    },
    /// The way in that was asked for does not work here.
    #[error("isolation '{isolation}' does not work here: {step} failed ({source}); {advice}")]
    Isolation {
        /// `namespaces`, `userns` or `paths`.
        isolation: &'static str,
        /// What failed.
        step: String,
        /// How.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// No access to the memory of the program.
    #[error(
        "the program's memory cannot be reached ({source}); allow process_vm_readv(2), or set /proc/sys/kernel/yama/ptrace_scope to 0 or 1"
    )]
    NoPtrace {
        /// What the kernel said.
        source: io::Error,
    },
    /// Something that should always work did not.
    #[error("{what} failed: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

impl Error {
    /// The exit status that a shell would give: 127 when there is no such
    /// program, 126 when it cannot be executed, else 1.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::NotFound { .. } => 127,
            Error::NotExecutable { .. } | Error::Static { .. } => 126,
            _ => 1,
        }
    }

    pub(crate) fn os(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
        move |errno| Error::Os { what, source: errno.into() }
    }
}
