// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PA mode: pages, pins and limits (VDPA-7.15 to VDPA-7.18).

use caller::Capability;
use uapi::Errno;
use uapi::vhost::{IotlbMsg, iotlb};

use crate::testing::{Bench, PRIVATE};
use crate::{Parent, ParentSpec};

const PINNING: [Parent; 3] = [Parent::Mlx5, Parent::Platform, Parent::Dma];

fn pinned(bench: &Bench) -> u64 {
    bench.accounts.pinned(bench.client.process)
}

/// VDPA-7.15
#[test]
fn whole_pages_are_mapped() {
    let mut bench = Bench::owned(Parent::Mlx5.spec());
    bench.client.memory.store(PRIVATE, &[1]);
    bench.client.memory.store(PRIVATE + 0x800, &[2]);
    assert_eq!(bench.update(0, 0x1800, 0x800, PRIVATE + 0x800), Ok(72));
    assert_eq!((bench.dma(0, 0x1800), bench.dma(0, 0x1000)), (Some(2), Some(1)));
    assert_eq!(bench.update(0, 0x1000, 0x800, PRIVATE), Err(Errno::EFAULT), "the other half of the page");
    // Offsets that differ shift the data.
    assert_eq!(bench.update(0, 0x5800, 0x800, PRIVATE), Ok(72));
    assert_eq!((bench.dma(0, 0x5800), bench.dma(0, 0x5000)), (Some(2), Some(1)));
    assert_eq!(bench.update(0, 0x7fff, 2, PRIVATE), Ok(72), "two pages");
    assert_eq!(bench.records(0).unwrap()[2], (0x7000, 0x8fff));
    assert_eq!(pinned(&bench), 4);
}

/// VDPA-7.16
#[test]
fn pins_count_against_the_limit() {
    for parent in PINNING {
        let mut bench = Bench::owned(parent.spec());
        bench.client.memlock.set(4 * 4096);
        bench.client.capabilities.borrow_mut().push(Capability::IpcLock);
        assert_eq!(bench.update(0, 0, 3 * 4096, PRIVATE), Ok(72));
        assert_eq!(bench.update(0, 0x10000, 2 * 4096, PRIVATE), Err(Errno::EFAULT), "{parent}: no exemption");
        assert_eq!(bench.update(0, 0x10000, 4096, PRIVATE), Ok(72), "the same page twice counts twice");
        assert_eq!(pinned(&bench), 4);
        bench.set_status(0).unwrap();
        assert_eq!(pinned(&bench), 4, "a reset gives nothing back");
        bench.invalidate(0, 0, 1).unwrap();
        assert_eq!(pinned(&bench), 1);
        bench.vdpa.release(bench.file);
        assert_eq!(pinned(&bench), 0);
    }
}

/// VDPA-7.17
#[test]
fn what_cannot_be_pinned_is_refused() {
    for parent in PINNING {
        let mut bench = Bench::owned(parent.spec());
        bench.client.memory.map(0x2000_0000, 0x2000, false);
        let message =
            |perm| IotlbMsg { iova: 0, size: 0x1000, uaddr: 0x2000_0000, perm, kind: iotlb::UPDATE, pad: [0; 6] };
        assert_eq!(bench.message(0, message(iotlb::WO)), Err(Errno::EFAULT));
        assert_eq!(bench.message(0, message(iotlb::RW)), Err(Errno::EFAULT));
        assert_eq!(bench.update(0, 0x10000, 0x1000, 0x10), Err(Errno::EFAULT));
        assert_eq!(bench.update(0, 0x10000, 0x3000, 0x2000_0000), Err(Errno::EFAULT), "its last page");
        for size in [1 << 47, 1 << 63, u64::MAX - 0x10000] {
            assert_eq!(bench.update(0, 0x10000, size, PRIVATE), Err(Errno::EFAULT));
        }
        assert_eq!((pinned(&bench), bench.records(0).unwrap().len()), (0, 0));
        assert_eq!(bench.message(0, message(iotlb::RO)), Ok(72));
    }
    // A refusal of the parent gives the pins back too.
    let mut bench = Bench::owned(ParentSpec { table_entries: 0, ..Parent::Mlx5.spec() });
    assert_eq!(bench.update(0, 0, 4096, PRIVATE), Err(Errno::EFAULT));
    assert_eq!((pinned(&bench), bench.records(0).unwrap().len()), (0, 0));
}

/// VDPA-7.18
#[test]
fn pins_outlive_the_programs_mapping() {
    let mut bench = Bench::owned(Parent::Mlx5.spec());
    bench.client.memory.store(PRIVATE, &[5]);
    bench.update(0, 0, 4096, PRIVATE).unwrap();
    bench.client.memory.unmap(PRIVATE);
    assert_eq!((bench.dma(0, 0), pinned(&bench)), (Some(5), 1));
}
