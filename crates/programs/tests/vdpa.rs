// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of vhost-vdpa: the node as it is found and used in each way, and
//! QEMU's `-netdev vhost-vdpa` with a Linux guest on a TAP interface.

use std::process::Command;
use std::time::Duration;

use programs::{Guest, GuestReport, Vfuse, Way, in_each_way, need_program, run_child};

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

/// Sends a file to whoever connects.
const SERVER: &str = "
    use IO::Socket::INET;
    $s = IO::Socket::INET->new(LocalPort => 5000, Listen => 5, ReuseAddr => 1) or die;
    open(F, '<', $ARGV[0]) or die;
    local $/;
    $data = <F>;
    while ($c = $s->accept) { print $c $data; close $c; }
";

/// VDPA-8.17 a, VNET-2.1 to VNET-2.4: driver unbound and bound ten times, the
/// network used again each time, and a verified transfer over TCP.
#[test]
fn qemu_net_on_a_tap_interface() {
    const ROUNDS: usize = 10;
    const MEGABYTES: usize = 20;
    let script = format!(
        "for m in failover net_failover virtio_net; do insmod /lib/modules/$m.ko; done
        for round in $(seq {ROUNDS}); do
            ifconfig eth0 10.7.0.2 netmask 255.255.255.0 up
            ping -c 1 -W 20 10.7.0.1 > /dev/null && echo ping$round=ok
            echo sum$round=$(nc 10.7.0.1 5000 < /dev/null | sha256sum)
            echo virtio0 > /sys/bus/virtio/drivers/virtio_net/unbind
            echo virtio0 > /sys/bus/virtio/drivers/virtio_net/bind
        done"
    );
    let vfuse = Vfuse::new(Way::RootNamespaces).locks_memory().options(["--vdpa", "net,network=tap:vf0,name=n"]);
    let vfuse = vfuse.limit(Duration::from_secs(600));
    let guest = Guest::new(&vfuse.place, &script).with([
        "-object",
        "memory-backend-memfd,id=ram,size=512M,share=on",
        "-machine",
        "memory-backend=ram",
        "-netdev",
        "vhost-vdpa,vhostdev=/dev/vhost-vdpa-0,id=n0",
        "-device",
        "virtio-net-pci,netdev=n0",
    ]);
    let bytes: Vec<u8> =
        (1..=(MEGABYTES << 20) as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let data = vfuse.place.write("data", &bytes);
    let server = vfuse.place.write("serve.pl", SERVER.as_bytes());
    // A network of the test's own; whoever connects gets the data.
    let host = format!(
        "ip link set lo up
        ip tuntap add dev vf0 mode tap
        ip addr add 10.7.0.1/24 dev vf0
        ip link set vf0 up
        perl {} {} &
        \"$@\"",
        server.display(),
        data.display()
    );
    let inner = vfuse.command(guest.program());
    let mut command = Command::new(need_program("unshare"));
    command.args(["--net", "--kill-child", "--fork", "sh", "-ec", &host, "sh"]).arg(inner.get_program());
    command.args(inner.get_args()).current_dir(vfuse.place.path(""));
    let report = GuestReport::of(&run_child(command, Duration::from_secs(600)));
    let sum = run_child(
        {
            let mut command = Command::new("sha256sum");
            command.arg(&data);
            command
        },
        Duration::from_secs(60),
    );
    let sum = sum.text.split(' ').next().unwrap_or_default().to_owned();
    for round in 1..=ROUNDS {
        assert_eq!(report.value(&format!("ping{round}")), "ok");
        assert!(report.value(&format!("sum{round}")).starts_with(&sum), "round {round}");
    }
}
