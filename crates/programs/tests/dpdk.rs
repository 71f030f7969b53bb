// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DPDK: EAL's own VFIO code probes a DMA engine, and DPDK's driver for it
//! moves data.

use std::time::Duration;

use programs::{HugePages, Outcome, Vfuse, Way, in_each_way};

const BDF: &str = "0000:01:00.0";

/// One test of `dpdk-test`, on the DMA engine, with these EAL options.
fn dpdk_test(vfuse: &Vfuse, test: &str, options: &[&str]) -> Outcome {
    let mut program = vec!["dpdk-test", "-l", "0", "--no-telemetry", "--log-level=lib.eal:debug", "-a", BDF];
    program.extend(options);
    program.push(test);
    vfuse.run(program)
}

fn engine(way: Way) -> Vfuse {
    // EAL keeps its lock files below the home or runtime directory.
    let vfuse = Vfuse::new(way).device("ioat,addr=01:00.0").locks_memory().limit(Duration::from_secs(120));
    let runtime = vfuse.place.path("");
    vfuse.env("XDG_RUNTIME_DIR", &runtime.to_string_lossy())
}

#[track_caller]
fn probed_by_vfio(outcome: &Outcome) {
    // EAL prints its own result; the program's exit status is not the test's.
    outcome.said("VFIO support initialized").said("sing IOMMU type 1 (Type 1)");
    outcome.said("ioat_dmadev_probe(): Init 0000:01:00.0").said("Test OK");
}

/// Copies and fills of every length and depth on the engine. DPDK then tries
/// its software DMA device, which is none of ours and late on a busy machine.
#[track_caller]
fn moved_data(outcome: &Outcome) {
    outcome.said("### Test dmadev instance 0 [0000:01:00.0]").said("DMA Dev 0: Running fill Tests");
    outcome.said("### Test dmadev instance 1 [dma_skeleton]");
    assert!(!outcome.text.contains("failure for device 0"), "{}", outcome.text);
}

const ORDINARY_PAGES: [&str; 3] = ["--no-huge", "-m", "64"];
const HUGE_PAGES: [&str; 4] = ["--in-memory", "--single-file-segments", "-m", "128"];

in_each_way! {
    /// GRP-077, GRP-078, GRP-079, GRP-080, GRP-081: EAL scans sysfs, opens
    /// container, group and device, maps its memory and the BAR.
    fn probes_without_huge_pages(way) {
        probed_by_vfio(&dpdk_test(&engine(way), "version_autotest", &ORDINARY_PAGES));
    }

    /// The same with huge pages.
    fn probes_with_huge_pages(way) {
        let _pages = HugePages::reserve(128);
        probed_by_vfio(&dpdk_test(&engine(way), "version_autotest", &HUGE_PAGES));
    }

    /// Each kind of interrupt that EAL may be told to take.
    fn takes_each_kind_of_interrupt(way) {
        for kind in ["msix", "msi", "legacy"] {
            let options = [&ORDINARY_PAGES[..], &["--vfio-intr", kind]].concat();
            probed_by_vfio(&dpdk_test(&engine(way), "version_autotest", &options));
        }
    }
}

/// The device reaches ordinary private pages.
#[test]
fn moves_data_in_ordinary_pages() {
    moved_data(&dpdk_test(&engine(Way::NobodyUserns), "dmadev_autotest", &ORDINARY_PAGES));
}

/// The device reaches huge pages of a memfd, without copies.
#[test]
fn moves_data_in_huge_pages() {
    let _pages = HugePages::reserve(128);
    moved_data(&dpdk_test(&engine(Way::RootNamespaces), "dmadev_autotest", &HUGE_PAGES));
}
