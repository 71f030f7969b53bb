// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DPDK: EAL's own VFIO code probes a DMA engine, and DPDK's driver for it
//! moves data.

use std::time::Duration;

use programs::{HugePages, Outcome, Vfuse, in_each_way};

const BDF: &str = "0000:01:00.0";

/// One test of `dpdk-test`, on the DMA engine, with these EAL options.
fn dpdk_test(vfuse: &Vfuse, test: &str, options: &[&str]) -> Outcome {
    let mut program = vec!["dpdk-test", "-l", "0", "--no-telemetry", "--log-level=lib.eal:debug", "-a", BDF];
    program.extend(options);
    program.push(test);
    vfuse.run(program)
}

fn engine(way: programs::Way) -> Vfuse {
    // EAL keeps its lock files below the home or runtime directory.
    let vfuse = Vfuse::new(way).device("ioat,addr=01:00.0").locks_memory().limit(Duration::from_secs(120));
    let runtime = vfuse.place.path("");
    vfuse.env("XDG_RUNTIME_DIR", &runtime.to_string_lossy())
}

#[track_caller]
fn probed_by_vfio(outcome: &Outcome) {
    outcome
        .said("VFIO support initialized")
        .said("using IOMMU type 1 (Type 1)")
        .said("Probe PCI driver: dmadev_ioat (8086:2021)");
}

in_each_way! {
    /// Ordinary pages: one mapping a page.
    fn moves_data_without_huge_pages(way) {
        let outcome = dpdk_test(&engine(way), "dmadev_autotest", &["--no-huge", "-m", "64"]);
        probed_by_vfio(outcome.said("Test OK"));
    }

    /// Huge pages in a memfd: the device reaches them without copies.
    fn moves_data_with_huge_pages(way) {
        let _pages = HugePages::reserve(128);
        let outcome = dpdk_test(&engine(way), "dmadev_autotest", &["--in-memory", "--single-file-segments", "-m", "128"]);
        probed_by_vfio(outcome.said("Test OK"));
    }

    /// Each kind of interrupt that EAL may be told to take.
    fn takes_each_kind_of_interrupt(way) {
        for kind in ["msix", "msi", "legacy"] {
            let vfuse = engine(way);
            let outcome = dpdk_test(&vfuse, "version_autotest", &["--no-huge", "-m", "64", "--vfio-intr", kind]);
            probed_by_vfio(outcome.said("Test OK"));
        }
    }
}
