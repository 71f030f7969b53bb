// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_IOVA_RANGES` and `_ALLOW_IOVAS` (iommufd-api.md, section 4).

use uapi::Errno;
use uapi::iommufd::{Command, IoasAllowIovas, IoasIovaRanges, IovaRange};
use zerocopy::IntoBytes;

use super::{FIXED, PAGE, RAM, ROM, RW, lab};
use crate::ioas::Owner;
use crate::testing::{Lab, domain, put};
use crate::{Kind, ObjectId};

/// The reply with room for `capacity` ranges, and those written.
fn ranges(lab: &mut Lab, ioas: u32, capacity: u32) -> (Result<(), Errno>, IoasIovaRanges, Vec<(u64, u64)>) {
    let array = lab.client.room(u64::from(capacity) * 16 + 16);
    let cmd = IoasIovaRanges { ioas_id: ioas, num_iovas: capacity, allowed_iovas: array, ..IoasIovaRanges::default() };
    let arg = put(&lab.client, cmd);
    let done = lab.ioctl(IoasIovaRanges::REQUEST, arg).map(|_| ());
    let reply: IoasIovaRanges = lab.client.get(arg);
    let count = reply.num_iovas.min(capacity);
    let range = |n: u32| lab.client.get::<IovaRange>(array + u64::from(n) * 16);
    let list = (0..count).map(range).map(|range| (range.start, range.last)).collect();
    assert_eq!(
        lab.client.get::<IovaRange>(array + u64::from(capacity) * 16),
        IovaRange::default(),
        "no more than fits"
    );
    (done, reply, list)
}

fn allow(lab: &mut Lab, ioas: u32, ranges: &[(u64, u64)]) -> Result<(), Errno> {
    let list: Vec<IovaRange> = ranges.iter().map(|(start, last)| IovaRange { start: *start, last: *last }).collect();
    let allowed_iovas = lab.client.put(list.as_bytes());
    let num_iovas = list.len() as u32;
    lab.run(IoasAllowIovas { ioas_id: ioas, num_iovas, allowed_iovas, ..IoasAllowIovas::default() }).map(|_| ())
}

/// IOMMUFD-4.1
#[test]
fn order_of_checks() {
    let (mut lab, _) = lab();
    let ranges = IoasIovaRanges { ioas_id: 99, ..IoasIovaRanges::default() };
    assert_eq!(lab.run(IoasIovaRanges { reserved: 1, ..ranges }), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(ranges), Err(Errno::ENOENT));
    let allow = IoasAllowIovas { ioas_id: 99, num_iovas: 1, ..IoasAllowIovas::default() };
    assert_eq!(lab.run(IoasAllowIovas { reserved: 1, ..allow }), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(allow), Err(Errno::ENOENT));
}

/// IOMMUFD-4.2, IOMMUFD-4.3, IOMMUFD-3.2
#[test]
fn holes_between_reservations() {
    let (mut lab, ioas) = lab();
    let (done, reply, list) = ranges(&mut lab, ioas, 4);
    assert_eq!((done, reply.out_iova_alignment, list), (Ok(()), 1, vec![(0, u64::MAX)]));
    lab.reserve(ioas, 100, 199).unwrap();
    lab.reserve(ioas, 1000, u64::MAX).unwrap();
    allow(&mut lab, ioas, &[(10, 20)]).unwrap();
    let holes = [(0, 99), (200, 999)];
    for (capacity, expected) in [(0, Err(Errno::EMSGSIZE)), (1, Err(Errno::EMSGSIZE)), (2, Ok(())), (3, Ok(()))] {
        let (done, reply, list) = ranges(&mut lab, ioas, capacity);
        assert_eq!((done, reply.num_iovas), (expected, 2), "{capacity}");
        assert_eq!(list, holes[..(capacity as usize).min(2)], "the allowed list is not consulted");
    }
    let none = IoasIovaRanges { ioas_id: ioas, ..IoasIovaRanges::default() };
    assert_eq!(lab.run(none), Err(Errno::EMSGSIZE), "no array is fine");
    let (other, ioas) = (ioas, lab.ioas());
    lab.reserve(ioas, 0, u64::MAX).unwrap();
    assert_ne!(other, ioas);
    assert_eq!(lab.run(IoasIovaRanges { ioas_id: ioas, ..none }).unwrap().num_iovas, 0);
}

/// IOMMUFD-4.4
#[test]
fn entry_that_cannot_be_written() {
    let (mut lab, ioas) = lab();
    let cmd = IoasIovaRanges { ioas_id: ioas, num_iovas: 1, allowed_iovas: ROM, ..IoasIovaRanges::default() };
    let arg = put(&lab.client, cmd);
    assert_eq!(lab.ioctl(IoasIovaRanges::REQUEST, arg), Err(Errno::EFAULT));
    assert_eq!(lab.client.get::<IoasIovaRanges>(arg).out_iova_alignment, 0, "nothing is written");
}

/// IOMMUFD-4.5, IOMMUFD-4.6
#[test]
fn domains_raise_alignment_and_reserve() {
    let (mut lab, ioas) = lab();
    let mut narrow = domain();
    (narrow.page_sizes, narrow.aperture) = (1 << 11 | 1 << 20, 1 << 24..=(1 << 31) - 1);
    lab.add_domain(1000, ioas, &narrow).unwrap();
    let (_, reply, list) = ranges(&mut lab, ioas, 4);
    assert_eq!((reply.out_iova_alignment, list), (2048, vec![(1 << 24, (1 << 31) - 1)]));
    lab.add_domain(1001, ioas, &domain()).unwrap();
    assert_eq!(ranges(&mut lab, ioas, 4).1.out_iova_alignment, 4096);
    lab.remove_domain(1001, ioas);
    assert_eq!(ranges(&mut lab, ioas, 4).1.out_iova_alignment, 2048);
    let mut large = domain();
    large.page_sizes = 1 << 21;
    assert_eq!(lab.add_domain(1002, ioas, &large), Err(Errno::EINVAL));
    lab.remove_domain(1000, ioas);
    let (_, reply, list) = ranges(&mut lab, ioas, 4);
    assert_eq!((reply.out_iova_alignment, list), (1, vec![(0, u64::MAX)]));
    // A device's regions go with the device.
    let (target, backing) = lab.context().ioas_and_backing(ioas).unwrap();
    target.reserve(Owner::Device(ObjectId(5)), 0xfee0_0000, 0xfeef_ffff, backing).unwrap();
    assert_eq!(ranges(&mut lab, ioas, 4).2.len(), 2);
    let (target, backing) = lab.context().ioas_and_backing(ioas).unwrap();
    target.unreserve(Owner::Device(ObjectId(5)), backing);
    assert_eq!(ranges(&mut lab, ioas, 4).2.len(), 1);
}

/// IOMMUFD-4.7
#[test]
fn allowed_list_is_checked_entry_by_entry() {
    let (mut lab, ioas) = lab();
    lab.reserve(ioas, 1000, 1999).unwrap();
    assert_eq!(allow(&mut lab, ioas, &[(0, 9), (20, 20)]), Err(Errno::EINVAL), "a byte is not enough");
    assert_eq!(allow(&mut lab, ioas, &[(9, 0)]), Err(Errno::EINVAL));
    assert_eq!(allow(&mut lab, ioas, &[(500, 1500), (30, 20)]), Err(Errno::EINVAL), "entries before reservations");
    assert_eq!(allow(&mut lab, ioas, &[(0, 9), (9, 20)]), Err(Errno::EINVAL));
    allow(&mut lab, ioas, &[(0, 9), (10, 20)]).unwrap();
    assert_eq!(allow(&mut lab, ioas, &[(0, 9), (1999, 2500)]), Err(Errno::EADDRINUSE));
    assert_eq!(lab.reserve(ioas, 15, 15), Err(Errno::EADDRINUSE), "the old list stays");
    // An entry that cannot be read, behind one that can.
    let edge = ROM + 16 * PAGE - 16;
    lab.client.memory.store(edge, IovaRange { start: 0, last: 5 }.as_bytes());
    let cmd = IoasAllowIovas { ioas_id: ioas, num_iovas: 2, allowed_iovas: edge, ..IoasAllowIovas::default() };
    assert_eq!(lab.run(cmd), Err(Errno::EFAULT));
    lab.client.memory.store(edge, IovaRange { start: 5, last: 5 }.as_bytes());
    assert_eq!(lab.run(cmd), Err(Errno::EINVAL));
    allow(&mut lab, ioas, &[]).unwrap();
    lab.reserve(ioas, 15, 15).unwrap();
}

/// IOMMUFD-4.8, IOMMUFD-4.9
#[test]
fn reservations_that_fail() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 10 * PAGE).unwrap();
    allow(&mut lab, ioas, &[(20 * PAGE, 30 * PAGE)]).unwrap();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 40 * PAGE).unwrap();
    for (first, last) in [(10 * PAGE, 10 * PAGE), (11 * PAGE - 1, 12 * PAGE), (0, u64::MAX), (30 * PAGE, 31 * PAGE)] {
        assert_eq!(lab.reserve(ioas, first, last), Err(Errno::EADDRINUSE));
    }
    let mut narrow = domain();
    for aperture in [0..=10 * PAGE, 11 * PAGE..=u64::MAX, 0..=41 * PAGE - 2] {
        narrow.aperture = aperture;
        assert_eq!(lab.add_domain(1000, ioas, &narrow), Err(Errno::EADDRINUSE));
    }
    assert_eq!(ranges(&mut lab, ioas, 4).2, [(0, u64::MAX)], "nothing of a failure is left");
    narrow.aperture = 10 * PAGE..=41 * PAGE - 1;
    lab.add_domain(1000, ioas, &narrow).unwrap();

    // IOVA, length and offset in the page must fit a domain's pages.
    let half = 2048;
    for (va, length, iova) in [(RAM + half, PAGE, 0), (RAM, PAGE + half, 0), (RAM, PAGE, half)] {
        let ioas = lab.ioas();
        lab.map(ioas, FIXED | RW, va, length, iova).unwrap();
        assert_eq!(lab.add_domain(1000, ioas, &domain()), Err(Errno::EADDRINUSE));
    }
}

/// Entries count as memory, and are given back.
#[test]
fn lists_are_bounded() {
    let (mut lab, ioas) = lab();
    let before = lab.iommufd.budget.left();
    allow(&mut lab, ioas, &[(0, 9), (10, 20)]).unwrap();
    assert!(lab.iommufd.budget.left() < before);
    let some = lab.iommufd.budget.left();
    lab.iommufd.budget.take(some - 64).unwrap();
    assert_eq!(allow(&mut lab, ioas, &[(0, 9), (10, 20)]), Err(Errno::ENOMEM));
    assert_eq!(lab.reserve(ioas, 100, 200), Ok(()));
    assert_eq!(lab.reserve(ioas, 300, 400), Err(Errno::ENOMEM));
    lab.iommufd.budget.give(some - 64);
    lab.context().destroy_ioas(ObjectId(ioas));
    assert_eq!(lab.context().ids.kind(ObjectId(ioas)), None::<Kind>);
    let file = lab.file;
    lab.iommufd.release(file);
    assert_eq!(lab.iommufd.budget.left(), crate::Options::default().memory_limit);
}
