// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backend features: section 4.

use uapi::Errno;
use uapi::vhost::{backend, request};

use crate::testing::{Bench, SHARED};
use crate::{OnReset, Parent, ParentSpec};

/// VDPA-4.1
#[test]
fn offers_follow_the_parent() {
    let offers = |spec: ParentSpec| Bench::new(spec).get::<u64>(request::GET_BACKEND_FEATURES).unwrap();
    assert_eq!(offers(Parent::Sim.spec()), 0x17e);
    assert_eq!(offers(Parent::SimDma.spec()), 0x17e);
    assert_eq!(offers(Parent::Mlx5.spec()), 0x17e);
    assert_eq!(offers(Parent::Platform.spec()), 0x10e);
    assert_eq!(offers(Parent::Vduse.spec()), 0x0e);
    assert_eq!(offers(Parent::Dma.spec()), 0x3e);
    assert_eq!(offers(ParentSpec { desc_group: true, ..Parent::Vduse.spec() }), 0x8e);
    let own = ParentSpec { backend: backend::IOTLB_PERSIST, ..Parent::Vduse.spec() };
    assert_eq!(offers(own.clone()), 0x10e);
    assert_eq!(offers(ParentSpec { on_reset: OnReset::Clean, ..own }), 0x0e);
}

/// VDPA-4.2, in its order.
#[test]
fn what_can_be_acknowledged() {
    let set = |spec: ParentSpec, features: u64| Bench::new(spec).set(request::SET_BACKEND_FEATURES, features);
    let bare = || Parent::Vduse.spec();
    for bit in [0, 9, 63] {
        assert_eq!(set(Parent::Sim.spec(), 1 << bit), Err(Errno::EOPNOTSUPP), "bit {bit}");
    }
    assert_eq!(set(bare(), backend::SUSPEND), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(bare(), backend::RESUME), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(bare(), backend::DESC_ASID), Err(Errno::EINVAL));
    assert_eq!(set(bare(), backend::DESC_ASID | backend::IOTLB_ASID), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(bare(), backend::IOTLB_PERSIST), Err(Errno::EOPNOTSUPP));
    let desc = ParentSpec { desc_group: true, ..bare() };
    assert_eq!(set(desc, backend::DESC_ASID | backend::IOTLB_ASID), Ok(0));
    assert_eq!(Bench::new(bare()).ioctl(request::SET_BACKEND_FEATURES, 0x10), Err(Errno::EFAULT));
}

/// VDPA-4.3
#[test]
fn enable_after_driver_ok_is_always_taken() {
    let mut bench = Bench::new(Parent::Vduse.spec());
    assert_eq!(bench.set(request::SET_BACKEND_FEATURES, backend::ENABLE_AFTER_DRIVER_OK), Ok(0));
}

/// VDPA-4.4, VDPA-4.5: any time, each call replaces, a reset does not clear.
#[test]
fn each_call_replaces_the_set() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.ack(backend::IOTLB_ASID | backend::IOTLB_PERSIST);
    bench.negotiate();
    bench.set_status(0xf).unwrap();
    bench.set_status(0).unwrap();
    bench.update(1, 0, 4096, SHARED).unwrap();
    assert_eq!(bench.records(1).unwrap().len(), 1, "still acknowledged");
    bench.set_status(0xf).unwrap();
    bench.ack(0);
    bench.update(1, 0x1000, 4096, SHARED).unwrap();
    assert_eq!(bench.records(0).unwrap(), [(0x1000, 0x1fff)], "not any more");
}
