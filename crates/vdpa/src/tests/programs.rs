// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs as they are: the five kinds of VDPA-8.17, and the scripts of
//! vdpa-virtio-net.md, 7 (T1 to T10, cited as VNET-7.1 to VNET-7.10).

use uapi::Errno;
use uapi::vhost::{IotlbMsg, MSG_V1, backend, iotlb, request};

use crate::testing::{AREA, Bench, LoopBack, PRIVATE, SHARED, envelope, program};
use crate::{OnReset, Parent, ParentSpec};

const RING: u64 = 0x1000;
const BUFFER: u64 = 0x8000;

fn memory(spec: &ParentSpec) -> u64 {
    if spec.use_va { SHARED } else { PRIVATE }
}

/// Starts the data queues over memory that is mapped at `iova`.
fn start(bench: &mut Bench, iova: u64, base: u32) {
    bench.negotiate();
    bench.set_ring(0, iova + RING);
    bench.ring(request::SET_VRING_BASE, 0, base).unwrap();
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
}

/// Whether a buffer at an IOVA goes through the ring at `ring`.
fn io(bench: &Bench, ring: u64, buffer: u64) -> bool {
    let (before, _) = bench.used(ring);
    bench.post(ring, buffer);
    bench.settle();
    let (after, len) = bench.used(ring);
    after == before.wrapping_add(1) && len == 1
}

/// Every parent, acknowledged or not, as Linux has them.
fn parents() -> impl Iterator<Item = (ParentSpec, bool)> {
    Parent::ALL.into_iter().flat_map(|parent| {
        let spec = parent.spec();
        let most = if spec.has_persistent_map() { 2 } else { 1 };
        [false, true].into_iter().take(most).map(move |acked| (spec.clone(), acked))
    })
}

fn owned(spec: &ParentSpec, acked: bool) -> Bench {
    let mut bench = Bench::owned(spec.clone());
    bench.ack(if acked { backend::IOTLB_PERSIST } else { 0 });
    bench
}

/// VDPA-8.17 a, VDPA-8.15: unmaps all around each reset (QEMU, DPDK).
#[test]
fn one_that_unmaps_around_each_reset() {
    for (spec, acked) in parents() {
        let at = memory(&spec);
        let mut bench = owned(&spec, acked);
        for round in 0..3 {
            bench.update(0, 0, 1 << 16, at).unwrap();
            start(&mut bench, 0, round);
            assert!(io(&bench, at + RING, BUFFER), "{spec:?} {acked}");
            bench.set_status(0).unwrap();
            bench.invalidate(0, 0, 1 << 16).unwrap();
            assert_eq!(bench.records(0).unwrap(), []);
        }
    }
}

/// VDPA-8.17 b: maps the same again without unmapping: never worked.
#[test]
fn one_that_maps_the_same_again() {
    for (spec, acked) in parents() {
        let at = memory(&spec);
        let mut bench = owned(&spec, acked);
        bench.update(0, 0, 1 << 16, at).unwrap();
        start(&mut bench, 0, 0);
        bench.set_status(0).unwrap();
        assert_eq!(bench.update(0, 0, 1 << 16, at), Err(Errno::EFAULT), "{spec:?} {acked}");
    }
}

/// VDPA-8.17 c: maps other ranges after a reset: works, but old ones may be
/// there still or again.
#[test]
fn one_that_maps_elsewhere() {
    for (spec, acked) in parents() {
        let at = memory(&spec);
        let mut bench = owned(&spec, acked);
        bench.update(0, 0, 1 << 16, at).unwrap();
        start(&mut bench, 0, 0);
        bench.set_status(0).unwrap();
        bench.update(0, 1 << 20, 1 << 16, at).unwrap();
        start(&mut bench, 1 << 20, 0);
        assert!(io(&bench, at + RING, (1 << 20) + BUFFER), "{spec:?} {acked}");
        // Only an un-acknowledged dma_map parent has lost them for good.
        let lost = spec.parent == Parent::SimDma && !acked;
        assert_eq!(io(&bench, at + RING, BUFFER), !lost, "{spec:?} {acked}");
    }
}

/// VDPA-8.17 d: relies on the wipe, for 1:1 access after a reset. The class
/// that the gate protects.
#[test]
fn one_that_relies_on_the_wipe() {
    for (spec, on_reset, works) in [
        (Parent::Sim.spec(), OnReset::Negotiated, true),
        (Parent::SimDma.spec(), OnReset::Negotiated, true),
        (Parent::Sim.spec(), OnReset::Clean, true),
        (Parent::Sim.spec(), OnReset::Keep, false),
    ] {
        let mut bench = owned(&ParentSpec { on_reset, ..spec }, false);
        bench.update(0, 0, 1 << 16, SHARED).unwrap();
        bench.set_status(0).unwrap();
        start(&mut bench, SHARED, 0);
        assert_eq!(io(&bench, SHARED + RING, SHARED + BUFFER), works, "IOVA = VA, {on_reset:?}");
    }
}

/// VDPA-8.17 e: maps once and never again (Cloud Hypervisor, rust-vmm).
#[test]
fn one_that_maps_once() {
    for (spec, acked) in parents() {
        let at = memory(&spec);
        let mut bench = owned(&spec, acked);
        bench.update(0, 0, 1 << 16, at).unwrap();
        let wiped = spec.compat_reset && !acked;
        for round in 0..3 {
            start(&mut bench, 0, round);
            let works = io(&bench, at + RING, BUFFER);
            assert_eq!(works, round == 0 || !wiped, "{spec:?} {acked}");
            bench.set_status(0).unwrap();
        }
    }
}

/// VNET-7.1, VNET-2.3: rings enabled after DRIVER_OK; what was posted before is seen.
#[test]
fn t1_qemu_with_a_control_queue() {
    let mut bench = owned(&Parent::Sim.spec(), false);
    bench.ack(0x1e);
    bench.negotiate();
    assert_eq!(bench.ask(request::VDPA_GET_VRING_GROUP, 2), Ok(1));
    bench.set_ring(0, 0x1000);
    assert_eq!(bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1), Ok(0));
    let ring =
        IotlbMsg { iova: 0x1000, size: 0x1000, uaddr: SHARED + 0x10000, perm: 3, kind: iotlb::UPDATE, pad: [0; 6] };
    assert_eq!(bench.message(1, ring), Ok(72));
    assert_eq!(bench.message(1, IotlbMsg { iova: 0x2000, perm: 3, ..ring }), Ok(72));
    bench.set_ring(2, 0x1000);
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.batch(0, iotlb::BATCH_END).unwrap();
    bench.set_status(0xf).unwrap();
    bench.post(SHARED + 0x1000, BUFFER);
    bench.post(SHARED + 0x10000, 0x2000);
    bench.settle();
    assert_eq!((bench.used(SHARED + 0x1000).0, bench.used(SHARED + 0x10000).0), (0, 0));
    for queue in [2, 0, 1] {
        bench.ring(request::VDPA_SET_VRING_ENABLE, queue, 1).unwrap();
    }
    bench.settle();
    assert_eq!((bench.used(SHARED + 0x1000), bench.used(SHARED + 0x10000)), ((1, 1), (1, 1)));
}

/// VNET-7.2, VNET-3.2, VNET-3.3, VNET-6.1, VNET-6.2: DPDK unmaps everything first of all.
#[test]
fn t2_dpdk() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.ack(backend::IOTLB_MSG_V2 | backend::IOTLB_BATCH);
    for _ in 0..2 {
        bench.set_status(0).unwrap();
        bench.negotiate();
        assert_eq!(bench.batch(0, iotlb::BATCH_BEGIN), Ok(72));
        assert_eq!(bench.invalidate(0, 0, u64::MAX), Ok(72));
        assert_eq!(bench.update(0, 1 << 32, AREA, SHARED), Ok(72));
        assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72));
        bench.set_ring(0, (1 << 32) + RING);
        bench.ring(request::SET_VRING_BASE, 0, u32::from(bench.used(SHARED + RING).0)).unwrap();
        bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
        bench.set_status(0xf).unwrap();
        assert!(io(&bench, SHARED + RING, (1 << 32) + BUFFER));
        bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 0).unwrap();
        let position = u32::from(bench.used(SHARED + RING).0);
        assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(position), "after disable");
    }
}

/// VNET-7.3, VNET-6.4: libblkio: version 1 only, a ring at IOVA 0, 60 bytes of
/// configuration.
#[test]
fn t3_libblkio() {
    let mut bench = Bench::with(Parent::Sim.spec(), LoopBack::block());
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    bench.ack(0);
    bench.set_status(0).unwrap();
    bench.negotiate();
    assert_eq!(bench.config(0, 60).map(|bytes| bytes.len()), Ok(60));
    let map = IotlbMsg { iova: 0, size: 1 << 16, uaddr: SHARED, perm: 3, kind: iotlb::UPDATE, pad: [0; 6] };
    assert_eq!(bench.write(&envelope(MSG_V1, 0, map)), Ok(72));
    bench.set_ring(0, 0);
    bench.event(request::SET_VRING_KICK, 0);
    let call = bench.event(request::SET_VRING_CALL, 0);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    assert!(io(&bench, SHARED, BUFFER));
    assert_eq!(call.take(), 1);
    let unmap = IotlbMsg { kind: iotlb::INVALIDATE, ..map };
    assert_eq!(bench.write(&envelope(MSG_V1, 0, unmap)), Ok(72), "at run time");
}

/// VNET-7.3 (T3b), VNET-2.2, VNET-6.3: enabled at status 0, before features.
#[test]
fn t3b_qemu_without_a_control_queue() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let features: u64 = bench.get(request::GET_FEATURES).unwrap();
    for queue in 0..2 {
        assert_eq!(bench.ring(request::VDPA_SET_VRING_ENABLE, queue, 1), Ok(0));
    }
    bench.set(request::SET_FEATURES, features).unwrap();
    bench.set_status(8).unwrap();
    bench.set_ring(0, RING);
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.batch(0, iotlb::BATCH_END).unwrap();
    assert_eq!(bench.set_status(0xc), Ok(0));
    assert_eq!(bench.status(), 0xc);
    assert!(io(&bench, SHARED + RING, BUFFER));
}

/// VNET-7.4, VNET-6.7: without the acknowledgement it must not reach old maps.
#[test]
fn t4_cloud_hypervisor() {
    for acked in [true, false] {
        let mut bench = Bench::owned(Parent::Sim.spec());
        assert_eq!(bench.update(0, 0, 1 << 16, SHARED), Ok(72), "before everything else");
        let features: u64 = bench.get(request::GET_FEATURES).unwrap();
        let offered: u64 = bench.get(request::GET_BACKEND_FEATURES).unwrap();
        let activate = |bench: &mut Bench, base| {
            bench.set(request::SET_FEATURES, features).unwrap();
            bench.ack(if acked { offered } else { 0 });
            bench.set_ring(0, RING);
            bench.ring(request::SET_VRING_BASE, 0, base).unwrap();
            bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
            assert_eq!(bench.set_status(0xf), Ok(0), "straight from 0");
        };
        activate(&mut bench, 0);
        assert!(io(&bench, SHARED + RING, BUFFER));
        bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 0).unwrap();
        bench.set_status(0).unwrap();
        activate(&mut bench, 1);
        assert_eq!(io(&bench, SHARED + RING, BUFFER), acked);
    }
}

/// VNET-7.5, VNET-2.4
#[test]
fn t5_qemu_stops() {
    let mut bench = owned(&Parent::Sim.spec(), false);
    bench.ack(0x1e);
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.update(0, 1 << 16, 1 << 16, SHARED).unwrap();
    start(&mut bench, 0, 0);
    assert!(io(&bench, SHARED + RING, BUFFER));
    bench.ioctl(request::VDPA_SUSPEND, 0).unwrap();
    let base = bench.ask(request::GET_VRING_BASE, 0);
    assert_eq!((base, bench.ask(request::GET_VRING_BASE, 0)), (Ok(1), Ok(1)));
    bench.set_status(0).unwrap();
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    for section in 0..2 {
        assert_eq!(bench.invalidate(0, section << 16, 1 << 16), Ok(72));
    }
    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72));
    assert_eq!(bench.records(0).unwrap(), []);
}

/// VNET-7.6
#[test]
fn t6_a_range_that_is_recorded_stays_recorded() {
    for (spec, acked) in parents() {
        let mut bench = owned(&spec, acked);
        bench.update(0, 0, 4096, memory(&spec)).unwrap();
        bench.set_status(0).unwrap();
        assert_eq!(bench.update(0, 0, 4096, memory(&spec)), Err(Errno::EFAULT));
    }
}

/// VNET-7.7, VNET-6.6: the group is the queue's for ever, its address space is
/// not.
#[test]
fn t7_groups_are_lost_at_reset() {
    for parent in [Parent::Sim, Parent::Mlx5] {
        let spec = parent.spec();
        let mut bench = Bench::owned(spec.clone());
        bench.ack(backend::IOTLB_ASID | backend::IOTLB_PERSIST);
        bench.client.memory.store(memory(&spec), &[3]);
        bench.client.memory.store(memory(&spec) + 0x1000, &[4]);
        bench.update(0, 0, 0x1000, memory(&spec)).unwrap();
        bench.update(1, 0, 0x1000, memory(&spec) + 0x1000).unwrap();
        bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
        assert_eq!(bench.dma(1, 0), Some(4));
        bench.set_status(0).unwrap();
        assert_eq!((bench.ask(request::VDPA_GET_VRING_GROUP, 2), bench.dma(1, 0)), (Ok(1), Some(3)));
        bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
        assert_eq!(bench.dma(1, 0), Some(4));
    }
}

/// VNET-7.8
#[test]
fn t8_groups_of_a_running_device_stay() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.set_status(4).unwrap();
    assert_eq!(bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1), Err(Errno::EBUSY));
}

/// VNET-7.9
#[test]
fn t9_address_spaces_need_the_acknowledgement() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    assert_eq!(bench.update(1, 0, 4096, SHARED), Ok(72));
    assert_eq!((bench.records(0).unwrap().len(), bench.records(1)), (1, None));
    assert_eq!(bench.update(1, 0, 4096, SHARED), Err(Errno::EFAULT));
}

/// VNET-7.10
#[test]
fn t10_a_forked_child() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.negotiate();
    bench.client = program(2);
    assert_eq!(bench.update(0, 0, 4096, SHARED), Err(Errno::EFAULT));
    assert_eq!(bench.ring(request::SET_VRING_NUM, 0, 16), Err(Errno::EPERM));
    assert_eq!(bench.set_status(0), Ok(0));
    assert_eq!(bench.status(), 0);
}

/// VNET-6.5: what is asked before there is an owner.
#[test]
fn questions_need_no_owner() {
    let mut bench = Bench::new(Parent::Sim.spec());
    for number in [
        request::VDPA_GET_IOVA_RANGE,
        request::VDPA_GET_VRING_NUM,
        request::VDPA_GET_DEVICE_ID,
        request::GET_BACKEND_FEATURES,
    ] {
        let at = bench.client.room(16);
        assert_eq!(bench.ioctl(number, at), Ok(0));
    }
    assert_eq!(bench.config(0, 6).map(|bytes| bytes.len()), Ok(6));
    assert_eq!(bench.set(request::SET_BACKEND_FEATURES, 0x1eu64), Ok(0), "QEMU's first");
}

/// VNET-6.8: a hand-over of the kick eventfd loses nothing.
#[test]
fn a_queue_can_be_taken_back() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    let kick = bench.event(request::SET_VRING_KICK, 0);
    start(&mut bench, 0, 0);
    let event: std::sync::Arc<dyn device::Event> = kick.clone();
    bench.platform.signal(&event);
    bench.settle();
    bench.bind(request::SET_VRING_KICK, 0, -1).unwrap();
    assert_eq!(kick.take(), 1, "the next user finds it signalled");
}

/// VNET-2.5: QEMU migrates with shadow rings: the control queue's buffers come
/// into address space 0 after the reset, without SET_GROUP_ASID.
#[test]
fn qemu_migrates_with_shadow_rings() {
    let mut bench = owned(&Parent::Sim.spec(), false);
    bench.ack(0x1e);
    bench.negotiate();
    bench.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
    bench.update(1, 0x1000, 0x1000, SHARED).unwrap();
    bench.set_status(0xf).unwrap();
    bench.ioctl(request::VDPA_SUSPEND, 0).unwrap();
    bench.invalidate(1, 0x1000, 0x1000).unwrap();
    bench.set_status(0).unwrap();
    bench.negotiate();
    bench.update(0, 0x1000, 0x2000, SHARED + 0x10000).unwrap();
    bench.update(0, 0x8000, 0x1000, SHARED).unwrap();
    bench.set_ring(2, 0x1000);
    bench.set_status(0xf).unwrap();
    bench.ring(request::VDPA_SET_VRING_ENABLE, 2, 1).unwrap();
    assert!(io(&bench, SHARED + 0x10000, 0x8000), "the group looks into address space 0 again");
}
