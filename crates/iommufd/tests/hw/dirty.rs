// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty tracking.

use std::sync::Arc;

use iommu::Requester;
use proptest::prelude::*;
use uapi::Errno;
use uapi::iommufd::{HwptGetDirtyBitmap, HwptSetDirtyTracking};
use uapi::iommufd_test::{self as test, op};

use iommufd::DeviceProperties;

use crate::lab::{DIRTY_TRACKING, Lab, MEMORY, PAGE};

/// IOVA at which the tests map.
const AT: u64 = 1 << 30;

/// A device whose writes are tracked, with `pages` pages mapped at `AT`.
fn tracked(pages: u64) -> (Lab, u32, Arc<Requester>) {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let able = DeviceProperties { dirty_tracking: true, ..DeviceProperties::default() };
    let (device, requester) = lab.bind(1, able);
    requester.set_bus_master(true);
    lab.map(ioas, MEMORY, pages * PAGE, AT).unwrap();
    let hwpt = lab.hwpt(device.0, ioas, DIRTY_TRACKING).unwrap();
    lab.attach(device, 0, hwpt).unwrap();
    set(&mut lab, hwpt, 1).unwrap();
    (lab, hwpt, requester)
}

fn set(lab: &mut Lab, hwpt_id: u32, flags: u32) -> Result<(), Errno> {
    lab.call(HwptSetDirtyTracking { flags, hwpt_id, ..HwptSetDirtyTracking::default() }).map(|_| ())
}

fn write(requester: &Requester, page: u64) {
    requester.session().write(AT + page * PAGE + 5, &[1]).unwrap();
}

/// The bits that a call sets in a bitmap of zeros, which begins at an odd address.
fn get(lab: &mut Lab, hwpt_id: u32, range: (u64, u64), page_size: u64, flags: u32) -> Result<Vec<u64>, Errno> {
    let (iova, length) = range;
    let bytes = (length / page_size).div_ceil(8);
    let data = lab.client.room(bytes + 1) + 1;
    lab.call(HwptGetDirtyBitmap { hwpt_id, flags, iova, length, page_size, data, ..Default::default() })?;
    let bitmap = lab.client.get_bytes(data, bytes as usize);
    Ok((0..8 * bytes).filter(|bit| bitmap[(bit / 8) as usize] & 1 << (bit % 8) != 0).collect())
}

const NO_CLEAR: u32 = 1;

/// IOMMUFD-9.1
#[test]
fn turning_it_on_and_off() {
    let (mut lab, hwpt, requester) = tracked(8);
    assert_eq!(set(&mut lab, hwpt, 2), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut lab, 99, 1), Err(Errno::ENOENT));
    let reserved = HwptSetDirtyTracking { flags: 1, hwpt_id: hwpt, reserved: 1, ..HwptSetDirtyTracking::default() };
    assert!(lab.call(reserved).is_ok(), "unchecked");
    write(&requester, 3);
    assert_eq!(set(&mut lab, hwpt, 1), Ok(()), "twice");
    assert_eq!(get(&mut lab, hwpt, (AT, 8 * PAGE), PAGE, 0), Ok(vec![]), "begins with nothing dirty");
    write(&requester, 5);
    for _ in 0..2 {
        assert_eq!(set(&mut lab, hwpt, 0), Ok(()));
        write(&requester, 6);
        assert_eq!(get(&mut lab, hwpt, (AT, 8 * PAGE), PAGE, NO_CLEAR), Ok(vec![5]), "off, its bits stay");
    }
    assert_eq!(get(&mut lab, hwpt, (AT, 8 * PAGE), PAGE, 0), Ok(vec![5]));
    assert_eq!(get(&mut lab, hwpt, (AT, 8 * PAGE), PAGE, 0), Ok(vec![]), "cleared as ever");
    let ioas = lab.ioas();
    let (plain, _) = lab.bind(2, DeviceProperties::default());
    let untracked = lab.hwpt(plain.0, ioas, 0).unwrap();
    assert_eq!(set(&mut lab, untracked, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(get(&mut lab, untracked, (AT, PAGE), PAGE, 0), Err(Errno::EOPNOTSUPP));
}

/// IOMMUFD-9.2, IOMMUFD-9.8
#[test]
fn the_order_of_checks() {
    let (mut lab, hwpt, _) = tracked(8);
    for (cmd, errno) in [
        (HwptGetDirtyBitmap { flags: 2, ..Default::default() }, Errno::EOPNOTSUPP),
        (HwptGetDirtyBitmap { reserved: 1, ..Default::default() }, Errno::EOPNOTSUPP),
        (HwptGetDirtyBitmap { hwpt_id: 99, ..Default::default() }, Errno::ENOENT),
    ] {
        assert_eq!(lab.call(cmd).unwrap_err(), errno);
    }
    for (iova, length, page_size, expected) in [
        (u64::MAX, 2, 0, Err(Errno::EOVERFLOW)),
        (AT, 0, PAGE, Err(Errno::EOVERFLOW)),
        (AT + 1, PAGE, 0, Err(Errno::EINVAL)),
        (AT, PAGE + 1, 0, Err(Errno::EINVAL)),
        (AT, PAGE, 0, Err(Errno::EINVAL)),
        (AT + PAGE, PAGE, 2 * PAGE, Err(Errno::EINVAL)),
        (AT, PAGE, 2 * PAGE, Err(Errno::EINVAL)),
        (AT, 8 * PAGE, PAGE, Ok(())),
        // 9.2, 9.8: no power of two, but none of its mask's bits is set.
        (AT, 8 * PAGE, 3 * PAGE, Ok(())),
        (AT, 10 * PAGE, 3 * PAGE, Err(Errno::EINVAL)),
    ] {
        let data = lab.client.room(64);
        let cmd = HwptGetDirtyBitmap { hwpt_id: hwpt, iova, length, page_size, data, ..Default::default() };
        assert_eq!(lab.call(cmd).map(|_| ()), expected, "{iova:#x} {length:#x} {page_size:#x}");
    }
}

/// IOMMUFD-9.3, IOMMUFD-9.6: bits count from the range's start; reading clears
/// unless it is told not to.
#[test]
fn what_was_written_is_reported_once() {
    let (mut lab, hwpt, requester) = tracked(200);
    for page in [0, 63, 64, 130, 199] {
        write(&requester, page);
    }
    let all = (AT, 200 * PAGE);
    assert_eq!(get(&mut lab, hwpt, all, PAGE, NO_CLEAR), Ok(vec![0, 63, 64, 130, 199]));
    let part = (AT + 60 * PAGE, 75 * PAGE);
    assert_eq!(get(&mut lab, hwpt, part, PAGE, 0), Ok(vec![3, 4, 70]));
    assert_eq!(get(&mut lab, hwpt, all, PAGE, 0), Ok(vec![0, 199]));
    assert_eq!(get(&mut lab, hwpt, all, PAGE, 0), Ok(vec![]));
    write(&requester, 7);
    assert_eq!(get(&mut lab, hwpt, all, PAGE, 0), Ok(vec![7]));
}

/// IOMMUFD-9.4: bits that are set stay.
#[test]
fn bits_are_only_ever_set() {
    let (mut lab, hwpt, requester) = tracked(64);
    write(&requester, 1);
    let data = lab.client.put(&[0x80u8, 0, 0, 0, 0, 0, 0, 0xff]);
    let base = HwptGetDirtyBitmap { hwpt_id: hwpt, iova: AT, length: 64 * PAGE, ..Default::default() };
    lab.call(HwptGetDirtyBitmap { page_size: PAGE, data, ..base }).unwrap();
    assert_eq!(lab.client.get_bytes(data, 8), [0x82, 0, 0, 0, 0, 0, 0, 0xff]);
    (0..64).for_each(|page| write(&requester, page));
    lab.call(HwptGetDirtyBitmap { page_size: PAGE, data, ..base }).unwrap();
    assert_eq!(lab.client.get_bytes(data, 9), [&[0xff; 8][..], &[0]].concat(), "and none behind it");
}

/// IOMMUFD-9.5: pages of another size than those that are tracked.
#[test]
fn page_sizes_may_differ() {
    let (mut lab, hwpt, requester) = tracked(256);
    for page in [0, 9, 255] {
        write(&requester, page);
    }
    let all = (AT, 256 * PAGE);
    assert_eq!(get(&mut lab, hwpt, all, 8 * PAGE, NO_CLEAR), Ok(vec![0, 1, 31]));
    assert_eq!(get(&mut lab, hwpt, all, 2 * PAGE, NO_CLEAR), Ok(vec![0, 4, 127]));
    assert_eq!(get(&mut lab, hwpt, all, 256 * PAGE, NO_CLEAR), Ok(vec![0]));
    assert_eq!(get(&mut lab, hwpt, (AT + 8 * PAGE, 8 * PAGE), 1024, 0), Ok(vec![4, 5, 6, 7]));
}

/// IOMMUFD-9.7: a hole ends the walk, and nobody is told; neither is who gives a
/// bitmap that cannot be written.
#[test]
fn a_hole_ends_the_walk() {
    let (mut lab, hwpt, requester) = tracked(8);
    lab.map(1, MEMORY, 4 * PAGE, AT + 16 * PAGE).unwrap();
    write(&requester, 7);
    write(&requester, 17);
    let all = (AT, 32 * PAGE);
    assert_eq!(get(&mut lab, hwpt, all, PAGE, 0), Ok(vec![7]));
    assert_eq!(get(&mut lab, hwpt, (AT + 16 * PAGE, 4 * PAGE), PAGE, NO_CLEAR), Ok(vec![1]), "still dirty");
    assert_eq!(get(&mut lab, hwpt, (AT + 8 * PAGE, 16 * PAGE), PAGE, 0), Ok(vec![]), "begins with a hole");
    let base = HwptGetDirtyBitmap { hwpt_id: hwpt, iova: AT + 16 * PAGE, length: 4 * PAGE, ..Default::default() };
    assert!(lab.call(HwptGetDirtyBitmap { page_size: PAGE, data: 16, ..base }).is_ok());
    assert_eq!(get(&mut lab, hwpt, (AT + 16 * PAGE, 4 * PAGE), PAGE, 0), Ok(vec![]), "cleared all the same");
}

/// IOMMUFD-9.6: what was unmapped is not dirty when something else is mapped there.
#[test]
fn unmapping_forgets() {
    let (mut lab, hwpt, requester) = tracked(8);
    write(&requester, 2);
    let unmap = uapi::iommufd::IoasUnmap { ioas_id: 1, iova: AT, length: 8 * PAGE, ..Default::default() };
    lab.call(unmap).unwrap();
    lab.map(1, MEMORY, 8 * PAGE, AT).unwrap();
    assert_eq!(get(&mut lab, hwpt, (AT, 8 * PAGE), PAGE, 0), Ok(vec![]));
}

/// SELF-3.13, SELF-4.11, SELF-6.16: the selftest's op, and its table with huge
/// pages: a bit dirties a whole one.
#[test]
fn the_mock_s_pages() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    let base = test::APERTURE_START;
    lab.map(ioas, MEMORY, 2 << 20, base).unwrap();
    let dirty = |lab: &mut Lab, hwpt, args: [u64; 3], bits: &[u8]| {
        let bitmap = lab.client.put(bits);
        lab.test_wide(op::DIRTY, hwpt, &[0, args[0], args[1], args[2], bitmap]).map(|cmd| cmd.u64_at(56))
    };
    for (table, reported) in [(test::TABLE_DEFAULT, vec![0, 9]), (test::TABLE_HUGE, (0..512).collect())] {
        let data = test::HwptData { iotlb: 0, pagetable_type: table };
        let hwpt = lab.mock_hwpt(device, ioas, DIRTY_TRACKING, 0, &data).unwrap();
        let args = [base, 16 * 2048, 2048];
        assert_eq!(dirty(&mut lab, hwpt, args, &[1, 2]), Err(Errno::EINVAL), "not enabled");
        set(&mut lab, hwpt, 1).unwrap();
        for wrong in [[base, 0, 2048], [base, 2048, 0], [base + 1, 2048, 2048], [base, 2049, 2048]] {
            assert_eq!(dirty(&mut lab, hwpt, wrong, &[1]), Err(Errno::EINVAL));
        }
        assert_eq!(dirty(&mut lab, hwpt, [0, 1 << 40, 2048], &[1]), Err(Errno::EOVERFLOW));
        assert_eq!(dirty(&mut lab, 99, args, &[1, 2]), Err(Errno::ENOENT));
        assert_eq!(dirty(&mut lab, hwpt, args, &[1, 2]), Ok(2));
        assert_eq!(dirty(&mut lab, hwpt, [0, 8 * 2048, 2048], &[3]), Ok(2), "unmapped ones count, but mark nothing");
        assert_eq!(get(&mut lab, hwpt, (base, 2 << 20), 2048, 0), Ok(reported));
        lab.destroy(hwpt).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, ..ProptestConfig::default() })]

    /// IOMMUFD-9.3, IOMMUFD-9.5, IOMMUFD-9.6: any range and page size, against a set of pages.
    #[test]
    fn reads_are_as_a_set_of_pages_says(
        rounds in prop::collection::vec(
            (prop::collection::vec(0..512u64, 0..40), 0..6u32, 0..32u64, 1..32u64, any::<bool>()),
            1..6,
        )
    ) {
        let (mut lab, hwpt, requester) = tracked(512);
        let mut dirty = std::collections::BTreeSet::new();
        for (writes, shift, start, count, keep) in rounds {
            for page in writes {
                write(&requester, page);
                dirty.insert(page);
            }
            // Of pages of 1 KiB to 32 KiB, within what is mapped.
            let page_size = 1024u64 << shift;
            let unit = page_size.max(PAGE);
            let first = start * unit % (512 * PAGE);
            let length = (count * unit).min(512 * PAGE - first);
            let reported = get(&mut lab, hwpt, (AT + first, length), page_size, u32::from(keep)).unwrap();
            let expected: Vec<u64> = (0..length / page_size)
                .filter(|bit| {
                    let from = first + bit * page_size;
                    (from / PAGE..=(from + page_size - 1) / PAGE).any(|page| dirty.contains(&page))
                })
                .collect();
            prop_assert_eq!(reported, expected);
            if !keep {
                dirty.retain(|page| page * PAGE < first || page * PAGE >= first + length);
            }
        }
    }
}
