// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hostile input, one target for each thing that decodes it.
//!
//! A target is a plain function of bytes that panics if a law is broken. Three
//! users share them: libFuzzer (`fuzz/`, `make fuzz`), the short run over the
//! corpus in `tests/corpus.rs` (`make test`), and whoever replays a file that
//! libFuzzer found. `cargo run -p vfuse-fuzzing --bin seeds` writes the corpus:
//! each seed is a list of operations with a name that says what it is about.
//!
//! `wire` reads operations from bytes, `world` is a lab with two hostile
//! programs and the laws of what is left after them, `bench` a device with
//! memory that it must not write. The laws are those that can be checked
//! without knowing the answers; the answers are tested beside the code.
#![forbid(unsafe_code)]

mod aer;
mod bench;
mod container;
mod device;
mod dsa;
mod fabric;
mod faults;
mod hwpt;
mod intercepted;
mod ioat;
mod iommufd;
mod lab;
mod nvme;
mod regions;
mod streams;
mod sysfs;
mod vdpa;
mod virtio;
mod wire;
mod world;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, that of its directory in `fuzz/corpus` too.
    pub name: &'static str,
    /// Its body.
    pub run: fn(&[u8]),
    /// Its seeds by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// Every target.
pub const TARGETS: [Target; 17] = [
    Target { name: "container", run: container::run, seeds: container::seeds },
    Target { name: "device", run: device::run, seeds: device::seeds },
    Target { name: "regions", run: regions::run, seeds: regions::seeds },
    Target { name: "iommufd", run: iommufd::run, seeds: iommufd::seeds },
    Target { name: "faults", run: faults::run, seeds: faults::seeds },
    Target { name: "hwpt", run: hwpt::run, seeds: hwpt::seeds },
    Target { name: "nvme", run: nvme::run, seeds: nvme::seeds },
    Target { name: "ioat", run: ioat::run, seeds: ioat::seeds },
    Target { name: "dsa", run: dsa::run, seeds: dsa::seeds },
    Target { name: "lab", run: lab::run, seeds: lab::seeds },
    Target { name: "sysfs", run: sysfs::run, seeds: sysfs::seeds },
    Target { name: "fabric", run: fabric::run, seeds: fabric::seeds },
    Target { name: "intercept", run: intercept::fuzzing::decode, seeds: intercepted::seeds },
    Target { name: "aer", run: aer::run, seeds: aer::seeds },
    Target { name: "virtio", run: virtio::run, seeds: virtio::seeds },
    Target { name: "vdpa", run: vdpa::run, seeds: vdpa::seeds },
    Target { name: "streams", run: streams::run, seeds: streams::seeds },
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Runs a target by its name.
///
/// # Panics
/// If a law is broken, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    match target(name) {
        Some(target) => (target.run)(data),
        None => panic!("there is no target {name}"),
    }
}
