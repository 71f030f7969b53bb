// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's own VFIO selftests, built from its source, in each of their modes.
//! Only what needs huge pages of 1 GiB may skip.

use programs::{Expected, HugePages, Vfuse, in_each_way, selftest};

const BDF: &str = "0000:01:00.0";
/// The interfaces to the IOMMU, as the tests call them.
const MODES: [&str; 5] =
    ["vfio_type1_iommu", "vfio_type1v2_iommu", "iommufd_compat_type1", "iommufd_compat_type1v2", "iommufd"];

in_each_way! {
    /// GRP-066, GRP-067, GRP-068, GRP-069. It has no variants: one run for each
    /// mode.
    fn vfio_pci_device_test(way) {
        for mode in MODES {
            selftest(&Vfuse::new(way), "vfio_pci_device_test", Some(mode), &[BDF]).expect(way, mode, &Expected::all(5));
        }
    }

    /// GRP-070: ranges, limits up to the last page, unmapping everything.
    fn vfio_dma_mapping_test(way) {
        let _pages = HugePages::reserve(4);
        let skip = MODES.map(|mode| format!("vfio_dma_mapping_test.{mode}_anonymous_hugetlb_1gb.dma_map_unmap"));
        let expected = Expected::all(6 * MODES.len()).skipping(skip);
        selftest(&Vfuse::new(way), "vfio_dma_mapping_test", None, &[BDF]).expect(way, "", &expected);
    }

    fn vfio_dma_mapping_mmio_test(way) {
        let report = selftest(&Vfuse::new(way), "vfio_dma_mapping_mmio_test", None, &[BDF]);
        report.expect(way, "", &Expected::all(3 * MODES.len()));
    }

    /// API-102, API-103, API-105, API-112, API-113, API-118
    fn vfio_iommufd_setup_test(way) {
        selftest(&Vfuse::new(way), "vfio_iommufd_setup_test", None, &[BDF]).expect(way, "", &Expected::all(6));
    }

    /// Two devices initialised by two threads at once.
    fn vfio_pci_device_init_perf_test(way) {
        let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=16M").device("nvme,addr=02:00.0,size=16M");
        let report = selftest(&vfuse, "vfio_pci_device_init_perf_test", None, &[BDF, "0000:02:00.0"]);
        report.expect(way, "", &Expected::all(MODES.len()));
    }

    /// A virtual function and its token.
    fn vfio_pci_sriov_uapi_test(way) {
        const LAB: &str = "[vfio]\nenable_sriov = true\n\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\ntotal_vfs = 4\n";
        let vfuse = Vfuse::new(way).lab(LAB).options(["--sysfs-writable"]);
        selftest(&vfuse, "vfio_pci_sriov_uapi_test", None, &[BDF]).expect(way, "", &Expected::all(9 * MODES.len()));
    }
}
