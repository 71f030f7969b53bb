// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOTLB messages: section 7 without accounts.

use uapi::Errno;
use uapi::vhost::{IotlbMsg, MSG_V1, MSG_V2, backend, iotlb, request};

use crate::testing::{AREA, Bench, PRIVATE, SHARED, envelope, program};
use crate::{Parent, ParentSpec};

fn asids(parent: Parent) -> Bench {
    let mut bench = Bench::owned(parent.spec());
    bench.ack(backend::IOTLB_ASID);
    bench
}

fn update(iova: u64, size: u64, uaddr: u64) -> IotlbMsg {
    IotlbMsg { iova, size, uaddr, perm: iotlb::RW, kind: iotlb::UPDATE, pad: [0xff; 6] }
}

/// VDPA-7.1, VDPA-7.3
#[test]
fn an_envelope_is_read_in_order() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let good = envelope(MSG_V1, 0, update(0, 4096, SHARED));
    for len in [0, 3, 4, 7, 8, 39] {
        assert_eq!(bench.write(&good[..len]), Err(Errno::EINVAL), "{len} bytes");
    }
    for kind in [0, 3, u32::MAX] {
        assert_eq!(bench.write(&envelope(kind, 0, update(0, 4096, SHARED))), Err(Errno::EINVAL));
    }
    assert_eq!(bench.write(&envelope(MSG_V1, 0, update(0, 0, SHARED))), Err(Errno::EINVAL), "size 0");
    assert_eq!(bench.write(&good[..40]), Ok(72), "40 are enough");
    let mut long = good.clone();
    long.resize(5000, 0xff);
    long[8..16].copy_from_slice(&0x10000u64.to_le_bytes());
    assert_eq!(bench.write(&long), Ok(72), "more are not looked at");
    let v2 = envelope(MSG_V2, 77, update(0x20000, 4096, SHARED));
    assert_eq!(bench.write(&v2), Ok(72), "the address space is not looked at");
}

/// VDPA-7.1: gathered, and what cannot be read is missing.
#[test]
fn a_message_can_come_in_parts() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let mut write = |parts: &[(u64, u64)]| bench.vdpa.write(bench.file, parts, &bench.client);
    let at = bench.client.put_bytes(&envelope(MSG_V2, 0, update(0, 4096, SHARED)));
    assert_eq!(write(&[(at, 1), (at + 1, 0), (at + 1, 20), (at + 21, 51)]), Ok(72));
    assert_eq!(write(&[(0x10, 72)]), Err(Errno::EINVAL), "unreadable");
    assert_eq!(write(&[(at, 20), (0x10, 52)]), Err(Errno::EINVAL));
    assert_eq!(write(&[(u64::MAX - 8, 72)]), Err(Errno::EFAULT), "no user address");
    // Nobody looks at the hole of version 1.
    let v1 = bench.client.put_bytes(&envelope(MSG_V1, 0, update(0x10000, 4096, SHARED)));
    let mut write = |parts: &[(u64, u64)]| bench.vdpa.write(bench.file, parts, &bench.client);
    assert_eq!(write(&[(v1, 4), (0x10, 4), (v1 + 8, 32)]), Ok(72));
}

/// VDPA-7.2, VDPA-7.4
#[test]
fn every_refusal_is_efault() {
    let mut bench = Bench::new(Parent::Sim.spec());
    assert_eq!(bench.update(0, 0, 4096, SHARED), Err(Errno::EFAULT), "nobody owns it");
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    assert_eq!(bench.update(0, 0, 4096, SHARED), Ok(72));
    bench.client = program(2);
    assert_eq!(bench.invalidate(0, 0, 4096), Err(Errno::EFAULT), "another does");
    assert_eq!(bench.write(&envelope(9, 0, update(0, 1, 0))), Err(Errno::EINVAL), "but what is malformed comes first");
}

/// VDPA-7.5
#[test]
fn an_address_space_begins_with_an_update_or_a_batch() {
    let mut bench = asids(Parent::Sim);
    for kind in [iotlb::INVALIDATE, iotlb::BATCH_END, iotlb::MISS, iotlb::ACCESS_FAIL, 0, 99] {
        assert_eq!(bench.batch(0, kind), Err(Errno::EFAULT), "{kind}");
    }
    assert_eq!(bench.update(0, 0, 4096, 0x10), Ok(72), "a hole below the program's first mapping");
    assert_eq!(bench.update(0, 0x10000, 4096, 0xffff_0000_0000), Err(Errno::EFAULT), "nothing is above");
    assert_eq!(bench.invalidate(0, 0, 4096), Ok(72));
    assert_eq!(bench.invalidate(1, 0, 4096), Err(Errno::EFAULT));
    assert_eq!(bench.update(1, 0, 4096, 0xffff_0000_0000), Err(Errno::EFAULT));
    assert_eq!(bench.invalidate(1, 0, 4096), Ok(72), "a failed UPDATE has made it");
    for kind in [iotlb::UPDATE, iotlb::BATCH_BEGIN] {
        assert_eq!(bench.message(2, IotlbMsg { kind, ..update(0, 1, SHARED) }), Err(Errno::EFAULT));
    }
    let mut none = Bench::owned(ParentSpec { max_entries: 0, ..Parent::Sim.spec() });
    assert_eq!(none.batch(0, iotlb::BATCH_BEGIN), Err(Errno::EFAULT));
}

/// VDPA-7.6
#[test]
fn a_batch_is_of_one_address_space() {
    let mut bench = asids(Parent::Sim);
    assert_eq!(bench.batch(0, iotlb::BATCH_BEGIN), Ok(72));
    assert_eq!(bench.update(1, 0, 4096, SHARED), Err(Errno::EFAULT));
    assert_eq!(bench.batch(1, iotlb::BATCH_BEGIN), Err(Errno::EFAULT));
    assert_eq!(bench.records(1), Some(vec![]), "made all the same");
    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72));
    assert_eq!(bench.update(1, 0, 4096, SHARED), Ok(72));
}

/// VDPA-7.7
#[test]
fn other_messages_are_refused() {
    let mut bench = asids(Parent::Sim);
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    for kind in [0, iotlb::MISS, iotlb::ACCESS_FAIL, 7, 255] {
        assert_eq!(bench.batch(0, kind), Err(Errno::EFAULT));
    }
}

/// VDPA-7.8
#[test]
fn ranges_lie_in_the_parents() {
    let mut bench = Bench::owned(ParentSpec { iova: (0x1000, 0x8fff), ..Parent::Sim.spec() });
    assert_eq!(bench.update(0, 0xfff, 4096, SHARED), Err(Errno::EFAULT));
    assert_eq!(bench.update(0, 0x8000, 4097, SHARED), Err(Errno::EFAULT));
    assert_eq!(bench.update(0, 0x1000, 0x8000, SHARED), Ok(72));
    let mut whole = Bench::owned(Parent::Sim.spec());
    assert_eq!(whole.update(0, u64::MAX - 4095, 4096, SHARED), Ok(72), "the end may be 2^64");
    assert_eq!(whole.update(0, u64::MAX - 4095, 4097, SHARED), Err(Errno::EFAULT));
    assert_eq!(whole.update(0, 1, u64::MAX - 1, SHARED), Err(Errno::EFAULT), "EEXIST");
}

/// VDPA-7.9
#[test]
fn nothing_is_mapped_twice() {
    for parent in [Parent::Sim, Parent::Mlx5] {
        let mut bench = asids(parent);
        assert_eq!(bench.update(0, 0x2000, 0x2000, SHARED), Ok(72));
        for (iova, size) in [(0x2000, 0x2000), (0x1000, 0x1001), (0x3fff, 1), (0, 0x10000)] {
            assert_eq!(bench.update(0, iova, size, SHARED), Err(Errno::EFAULT), "{iova:#x} {size:#x}");
        }
        assert_eq!(bench.records(0), Some(vec![(0x2000, 0x3fff)]));
        assert_eq!(bench.update(1, 0x2000, 0x2000, SHARED), Ok(72), "elsewhere");
    }
}

/// VDPA-7.10
#[test]
fn invalidate_takes_whole_records() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let map = |bench: &mut Bench| {
        let _ = bench.invalidate(0, 0, 0);
        for n in 0..4 {
            bench.update(0, n << 16, 0x8000, SHARED).unwrap();
        }
    };
    map(&mut bench);
    assert_eq!(bench.invalidate(0, 0x17fff, 0x8002), Ok(72), "a byte of two");
    assert_eq!(bench.records(0).unwrap(), [(0, 0x7fff), (0x30000, 0x37fff)]);
    assert_eq!(bench.invalidate(0, 0x8000, 0x8000), Ok(72), "nothing there");
    assert_eq!(bench.invalidate(0, 0x31000, 0), Ok(72), "inside a record");
    assert_eq!(bench.invalidate(0, 0, 1), Ok(72));
    assert_eq!(bench.records(0).unwrap(), []);
    map(&mut bench);
    assert_eq!(bench.invalidate(0, 0x10000, 0), Ok(72), "at its first byte");
    assert_eq!(bench.records(0).unwrap().len(), 4);
    assert_eq!(bench.invalidate(0, 0, u64::MAX), Ok(72));
    assert_eq!(bench.records(0).unwrap(), []);
    map(&mut bench);
    assert_eq!(bench.invalidate(0, 0, 0), Ok(72), "everything");
    assert_eq!(bench.records(0).unwrap(), []);
}

/// VDPA-7.11: one record for each mapping of the program, or for each UPDATE.
#[test]
fn records_by_mode() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    let file = caller::testing::MemFile::new(9, 0x4000);
    bench.client.memory.map_file(SHARED + AREA, 0x4000, true, &file, 0);
    assert_eq!(bench.update(0, 0, 0x4000, SHARED + AREA - 0x2000), Ok(72));
    assert_eq!(bench.records(0).unwrap(), [(0, 0x1fff), (0x2000, 0x3fff)]);
    let mut pinned = Bench::owned(Parent::Mlx5.spec());
    assert_eq!(pinned.update(0, 0x1800, 0x1000, PRIVATE + 0x800), Ok(72));
    assert_eq!(pinned.records(0).unwrap(), [(0x1000, 0x2fff)]);
}

/// VDPA-7.12: batches matter to set_map parents.
#[test]
fn a_batch_is_handed_over_at_its_end() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.update(0, 0, 0x1000, SHARED).unwrap();
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    bench.invalidate(0, 0, 0x1000).unwrap();
    bench.update(0, 0, 0x800, SHARED + 0x1000).unwrap();
    bench.update(0, 0x10000, 0x1000, SHARED).unwrap();
    bench.client.memory.store(SHARED + 0x1000, &[9]);
    assert_eq!(bench.reach(0), Some(vec![(0, 0xfff)]), "as before it");
    bench.set_status(0).unwrap();
    assert_eq!(bench.reach(0), None, "clean-map does not wait");
    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72), "a reset has not ended it");
    assert_eq!(bench.reach(0), Some(vec![(0, 0x7ff), (0x10000, 0x10fff)]));
    assert_eq!(bench.dma(0, 0), Some(9));
    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72), "without one");

    let mut dma = Bench::owned(Parent::SimDma.spec());
    dma.batch(0, iotlb::BATCH_BEGIN).unwrap();
    dma.update(0, 0, 0x1000, SHARED).unwrap();
    assert_eq!(dma.reach(0), Some(vec![(0, 0xfff)]), "at once");
    dma.reopen();
    dma.ioctl(request::SET_OWNER, 0).unwrap();
    dma.ack(backend::IOTLB_ASID);
    assert_eq!(dma.update(1, 0, 0x1000, SHARED), Ok(72), "a close has ended it");
}

/// VDPA-7.13
#[test]
fn records_are_limited() {
    for parent in [Parent::Sim, Parent::SimDma, Parent::Mlx5] {
        let mut bench = Bench::owned(parent.spec());
        for n in 0..2048 {
            assert_eq!(bench.update(0, n << 16, 4096, SHARED), Ok(72));
        }
        assert_eq!(bench.update(0, 2048 << 16, 4096, SHARED), Err(Errno::EFAULT), "ENOSPC");
        assert_eq!(bench.records(0).unwrap().len(), 2048);
        bench.invalidate(0, 0, 1).unwrap();
        assert_eq!(bench.update(0, 2048 << 16, 4096, SHARED), Ok(72));
    }
}

/// VDPA-7.14
#[test]
fn permissions_are_the_devices_view() {
    for parent in [Parent::Sim, Parent::Platform] {
        let mut bench = Bench::owned(parent.spec());
        let write = |bench: &Bench, iova| bench.endpoint.requester(0).unwrap().session().write(iova, &[1]).is_ok();
        for (perm, read, writes) in [(1, true, false), (2, false, true), (3, true, true), (0, false, false)] {
            let iova = u64::from(perm) << 16;
            let message = IotlbMsg { perm, ..update(iova, 4096, SHARED) };
            assert_eq!(bench.message(0, message), Ok(72));
            assert_eq!((bench.dma(0, iova).is_some(), write(&bench, iova)), (read, writes), "{parent} {perm}");
        }
        let odd = IotlbMsg { perm: 7, ..update(0x90000, 4096, SHARED) };
        assert_eq!(bench.message(0, odd), Ok(72));
        assert_eq!(bench.dma(0, 0x90000).is_some(), parent == Parent::Sim);
    }
}

/// VDPA-7.19
#[test]
fn va_mode_skips_what_is_no_shared_file() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    assert_eq!(bench.update(0, 0, 4096, PRIVATE), Ok(72));
    assert_eq!((bench.records(0).unwrap(), bench.dma(0, 0)), (vec![], None));
    // A hole, then the file.
    bench.client.memory.store(SHARED, &[5]);
    assert_eq!(bench.update(0, 0x10000, 0x4000, SHARED - 0x2000), Ok(72));
    assert_eq!(bench.records(0).unwrap(), [(0x10000, 0x13fff)], "the hole is part of it");
    assert_eq!((bench.dma(0, 0x11fff), bench.dma(0, 0x12000)), (None, Some(5)));
    // The file, then a hole before private memory: swallowed.
    assert_eq!(bench.update(0, 0x20000, 0x2000, SHARED + AREA - 0x1000), Ok(72));
    assert_eq!(bench.records(0).unwrap()[1], (0x20000, 0x20fff));
    // Private memory, then nothing above.
    assert_eq!(bench.update(0, 0x30000, 0x2000, PRIVATE + AREA - 0x1000), Err(Errno::EFAULT));
}

/// VDPA-7.20: the file stays, whatever the program does with its mapping.
#[test]
fn va_mode_keeps_the_file_and_pins_nothing() {
    let mut bench = Bench::owned(Parent::Sim.spec());
    bench.client.memlock.set(0);
    bench.client.memory.store(SHARED, &[5]);
    assert_eq!(bench.update(0, 0, AREA, SHARED), Ok(72));
    assert_eq!(bench.accounts.pinned(bench.client.process), 0);
    bench.client.memory.unmap(SHARED);
    assert_eq!(bench.dma(0, 0), Some(5));
}

/// VDPA-7.21: a refused UPDATE takes back what it has added, and no more.
#[test]
fn a_failed_update_leaves_no_trace() {
    let mut bench = Bench::owned(ParentSpec { max_entries: 3, ..Parent::Sim.spec() });
    bench.update(0, 0x10000, 0x1000, SHARED).unwrap();
    let file = caller::testing::MemFile::new(9, 0x3000);
    for page in 0..3 {
        bench.client.memory.map_file(SHARED + AREA + page * 0x1000, 0x1000, true, &file, page * 0x1000);
    }
    assert_eq!(bench.update(0, 0, 0x4000, SHARED + AREA - 0x1000), Err(Errno::EFAULT), "ENOSPC at the third");
    assert_eq!(bench.records(0).unwrap(), [(0x10000, 0x10fff)]);
    assert_eq!(bench.reach(0), Some(vec![(0x10000, 0x10fff)]));
    assert_eq!(bench.update(0, 0, 0x1000, 0xffff_0000_0000), Err(Errno::EFAULT), "at 0, nothing added");
    assert_eq!(bench.records(0).unwrap(), [(0x10000, 0x10fff)]);
}

/// VDPA-7.22
#[test]
fn the_device_reaches_what_was_mapped() {
    for (parent, at) in [(Parent::Sim, SHARED), (Parent::Mlx5, PRIVATE), (Parent::Platform, PRIVATE)] {
        let mut bench = Bench::owned(parent.spec());
        bench.client.memory.store(at + 0x1234, &[1, 2]);
        bench.update(0, 0x7000, 0x4000, at).unwrap();
        assert_eq!(bench.dma(0, 0x8234), Some(1), "{parent}");
        assert_eq!(bench.dma(0, 0xb000), None);
        bench.invalidate(0, 0x7000, 1).unwrap();
        assert_eq!(bench.dma(0, 0x8234), None);
    }
}

/// VDPA-7.23: what the parent refuses is taken back; on INVALIDATE and
/// BATCH_END its refusal is ignored.
#[test]
fn a_parent_that_refuses() {
    for parent in [Parent::Sim, Parent::SimDma] {
        let mut bench = Bench::owned(ParentSpec { table_entries: 2, ..parent.spec() });
        for n in 0..2 {
            assert_eq!(bench.update(0, n << 16, 4096, SHARED), Ok(72));
        }
        assert_eq!(bench.update(0, 2 << 16, 4096, SHARED), Err(Errno::EFAULT));
        assert_eq!(bench.records(0).unwrap().len(), 2, "{parent}");
        assert_eq!(bench.dma(0, 0).is_some(), parent == Parent::SimDma, "vdpa_sim's set_map leaves nothing");
        bench.invalidate(0, 1 << 16, 1).unwrap();
        assert!(bench.dma(0, 0).is_some(), "{parent}: handed over again");
    }
    let mut bench = Bench::owned(ParentSpec { table_entries: 2, ..Parent::Sim.spec() });
    bench.batch(0, iotlb::BATCH_BEGIN).unwrap();
    for n in 0..3 {
        assert_eq!(bench.update(0, n << 16, 4096, SHARED), Ok(72));
    }
    assert_eq!(bench.batch(0, iotlb::BATCH_END), Ok(72));
    assert_eq!((bench.records(0).unwrap().len(), bench.reach(0)), (3, Some(vec![])));
}

/// VDPA-7.24
#[test]
fn a_close_is_no_set_map() {
    let mut bench = Bench::owned(Parent::Vduse.spec());
    bench.update(0, 0, 4096, SHARED).unwrap();
    bench.reopen();
    assert_eq!(bench.reach(0), Some(vec![(0, 0xfff)]), "stale");
    bench.ioctl(request::SET_OWNER, 0).unwrap();
    bench.update(0, 0x10000, 4096, SHARED).unwrap();
    assert_eq!(bench.reach(0), Some(vec![(0x10000, 0x10fff)]), "until the next");
}
