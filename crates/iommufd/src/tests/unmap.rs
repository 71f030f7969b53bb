// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_UNMAP` (IOMMUFD-5.17 to 5.23).

use iommu::{DirtyLog, Requester};
use uapi::Errno;
use uapi::iommufd::{Command, IoasUnmap};

use super::{FIXED, PAGE, RAM, RW, lab};
use crate::testing::{Lab, domain, put};

/// Four areas of eight pages, with gaps of four pages.
fn four_areas() -> (Lab, u32) {
    let (mut lab, ioas) = lab();
    for n in 0..4 {
        lab.map(ioas, FIXED | RW, RAM + n * 8 * PAGE, 8 * PAGE, (4 + n * 12) * PAGE).unwrap();
    }
    (lab, ioas)
}

/// IOMMUFD-5.17, IOMMUFD-5.18
#[test]
fn order_of_checks() {
    let (mut lab, ioas) = lab();
    let max = u64::MAX;
    assert_eq!(lab.unmap(99, max, max), Err(Errno::ENOENT));
    assert_eq!(lab.unmap(ioas, 0, max), Ok(0));
    assert_eq!(lab.unmap(ioas, max, 0), Err(Errno::EOVERFLOW));
    assert_eq!(lab.unmap(ioas, 1, max), Err(Errno::EOVERFLOW));
    assert_eq!(lab.unmap(ioas, 0, 0), Err(Errno::EINVAL));
    assert_eq!(lab.unmap(ioas, max - 1, 3), Err(Errno::EOVERFLOW));
    assert_eq!(lab.unmap(ioas, 0, PAGE), Err(Errno::ENOENT));
    lab.map(ioas, FIXED | RW, RAM, PAGE, 7).unwrap();
    assert_eq!(lab.unmap(ioas, 7, PAGE), Ok(PAGE), "IOMMUFD-5.23: no alignment");
}

/// IOMMUFD-5.18, SELF-6.6
#[test]
fn gaps_are_not_counted() {
    let (mut lab, ioas) = four_areas();
    assert_eq!(lab.unmap(ioas, 0, 48 * PAGE), Ok(32 * PAGE));
    let (mut lab, ioas) = four_areas();
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Ok(32 * PAGE));
}

/// IOMMUFD-5.19, IOMMUFD-5.20: what lies before is gone, the length is not
/// written back.
#[test]
fn partial_areas() {
    let (mut lab, ioas) = four_areas();
    let unmap = IoasUnmap { ioas_id: ioas, iova: 0, length: 30 * PAGE, ..IoasUnmap::default() };
    let arg = put(&lab.client, unmap);
    assert_eq!(lab.ioctl(IoasUnmap::REQUEST, arg), Err(Errno::ENOENT));
    assert_eq!(lab.client.get::<IoasUnmap>(arg).length, 30 * PAGE);
    assert_eq!(lab.areas(ioas), [(28 * PAGE, 36 * PAGE - 1), (40 * PAGE, 48 * PAGE - 1)]);
    for (first, pages) in [(29, 7), (28, 7), (30, 2), (30, 20)] {
        assert_eq!(lab.unmap(ioas, first * PAGE, pages * PAGE), Err(Errno::ENOENT));
    }
    assert_eq!(lab.areas(ioas).len(), 2, "nothing behind the first partial one is looked at");
}

/// IOMMUFD-5.19 with areas that share pages among the others.
#[test]
fn shared_areas_go_in_order() {
    let (mut lab, ioas) = four_areas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.counts(), (0, 32, 32));
    lab.copy((ioas, 16 * PAGE), (ioas, 60 * PAGE), FIXED | RW, 8 * PAGE).unwrap();
    lab.copy((ioas, 17 * PAGE), (ioas, 70 * PAGE), FIXED | RW, PAGE).unwrap();
    assert_eq!(lab.unmap(ioas, 0, 61 * PAGE), Err(Errno::ENOENT));
    assert_eq!(lab.areas(ioas), [(60 * PAGE, 68 * PAGE - 1), (70 * PAGE, 71 * PAGE - 1)]);
    assert_eq!(lab.counts(), (0, 8, 8), "the copy keeps its pages");
    assert_eq!(lab.unmap(ioas, 60 * PAGE, 8 * PAGE), Ok(8 * PAGE));
    assert_eq!(lab.counts(), (0, 1, 1));
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Ok(PAGE));
    assert_eq!(lab.counts(), (0, 0, 0));
    assert!(lab.context().backing.pages.is_empty());
}

/// IOMMUFD-5.18: a shared area far behind an empty range is none of it.
#[test]
fn shared_areas_behind_the_range() {
    let (mut lab, ioas) = four_areas();
    lab.copy((ioas, 16 * PAGE), (ioas, 60 * PAGE), FIXED | RW, 8 * PAGE).unwrap();
    for n in 0..4 {
        assert_eq!(lab.unmap(ioas, n * PAGE, PAGE), Err(Errno::ENOENT));
    }
    assert_eq!(lab.areas(ioas).len(), 5);
}

/// Unmap is a fence, and what was written there is of no interest afterwards.
#[test]
fn dirty_bits_go_with_the_area() {
    let (mut lab, ioas) = lab();
    let log = DirtyLog::new(12);
    let mut logged = domain();
    logged.log = Some(log.clone());
    lab.add_domain(1000, ioas, &logged).unwrap();
    for n in 0..3 {
        lab.map(ioas, FIXED | RW, RAM + n * PAGE, PAGE, n * PAGE).unwrap();
    }
    let requester = Requester::new();
    let space = lab.context().ioas(ioas).unwrap().space().clone();
    requester.attach(Some(iommu::Domain { log: Some(log.clone()), ..space.into() }));
    requester.set_bus_master(true);
    log.set_enabled(true);
    for n in 0..3 {
        requester.session().write(n * PAGE, &[1]).unwrap();
    }
    lab.unmap(ioas, PAGE, PAGE).unwrap();
    lab.map(ioas, FIXED | RW, RAM, PAGE, PAGE).unwrap();
    let mut dirty = Vec::new();
    let _ = log.read(0, 3 * PAGE - 1, false, &mut |first, words| {
        dirty.push((first, words.to_vec()));
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(dirty.iter().map(|(_, words)| words[0]).sum::<u64>(), 0b101);
    assert!(requester.session().read(5 * PAGE, &mut [0]).is_err());
}
