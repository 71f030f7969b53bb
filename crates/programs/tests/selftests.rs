// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's own VFIO selftests, built from its source, in each of their modes.
//! Only what needs huge pages of 1 GiB may skip.

use programs::{Expected, HugePages, Vfuse, in_each_way, selftest};

const BDF: &str = "0000:01:00.0";
const MODES: [&str; 2] = ["vfio_type1_iommu", "vfio_type1v2_iommu"];

/// Variants of the modes, as filters of the harness.
fn filters(ends: &[&str]) -> Vec<String> {
    let names = MODES.iter().flat_map(|mode| ends.iter().map(move |end| format!("{mode}{end}")));
    names.flat_map(|name| ["-v".to_owned(), name]).collect()
}

fn arguments<'a>(filters: &'a [String], devices: &[&'a str]) -> Vec<&'a str> {
    filters.iter().map(String::as_str).chain(devices.iter().copied()).collect()
}

/// As many cases for each mode, all of which pass.
fn all(cases: usize) -> Expected {
    Expected::all(cases * MODES.len())
}

in_each_way! {
    /// GRP-066, GRP-067, GRP-068. It has no variants: one run for each mode.
    fn vfio_pci_device_test(way) {
        for mode in MODES {
            let report = selftest(&Vfuse::new(way), "vfio_pci_device_test", Some(mode), &[BDF]);
            report.expect(way, mode, &Expected::all(5));
        }
    }

    /// GRP-070: ranges, limits up to the last page, unmapping everything.
    fn vfio_dma_mapping_test(way) {
        let _pages = HugePages::reserve(4);
        let filters = filters(&["", "_anonymous", "_anonymous_hugetlb_2mb", "_anonymous_hugetlb_1gb"]);
        let report = selftest(&Vfuse::new(way), "vfio_dma_mapping_test", None, &arguments(&filters, &[BDF]));
        let skip = MODES.map(|mode| format!("vfio_dma_mapping_test.{mode}_anonymous_hugetlb_1gb.dma_map_unmap"));
        report.expect(way, "", &all(6).skipping(skip));
    }

    fn vfio_dma_mapping_mmio_test(way) {
        let filters = filters(&[""]);
        let report = selftest(&Vfuse::new(way), "vfio_dma_mapping_mmio_test", None, &arguments(&filters, &[BDF]));
        report.expect(way, "", &all(3));
    }

    /// Two devices initialised by two threads at once.
    fn vfio_pci_device_init_perf_test(way) {
        let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=16M").device("nvme,addr=02:00.0,size=16M");
        let filters = filters(&[""]);
        let arguments = arguments(&filters, &[BDF, "0000:02:00.0"]);
        selftest(&vfuse, "vfio_pci_device_init_perf_test", None, &arguments).expect(way, "", &all(1));
    }

    /// A virtual function and its token.
    fn vfio_pci_sriov_uapi_test(way) {
        const LAB: &str = "[vfio]\nenable_sriov = true\n\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\ntotal_vfs = 4\n";
        let vfuse = Vfuse::new(way).lab(LAB).options(["--sysfs-writable"]);
        let filters = filters(&["_same_uuid", "_diff_uuid", "_null_uuid"]);
        selftest(&vfuse, "vfio_pci_sriov_uapi_test", None, &arguments(&filters, &[BDF])).expect(way, "", &all(9));
    }
}
