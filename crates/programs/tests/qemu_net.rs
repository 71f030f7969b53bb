// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `-netdev vhost-vdpa` with a Linux guest, on a TAP interface in a
//! network namespace of the test's own. The guest passes a stream on from the
//! peer to the peer, which verifies it: every byte goes both ways. Without KVM
//! that is some 20 MiB/s, so a whole GiB is `make demo-vdpa`'s.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::time::Duration;

use programs::{Guest, GuestReport, Machine, Network, PEER, Vfuse, Way};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// What every guest begins with. `pass` prints what the peer says of a chunk.
fn script(rest: &str) -> String {
    format!(
        "for m in failover net_failover virtio_net; do insmod /lib/modules/$m.ko; done
        up() {{ ifconfig eth0 10.7.0.$1 netmask 255.255.255.0 up; }}
        reached() {{ ping -c 1 -W 20 {PEER} > /dev/null && echo ok; }}
        pass() {{ nc {PEER} 5000 < /dev/null | nc {PEER} 5001; }}
        {rest}"
    )
}

/// QEMU's options for the device at this node, behind a port: there it has a
/// function level reset.
fn device(node: usize, netdev: &str, device: &str) -> [String; 10] {
    [
        "-device".into(),
        "pcie-root-port,id=rp0,addr=5,chassis=1".into(),
        "-object".into(),
        "memory-backend-memfd,id=ram,size=512M,share=on".into(),
        "-machine".into(),
        "memory-backend=ram".into(),
        "-netdev".into(),
        format!("vhost-vdpa,vhostdev=/dev/vhost-vdpa-{node},id=n0{netdev}"),
        "-device".into(),
        format!("virtio-net-pci,netdev=n0,mac=02:00:00:00:07:02,bus=rp0{device}"),
    ]
}

fn vfuse(network: &Network, keys: &str) -> Vfuse {
    let vfuse = Vfuse::new(Way::RootNamespaces).in_network(network).limit(Duration::from_secs(280));
    vfuse.options(["--vdpa", &format!("net,{keys}")])
}

fn run(vfuse: &Vfuse, rest: &str, options: &[String]) -> GuestReport {
    let guest = Guest::new(&vfuse.place, &script(rest)).reboots().with(options);
    GuestReport::of(&vfuse.run(guest.program()))
}

/// VDPA-8.17 a, VNET-2.1 to VNET-2.4: link up, ping, and a verified transfer; ten
/// times the driver is unbound, the function reset and the driver bound again,
/// the transfer goes on each time; then the guest reboots and does it once more.
#[test]
fn a_guest_comes_back_after_resets_and_reboots() {
    const ROUNDS: usize = 10;
    const CHUNK: usize = 4;
    let network = Network::new(1, false, CHUNK);
    let vfuse = vfuse(&network, "network=tap:vf0");
    let rest = format!(
        "up 2
        boot=$(nc {PEER} 5002 < /dev/null)
        echo carrier$boot=$(cat /sys/class/net/eth0/carrier) ping$boot=$(reached)
        for round in $(seq {ROUNDS}); do
            echo boot$boot-pass$round=$(pass)
            [ $boot = 1 ] || break
            device=$(readlink -f /sys/class/net/eth0/device)
            echo ${{device##*/}} > /sys/bus/virtio/drivers/virtio_net/unbind
            echo 1 > ${{device%/*}}/reset && echo reset$round=ok
            echo ${{device##*/}} > /sys/bus/virtio/drivers/virtio_net/bind
            up 2
        done
        [ $boot = 2 ] || reboot -f"
    );
    let outcome = {
        let guest = Guest::new(&vfuse.place, &script(&rest)).reboots().with(device(0, "", ""));
        vfuse.run(guest.program())
    };
    outcome.succeeded();
    let text = outcome.text.replace('\r', "");
    let says = |line: &str| assert!(text.lines().any(|said| said == line), "no {line:?}:\n{text}");
    for round in 1..=ROUNDS {
        says(&format!("reset{round}=ok"));
    }
    for boot in [1, 2] {
        says(&format!("carrier{boot}=1 ping{boot}=ok"));
        for round in 1..=if boot == 1 { ROUNDS } else { 1 } {
            says(&format!("boot{boot}-pass{round}=right {}", CHUNK as u64 * MIB));
        }
    }
}

/// VNET-2.3: a control queue, which QEMU shadows in an address space of its own,
/// and several pairs of queues, which the guest's driver turns on by it.
#[test]
fn several_pairs_and_a_control_queue() {
    const CHUNK: usize = 16;
    let network = Network::new(1, true, CHUNK);
    let vfuse = vfuse(&network, "network=tap:vf0,pairs=2").traced();
    let rest = "up 2
        echo queues=$(ls /sys/class/net/eth0/queues | wc -w)
        echo ping=$(reached)
        for n in 1 2 3 4; do pass > /tmp/p$n; done
        for n in 1 2 3 4; do echo pass$n=$(cat /tmp/p$n); done
        awk '/virtio[0-9]+-(in|out)put/ { sum = 0; for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i; print $NF \"=\" sum }' /proc/interrupts";
    let report =
        run(&vfuse, rest, &[&device(0, ",queues=2", ",mq=on,vectors=8")[..], &["-smp".into(), "2".into()]].concat());
    assert_eq!(report.value("queues"), "4");
    assert_eq!(report.value("ping"), "ok");
    for n in 1..=4 {
        assert_eq!(report.value(&format!("pass{n}")), format!("right {}", CHUNK as u64 * MIB));
    }
    let taken = |name: &str| report.lines.iter().any(|line| line.contains(name) && !line.ends_with("=0"));
    assert!(taken("-input.0=") || taken("-input.1="), "{:?}", report.lines);
}

/// VNET-2.5: QEMU moves a guest to another QEMU, with shadow virtqueues on both
/// sides, while it passes a stream on. The stream is whole.
#[test]
fn a_guest_moves_while_it_sends() {
    const CHUNK: usize = 96;
    let network = Network::new(2, false, CHUNK);
    let rest = "up 2
        echo ping=$(reached)
        echo pass1=$(pass)
        echo pass2=$(pass)
        echo all=done";
    let side = |node: usize, more: &[String]| {
        let vfuse = vfuse(&network, &format!("network=tap:vf{node}"));
        let guest = Guest::quiet(&vfuse.place, &script(rest));
        Machine::start(vfuse, guest, [&device(0, ",x-svq=on", "")[..], more].concat())
    };
    let mut source = side(0, &[]);
    let uri = format!("unix:{}", source.vfuse.place.path("migration").display());
    let mut destination = side(1, &["-incoming".into(), uri.clone()]);
    source.await_serial("ping=ok");
    source.migrate(&uri);
    assert_eq!(source.await_migration(&["completed", "failed"]), "completed", "{}", source.output());
    assert!(!source.serial().contains("pass2="), "it was to move while it sends");
    destination.wait("the guest runs here", Machine::is_running);
    destination.await_serial("all=done");
    let text = source.serial() + &destination.serial();
    for n in 1..=2 {
        assert!(text.contains(&format!("pass{n}=right {}\n", CHUNK as u64 * MIB)), "{text}");
    }
    assert_eq!(source.tell("query-status", &json!({}))["status"], json!("postmigrate"));
}
