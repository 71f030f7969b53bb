// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `vfio-pci` with a Linux guest, and SeaBIOS as the disk's first user.

use std::fs;
use std::time::Duration;

use programs::{Guest, GuestReport, TestDisk, Vfuse, in_each_way};

const LIMIT: Duration = Duration::from_secs(180);
const DEVICE: &str = "vfio-pci,host=0000:01:00.0";

in_each_way! {
    /// GRP-071, GRP-074, GRP-075, GRP-076: how QEMU finds, opens and checks a
    /// device. The guest's nvme driver binds and takes MSI-X; both sides see the same
    /// disk, and what the guest writes is in the file.
    fn guest_and_host_see_one_disk(way) {
        const SCRIPT: &str = "
            disk=/dev/nvme0n1
            echo driver=$(basename $(readlink /sys/class/nvme/nvme0/device/driver))
            echo before=$(sha256sum < $disk)
            dd if=/dev/urandom of=/tmp/random bs=1M count=2 2>/dev/null
            dd if=/tmp/random of=$disk bs=64k seek=16 conv=fsync 2>/dev/null
            echo 3 > /proc/sys/vm/drop_caches
            echo after=$(sha256sum < $disk)
            echo msix=$(grep -c 'PCI-MSIX.*nvme0q' /proc/interrupts)
            echo taken=$(awk '/nvme0q1/ { print $2 }' /proc/interrupts)
            echo intx=$(grep -c 'IO-APIC.*nvme' /proc/interrupts)
        ";
        let vfuse = Vfuse::new(way).locks_memory().limit(LIMIT);
        let disk = TestDisk::patterned(&vfuse.place, "disk", 16 << 20);
        let before = disk.sha256();
        let vfuse = vfuse.disk("01:00.0", &disk.path);
        let guest = Guest::new(&vfuse.place, SCRIPT).with(["-device", DEVICE]);

        let report = GuestReport::of(&vfuse.run(guest.program()));
        let sum = |name| report.value(name).split(' ').next().unwrap_or_default().to_owned();
        assert_eq!(report.value("driver"), "nvme");
        assert_eq!(sum("before"), before);
        assert_eq!(sum("after"), disk.sha256());
        assert_ne!(sum("after"), before, "the guest wrote random bytes");
        assert_eq!(report.value("msix"), "2", "one vector for the admin queue, one for the I/O queue");
        assert_eq!(report.value("intx"), "0");
        let taken: u64 = report.value("taken").parse().expect("a count of interrupts");
        assert!(taken > 10, "only {taken} interrupts for 34 MiB");
    }

    /// SeaBIOS reads boot loader, kernel and initramfs by its own NVMe driver,
    /// then Linux takes the controller over.
    fn boots_from_the_disk(way) {
        let vfuse = Vfuse::new(way).locks_memory().limit(LIMIT);
        let disk = TestDisk::bootable(&vfuse.place, "disk", "echo sum=$(sha256sum < /dev/nvme0n1)\n");
        let before = disk.sha256();
        let vfuse = vfuse.disk("01:00.0", &disk.path);
        let guest = Guest::from_disk().with(["-device", &format!("{DEVICE},bootindex=0")]);

        let outcome = vfuse.run(guest.program());
        outcome.said("SeaBIOS").said("SYSLINUX");
        assert!(GuestReport::of(&outcome).value("sum").starts_with(&before));
        assert_eq!(disk.sha256(), before, "nobody wrote");
    }
}

/// What a guest does to use most of its memory for the disk.
const COPIES: &str = "
    disk=/dev/nvme0n1
    echo before=$(sha256sum < $disk)
    dd if=/dev/urandom of=/tmp/random bs=1M count=2 2>/dev/null
    dd if=/tmp/random of=$disk bs=64k seek=16 conv=fsync 2>/dev/null
    echo 3 > /proc/sys/vm/drop_caches
    echo after=$(sha256sum < $disk)
";
/// Guest memory that has a file behind it.
const MEMFD: [&str; 4] =
    ["-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-machine", "memory-backend=ram"];

/// A guest that reads and writes the disk of this run; returns the run.
#[track_caller]
fn uses_the_disk(vfuse: Vfuse, options: &[&str]) -> Vfuse {
    let vfuse = vfuse.locks_memory().limit(LIMIT).traced();
    let disk = TestDisk::patterned(&vfuse.place, "disk", 16 << 20);
    let before = disk.sha256();
    let vfuse = vfuse.disk("01:00.0", &disk.path);
    let guest = Guest::new(&vfuse.place, COPIES).with(options);
    let report = GuestReport::of(&vfuse.run(guest.program()));
    let sum = |name| report.value(name).split(' ').next().unwrap_or_default().to_owned();
    assert_eq!(sum("before"), before);
    assert_eq!(sum("after"), disk.sha256());
    assert!(vfuse.events("nvme.command") > 100, "the trace shows the commands");
    vfuse
}

in_each_way! {
    /// GRP-059, GRP-072, GRP-073: QEMU's other interface, and zero-copy DMA.
    fn guest_by_iommufd(way) {
        let device = format!("{DEVICE},iommufd=i0");
        let options = [&MEMFD[..], &["-object", "iommufd,id=i0", "-device", &device]].concat();
        let vfuse = uses_the_disk(Vfuse::new(way), &options);
        assert_eq!(vfuse.events("dma.copied"), 0, "shared memory");
    }
}

/// Guest memory without a file is reached by copies; with one, never. The trace
/// tells.
#[test]
fn dma_to_shared_memory_is_never_copied() {
    let vfuse = uses_the_disk(Vfuse::new(programs::Way::RootNamespaces), &["-device", DEVICE]);
    assert!(vfuse.events("dma.copied") > 100, "private memory");
    let options = [&MEMFD[..], &["-device", DEVICE]].concat();
    let vfuse = uses_the_disk(Vfuse::new(programs::Way::RootNamespaces), &options);
    assert_eq!(vfuse.events("dma.copied"), 0, "shared memory");
}

/// The guest resets the controller by every way that its kernel knows, and
/// unbinds and binds its driver; the disk works on.
#[test]
fn guest_resets_the_controller() {
    const SCRIPT: &str = "
        disk=/dev/nvme0n1
        device=$(readlink -f /sys/class/nvme/nvme0/device)
        echo methods=$(cat $device/reset_method)
        echo first=$(sha256sum < $disk)
        echo 1 > /sys/class/nvme/nvme0/reset_controller
        echo second=$(sha256sum < $disk)
        address=$(basename $device)
        echo $address > $device/driver/unbind
        echo 1 > $device/reset
        echo $address > /sys/bus/pci/drivers/nvme/bind
        until [ -b $disk ]; do usleep 10000; done
        echo 3 > /proc/sys/vm/drop_caches
        echo third=$(sha256sum < $disk)
    ";
    let vfuse = Vfuse::new(programs::Way::NobodyUserns).locks_memory().limit(LIMIT);
    let disk = TestDisk::patterned(&vfuse.place, "disk", 4 << 20);
    let vfuse = vfuse.disk("01:00.0", &disk.path);
    let guest = Guest::new(&vfuse.place, SCRIPT).with(["-device", DEVICE]);
    let report = GuestReport::of(&vfuse.run(guest.program()));
    assert!(report.value("methods").contains("flr"), "{}", report.value("methods"));
    for name in ["first", "second", "third"] {
        assert!(report.value(name).starts_with(&disk.sha256()), "the disk before and after: {name}");
    }
}

/// Two controllers in one guest: a copy from one to the other.
#[test]
fn guest_with_two_controllers() {
    const SCRIPT: &str = "
        dd if=/dev/nvme0n1 of=/dev/nvme1n1 bs=256k conv=fsync 2>/dev/null
        echo done=yes
    ";
    let vfuse = Vfuse::new(programs::Way::RootNamespaces).locks_memory().limit(LIMIT);
    let from = TestDisk::patterned(&vfuse.place, "from", 8 << 20);
    let to = vfuse.place.write("to", &vec![0; 8 << 20]);
    let vfuse = vfuse.disk("01:00.0", &from.path).disk("02:00.0", &to);
    let guest =
        Guest::new(&vfuse.place, SCRIPT).with(["-device", DEVICE]).with(["-device", "vfio-pci,host=0000:02:00.0"]);
    assert_eq!(GuestReport::of(&vfuse.run(guest.program())).value("done"), "yes");
    let (one, two) = (fs::read(&from.path).expect("a disk"), fs::read(&to).expect("a disk"));
    assert!(one == two, "the copy differs");
}
