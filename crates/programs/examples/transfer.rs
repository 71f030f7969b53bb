// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transfer of `make demo-vdpa`: a guest of QEMU's `-netdev vhost-vdpa`
//! passes a GiB, or as many MiB as the first argument says, on from a peer to
//! the peer, which verifies each byte.

use std::time::{Duration, Instant};

use programs::{Guest, GuestReport, Network, PEER, Vfuse, Way};

fn main() {
    let size: usize = std::env::args().nth(1).map_or(1024, |mib| mib.parse().expect("a number of MiB"));
    let network = Network::new(1, false, size);
    let vfuse = Vfuse::new(Way::RootNamespaces).in_network(&network).limit(Duration::from_secs(1200));
    let vfuse = vfuse.options(["--vdpa", "net,network=tap:vf0"]);
    let script = format!(
        "for m in failover net_failover virtio_net; do insmod /lib/modules/$m.ko; done
        ifconfig eth0 10.7.0.2 netmask 255.255.255.0 up
        ping -c 1 -W 20 {PEER} > /dev/null && echo ping=ok
        start=$(cut -d ' ' -f 1 /proc/uptime)
        echo pass=$(nc {PEER} 5000 < /dev/null | nc {PEER} 5001)
        echo seconds=$start,$(cut -d ' ' -f 1 /proc/uptime)"
    );
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
    let start = Instant::now();
    let report = GuestReport::of(&vfuse.run(guest.program()));
    let pass = report.value("pass");
    assert_eq!(pass, format!("right {}", size << 20), "the peer compares");
    let seconds: Vec<f64> = report.value("seconds").split(',').filter_map(|at| at.parse().ok()).collect();
    let [from, to] = seconds[..] else { panic!("{seconds:?}") };
    let rate = 2.0 * size as f64 / (to - from);
    println!("{size} MiB through the guest and back: {pass}; {rate:.0} MiB/s, both ways");
    println!("with boot and end {:.0} s", start.elapsed().as_secs_f64());
}
