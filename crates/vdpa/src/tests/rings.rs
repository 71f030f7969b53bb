// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of rings: section 6.

use std::sync::Arc;

use device::Event;
use device::virtio::{QueueSpec, feature};
use uapi::Errno;
use uapi::vhost::{VringAddr, backend, iotlb, request};

use crate::testing::{Bench, LoopBack, SHARED};
use crate::{Parent, ParentSpec};

/// VDPA-6.1
#[test]
fn sizes_are_powers_of_two() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    for num in [0, 3, 512, 0x1_0000, 0x1_0100, u32::MAX] {
        assert_eq!(bench.ring(request::SET_VRING_NUM, 0, num), Err(Errno::EINVAL), "{num}");
    }
    for num in [1, 256] {
        assert_eq!(bench.ring(request::SET_VRING_NUM, 0, num), Ok(0));
    }
    bench.set_status(4).unwrap();
    assert_eq!(bench.ring(request::SET_VRING_NUM, 0, 8), Ok(0), "at any status");
    assert_eq!(bench.endpoint.queue_size(0), 8);
}

/// VDPA-6.2
#[test]
fn addresses_are_aligned() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let good = VringAddr { index: 1, flags: 0, desc: 0, used: 4, avail: 2, log: 4 };
    let mut set = |addr: VringAddr| bench.set(request::SET_VRING_ADDR, addr);
    assert_eq!(set(good), Ok(0), "0 is an address");
    assert_eq!(set(VringAddr { flags: 1, ..good }), Ok(0));
    assert_eq!(set(VringAddr { flags: 2, avail: 1, ..good }), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(VringAddr { avail: 1, ..good }), Err(Errno::EINVAL));
    assert_eq!(set(VringAddr { used: 6, ..good }), Err(Errno::EINVAL));
    assert_eq!(set(VringAddr { log: 2, ..good }), Err(Errno::EINVAL));
    assert_eq!(set(VringAddr { desc: u64::MAX, ..good }), Ok(0), "nobody looks whether it is mapped");
    bench.set_status(4).unwrap();
    assert_eq!(bench.set(request::SET_VRING_ADDR, good), Err(Errno::EINVAL));
    bench.ioctl(request::VDPA_SUSPEND, 0).unwrap();
    assert_eq!(bench.set(request::SET_VRING_ADDR, good), Ok(0));
}

/// VDPA-6.3, VDPA-6.4, VDPA-5.4: features say how positions are read, also
/// after a reset.
#[test]
fn positions_are_packed_if_features_are() {
    let device = || {
        let mut spec = LoopBack::net();
        spec.features |= feature::RING_PACKED;
        spec
    };
    let mut bench = Bench::with(Parent::Mlx5.spec(), device());
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0x1_0000), Err(Errno::EINVAL), "split");
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0xffff), Ok(0));
    assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(0xffff), "in any status");
    bench.negotiate();
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0x8003_8002), Ok(0));
    assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(0x8003_8002));
    bench.set_status(0).unwrap();
    assert_eq!(bench.ring(request::SET_VRING_BASE, 0, 0x8003_8002), Ok(0), "as before the reset");
    // vdpa_sim takes the low half as an index whatever was negotiated.
    let mut sim = Bench::with(Parent::Sim.spec(), device());
    sim.ioctl(request::SET_OWNER, 0).unwrap();
    sim.negotiate();
    assert_eq!(sim.ring(request::SET_VRING_BASE, 0, 0x8003_8002), Ok(0));
    assert_eq!(sim.ask(request::GET_VRING_BASE, 0), Ok(0x8002));
}

/// VDPA-6.4: asking does not stop it.
#[test]
fn a_running_ring_tells_its_position() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.negotiate();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    for n in 1..4 {
        bench.post(SHARED + 0x1000, 0x8000);
        bench.settle();
        assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(n));
    }
}

/// VDPA-6.5
#[test]
fn eventfds_of_rings() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let foreign = bench.client.foreign_fd();
    for number in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        assert_eq!(bench.bind(number, 0, 77), Err(Errno::EBADF));
        assert_eq!(bench.bind(number, 0, foreign), Err(Errno::EINVAL));
        bench.event(number, 0);
        assert_eq!(bench.bind(number, 0, -1), Ok(0));
    }
    let call = bench.event(request::SET_VRING_CALL, 0);
    bench.endpoint.interrupts.queue(0);
    let other = bench.event(request::SET_VRING_CALL, 0);
    bench.endpoint.interrupts.queue(0);
    assert_eq!((call.take(), other.take()), (1, 1));
}

/// VDPA-6.5, VDPA-6.11: kicks are heard, never read.
#[test]
fn the_kick_counter_keeps_its_value() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.negotiate();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0xf).unwrap();
    let (fd, counter) = bench.client.eventfd();
    let event: Arc<dyn Event> = counter.clone();
    let kicks = |bench: &Bench| {
        bench.settle();
        std::mem::take(&mut bench.seen.lock().unwrap().kicks)
    };
    bench.bind(request::SET_VRING_KICK, 0, fd).unwrap();
    assert_eq!(kicks(&bench), [0u16; 0]);
    bench.platform.signal(&event);
    assert_eq!(kicks(&bench), [0]);
    bench.platform.signal(&event);
    assert_eq!((kicks(&bench), counter.peek()), (vec![0], 2));
    bench.bind(request::SET_VRING_KICK, 0, fd).unwrap();
    assert_eq!(kicks(&bench), [0u16; 0], "the same file again");
    bench.bind(request::SET_VRING_KICK, 0, -1).unwrap();
    bench.platform.signal(&event);
    assert_eq!(kicks(&bench), [0u16; 0]);
    bench.bind(request::SET_VRING_KICK, 0, fd).unwrap();
    assert_eq!((kicks(&bench), counter.peek()), (vec![0], 3), "one that was ever signalled kicks at once");
}

/// VDPA-6.5, VDPA-6.11: a flood of kicks is one look, whatever state the queue is
/// in; the counter goes on counting.
#[test]
fn a_flood_of_kicks_is_one_look() {
    const FLOOD: u64 = 100_000;
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.negotiate();
    bench.update(0, 0, 1 << 16, SHARED).unwrap();
    bench.set_ring(0, 0x1000);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    let (fd, counter) = bench.client.eventfd();
    let event: Arc<dyn Event> = counter.clone();
    bench.bind(request::SET_VRING_KICK, 0, fd).unwrap();
    for (round, status) in (1..).zip([0xf, 0xf, 0]) {
        bench.set_status(status).unwrap();
        (0..FLOOD).for_each(|_| bench.platform.signal(&event));
        bench.settle();
        let kicks = std::mem::take(&mut bench.seen.lock().unwrap().kicks);
        assert_eq!(kicks, if status == 0 { vec![] } else { vec![0] });
        assert_eq!(counter.peek(), round * FLOOD);
    }
}

/// VDPA-6.6
#[test]
fn a_ring_runs_when_ready_and_running() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let running = |bench: &Bench| bench.seen.lock().unwrap().running.len();
    assert_eq!(bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1), Ok(0));
    assert_eq!(running(&bench), 0);
    bench.set_status(4).unwrap();
    assert_eq!(running(&bench), 1);
    bench.ring(request::VDPA_SET_VRING_ENABLE, 1, 9).unwrap();
    assert_eq!(running(&bench), 2, "after DRIVER_OK too, and any number but 0");
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 0).unwrap();
    assert_eq!(running(&bench), 1);
}

/// VDPA-6.7
#[test]
fn groups_of_queues() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    assert_eq!(bench.ask(request::VDPA_GET_VRING_GROUP, 1), Ok(0));
    assert_eq!(bench.ask(request::VDPA_GET_VRING_GROUP, 2), Ok(1));
    assert_eq!(bench.ask(request::VDPA_GET_VRING_DESC_GROUP, 2), Err(Errno::EOPNOTSUPP));
    let mut bare = Bench::owned(Parent::Platform.spec());
    assert_eq!(bare.ask(request::VDPA_GET_VRING_GROUP, 0), Err(Errno::EOPNOTSUPP));
    let mut desc = Bench::owned(ParentSpec { desc_group: true, ..Parent::Mlx5.spec() });
    assert_eq!(desc.ask(request::VDPA_GET_VRING_DESC_GROUP, 2), Ok(1));
    let mut wrong = LoopBack::block();
    wrong.queues[0] = QueueSpec { group: 5, max_size: 256 };
    let mut wrong = Bench::with(Parent::Mlx5.spec(), wrong);
    wrong.ioctl(request::SET_OWNER, 0).unwrap();
    assert_eq!(wrong.ask(request::VDPA_GET_VRING_GROUP, 0), Err(Errno::EIO));
}

/// VDPA-6.8, VDPA-3.7
#[test]
fn groups_go_into_address_spaces() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let mut set = |group, asid| bench.ring(request::VDPA_SET_GROUP_ASID, group, asid);
    assert_eq!(set(3, 0), Err(Errno::ENOBUFS), "as if it were a queue");
    assert_eq!(set(2, 0), Err(Errno::EINVAL));
    assert_eq!(set(1, 2), Err(Errno::EINVAL));
    assert_eq!(set(1, 1), Ok(0), "without the backend feature");
    assert_eq!((bench.records(1), bench.vdpa.group_asid("dev", 1)), (None, Some(1)));
    bench.set_status(4).unwrap();
    assert_eq!(bench.ring(request::VDPA_SET_GROUP_ASID, 1, 0), Err(Errno::EBUSY));
    bench.set_status(0).unwrap();
    assert_eq!(bench.vdpa.group_asid("dev", 1), Some(0), "lost at reset");
    let mut keeps = Bench::owned(Parent::Vduse.spec());
    keeps.ring(request::VDPA_SET_GROUP_ASID, 1, 1).unwrap();
    keeps.set_status(0).unwrap();
    assert_eq!(keeps.vdpa.group_asid("dev", 1), Some(1));
    let mut none = Bench::owned(Parent::Platform.spec());
    assert_eq!(none.ring(request::VDPA_SET_GROUP_ASID, 0, 0), Err(Errno::EOPNOTSUPP));
}

/// VDPA-6.9
#[test]
fn sizes_of_single_rings() {
    assert_eq!(Bench::owned(Parent::Sim.spec()).ask(request::VDPA_GET_VRING_SIZE, 0), Err(Errno::EOPNOTSUPP));
    let mut bench = Bench::owned(Parent::SimDma.spec());
    bench.ring(request::SET_VRING_NUM, 0, 16).unwrap();
    assert_eq!(bench.ask(request::VDPA_GET_VRING_SIZE, 0), Ok(256));
    bench.set_status(4).unwrap();
    assert_eq!(bench.ask(request::VDPA_GET_VRING_SIZE, 0), Ok(16));
}

/// The table of section 3: stored, no effect.
#[test]
fn busy_loop_timeouts_are_remembered() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.ack(backend::IOTLB_MSG_V2);
    bench.ring(request::SET_VRING_BUSYLOOP_TIMEOUT, 1, 77).unwrap();
    assert_eq!(bench.ask(request::GET_VRING_BUSYLOOP_TIMEOUT, 1), Ok(77));
    assert_eq!(bench.ask(request::GET_VRING_BUSYLOOP_TIMEOUT, 0), Ok(0));
}

/// VDPA-7.12, VDPA-7.23: a batch changes the table at once. QEMU replaces what a
/// running ring lies in within one (VNET-2.1.7, VNET-2.2).
#[test]
fn a_batch_is_one_change_for_a_device_that_runs() {
    use ::device::Steppable as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    for parent in [Parent::Sim, Parent::Mlx5, Parent::Vduse] {
        let mut bench = Bench::owned(parent.spec());
        bench.negotiate();
        assert_eq!(bench.update(0, 0, 0x10000, SHARED), Ok(72));
        bench.set_ring(0, 0x1000);
        assert_eq!(bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1), Ok(0));
        assert_eq!(bench.set_status(0xf), Ok(0));
        let (endpoint, over) = (Arc::clone(&bench.endpoint), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    endpoint.turn(0);
                }
            });
            for _ in 0..300 {
                for halves in [true, false] {
                    assert_eq!(bench.batch(0, iotlb::BATCH_BEGIN), Ok(72));
                    assert_eq!(bench.invalidate(0, 0, 0x10000), Ok(72));
                    if halves {
                        assert_eq!(bench.update(0, 0, 0x8000, SHARED), Ok(72));
                        assert_eq!(bench.update(0, 0x8000, 0x8000, SHARED + 0x8000), Ok(72));
                    } else {
                        assert_eq!(bench.update(0, 0, 0x10000, SHARED), Ok(72));
                    }
                    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72));
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(bench.seen.lock().unwrap().faults, 0, "{parent}");
        bench.post(SHARED + 0x1000, 0x5000);
        bench.settle();
        assert_eq!(bench.used(SHARED + 0x1000), (1, 1));
    }
}
