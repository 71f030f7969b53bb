// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real side of the core's small traits, on Linux (x86-64 and aarch64).
//!
//! The core makes no system call; this crate does. What it offers:
//!
//! | module | for | real thing |
//! |---|---|---|
//! | [`event`] | [`device::Event`] | eventfds of programs |
//! | [`process`] | [`iommu::Memory`] | the address space of a program |
//! | [`pin`] | [`caller::Pinned`] | which memory a virtual address range is |
//! | [`file`](mod@file) | [`iommu::Memory`] | files that programs map shared, mapped here as well |
//! | [`ProgramMm`] | [`caller::Mm`] | the address space of a program, after its call |
//! | [`window`] | [`device::DeviceFiles`] | a memfd for each open device |
//! | [`disk`] | [`device::Disk`] | RAM, files, block devices |
//! | [`network`] | [`device::NetPort`] | TAP interfaces, recordings |
//! | [`executor`] | [`device::Wake`] | worker threads that give devices their turns |
//! | [`clock`], [`mod@random`], [`limits`] | [`caller::Platform`], [`caller::Caller`] | time, random bytes, a program's limits |
//!
//! Below them lie `mapping` (shared mappings that survive the truncation of
//! their file) and `vma` (what is mapped at an address of a program).
//!
//! Not here: seccomp, namespaces and files of the pretend `/sys`; those belong
//! to the front door that needs them.
//!
//! Unsafe code opts in by module, with a SAFETY comment for each block.
#![deny(unsafe_code)]

mod client_file;
pub mod clock;
pub mod disk;
pub mod event;
pub mod executor;
pub mod file;
pub mod limits;
mod mapping;
pub mod network;
pub mod pin;
pub mod process;
pub mod random;
mod vma;
pub mod window;

pub use client_file::{ProgramMm, reopen};
pub use clock::Clock;
pub use disk::{FileDisk, OpenDiskError, Options as DiskOptions, RamDisk};
pub use event::EventFd;
pub use executor::Executor;
pub use pin::Pinner;
pub use process::Process;
pub use random::bytes as random;
pub use window::MemfdFiles;

use uapi::Errno;

/// The calling thread's `errno`.
fn last_errno() -> Errno {
    Errno::from_raw(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Page size of the machine in bytes.
fn page_size() -> u64 {
    rustix::param::page_size() as u64
}
