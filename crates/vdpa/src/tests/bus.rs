// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Management: section 10.

use device::virtio::VirtioEndpoint;
use uapi::Errno;

use crate::testing::{Bench, LoopBack};
use crate::{Deletion, Parent};

fn add(bench: &mut Bench, name: &str, management: Option<&str>, block: bool) -> Result<Option<u32>, Errno> {
    let (device, _) = LoopBack::new(if block { LoopBack::block() } else { LoopBack::net() });
    let endpoint = VirtioEndpoint::new(Box::new(device), Default::default());
    bench.vdpa.add(name, management, Parent::Sim.spec(), endpoint)
}

/// VDPA-10.3
#[test]
fn names_are_given_once() {
    let mut bench = Bench::new(Parent::Sim.spec());
    assert_eq!(add(&mut bench, "", Some("m"), false), Err(Errno::EINVAL));
    assert_eq!(add(&mut bench, "dev", Some("m"), false), Err(Errno::EEXIST));
    assert_eq!(add(&mut bench, "x", Some("m"), false), Ok(Some(1)));
}

/// VDPA-10.4
#[test]
fn deleting_and_showing() {
    let mut bench = Bench::new(Parent::Sim.spec());
    add(&mut bench, "own", None, false).unwrap();
    add(&mut bench, "x", Some("m"), true).unwrap();
    assert_eq!(bench.vdpa.delete(""), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.delete("y"), Err(Errno::ENODEV));
    assert_eq!(bench.vdpa.delete("own"), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.delete("x"), Ok(Deletion::Done));
    assert_eq!(bench.vdpa.show(""), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.show("x"), Err(Errno::ENODEV));
    let info = bench.vdpa.show("dev").unwrap();
    assert_eq!((info.device_id, info.queues, info.max_size, info.open), (1, 3, 256, true));
    assert_eq!(info.management.as_deref(), Some("test"));
}

/// VDPA-10.5
#[test]
fn configuration_is_shown() {
    let mut bench = Bench::new(Parent::Sim.spec());
    bench.set_config(0, &[2, 0, 0, 0, 0, 1]).unwrap();
    let config = bench.vdpa.config("dev").unwrap();
    assert_eq!((config.device_id, &config.bytes[..6], config.negotiated), (1, &[2, 0, 0, 0, 0, 1][..], None));
    bench.negotiate();
    assert_eq!(bench.vdpa.config("dev").unwrap().negotiated, Some(bench.endpoint.features()));
    assert_eq!(bench.vdpa.config("no"), Err(Errno::ENODEV));
    let mut other = LoopBack::net();
    other.device_id = 4;
    let mut other = Bench::with(Parent::Sim.spec(), other);
    assert_eq!(other.vdpa.config("dev"), Err(Errno::EOPNOTSUPP));
}

/// VDPA-10.6, in its order.
#[test]
fn statistics_of_a_queue() {
    let mut bench = Bench::new(Parent::Sim.spec());
    add(&mut bench, "own", None, false).unwrap();
    add(&mut bench, "blk", Some("m"), true).unwrap();
    assert_eq!(bench.vdpa.statistics("", Some(0)), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.statistics("dev", None), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.statistics("no", Some(0)), Err(Errno::ENODEV));
    assert_eq!(bench.vdpa.statistics("own", Some(0)), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.statistics("blk", Some(0x9000)), Err(Errno::EOPNOTSUPP));
    assert_eq!(bench.vdpa.statistics("dev", Some(0x8001)), Err(Errno::ERANGE));
    assert_eq!(bench.vdpa.statistics("dev", Some(0)), Err(Errno::EAGAIN));
    bench.negotiate();
    assert_eq!(bench.vdpa.statistics("dev", Some(0)), Ok(vec![("taken", 0)]));
    assert_eq!(bench.vdpa.statistics("dev", Some(3)), Err(Errno::EINVAL));
}

/// VDPA-10.7, in its order.
#[test]
fn another_mac_address() {
    let mut bench = Bench::new(Parent::Sim.spec());
    add(&mut bench, "own", None, false).unwrap();
    add(&mut bench, "blk", Some("m"), true).unwrap();
    let mac = [2, 0, 0, 0, 0, 9];
    assert_eq!(bench.vdpa.set_mac("", Some(mac)), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.set_mac("no", Some(mac)), Err(Errno::ENODEV));
    assert_eq!(bench.vdpa.set_mac("own", Some(mac)), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.set_mac("blk", None), Ok(()), "only a message");
    for bad in [None, Some([0; 6]), Some([1, 0, 0, 0, 0, 9])] {
        assert_eq!(bench.vdpa.set_mac("dev", bad), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(bench.vdpa.set_mac("dev", Some(mac)), Ok(()));
    assert_eq!(bench.config(0, 6).unwrap(), mac);
}
