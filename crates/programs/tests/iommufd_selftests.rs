// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's own iommufd selftests, built from its source.
//!
//! Of the 246 cases of the first binary a real kernel passes 241 and 5 skip
//! themselves; so here for root. What needs rights, or huge pages that the
//! machine does not give, is named, and said in the totals.
//!
//! Three cases (change_process) read VmPin and VmLck: the lab shows its figures
//! (`process_figures`). Those and global_options choose the accounting mode,
//! which needs CAP_SYS_RESOURCE outside of any user namespace: root of a
//! container has not got it, nobody never, so the lab lifts the limits that it
//! guards (`unlimited_memlock`).

use std::time::Duration;

use programs::{Expected, HugePages, Vfuse, Way, in_each_way, selftest};

const CASES: usize = 246;
/// What the tests with huge pages map at a time, and two to spare.
const HUGE_PAGES: u64 = 66;

/// They need a device with a vIOMMU, which this variant has not.
const SKIP: [&str; 5] = [
    "iommufd_viommu.no_viommu.viommu_alloc_nested_iopf",
    "iommufd_viommu.no_viommu.viommu_alloc_with_data",
    "iommufd_viommu.no_viommu.vdevice_cache",
    "iommufd_viommu.no_viommu.hw_queue",
    "iommufd_viommu.no_viommu.vdevice_tombstone",
];

/// A child maps shared anonymous memory and ends. The kernel keeps the pages;
/// a supervisor can only if it may open `/proc/PID/map_files`.
const NEED_RIGHTS: [&str; 3] = [
    "iommufd_ioas.mock_domain.fork_gone",
    "iommufd_ioas.two_mock_domain.fork_gone",
    "iommufd_ioas.mock_domain_limit.fork_gone",
];

/// The 24 cases that map with `MAP_HUGETLB`.
const NEED_HUGE_PAGES: [&str; 14] = [
    "iommufd_ioas.no_domain.access_domain_destory",
    "iommufd_ioas.mock_domain.access_domain_destory",
    "iommufd_ioas.two_mock_domain.access_domain_destory",
    "iommufd_ioas.mock_domain_limit.access_domain_destory",
    "iommufd_mock_domain.one_domain_hugepage.basic",
    "iommufd_mock_domain.one_domain_hugepage.all_aligns",
    "iommufd_mock_domain.one_domain_hugepage.all_aligns_copy",
    "iommufd_mock_domain.two_domains_hugepage.basic",
    "iommufd_mock_domain.two_domains_hugepage.all_aligns",
    "iommufd_mock_domain.two_domains_hugepage.all_aligns_copy",
    "iommufd_dirty_tracking.domain_dirty64M_huge.*",
    "iommufd_dirty_tracking.domain_dirty128M_huge.*",
    "vfio_compat_mock_domain.Ver1v2.huge_map",
    "vfio_compat_mock_domain.Ver1v0.huge_map",
];

fn lab(way: Way) -> Vfuse {
    let text = "[iommu]\nselftest = true\nprocess_figures = true\n\n[vfio]\nunlimited_memlock = true\n";
    Vfuse::new(way).lab(text).limit(Duration::from_secs(280))
}

in_each_way! {
    /// SELF-1.1, SELF-2.1..5, SELF-3.1..23, SELF-4.1..11, SELF-5.1, SELF-6.1..18:
    /// all of the first binary.
    fn iommufd(way) {
        let mut expected = Expected::all(CASES).skipping(SKIP);
        if !way.is_root() {
            expected.expect_failures(&NEED_RIGHTS, "memory without a name, and nobody left who has it");
        }
        let pages = HugePages::try_reserve(HUGE_PAGES);
        if let Err(why) = &pages {
            expected.expect_failures(&NEED_HUGE_PAGES, &format!("{HUGE_PAGES} huge pages of 2 MiB: {why}"));
        }
        selftest(&lab(way), "iommufd", None, &[]).expect(way, "", &expected);
    }

    /// A kernel without fault injection: all skip themselves.
    fn iommufd_fail_nth(way) {
        let expected = Expected::all(8).skipping(["basic_fail_nth.*"]);
        selftest(&lab(way), "iommufd_fail_nth", None, &[]).expect(way, "", &expected);
    }
}
