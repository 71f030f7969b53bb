// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of vhost-vdpa: the node as it is found and used in each way, and
//! rust-vmm's `vhost` crate.

use programs::{Vfuse, Way, example, in_each_way};

in_each_way! {
    /// VDPA-1.1, VDPA-1.2, VDPA-7.3, VDPA-8.10, VNET-3.1: how programs find a
    /// node, that it is open once, and messages through `write`; what is written
    /// to another file that has got the node's number goes there.
    fn a_node_is_found_and_used(way) {
        let vfuse = Vfuse::new(way).locks_memory().options(["--vdpa", "blk,size=1M,name=disk"]);
        let program = vfuse.place.program(&example("vdpa"));
        let outcome = vfuse.run([program]);
        outcome.succeeded().said("UPDATE: Ok(72)").said("UPDATE of the same range: Err(\"Bad address (os error 14)\")");
        outcome.said("INVALIDATE: Ok(72)\nUPDATE: Ok(72)\na file at its number: Ok(72), it has 72 bytes\nINVALIDATE: Ok(72)");
        vfuse
            .shell(
                "test -c /dev/vhost-vdpa-0
                 test -d /sys/bus/vdpa/devices/disk/vhost-vdpa-0
                 test $(basename $(readlink /sys/bus/vdpa/devices/disk/driver)) = vhost_vdpa
                 grep -q \"^ *$((0x$(stat -c %t /dev/vhost-vdpa-0))) vhost-vdpa\" /proc/devices
                 exec 9<>/dev/vhost-vdpa-0
                 (exec 8<>/dev/vhost-vdpa-0) 2>&1 | grep -q 'busy'",
            )
            .succeeded();
    }
}

in_each_way! {
    /// VNET-5, VDPA-8.17 e, T4: rust-vmm's crate, used as Cloud Hypervisor does:
    /// memory is mapped once, everything offered is acknowledged, and after each
    /// reset the device goes on with nothing mapped anew.
    fn rust_vmm_maps_once(way) {
        for parent in ["sim", "mlx5", "platform"] {
            let vfuse = Vfuse::new(way).locks_memory().options(["--vdpa", &format!("blk,size=1M,parent={parent}")]);
            let outcome = vfuse.run([vfuse.place.program(&example("rust_vmm"))]);
            outcome.succeeded().said("device 2 of 1 queues\nsectors 2048\nwrite Some(0)\ninterrupts 1\n");
            let again = "after a reset: read Some(0), as written true\n";
            outcome.said(&again.repeat(3));
        }
    }
}

/// VNET-5, VDPA-8.10, T4: without IOTLB_PERSIST a device that wipes does not
/// find its ring after a reset, and one behind the platform's IOMMU does.
#[test]
fn rust_vmm_without_persist() {
    for (parent, after) in [("sim", "read None, as written false"), ("platform", "read Some(0), as written true")] {
        let vfuse = Vfuse::new(Way::RootNamespaces).locks_memory();
        let vfuse = vfuse.options(["--vdpa", &format!("blk,size=1M,parent={parent}")]);
        let program = vfuse.place.program(&example("rust_vmm"));
        let outcome = vfuse.run([program.as_os_str(), "without-persist".as_ref()]);
        outcome.succeeded().said("write Some(0)").said(&format!("after a reset: {after}"));
    }
}

/// VDPA-1.9, VDPA-10.3 to VDPA-10.6: devices come and go while a program has
/// others open. One that it has open itself loses its node at once and goes when
/// it is closed; until then its name is taken, and whoever deletes it waits.
#[test]
fn devices_come_and_go_under_a_program() {
    let vfuse = Vfuse::new(Way::RootNamespaces).options(["--vdpa", "blk,size=1M,name=disk"]);
    let socket = vfuse.place.path("lab.sock").display().to_string();
    let binary = vfuse.place.program(&programs::vfuse_binary()).display().to_string();
    let lines = format!(
        "dev() {{ '{binary}' vdpa dev \"$@\" --control '{socket}' 2>&1; }}
        exec 7<>/dev/vhost-vdpa-0
        dev add net,name=n,mac=02:00:00:00:00:07
        test -c /dev/vhost-vdpa-1 && test -d /sys/bus/vdpa/devices/n/vhost-vdpa-1 && echo it has a node
        dev show n
        dev config n
        dev vstats n 0 || true
        exec 8<>/dev/vhost-vdpa-1
        (exec 8>&-; dev del n) &
        while test -e /dev/vhost-vdpa-1; do kill -0 $! || exit 1; done
        dev add net,name=n || true
        dev show n || true
        kill -0 $! && echo whoever deletes it waits
        exec 8>&-
        wait $! && echo it is gone
        dev del n || true
        dev add blk,size=1M,name=n && test -c /dev/vhost-vdpa-1 && dev show n
        (exec 6<>/dev/vhost-vdpa-0) 2>&1 | grep -o busy
        "
    );
    let outcome = vfuse.options(["--control", &socket]).shell(&lines);
    outcome.succeeded().said("it has a node").said("02:00:00:00:00:07").said("EAGAIN").said("EEXIST").said("ENODEV");
    outcome.said("whoever deletes it waits").said("it is gone").said("busy");
}
