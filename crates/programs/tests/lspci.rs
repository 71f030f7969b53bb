// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! lspci in a lab: pciutils reads the fabric through sysfs.

use programs::{Vfuse, Way, in_each_way};

in_each_way! {
    /// The controller with its class, BAR, capabilities and driver.
    fn shows_the_controller(way) {
        let outcome = Vfuse::new(way).shell("lspci -D -s 0000:01:00.0 -vvv; lspci -D -n -s 0000:01:00.0");
        outcome.succeeded();
        for words in [
            "0000:01:00.0 Non-Volatile memory controller",
            "prog-if 02 [NVM Express]",
            "Region 0: Memory at ",
            "(64-bit, ",
            "Kernel driver in use: vfio-pci",
            "IOMMU group: ",
            "0000:01:00.0 0108: ",
        ] {
            outcome.said(words);
        }
        if way.is_root() {
            // Without privilege Linux shows the first 64 bytes only.
            outcome.said("MSI-X: Enable- Count=").said("Express (v2) Endpoint");
        }
    }

    /// The tree of ports and functions.
    fn shows_the_fabric(way) {
        let outcome = Vfuse::new(way).run(["lspci", "-t"]);
        outcome.succeeded().said("-[0000:00]-").said("-[01]----00.0");
    }
}

/// No function of the machine itself is there.
#[test]
fn shows_nothing_else() {
    let outcome = Vfuse::new(Way::NobodyUserns).shell("lspci -D 2> errors || cat errors");
    let lines: Vec<&str> = outcome.succeeded().text.lines().collect();
    let known = |line: &&str| line.starts_with("0000:0") && (line.contains("bridge") || line.contains("Non-Volatile"));
    assert!(lines.iter().all(known), "{}", outcome.text);
}
