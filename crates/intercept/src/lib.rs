// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door for unmodified programs: runs a program under a seccomp
//! filter with user notification and answers its calls from the pretend
//! kernel ([`Kernel`]).
//!
//! # How a run goes
//! [`run`] forks. The new process gets its namespaces and mounts (`child`, by
//! the list that `mounts` has made), installs the filter (`filter`,
//! assembled by `bpf`), hands its listener over and executes the program
//! (`launch`, `program`). From then on one thread receives calls and answers
//! them (`supervisor`, `calls`, `opens`, `paths`), and another sees to
//! everything else: ends of processes, closed files, signals (`side`,
//! `signals`). The run is over when no process is left that has the filter.
//! A library that is to be loaded into the program lies in a directory of the
//! run (`preload`).
//!
//! # How the program sees files that do not exist
//! | way in | the fake tree | needs |
//! |---|---|---|
//! | [`Isolation::Namespaces`] | a tmpfs, mounted over the real names | `CAP_SYS_ADMIN` |
//! | [`Isolation::Userns`] | the same, in a user namespace | unprivileged user namespaces |
//! | [`Isolation::Paths`] | a private directory; calls with paths are answered from it | nothing |
//!
//! `farm` fills the tmpfs or directory and keeps it up to date while the
//! program runs.
//!
//! # What a descriptor is
//! An open node is a memfd of its own (a cdev from its first call on,
//! `stand_ins`), an open device the memfd behind its
//! BARs, so `mmap` and stores to mapped registers are native. `files` tells
//! which file a descriptor is, by inode, and when its last descriptor and
//! mapping are gone; `identity` and `processes` look at the program's side.
//! Data transfers are recognised by their offset, requests by their type
//! byte, wherever the program keeps the descriptor. Files that are read as
//! streams (`queues`) go by their number.
//!
//! # Calls that wait
//! A call that Linux would make wait is answered later (`parked`): the kernel
//! says so with a ticket, and later how the wait ended.
//!
//! # What it does not do
//! - `io_uring` on a descriptor of ours bypasses the filter: requests made so
//!   reach the memfd.
//! - 32-bit and x32 programs run, but their calls are not intercepted.
//! - `read`, `write`, `lseek` and `poll` on descriptors other than queues act
//!   on the memfd (Linux: `EINVAL`, `ESPIPE`), and so does a private `mmap` of
//!   a handle.
//! - A queue's descriptor that came by `SCM_RIGHTS` polls, but has to be
//!   duplicated before it can be read; `dup2` of one to a number outside of
//!   the range set aside fails with `EBADF`.
//! - A request that takes a descriptor back (its reply could not be written)
//!   leaves the number to `/dev/null`.
//! - A number whose file was closed in one process while the file lives on
//!   elsewhere answers a few calls more in that process, until the number is
//!   used again.
//! - Names that appear in the machine's `/dev` or `/sys` during a run do not
//!   show in directories that hold fake names too.
//! - A supervisor that is killed takes the program with it; other processes
//!   of the run get `ENOSYS` for their next intercepted call.

mod bell;
mod bpf;
mod calls;
mod child;
mod error;
mod events;
mod farm;
mod figures;
mod files;
mod filter;
#[doc(hidden)]
pub mod fuzzing;
mod hold;
mod identity;
mod ints;
mod janitor;
mod kernel;
mod launch;
mod listener;
mod mapped;
mod mounts;
mod opens;
mod options;
mod parked;
mod paths;
mod preload;
mod processes;
mod program;
mod queues;
mod resolve;
mod rights;
mod run;
mod scratch;
mod side;
mod signals;
mod stand_ins;
mod state;
mod supervisor;
mod thread;
mod trace;
mod waker;

pub use caller::tree::{Entry, NODE_DEVICE, Node, Tree};
pub use error::Error;
pub use figures::Figures;
pub use hold::Hold;
pub use kernel::{FileKind, Kernel};
pub use options::{Isolation, Options};
pub use run::run;
pub use signals::exit_like;
pub use waker::Waker;
