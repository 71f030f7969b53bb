// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Status, features, configuration: section 5.

use device::virtio::feature;
use uapi::Errno;
use uapi::vhost::{backend, request};

use crate::testing::{Bench, SHARED};
use crate::{OnReset, Parent, ParentSpec};

/// VDPA-5.1
#[test]
fn bits_can_only_be_added() {
    let mut bench = Bench::new(Parent::Sim.spec());
    for status in [8, 0xc, 0xc, 0xf] {
        assert_eq!(bench.set_status(status), Ok(0));
        assert_eq!(bench.status(), status);
    }
    assert_eq!(bench.set_status(0xb), Err(Errno::EINVAL));
    assert_eq!(bench.status(), 0xf);
    assert_eq!(bench.ioctl(request::VDPA_SET_STATUS, 0x10), Err(Errno::EFAULT));
    assert_eq!((bench.set_status(0), bench.set_status(0)), (Ok(0), Ok(0)));
}

/// VDPA-5.2: what a reset leaves alone, and what it does not.
#[test]
fn a_reset_forgets_only_the_device() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.ack(backend::IOTLB_ASID);
    bench.negotiate();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    let kick = bench.event(request::SET_VRING_KICK, 0);
    let call = bench.event(request::SET_VRING_CALL, 0);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    bench.set_status(0).unwrap();
    assert_eq!(bench.records(0).unwrap().len(), 1);
    assert!(bench.seen.lock().unwrap().running.is_empty());
    // The parent has forgotten the callback; the core still polls the kick.
    bench.endpoint.interrupts.queue(0);
    assert_eq!(call.peek(), 0);
    assert_eq!(bench.platform.listeners.lock().unwrap().len(), 1);
    bench.negotiate();
    bench.update(0, 0x20000, 4096, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    let kick: std::sync::Arc<dyn device::Event> = kick;
    bench.platform.signal(&kick);
    bench.settle();
    assert_eq!(bench.seen.lock().unwrap().kicks, [0]);
}

/// VDPA-5.3: read back what came of it.
#[test]
fn a_failed_device_shows_in_the_status() {
    let mut bench = Bench::owned(ParentSpec { on_reset: OnReset::MustAck, ..Parent::Sim.spec() });
    bench.negotiate();
    assert_eq!(bench.set_status(0xf), Err(Errno::EOPNOTSUPP), "must-ack");
    assert_eq!(bench.status(), 0xb);
    bench.ack(backend::IOTLB_PERSIST);
    assert_eq!(bench.set_status(0xf), Ok(0));
    assert_eq!(bench.status(), 0xf);
}

/// VDPA-5.4
#[test]
fn features_are_fixed_by_features_ok() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let (v1, iova) = (feature::VERSION_1, feature::ACCESS_PLATFORM);
    assert_eq!(bench.set(request::SET_FEATURES, v1), Err(Errno::EINVAL));
    assert_eq!(bench.set(request::SET_FEATURES, v1 | iova | 1 << 60), Ok(0));
    assert_eq!(bench.endpoint.features(), v1 | iova, "unknown ones are dropped");
    assert_eq!(bench.ioctl(request::SET_FEATURES, 0x10), Err(Errno::EFAULT));
    bench.set_status(8).unwrap();
    assert_eq!(bench.ioctl(request::SET_FEATURES, 0x10), Err(Errno::EBUSY), "before it is read");
    bench.set_status(0).unwrap();
    assert_eq!(bench.set(request::SET_FEATURES, iova), Ok(0));
}

/// VDPA-5.5
#[test]
fn configuration_is_read_in_any_part() {
    let mut bench = Bench::new(Parent::Sim.spec());
    assert_eq!(bench.set_config(0, &[1, 2, 3, 4, 5, 6]), Ok(0));
    assert_eq!(bench.config(0, 12).unwrap()[..6], [1, 2, 3, 4, 5, 6]);
    assert_eq!(bench.config(11, 1).unwrap(), [0]);
    for (off, len) in [(0, 0), (12, 1), (13, 1), (0, 13), (11, 2), (u32::MAX, 1), (1, u32::MAX)] {
        assert_eq!(bench.config(off, len), Err(Errno::EINVAL), "{off} {len}");
    }
    assert_eq!(bench.ioctl(request::VDPA_GET_CONFIG, 0x10), Err(Errno::EFAULT));
    // The header is there, the bytes are not.
    let edge = 0x1000_0000 + (1 << 20) - 8;
    bench.client.memory.store(edge, &[0, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(bench.ioctl(request::VDPA_GET_CONFIG, edge), Err(Errno::EFAULT));
    assert_eq!(bench.ioctl(request::VDPA_SET_CONFIG, edge), Err(Errno::EFAULT));
}

/// VDPA-5.5: a legacy driver is assumed once after each reset.
#[test]
fn reading_before_features_sets_none() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let before = bench.seen.lock().unwrap().features.len();
    bench.config(0, 1).unwrap();
    assert_eq!(bench.seen.lock().unwrap().features.len(), before, "the parent refuses 0");
    bench.set(request::SET_FEATURES, feature::ACCESS_PLATFORM).unwrap();
    bench.config(0, 1).unwrap();
    assert_eq!(bench.endpoint.features(), feature::ACCESS_PLATFORM, "not again");
}

/// VDPA-5.6
#[test]
fn configuration_changes_have_an_eventfd() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let (fd, counter) = bench.client.eventfd();
    let foreign = bench.client.foreign_fd();
    assert_eq!(bench.set(request::VDPA_SET_CONFIG_CALL, 99i32), Err(Errno::EBADF));
    assert_eq!(bench.set(request::VDPA_SET_CONFIG_CALL, foreign), Err(Errno::EINVAL));
    assert_eq!(bench.set(request::VDPA_SET_CONFIG_CALL, fd), Ok(0));
    bench.endpoint.interrupts.config();
    assert_eq!(bench.set(request::VDPA_SET_CONFIG_CALL, -1i32), Ok(0));
    bench.endpoint.interrupts.config();
    assert_eq!(counter.take(), 1);
}

/// VDPA-5.7
#[test]
fn suspend_stops_and_resume_replays() {
    let mut bare = Bench::owned(Parent::Vduse.spec());
    assert_eq!(bare.ioctl(request::VDPA_SUSPEND, 0), Ok(0), "not running: nothing is asked");
    assert_eq!(bare.ioctl(request::VDPA_RESUME, 0), Ok(0));
    bare.set_status(4).unwrap();
    assert_eq!(bare.ioctl(request::VDPA_SUSPEND, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(bare.ioctl(request::VDPA_RESUME, 0), Err(Errno::EOPNOTSUPP));

    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.negotiate();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    let kick = bench.event(request::SET_VRING_KICK, 0);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0), Err(Errno::EINVAL), "it runs");
    bench.post(SHARED + 0x1000, 0x8000);
    bench.settle();
    assert_eq!(bench.used(SHARED + 0x1000).0, 1);
    assert_eq!(bench.ioctl(request::VDPA_SUSPEND, 0), Ok(0));
    bench.post(SHARED + 0x1000, 0x8000);
    let kick: std::sync::Arc<dyn device::Event> = kick;
    bench.platform.signal(&kick);
    bench.settle();
    assert_eq!(bench.used(SHARED + 0x1000).0, 1);
    for _ in 0..2 {
        assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(1), "stable");
    }
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 1), Ok(0));
    assert_eq!(bench.ring(request::VDPA_SET_GROUP_ASID, 0, 0), Err(Errno::EBUSY), "VDPA-6.8");
    assert_eq!(bench.ioctl(request::VDPA_RESUME, 0), Ok(0));
    bench.settle();
    assert_eq!(bench.used(SHARED + 0x1000).0, 2);
    assert_eq!(bench.ioctl(request::VDPA_RESUME, 0), Ok(0), "without a suspend");
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0), Err(Errno::EINVAL));
    bench.ioctl(request::VDPA_SUSPEND, 0).unwrap();
    bench.set_status(0).unwrap();
    bench.set_status(0xf).unwrap();
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0), Err(Errno::EINVAL), "a reset ends it");
}
