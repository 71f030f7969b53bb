// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The environment by itself, on QEMU's own NVMe controller: a failure here is
//! none of vfuse's.

use std::process::Command;
use std::time::Duration;

use programs::{Guest, GuestReport, Place, TestDisk, run_child};

const LIMIT: Duration = Duration::from_secs(120);

fn run(guest: Guest, disk: &TestDisk) -> GuestReport {
    let guest = guest
        .with(["-drive", &format!("if=none,id=disk,format=raw,file={}", disk.path.display())])
        .with(["-device", "nvme,drive=disk,serial=1"]);
    let mut command = Command::new(&guest.program()[0]);
    command.args(&guest.program()[1..]);
    GuestReport::of(&run_child(command, LIMIT))
}

#[test]
fn guest_reads_an_nvme_disk() {
    let place = Place::new();
    let disk = TestDisk::patterned(&place, "disk", 8 << 20);
    let script = "echo sum=$(sha256sum < /dev/nvme0n1)\necho vectors=$(grep -c 'PCI-MSIX.*nvme0q' /proc/interrupts)\n";
    let report = run(Guest::new(&place, script), &disk);
    assert!(report.value("sum").starts_with(&disk.sha256()));
    assert_eq!(report.value("vectors"), "2");
}

#[test]
fn guest_boots_from_an_nvme_disk() {
    let place = Place::new();
    let disk = TestDisk::bootable(&place, "disk", "echo sectors=$(cat /sys/class/block/nvme0n1/size)\n");
    assert_eq!(run(Guest::from_disk(), &disk).value("sectors"), "131072");
}
