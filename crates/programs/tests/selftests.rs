// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's own VFIO selftests, built from its source, in the modes of the
//! legacy container. Only what needs huge pages of 1 GiB may skip.

use std::collections::BTreeSet;

use programs::{HugePages, Outcome, Vfuse, build_file, in_each_way};

const BDF: &str = "0000:01:00.0";
const MODES: [&str; 2] = ["vfio_type1_iommu", "vfio_type1v2_iommu"];

/// Runs one selftest with a filter of its harness, in a mode where it has no
/// variants of its own.
fn selftest(vfuse: &Vfuse, name: &str, mode: &str, filter: &[String]) -> Outcome {
    let program = vfuse.place.program(&build_file(&format!("selftests/{name}")));
    let mut arguments =
        vec!["env".into(), format!("VFIO_SELFTESTS_IOMMU_MODE={mode}").into(), program.into_os_string()];
    arguments.extend(filter.iter().map(Into::into));
    arguments.push(BDF.into());
    vfuse.run(arguments)
}

/// Names of the tests that a TAP report counts as passed; skips must be those.
#[track_caller]
fn passed(outcome: &Outcome, skips: &[&str]) -> BTreeSet<String> {
    outcome.succeeded();
    let mut passed = BTreeSet::new();
    let mut skipped = BTreeSet::new();
    for line in outcome.text.lines() {
        assert!(!line.starts_with("not ok"), "{}", outcome.text);
        let Some(rest) = line.strip_prefix("ok ") else { continue };
        let name = rest.split_whitespace().nth(1).unwrap_or_default().to_owned();
        if rest.contains("# SKIP") {
            skipped.insert(name)
        } else {
            passed.insert(name)
        };
    }
    let expected: BTreeSet<String> = skips.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(skipped, expected, "skipped tests:\n{}", outcome.text);
    let plan = format!("1..{}", passed.len() + skipped.len());
    assert!(outcome.text.lines().any(|line| line == plan), "not the whole plan was run:\n{}", outcome.text);
    passed
}

fn variants(names: &[String]) -> Vec<String> {
    names.iter().flat_map(|name| ["-v".to_owned(), name.clone()]).collect()
}

in_each_way! {
    /// GRP-066, GRP-067 (the modes of the legacy container), GRP-068
    fn vfio_pci_device_test(way) {
        for mode in MODES {
            let outcome = selftest(&Vfuse::new(way), "vfio_pci_device_test", mode, &[]);
            assert_eq!(passed(&outcome, &[]).len(), 5, "{}", outcome.text);
        }
    }

    /// GRP-070: ranges, limits up to the last page, unmapping everything.
    fn vfio_dma_mapping_test(way) {
        let _pages = HugePages::reserve(4);
        for mode in MODES {
            let names = ["", "_anonymous", "_anonymous_hugetlb_2mb", "_anonymous_hugetlb_1gb"].map(|end| format!("{mode}{end}"));
            let outcome = selftest(&Vfuse::new(way), "vfio_dma_mapping_test", mode, &variants(&names));
            let skip = format!("vfio_dma_mapping_test.{mode}_anonymous_hugetlb_1gb.dma_map_unmap");
            assert_eq!(passed(&outcome, &[&skip]).len(), 5, "{}", outcome.text);
        }
    }

    fn vfio_dma_mapping_mmio_test(way) {
        for mode in MODES {
            let outcome = selftest(&Vfuse::new(way), "vfio_dma_mapping_mmio_test", mode, &variants(&[mode.to_owned()]));
            assert_eq!(passed(&outcome, &[]).len(), 3, "{}", outcome.text);
        }
    }

    /// Two devices initialised by two threads at once.
    fn vfio_pci_device_init_perf_test(way) {
        for mode in MODES {
            let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=16M").device("nvme,addr=02:00.0,size=16M");
            let mut filter = variants(&[mode.to_owned()]);
            filter.push("0000:02:00.0".to_owned());
            let outcome = selftest(&vfuse, "vfio_pci_device_init_perf_test", mode, &filter);
            assert_eq!(passed(&outcome, &[]).len(), 1, "{}", outcome.text);
        }
    }

    /// A virtual function and its token.
    fn vfio_pci_sriov_uapi_test(way) {
        for mode in MODES {
            let lab = "[vfio]\nenable_sriov = true\n\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\ntotal_vfs = 4\n";
            let vfuse = Vfuse::new(way);
            let lab = vfuse.place.write("lab.toml", lab.as_bytes());
            let vfuse = vfuse.options(["--sysfs-writable".as_ref(), "--lab".as_ref(), lab.as_os_str()]);
            let names = ["same", "diff", "null"].map(|uuid| format!("{mode}_{uuid}_uuid"));
            let outcome = selftest(&vfuse, "vfio_pci_sriov_uapi_test", mode, &variants(&names));
            assert_eq!(passed(&outcome, &[]).len(), 9, "{}", outcome.text);
        }
    }
}
