// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line: what it refuses and how, the control socket, the trace.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod common;

use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{Scratch, end, vfuse, waiting};

/// Exit status, and the one line of complaint.
fn refused(arguments: &[&str]) -> (i32, String) {
    let output = vfuse(arguments);
    assert!(output.stdout.is_empty(), "{arguments:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_cannot_be_used_is_refused_with_status_2() {
    let scratch = Scratch::new("refused");
    let lab = scratch.path("lab.toml");
    std::fs::write(&lab, "[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nfile = \"/nowhere/disk.img\"\n").unwrap();
    for (arguments, part) in [
        (&["run", "--device", "floppy", "--", "true"][..], "unknown model `floppy`"),
        (&["run", "--device", "nvme,sise=1G", "--", "true"], "unknown key `sise`"),
        (
            &["run", "--device", "nvme,addr=1:0.0", "--device", "nvme,addr=1:0.0", "--", "true"],
            "in use by another device",
        ),
        (&["run", "--lab", "/nowhere/lab.toml", "--", "true"], "cannot read the lab file /nowhere/lab.toml"),
        (&["run", "--lab", &lab, "--", "true"], "/nowhere/disk.img"),
        (&["lab", "check", &lab], "/nowhere/disk.img"),
        (&["device", "list", "--control", "/nowhere/socket"], "no lab answers at /nowhere/socket"),
        (&["run", "--control", "/nowhere/socket", "--", "true"], "cannot listen at /nowhere/socket"),
        (&["run", "--trace", "/nowhere/trace", "--", "true"], "cannot write the trace /nowhere/trace"),
        (&["run"], "PROGRAM"),
    ] {
        let (status, complaint) = refused(arguments);
        assert!(status == 2 && complaint.contains(part), "{arguments:?}: {status}: {complaint}");
    }
}

#[test]
fn a_lab_is_shown() {
    let lab = concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs/switch-without-acs.toml");
    let output = vfuse(&["lab", "check", lab]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(table.lines().count(), 1 + 6);
    assert!(table.contains("0000:04:00.0  1234:4e56  010802  3      vfio-pci  0000:02:01.0"), "{table}");
}

#[test]
fn a_running_lab_answers_at_its_socket() {
    let scratch = Scratch::new("control");
    let socket = scratch.path("lab.sock");
    // Left by a lab that was killed.
    drop(UnixListener::bind(&socket).unwrap());
    let child = waiting(&["--control", &socket]);

    let listed = vfuse(&["device", "list", "--control", &socket]);
    let table = String::from_utf8(listed.stdout).unwrap();
    assert!(table.lines().any(|l| l.starts_with("0000:01:00.0") && l.contains("vfio-pci")), "{table}");
    let listed = vfuse(&["device", "list", "--control", &socket, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(json[1]["address"], "0000:01:00.0");
    assert_eq!(json[1]["open"], false);

    let (status, complaint) = refused(&["run", "--control", &socket, "--", "true"]);
    assert!(status == 2 && complaint.contains("is another lab using it?"), "{complaint}");
    end(child);
    assert!(!Path::new(&socket).exists());
}

#[test]
fn the_trace_is_one_object_a_line() {
    let scratch = Scratch::new("trace");
    let trace = scratch.path("trace.json");
    // A container is opened by the shell and asked nothing: opening and closing it is not a call.
    let output = vfuse(&["run", "--trace", &trace, "--", "sh", "-c", "exec 3<>/dev/vfio/vfio; exec 3>&-"]);
    assert!(output.status.success());
    let text = std::fs::read_to_string(&trace).unwrap();
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().all(|e| e["ns"].is_u64() && e["event"].is_string() && e["level"].is_string()));
    assert!(events.iter().any(|e| e["event"] == "run" && e["isolation"].is_string()), "{text}");
}

/// What is linked statically loads no library; nothing is left of one.
#[test]
fn traps_are_for_programs_that_can_have_them() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("traps");
    // An ELF header and one segment to be loaded: no interpreter.
    let mut program = vec![0; 64 + 56];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (program[32], program[54], program[56], program[64]) = (64, 56, 1, 1);
    let path = scratch.path("static");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (status, complaint) = refused(&["run", "--traps", "--", &path]);
    assert!(status == 126 && complaint.contains("linked statically"), "{status}: {complaint}");

    // A program of the program has it too.
    let output = vfuse(&["run", "--traps", "--", "sh", "-c", "sh -c 'echo $LD_PRELOAD; cat /proc/self/maps'"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let library = text.lines().next().unwrap();
    assert!(output.status.success() && text.matches(library).count() > 1, "{text}");
    assert!(!Path::new(library).exists());
}
