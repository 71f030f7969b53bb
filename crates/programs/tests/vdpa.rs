// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program of vhost-vdpa: the node as it is found and used in each way.

use programs::{Vfuse, in_each_way};

/// The example program beside this test.
fn example() -> std::path::PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    target.join("examples/vdpa")
}

in_each_way! {
    /// VDPA-1.1, VDPA-1.2, VDPA-7.3, VDPA-8.10, VNET-3.1: how programs find a
    /// node, that it is open once, and messages through `write`.
    fn a_node_is_found_and_used(way) {
        let vfuse = Vfuse::new(way).locks_memory().options(["--vdpa", "blk,size=1M,name=disk"]);
        let program = vfuse.place.program(&example());
        let outcome = vfuse.run([program]);
        outcome.succeeded().said("UPDATE: Ok(72)").said("UPDATE of the same range: Err(\"Bad address (os error 14)\")");
        outcome.said("INVALIDATE: Ok(72)\nUPDATE: Ok(72)");
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
