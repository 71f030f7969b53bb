// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening, closing, owning: sections 1 and 3.

use caller::{Accounts, FileId};
use device::virtio::VirtioEndpoint;
use uapi::Errno;
use uapi::vhost::{IovaRange, MemoryHeader, MemoryRegion, VringState, request};
use zerocopy::IntoBytes;

use crate::testing::{Bench, LoopBack, PRIVATE, SHARED, program};
use crate::{Mapping, Parent, ParentSpec, Vdpa};

const PLAIN: [u32; 13] = [
    request::GET_FEATURES,
    request::GET_BACKEND_FEATURES,
    request::VDPA_GET_DEVICE_ID,
    request::VDPA_GET_STATUS,
    request::VDPA_GET_VRING_NUM,
    request::VDPA_GET_IOVA_RANGE,
    request::VDPA_GET_CONFIG_SIZE,
    request::VDPA_GET_AS_NUM,
    request::VDPA_GET_VQS_COUNT,
    request::VDPA_GET_GROUP_NUM,
    request::VDPA_SUSPEND,
    request::VDPA_RESUME,
    request::GET_FORK_FROM_OWNER,
];

/// VDPA-1.1: the lowest free number.
#[test]
fn nodes_have_the_lowest_free_number() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let add = |vdpa: &mut Vdpa, name: &str| {
        let (device, _) = LoopBack::new(LoopBack::net());
        let endpoint = VirtioEndpoint::new(Box::new(device), Default::default());
        vdpa.add(name, Some("test"), Parent::Sim.spec(), endpoint)
    };
    assert_eq!(add(&mut bench.vdpa, "b"), Ok(Some(1)));
    assert_eq!(add(&mut bench.vdpa, "c"), Ok(Some(2)));
    assert_eq!(bench.vdpa.delete("b"), Ok(crate::Deletion::Done));
    assert_eq!(add(&mut bench.vdpa, "d"), Ok(Some(1)));
    assert_eq!(bench.vdpa.open(FileId(90), 7), Err(Errno::ENXIO));
}

/// VDPA-1.2, VDPA-1.3
#[test]
fn a_node_is_open_once() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let other = bench.ids.allocate();
    assert_eq!(bench.vdpa.open(other, 0), Err(Errno::EBUSY));
    bench.vdpa.release(bench.file);
    assert_eq!(bench.vdpa.open(other, 0), Ok(()));
}

/// VDPA-1.4: what a new file starts with.
#[test]
fn opening_resets() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.ack(1 << 3);
    bench.negotiate();
    bench.update(1, 0, 4096, SHARED).unwrap();
    bench.reopen();
    assert_eq!(bench.status(), 0);
    assert_eq!((bench.records(0), bench.records(1)), (None, None));
    assert_eq!(bench.set(request::SET_VRING_NUM, VringState { index: 0, num: 8 }), Err(Errno::EPERM), "no owner");
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    bench.update(1, 0, 4096, SHARED).unwrap();
    assert_eq!((bench.records(0).unwrap().len(), bench.records(1)), (1, None), "nothing is acknowledged");
}

/// VDPA-1.4
#[test]
fn a_platform_without_coherency_is_refused() {
    let mut vdpa = Vdpa::new(std::sync::Arc::<caller::testing::TestPlatform>::default(), Accounts::default());
    let (device, _) = LoopBack::new(LoopBack::block());
    let endpoint = VirtioEndpoint::new(Box::new(device), Default::default());
    let spec = ParentSpec { coherent: false, ..Parent::Platform.spec() };
    assert_eq!(vdpa.add("a", None, spec, endpoint), Ok(Some(0)));
    assert_eq!(vdpa.open(FileId(1), 0), Err(Errno::from_raw(524)));
    assert_eq!(vdpa.open(FileId(1), 0), Err(Errno::from_raw(524)), "not left open");
}

/// VDPA-1.5
#[test]
fn the_range_of_iovas_is_the_parents() {
    for (spec, range) in [
        (Parent::Sim.spec(), IovaRange { first: 0, last: u64::MAX }),
        (Parent::Platform.spec(), IovaRange { first: 0, last: (1 << 48) - 1 }),
        (ParentSpec { iova: (4096, 0xffff_ffff), ..Parent::Mlx5.spec() }, IovaRange { first: 4096, last: 0xffff_ffff }),
    ] {
        assert_eq!(Bench::new(spec).get::<IovaRange>(request::VDPA_GET_IOVA_RANGE), Ok(range));
    }
}

/// VDPA-1.6: pins, eventfds and the platform's domain go.
#[test]
fn closing_lets_go_of_everything() {
    for parent in Parent::ALL {
        let mut bench = Bench::owned(parent.spec());
        let at = if bench.vdpa.explain("dev").unwrap().mode == "VA" { SHARED } else { PRIVATE };
        bench.negotiate();
        bench.update(0, 0x10000, 8192, at).unwrap();
        let kick = bench.event(request::SET_VRING_KICK, 0);
        let call = bench.event(request::SET_VRING_CALL, 0);
        let (fd, config) = bench.client.eventfd();
        bench.set(request::VDPA_SET_CONFIG_CALL, fd).unwrap();
        bench.vdpa.release(bench.file);
        assert_eq!(bench.accounts.pinned(bench.client.process), 0, "{parent}");
        assert!(bench.platform.listeners.lock().unwrap().is_empty());
        bench.endpoint.interrupts.queue(0);
        bench.endpoint.interrupts.config();
        assert_eq!((kick.peek(), call.peek(), config.peek()), (0, 0, 0), "{parent}");
        // VDPA-7.24: VDUSE is not told; 1:1 leads nowhere without a program.
        assert_eq!(bench.dma(0, 0x10000).is_some(), parent == Parent::Vduse, "{parent}");
        assert_eq!(bench.ioctl(request::VDPA_GET_STATUS, 0), Err(Errno::EBADF));
    }
}

/// VDPA-1.8
#[test]
fn a_platform_parent_has_one_group() {
    let mut vdpa = Vdpa::new(std::sync::Arc::<caller::testing::TestPlatform>::default(), Accounts::default());
    let (device, _) = LoopBack::new(LoopBack::net());
    let endpoint = VirtioEndpoint::new(Box::new(device), Default::default());
    assert_eq!(vdpa.add("a", None, Parent::Platform.spec(), endpoint), Ok(None));
    assert_eq!(vdpa.open(FileId(1), 0), Err(Errno::ENXIO));
}

/// VDPA-1.9: who has it open notices nothing.
#[test]
fn removal_waits_for_the_last_close() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    assert_eq!(bench.vdpa.delete("dev"), Ok(crate::Deletion::Waits));
    assert_eq!(bench.vdpa.delete("dev"), Err(Errno::ENODEV), "it is leaving already");
    assert_eq!(bench.vdpa.open(FileId(99), 0), Err(Errno::ENXIO));
    assert!(bench.vdpa.list().is_empty() && bench.vdpa.exists("dev"));
    bench.negotiate();
    assert_eq!(bench.update(0, 0, 4096, SHARED), Ok(72));
    assert_eq!(bench.set_status(0xf), Ok(0));
    assert_eq!(bench.vdpa.release(bench.file).as_deref(), Some("dev"));
    assert!(!bench.vdpa.exists("dev"));
}

/// VDPA-3.1 to VDPA-3.3: requests of the device need no owner, rings do.
#[test]
fn who_may_ask_what() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.client = program(2);
    for number in PLAIN {
        let at = bench.client.room(64);
        assert_eq!(bench.ioctl(number, at), Ok(0), "{number:#x}");
    }
    assert_eq!(bench.ring(request::SET_VRING_NUM, 0, 16), Err(Errno::EPERM));
    assert_eq!(bench.update(0, 0, 4096, SHARED), Err(Errno::EFAULT));
    assert_eq!(bench.ioctl(request::SET_OWNER, 0), Err(Errno::EBUSY));
    assert_eq!(bench.set_status(0), Ok(0), "a child can reset the device");
}

/// VDPA-3.2, VDPA-3.4: without ownership, unreadable, too high, unknown.
#[test]
fn checks_of_ring_requests_come_in_order() {
    let mut bench = Bench::new(Parent::Sim.spec());
    let good = bench.client.put(&VringState { index: 0, num: 0 });
    let high = bench.client.put(&VringState { index: 3, num: 0 });
    for number in [0xaf55, request::RESET_OWNER, 0x8008_af83, 0x4008_af13] {
        assert_eq!(bench.ioctl(number, 0x10), Err(Errno::EPERM));
    }
    assert_eq!(bench.ioctl(request::SET_VRING_NUM, 0x10), Err(Errno::EPERM));
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    for number in [0xaf55, request::RESET_OWNER, 0x8008_af83, 0x4008_af13] {
        assert_eq!(bench.ioctl(number, 0x10), Err(Errno::EFAULT));
        assert_eq!(bench.ioctl(number, high), Err(Errno::ENOBUFS));
        assert_eq!(bench.ioctl(number, good), Err(Errno::ENOTTY));
    }
    assert_eq!(bench.ioctl(request::SET_VRING_NUM, high), Err(Errno::ENOBUFS));
    for number in [request::SET_LOG_BASE, request::SET_LOG_FD] {
        assert_eq!(bench.ioctl(number, 0x10), Err(Errno::ENOTTY));
    }
    // Only the first word of most is there: SET_VRING_NUM reads all of it first.
    let edge = 0x1000_0000 + (1 << 20) - 4;
    bench.client.memory.store(edge, &9u32.to_le_bytes());
    assert_eq!(bench.ioctl(request::SET_VRING_NUM, edge), Err(Errno::EFAULT));
    assert_eq!(bench.ioctl(request::SET_VRING_BASE, edge), Err(Errno::ENOBUFS));
}

/// VDPA-3.5, VDPA-3.6: the owner's memory is bound in VA mode, and stays owner.
#[test]
fn ownership_lasts_until_the_end() {
    let mut bench = Bench::new(Parent::Sim.spec());
    bench.client.memory.store(SHARED, &[7]);
    assert_eq!(bench.dma(0, SHARED), None);
    assert_eq!(bench.ioctl(request::SET_OWNER, 0), Ok(0));
    assert_eq!(bench.ioctl(request::SET_OWNER, 0), Err(Errno::EBUSY));
    assert_eq!(bench.dma(0, SHARED), Some(7), "IOVA = VA until something is mapped");
    bench.set_status(0).unwrap();
    assert_eq!(bench.dma(0, SHARED), Some(7), "a reset does not end it");
    let pinned = Bench::owned(Parent::Mlx5.spec());
    pinned.client.memory.store(PRIVATE, &[7]);
    assert_eq!(pinned.dma(0, PRIVATE), None, "PA mode: physical addresses");
}

/// VDPA-3.1: decided before everything else, for anybody.
#[test]
fn fork_owner_and_memory_table_have_no_effect() {
    let mut bench = Bench::new(Parent::Sim.spec());
    assert_eq!(bench.get::<u8>(request::GET_FORK_FROM_OWNER), Ok(1));
    assert_eq!(bench.set(request::SET_FORK_FROM_OWNER, 2u8), Err(Errno::EINVAL));
    assert_eq!(bench.set(request::SET_FORK_FROM_OWNER, 0u8), Ok(0));
    assert_eq!(bench.get::<u8>(request::GET_FORK_FROM_OWNER), Ok(0));
    assert_eq!(bench.set(request::SET_MEM_TABLE, MemoryHeader::default()), Err(Errno::EPERM));
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    assert_eq!(bench.ioctl(request::SET_FORK_FROM_OWNER, 0x10), Err(Errno::EBUSY));
    let mut table = |header: MemoryHeader, regions: &[MemoryRegion]| {
        let at = bench.client.put_bytes(&[header.as_bytes(), regions.as_bytes()].concat());
        bench.ioctl(request::SET_MEM_TABLE, at)
    };
    let region = MemoryRegion { guest: 0, size: 4096, user: SHARED, flags: 0 };
    assert_eq!(table(MemoryHeader { nregions: 1, padding: 0 }, &[region]), Ok(0));
    assert_eq!(table(MemoryHeader { nregions: 1, padding: 1 }, &[region]), Err(Errno::EOPNOTSUPP));
    assert_eq!(table(MemoryHeader { nregions: 65, padding: 0 }, &[]), Err(Errno::E2BIG));
    let wraps = MemoryRegion { guest: u64::MAX, size: 4096, ..region };
    assert_eq!(table(MemoryHeader { nregions: 1, padding: 0 }, &[wraps]), Err(Errno::EFAULT));
}

/// VDPA-1.5 and the table of section 3: what the numbers say.
#[test]
fn the_device_is_described() {
    let mut bench = Bench::new(Parent::Sim.spec());
    assert_eq!(bench.get::<u32>(request::VDPA_GET_DEVICE_ID), Ok(1));
    assert_eq!(bench.get::<u16>(request::VDPA_GET_VRING_NUM), Ok(256));
    assert_eq!(bench.get::<u32>(request::VDPA_GET_VQS_COUNT), Ok(3));
    assert_eq!(bench.get::<u32>(request::VDPA_GET_GROUP_NUM), Ok(2));
    assert_eq!(bench.get::<u32>(request::VDPA_GET_AS_NUM), Ok(2));
    assert_eq!(bench.get::<u32>(request::VDPA_GET_CONFIG_SIZE), Ok(12));
    for number in PLAIN.into_iter().take(10) {
        assert_eq!(bench.ioctl(number, 0x10), Err(Errno::EFAULT), "{number:#x}");
    }
    assert_eq!(Parent::Platform.spec().mapping, Mapping::Platform);
}

/// VDPA-6.10
#[test]
fn doorbells_are_mapped_one_page_each() {
    let mut bench = Bench::new(Parent::Platform.spec());
    let (file, page) = (bench.file, 4096);
    let mmap = |offset, len, shared, read| bench.vdpa.mmap(file, offset, len, shared, read);
    assert_eq!(mmap(0, page, true, false), Ok(()));
    assert_eq!(mmap(0, 2 * page, true, false), Err(Errno::EINVAL));
    assert_eq!(mmap(0, page, false, false), Err(Errno::EINVAL));
    assert_eq!(mmap(0, page, true, true), Err(Errno::EINVAL));
    assert_eq!(mmap(page, page, true, false), Err(Errno::EINVAL), "one queue");
    assert!(bench.vdpa.device_file(file).is_some());
    bench = Bench::new(Parent::Sim.spec());
    assert_eq!(bench.vdpa.mmap(bench.file, 0, page, true, true), Err(Errno::EINVAL));
    assert_eq!(bench.vdpa.mmap(bench.file, 9 * page, page, true, false), Err(Errno::from_raw(524)));
}
