// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network of the test's own: a namespace with TAP interfaces on a bridge,
//! and the peer that guests talk to.

use std::time::Duration;

use crate::{Live, Place, Way, example, need_program};

/// The peer's address.
pub const PEER: &str = "10.7.0.1";

/// A namespace with the bridge `br0`, which is [`PEER`], and TAP interfaces on
/// it. It goes when dropped.
#[derive(Debug)]
pub struct Network {
    _peer: Live,
    pid: u32,
    _place: Place,
}

impl Network {
    /// Makes one with the TAP interfaces `vf0` and so on, of several queues if
    /// `multi_queue`. Its peer is `examples/tcp_peer.rs`, which sends `chunk`
    /// MiB at a time.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(taps: usize, multi_queue: bool, chunk: usize) -> Network {
        let place = Place::new();
        let peer = place.program(&example("tcp_peer"));
        let kind = if multi_queue { "multi_queue" } else { "" };
        let lines = format!(
            "ip link set lo up
            ip link add br0 type bridge
            ip addr add {PEER}/24 dev br0
            ip link set br0 up
            for n in $(seq 0 {}); do
                ip tuntap add dev vf$n mode tap {kind}
                ip link set vf$n master br0 up
            done
            exec {} {chunk}",
            taps - 1,
            peer.display()
        );
        let mut command = Way::RootNamespaces.command(need_program("unshare"));
        command.args(["--net", "sh", "-ec", &lines]);
        let mut peer = Live::start(command, place.path("peer"), Duration::from_secs(600));
        peer.says("ready ");
        let text = peer.text();
        let pid = text.rsplit_once("ready ").and_then(|(_, pid)| pid.trim().parse().ok());
        Network { pid: pid.unwrap_or_else(|| panic!("{text}")), _peer: peer, _place: place }
    }

    /// Where the namespace is.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid)
    }
}
