// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse group`, `vfuse reset-group` and `vfuse aer`: on sysfs trees that are
//! written here, and on a running lab.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod common;

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Scratch, end, vfuse, waiting};
use host::tree::Entry;
use host::{Host, Lab};
use sim::{SimPlatform, SimStorage};

fn stdout(arguments: &[&str]) -> String {
    let output = vfuse(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The complaint of a command that ends with status 2.
fn refused(arguments: &[&str]) -> String {
    let output = vfuse(arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

const LAB: &str = "\
[[port]]\naddr = \"00:01.0\"\nbus = 1\nacs = false\n\
[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n\
[[device]]\nmodel = \"nvme\"\naddr = \"01:00.1\"\nsize = \"1M\"\ndriver = \"nic\"\n\
[[device]]\nmodel = \"nvme\"\naddr = \"05:00.0\"\nsize = \"1M\"\n";

/// Writes the `/sys` of a lab to a directory, as a capture of a machine.
fn capture(lab: &str, to: &Path) {
    let host = Host::new(Lab::parse("lab", lab).unwrap(), SimPlatform::new(1), Box::new(SimStorage)).unwrap();
    for (path, entry) in host.tree().iter() {
        let Some(inside) = path.strip_prefix("/sys/") else { continue };
        let path = to.join(inside);
        match entry {
            Entry::Directory { .. } => std::fs::create_dir_all(path).unwrap(),
            Entry::File { content, .. } => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            Entry::Link(target) => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(target, path).unwrap();
            }
            Entry::Device(_) => {}
        }
    }
}

/// A lab and a capture of its sysfs say the same, but for who has it open.
#[test]
fn a_lab_and_its_capture_say_the_same() {
    let scratch = Scratch::new("capture");
    let (sysfs, lab, socket) = (scratch.path("sys"), scratch.path("lab.toml"), scratch.path("lab.sock"));
    capture(LAB, Path::new(&sysfs));
    std::fs::write(&lab, LAB).unwrap();
    let child = waiting(&["--lab", &lab, "--control", &socket]);
    let user = "01:00.0,05:00.0";
    for arguments in [
        &["group", "list"][..],
        &["reset-group", "list"],
        &["reset-group", "list", "--user", user],
        &["reset-group", "show", "01:00.1"],
        &["reset-group", "show", "05:00.0", "--user", user],
    ] {
        for json in [&[][..], &["--json"]] {
            let with = |more: [&str; 2]| stdout(&[arguments, json, &more].concat());
            let (live, captured) = (with(["--control", &socket]), with(["--sysfs", &sysfs]));
            assert!(!live.is_empty());
            assert_eq!(live, captured, "{arguments:?}");
        }
    }
    let table = stdout(&["group", "list", "--control", &socket]);
    assert!(table.contains("0      no      0000:00:01.0  pcieport"), "{table}");
    assert!(table.contains("root port 0000:00:01.0 has no ACS capability"), "{table}");
    let shown = stdout(&["reset-group", "show", "01:00.0", "--sysfs", &sysfs]);
    assert!(shown.contains("hot reset: EINVAL: 0000:01:00.1 has nic"), "{shown}");
    let shown = stdout(&["reset-group", "show", "5:0.0", "--user", "5:0.0", "--sysfs", &sysfs]);
    assert!(shown.contains("hot reset: allowed"), "{shown}");
    assert!(refused(&["reset-group", "show", "07:00.0", "--control", &socket]).contains("no function at 0000:07:00.0"));
    assert!(refused(&["reset-group", "show", "07:00.0", "--sysfs", &sysfs]).contains("no function at 0000:07:00.0"));
    end(child);
}

/// One function of a capture that is written by hand.
fn function(root: &Path, path: &str, group: Option<u32>, driver: &str, header: u8) {
    let name = path.rsplit('/').next().unwrap();
    let directory = root.join("devices").join(path);
    std::fs::create_dir_all(&directory).unwrap();
    let mut config = vec![0u8; 64];
    config[0x0e] = header;
    std::fs::write(directory.join("config"), config).unwrap();
    std::fs::write(directory.join("vendor"), "0x8086\n").unwrap();
    std::fs::write(directory.join("device"), "0x1234\n").unwrap();
    let all = root.join("bus/pci/devices");
    std::fs::create_dir_all(&all).unwrap();
    symlink(format!("../../../devices/{path}"), all.join(name)).unwrap();
    if !driver.is_empty() {
        symlink(format!("../../../bus/pci/drivers/{driver}"), directory.join("driver")).unwrap();
    }
    if let Some(group) = group {
        symlink(format!("../../../kernel/iommu_groups/{group}"), directory.join("iommu_group")).unwrap();
    }
}

/// A machine as one without root's rights sees it: 64 bytes of configuration
/// space, a domain that is too wide, a function without group.
#[test]
fn a_machine_seen_without_rights() {
    let scratch = Scratch::new("machine");
    let root = &scratch.0;
    let port = "pci0000:00/0000:00:1c.0";
    function(root, port, Some(3), "pcieport", 1);
    function(root, &format!("{port}/0000:03:00.0"), Some(3), "vfio-pci", 0x80);
    function(root, &format!("{port}/0000:03:00.1"), Some(3), "snd_hda_intel", 0x80);
    function(root, "pci0000:00/0000:00:02.0", None, "i915", 0);
    function(root, "pci10000:e0/10000:e0:06.0", Some(9), "pcieport", 1);
    let sysfs = root.display().to_string();
    let table = stdout(&["group", "list", "--sysfs", &sysfs]);
    assert!(table.contains("cannot be read beyond 64 bytes"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("3      no ")), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["reset-group", "list", "--sysfs", &sysfs, "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    let of = |name: &str| json.as_array().unwrap().iter().find(|reset| reset["name"] == name).unwrap().clone();
    assert_eq!(of("0000:00:02.0")["hot_reset"]["answer"], "impossible");
    let reset = of("0000:00:1c.0");
    assert_eq!(reset["hot_reset"]["answer"], "refused");
    assert_eq!(reset["hot_reset"]["in_the_way"][0], "0000:03:00.1 has snd_hda_intel");
    assert_eq!(reset["functions"][1]["address"], "0000:03:00.1");
}

#[test]
fn what_is_no_sysfs_is_refused() {
    let scratch = Scratch::new("none");
    let nowhere = scratch.path("nowhere");
    assert!(refused(&["group", "list", "--sysfs", &nowhere]).contains("is it the root of a sysfs"));
    assert!(refused(&["group", "list", "--control", &nowhere]).contains("no lab answers"));
    assert!(refused(&["reset-group", "show", "1:2.8", "--sysfs", &nowhere]).contains("is not a PCI address"));
    // Links that lead in circles.
    let root = &scratch.0;
    std::fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
    symlink("0000:01:00.0", root.join("bus/pci/devices/0000:01:00.0")).unwrap();
    let table = stdout(&["reset-group", "list", "--sysfs", &root.display().to_string()]);
    assert!(table.contains("0000:01:00.0"), "{table}");
}

/// Errors of a running lab, by file, by standard input, and refused.
#[test]
fn errors_are_injected_into_a_running_lab() {
    let scratch = Scratch::new("aer");
    let (socket, trace) = (scratch.path("lab.sock"), scratch.path("trace.json"));
    let child = waiting(&["--control", &socket, "--trace", &trace]);
    let file = |name: &str, text: &str| {
        std::fs::write(scratch.path(name), text).unwrap();
        scratch.path(name)
    };
    let two = file(
        "two",
        "# two\nAER\nPCI_ID 0000:01:00.0\nCOR_STATUS BAD_TLP\nAER BUS 1 DEV 0 FN 0\nUNCOR COMP_ABORT\nHL 0 1 2 3\n",
    );
    assert_eq!(stdout(&["aer", "inject", &two, "--control", &socket]), "0000:01:00.0\n0000:01:00.0\n");
    let any = file("any", "AER UNCOR_STATUS MALF_TLP\n");
    assert_eq!(stdout(&["aer", "inject", &any, "--id", "01:00.0", "--control", &socket]), "0000:01:00.0\n");
    assert!(refused(&["aer", "inject", &any, "--control", &socket]).contains("1:1: no PCI_ID here"));
    let complaint = refused(&["aer", "inject", &any, "-s", "09:00.0", "--control", &socket]);
    assert!(complaint.contains("there is no function at 0000:09:00.0 (ENODEV)"), "{complaint}");
    let bad = file("bad", "AER\nCOR_STATUS WRONG\n");
    assert!(refused(&["aer", "inject", &bad, "--control", &socket]).contains("bad:2:12: `WRONG`"));
    let mut piped = Command::new(env!("CARGO_BIN_EXE_vfuse"))
        .args(["aer", "inject", "--control", &socket])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"AER ID 01:00.0 COR 0x40").unwrap();
    assert_eq!(piped.wait_with_output().unwrap().stdout, b"0000:01:00.0\n");
    end(child);
    let trace = std::fs::read_to_string(&trace).unwrap();
    let events: Vec<serde_json::Value> = trace.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        (count("aer.injected"), count("aer.recovery") >= 1, count("aer.error") >= 3),
        (5, true, true),
        "{trace}"
    );
    let call = events.iter().find(|event| event["event"] == "aer.call").unwrap();
    assert_eq!((call["device"].as_str(), call["vote"].as_str()), (Some("0000:01:00.0"), Some("can-recover")));
}
