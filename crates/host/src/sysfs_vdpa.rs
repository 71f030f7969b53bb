// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `/dev`, `/sys` and `/proc` show of the vdpa bus.
//!
//! libvirt and Kubernetes' device plugins find `/dev/vhost-vdpa-N` by the
//! directory of that name below `/sys/bus/vdpa/devices/NAME`; DPDK wants the
//! node's major number in `/proc/devices` (VNET-3.1). Linux has no class for
//! these nodes.

use vdpa::Vdpa;

use crate::tree::{NODE_DEVICE, Node, Tree};

const BUS: &str = "/sys/bus/vdpa";
const DRIVER: &str = "/sys/bus/vdpa/drivers/vhost_vdpa";

/// Character devices that every Linux has.
const CHARACTER: [(u32, &str); 9] = [
    (1, "mem"),
    (4, "tty"),
    (5, "/dev/tty"),
    (5, "/dev/console"),
    (5, "/dev/ptmx"),
    (10, "misc"),
    (13, "input"),
    (29, "fb"),
    (136, "pts"),
];

/// Adds the bus to a tree.
pub(crate) fn add(tree: &mut Tree, vdpa: &Vdpa) {
    for own in [BUS, "/sys/bus/vdpa/devices", "/sys/bus/vdpa/drivers", DRIVER] {
        tree.own(own);
    }
    tree.attribute(format!("{BUS}/drivers_autoprobe"), Some("1\n".into()));
    tree.attribute(format!("{BUS}/drivers_probe"), None);
    for file in ["bind", "unbind", "uevent"] {
        tree.attribute(format!("{DRIVER}/{file}"), None);
    }
    let module = "/sys/module/vhost_vdpa";
    tree.own(module);
    tree.text(format!("{module}/initstate"), "live\n");
    tree.text(format!("{module}/parameters/max_iotlb_entries"), format!("{}\n", vdpa::MAX_ENTRIES));
    tree.link(&format!("{DRIVER}/module"), module);
    let (major, minor) = NODE_DEVICE;
    // Front doors put /dev/null in the place of nodes, so its number has both
    // names.
    let mut devices = String::from("Character devices:\n");
    for (number, name) in CHARACTER.into_iter().chain([(major, "vhost-vdpa")]) {
        devices.push_str(&format!("{number:3} {name}\n"));
    }
    devices.push_str("\nBlock devices:\n  7 loop\n  8 sd\n259 blkext\n");
    tree.text("/proc/devices".into(), devices);
    for device in vdpa.list() {
        let management = device.management.as_deref().unwrap_or("vdpa");
        let parent = format!("/sys/devices/{management}");
        tree.own(&parent);
        let dir = format!("{parent}/{}", device.name);
        tree.link(&format!("{BUS}/devices/{}", device.name), &dir);
        tree.link(&format!("{dir}/subsystem"), BUS);
        tree.attribute(format!("{dir}/driver_override"), Some("(null)\n".into()));
        tree.text(format!("{dir}/uevent"), "DRIVER=vhost_vdpa\n");
        let Some(number) = device.node else { continue };
        tree.link(&format!("{dir}/driver"), DRIVER);
        tree.link(&format!("{DRIVER}/{}", device.name), &dir);
        let name = format!("vhost-vdpa-{number}");
        tree.text(format!("{dir}/{name}/dev"), format!("{major}:{minor}\n"));
        let event = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\n");
        tree.attribute(format!("{dir}/{name}/uevent"), Some(event));
        tree.link(&format!("{dir}/{name}/device"), &dir);
        tree.node(Node::VhostVdpa(number));
    }
}
