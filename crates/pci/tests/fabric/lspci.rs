// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lspci, which decodes every capability, reads from a dump.

use std::path::Path;
use std::process::Command;

use crate::common::{at, mixed};

fn lspci(dump: &str, options: &[&str]) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lspci{}", options.concat()));
    std::fs::write(&file, dump).unwrap();
    let path = ["lspci", "/usr/bin/lspci", "/usr/sbin/lspci"].into_iter().find_map(|program| {
        let out = Command::new(program).args(options).arg("-F").arg(&file).output().ok()?;
        assert!(out.status.success(), "lspci failed: {}", String::from_utf8_lossy(&out.stderr));
        Some(String::from_utf8_lossy(&out.stdout).into_owned())
    });
    path.expect("lspci is needed; install pciutils")
}

#[test]
fn every_capability_is_understood() {
    let mut fabric = mixed();
    fabric.enable_vfs(at("05:00.0"), 2).unwrap();
    // pciutils before 3.11 wrote the message number so.
    let text = lspci(&fabric.hex_dump(), &["-vvv", "-D", "-n"]).replace(", IntMsgNum 0", ", MSI 00");
    for bad in ["<chain", "<access denied", "<unreadable", "Extended Capability ID", "] #", "[broken", "malformed"] {
        assert!(!text.contains(bad), "{bad} in:\n{text}");
    }
    // Each function is there, and each capability of its own.
    for (address, function) in fabric.functions() {
        let shown = text.split("\n\n").find(|part| part.starts_with(&address.to_string())).unwrap();
        for (id, offset, _) in function.capabilities() {
            assert!(shown.contains(&format!("Capabilities: [{offset:02x}]")), "{address} {id:#x}\n{shown}");
        }
        for (id, offset, _) in function.extended_capabilities() {
            assert!(shown.contains(&format!("Capabilities: [{offset:x} v")), "{address} {id:#x}\n{shown}");
        }
    }
    for line in [
        "Power Management version 3",
        "MSI: Enable- Count=1/8 Maskable+ 64bit+",
        "Express (v2) Endpoint, MSI 00",
        "Express (v2) Root Port (Slot+), MSI 00",
        "Express (v2) Upstream Port, MSI 00",
        "Express (v2) Downstream Port (Slot+), MSI 00",
        "Express (v2) PCI-Express to PCI/PCI-X Bridge, MSI 00",
        "Express (v2) Root Complex Integrated Endpoint, MSI 00",
        "MSI-X: Enable- Count=65 Masked-",
        "Vital Product Data",
        "Vendor Specific Information: Len=08",
        "PCI Advanced Features",
        "FLReset+",
        "Device Serial Number 01-23-45-67-89-ab-cd-ef",
        "ACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-",
        "Initial VFs: 7, Total VFs: 7, Number of VFs: 2, Function Dependency Link: 00",
        "VF offset: 8, stride: 1, Device ID: 0b25",
        "Page Request Interface (PRI)",
        "PASIDCap: Exec+ Priv+, Max PASID Width: 14",
        "LnkSta:\tSpeed 8GT/s, Width x4",
        "I/O behind bridge: 00001000-00001fff",
        "Prefetchable memory behind bridge: 0000380000000000-00003800001fffff",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
}

#[test]
fn the_tree_is_as_described() {
    let text = lspci(&mixed().hex_dump(), &["-t", "-n"]);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "-[0000:00]-+-00.0",
            "           +-01.0-[06-09]----00.0-[07-09]--+-00.0-[08]--",
            "           |                               \\-01.0-[09]----00.0",
            "           +-02.0-[02]----03.0",
            "           +-03.0-[01]----00.0",
            "           +-04.0-[05]--+-00.0",
            "           |            \\-00.1",
            "           \\-09.0",
        ],
    );
}
