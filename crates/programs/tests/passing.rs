// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors of `/dev/iommu` and of a device that another process has opened:
//! passed over a socket by `src/bin/passes.rs`, inherited by QEMU.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use programs::{Guest, GuestReport, TestDisk, Vfuse, in_each_way};

in_each_way! {
    /// API-102, API-103, API-105, API-111, API-112, API-113: whoever gets the
    /// descriptors can bind, attach, map its memory and use the device.
    fn descriptors_go_over_a_socket(way) {
        let vfuse = Vfuse::new(way);
        let passes = vfuse.place.program(Path::new(env!("CARGO_BIN_EXE_passes"))).display().to_string();
        for how in ["bound", "fresh"] {
            vfuse.run([&*passes, how]).succeeded().said("received: vfuse");
        }
        // API-104: it is the same file: bound by one process, bound for both.
        vfuse.run([&*passes, "kept"]).succeeded().said("received: vfuse").said("kept: flags 0x");
    }

    /// GRP-073: QEMU as libvirt starts it, with descriptors that it inherits.
    fn qemu_inherits_descriptors(way) {
        let vfuse = Vfuse::new(way).locks_memory().limit(Duration::from_secs(180));
        let disk = TestDisk::patterned(&vfuse.place, "disk", 8 << 20);
        let vfuse = vfuse.disk("01:00.0", &disk.path);
        let guest = Guest::new(&vfuse.place, "echo sum=$(sha256sum < /dev/nvme0n1)\n")
            .with(["-object", "iommufd,id=i0,fd=20", "-device", "vfio-pci,fd=21,iommufd=i0"]);
        let open = "exec 20<>/dev/iommu 21<>/dev/vfio/devices/vfio0 && exec \"$@\"";
        let mut program: Vec<OsString> = ["bash", "-c", open, "bash"].map(OsString::from).to_vec();
        program.extend(guest.program().iter().cloned());
        assert!(GuestReport::of(&vfuse.run(program)).value("sum").starts_with(&disk.sha256()));
    }
}
