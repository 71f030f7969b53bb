// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Data Streaming Accelerator under the drivers of Linux's VFIO selftests
//! and of DPDK. Both read a status right behind the store of a command, and
//! store each descriptor to the same address: so their accesses to BARs trap.

use std::process::Command;
use std::time::Duration;

use programs::{Expected, HugePages, Outcome, Vfuse, Way, in_each_way, selftest};

const BDF: &str = "0000:01:00.0";
const MODES: [&str; 5] =
    ["vfio_type1_iommu", "vfio_type1v2_iommu", "iommufd_compat_type1", "iommufd_compat_type1v2", "iommufd"];

fn accelerator(way: Way, keys: &str) -> Vfuse {
    Vfuse::new(way).device(format!("dsa,addr=01:00.0,{keys}")).locks_memory().traps()
}

in_each_way! {
    /// All of `vfio_pci_driver_test`: 1024 copies of 2 MiB each in 32 batches,
    /// submitted to one address one right behind the other; interrupts; faults.
    fn vfio_pci_driver_test(way) {
        for mode in MODES {
            let vfuse = accelerator(way, "max_transfer=2M,max_batch=32").limit(Duration::from_secs(120));
            let traced = way == Way::RootNamespaces && mode == MODES[0];
            let vfuse = if traced { vfuse.traced() } else { vfuse };
            let report = selftest(&vfuse, "vfio_pci_driver_test", Some(mode), &["-v", mode, BDF]);
            report.expect(way, "", &Expected::all(7));
            // Nobody takes page requests of a container: what the test
            // unmaps is a fault.
            assert!(!traced || vfuse.events("iommu.fault") > 0);
        }
    }
}

/// The same test on its second driver, that of I/OAT, which reads the state of
/// a channel right behind each of its stores. Its storm moves 64 GiB: once.
#[test]
fn vfio_pci_driver_test_on_ioat() {
    let (way, mode) = (Way::RootNamespaces, "vfio_type1v2_iommu");
    let vfuse = Vfuse::new(way).device("ioat,addr=01:00.0").locks_memory().traps().limit(Duration::from_secs(120));
    let report = selftest(&vfuse, "vfio_pci_driver_test", Some(mode), &["-v", mode, BDF]);
    report.expect(way, "ioat", &Expected::all(7));
}

/// DPDK's test of DMA devices. It begins with DPDK's own software device, which
/// is none of ours and late on a busy machine; it ends there then.
fn dmadev_autotest(way: Way, options: &[&str]) -> Outcome {
    let vfuse = accelerator(way, "queues=2,entries=32,engines=2").limit(Duration::from_secs(400));
    // EAL keeps its lock files below the home or runtime directory.
    let runtime = vfuse.place.path("");
    let vfuse = vfuse.env("XDG_RUNTIME_DIR", &runtime.to_string_lossy()).env("DPDK_TEST", "dmadev_autotest");
    let mut program = vec!["dpdk-test", "-l", "0", "--no-telemetry", "-a", BDF];
    program.extend(options);
    loop {
        let outcome = vfuse.run(&program);
        if !outcome.text.contains("Error performing API tests") {
            return outcome;
        }
    }
}

/// Copies in bursts and one by one, fills, errors in the middle of batches.
#[track_caller]
fn moved_data(outcome: &Outcome) {
    for queue in 0..2 {
        outcome.said(&format!("### Test dmadev instance {queue} [{BDF}-q{queue}]"));
        // DPDK 24.11 calls it `error_handling`.
        let names = ["error handling", "error_handling"].map(|name| format!("DMA Dev {queue}: Running {name} Tests"));
        assert!(names.iter().any(|name| outcome.text.contains(name)), "{}", outcome.text);
        outcome.said(&format!("DMA Dev {queue}: Running fill Tests"));
        assert!(!outcome.text.contains(&format!("failure for device {queue}")), "{}", outcome.text);
    }
    outcome.said("### Test dmadev instance 2 [dma_skeleton]");
}

/// DPDK's benchmark of DMA devices, which compares what it has copied. Debian
/// packages it with DPDK 23.11 and later: Debian 12's 22.11 has none.
#[test]
fn dpdk_measures_its_copies() {
    let query = ["-W", "-f", "${Version}", "dpdk-dev"];
    let dpdk = Command::new("dpkg-query").args(query).output().unwrap_or_else(|error| panic!("dpkg-query: {error}"));
    let version = String::from_utf8_lossy(&dpdk.stdout).into_owned();
    if version.starts_with("22.11") {
        println!("dpdk-dev {version} has no dpdk-test-dma-perf: nothing was measured");
        return;
    }
    let vfuse = accelerator(Way::NobodyUserns, "queues=1,engines=1").limit(Duration::from_secs(120));
    // EAL maps ordinary pages one by one, and type1 takes 65,535.
    let config = vfuse.place.write(
        "perf.ini",
        format!(
            "[case1]\ntype=DMA_MEM_COPY\nmem_size=4\nbuf_size=64,8192,128,MUL\ndma_ring_size=64\nkick_batch=32\n\
             src_numa_node=0\ndst_numa_node=0\ncache_flush=0\ntest_seconds=2\n\
             lcore_dma0=lcore=1,dev={BDF}-q0,dir=mem2mem\n\
             eal_args=--no-huge -m 128 -l 0-1 -a {BDF} --no-telemetry\n"
        )
        .as_bytes(),
    );
    let results = vfuse.place.path("perf.csv");
    let runtime = vfuse.place.path("");
    let vfuse = vfuse.env("XDG_RUNTIME_DIR", &runtime.to_string_lossy());
    let [config, results] = [config, results].map(|path| path.display().to_string());
    let outcome = vfuse.run(["dpdk-test-dma-perf", "--config", &config, "--result", &results]);
    outcome.said("Case 1 completed").said("Buffer Size: 64 B").said("Buffer Size: 8192 B");
    assert_eq!(outcome.text.matches("Number of used dmadevs: 1.").count(), 2, "{}", outcome.text);
    assert!(!outcome.text.contains("validation fails"), "{}", outcome.text);
}

/// The device reaches ordinary private pages.
#[test]
fn dpdk_moves_data_in_ordinary_pages() {
    moved_data(&dmadev_autotest(Way::NobodyUserns, &["--no-huge", "-m", "64"]));
}

/// The device reaches huge pages of a memfd, without copies.
#[test]
fn dpdk_moves_data_in_huge_pages() {
    let _pages = HugePages::reserve(128);
    moved_data(&dmadev_autotest(Way::RootNamespaces, &["--in-memory", "--single-file-segments", "-m", "128"]));
}
