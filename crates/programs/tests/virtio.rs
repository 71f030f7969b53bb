// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio devices of the vdpa bus under programs that drive them through
//! `/dev/vhost-vdpa-0`: DPDK's virtio-user, libblkio, QEMU with a guest.

use std::time::Duration;

use programs::{Guest, GuestReport, Outcome, TestDisk, Vfuse, Way, in_each_way};

const LIMIT: Duration = Duration::from_secs(180);

/// What follows `name` in the program's totals.
#[track_caller]
fn total(outcome: &Outcome, name: &str) -> u64 {
    let all = outcome.text.rsplit_once("Accumulated forward statistics").map_or("", |(_, all)| all);
    let after = all.split_once(name).unwrap_or_else(|| panic!("no {name}:\n{}", outcome.text)).1;
    after.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{after}"))
}

/// `dpdk-testpmd` forwards frames to itself over a device until it has counted
/// ten thousand; then it is told to stop.
fn testpmd(way: Way, device: &str, port: &str) -> Outcome {
    let vfuse = Vfuse::new(way).options(["--vdpa", device]).limit(LIMIT);
    let runtime = vfuse.place.path("");
    let vfuse = vfuse.env("XDG_RUNTIME_DIR", &runtime.to_string_lossy());
    let lines = format!(
        "mkfifo commands
        dpdk-testpmd -l 0,1 --no-telemetry --no-huge -m 256 --no-pci \
            --vdev net_virtio_user0,path=/dev/vhost-vdpa-0{port} -- \
            -i --forward-mode=io --total-num-mbufs=2048 < commands > said 2>&1 &
        exec 3> commands
        echo start tx_first >&3
        until grep -q 'RX-packets: *[0-9][0-9][0-9][0-9][0-9]' said; do
            kill -0 $! || {{ cat said; exit 1; }}
            echo show port stats 0 >&3
            sleep 0.2
        done
        printf 'stop\\nquit\\n' >&3
        exec 3>&-
        wait $!
        cat said
        "
    );
    vfuse.shell(&lines)
}

#[track_caller]
fn forwarded(outcome: &Outcome) {
    outcome.succeeded();
    outcome.said("Port 0 is closed");
    let (received, sent) = (total(outcome, "RX-total:"), total(outcome, "TX-total:"));
    assert!(received >= 10_000, "only {received} frames:\n{}", outcome.text);
    // What is under way at the end was sent and not received.
    assert!(received <= sent && sent - received <= 4096, "{received} received, {sent} sent");
    assert_eq!(total(outcome, "RX-dropped:"), 0);
}

/// VNET-3.1, VNET-3.2, VNET-3.3, T2: DPDK finds the node's major, maps its
/// memory in one batch behind an unmapping of everything, asks through the
/// control queue, and forwards.
#[test]
fn dpdk_forwards() {
    forwarded(&testpmd(Way::RootNamespaces, "net,mac=02:00:00:00:00:01", ""));
}

/// VNET-6.4: a packed ring starts at base 0x8000. Without root.
#[test]
fn dpdk_forwards_over_packed_rings() {
    forwarded(&testpmd(Way::NobodyUserns, "net,packed=on,in_order=on", ",packed_vq=1"));
}

in_each_way! {
    /// VNET-4, T3: opened for writing only, messages of version 1, 60 bytes of
    /// configuration, a ring at IOVA 0.
    fn libblkio_reads_and_writes(way) {
        let vfuse = Vfuse::new(way).options(["--vdpa", "blk,size=16M"]).limit(LIMIT);
        let client = vfuse.place.program(env!("CARGO_BIN_EXE_blkio_client").as_ref());
        let client = client.to_string_lossy();
        let outcome = vfuse.run([&*client, "virtio-blk-vhost-vdpa", "/dev/vhost-vdpa-0", "verify"]);
        outcome.succeeded();
        outcome.said("verified 16777216 bytes");
    }
}

/// Guest memory that has a file behind it: a parent that maps by virtual
/// address takes no other (VDPA-7.19).
const MEMFD: [&str; 4] =
    ["-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-machine", "memory-backend=ram"];
const DEVICE: &str = "vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0";

fn sum(report: &GuestReport, name: &str) -> String {
    report.value(name).split(' ').next().unwrap_or_default().to_owned()
}

in_each_way! {
    /// VNET-2.2: QEMU's generic device. The guest's driver and the lab's disk
    /// see the same bytes, before and after the guest writes.
    fn guest_and_host_see_one_disk(way) {
        const SCRIPT: &str = "
            insmod /lib/modules/virtio_blk.ko
            disk=/dev/vda
            echo before=$(sha256sum < $disk)
            dd if=/dev/urandom of=/tmp/random bs=1M count=2 2>/dev/null
            dd if=/tmp/random of=$disk bs=64k seek=16 conv=fsync 2>/dev/null
            echo 3 > /proc/sys/vm/drop_caches
            echo after=$(sha256sum < $disk)
            echo serial=$(cat /sys/block/vda/serial)
        ";
        let vfuse = Vfuse::new(way).limit(LIMIT);
        let disk = TestDisk::patterned(&vfuse.place, "disk", 16 << 20);
        let before = disk.sha256();
        let vfuse = vfuse.options(["--vdpa", &format!("blk,serial=a-disk,file={}", disk.path.display())]);
        let guest = Guest::new(&vfuse.place, SCRIPT).with(MEMFD).with(["-device", DEVICE]);
        let report = GuestReport::of(&vfuse.run(guest.program()));
        assert_eq!(sum(&report, "before"), before);
        assert_eq!(sum(&report, "after"), disk.sha256());
        assert_ne!(sum(&report, "after"), before, "the guest wrote random bytes");
        assert_eq!(report.value("serial"), "a-disk");
    }

    /// VNET-2.1, VNET-2.2: the firmware's driver loads a boot loader, that one
    /// the kernel, whose driver then finds the same disk. Each of them resets
    /// the device that the one before has left, and maps come and go while
    /// the firmware moves its memory about.
    fn guest_boots_from_the_disk(way) {
        const SCRIPT: &str = "
            insmod /lib/modules/virtio_blk.ko
            echo sum=$(sha256sum < /dev/vda)
        ";
        let vfuse = Vfuse::new(way).limit(LIMIT);
        let disk = TestDisk::bootable(&vfuse.place, "disk", SCRIPT);
        let vfuse = vfuse.options(["--vdpa", &format!("blk,file={}", disk.path.display())]);
        let guest = Guest::from_disk().with(MEMFD).with(["-device", &format!("{DEVICE},bootindex=0")]);
        let report = GuestReport::of(&vfuse.run(guest.program()));
        assert_eq!(sum(&report, "sum"), disk.sha256());
    }
}
