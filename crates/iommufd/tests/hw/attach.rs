// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attaching, replacing and detaching one device.

use uapi::Errno;
use uapi::iommufd::{self as abi, IovaRange};
use uapi::iommufd_test::{self as test, op};

use iommufd::{DeviceProperties, ObjectId};

use crate::lab::{DIRTY_TRACKING, Lab, MEMORY, NEST_PARENT, PAGE, PASID};

/// IOMMUFD-8.10, SELF-6.18
#[test]
fn what_can_be_attached() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock(ioas).unwrap();
    assert_eq!(lab.mock(99).unwrap_err(), Errno::ENOENT);
    assert_eq!(lab.mock(mock.device).unwrap_err(), Errno::EINVAL);
    let second = lab.mock(mock.hwpt).unwrap();
    assert_eq!(second.hwpt, mock.hwpt, "an automatic HWPT by hand");
    let parent = lab.hwpt(mock.device, ioas, NEST_PARENT).unwrap();
    let nested = lab.mock_hwpt(mock.device, parent, 0, 0, &test::HwptData::default()).unwrap();
    for hwpt in [parent, nested] {
        assert_eq!(lab.mock(hwpt).unwrap().hwpt, hwpt);
    }
    assert_eq!(lab.destroy(nested), Err(Errno::EBUSY), "2.5: attached");
    assert_eq!(lab.destroy(mock.device), Err(Errno::EBUSY), "2.4: its driver has it");
}

/// IOMMUFD-8.11
#[test]
fn attaching_twice_is_refused() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let (device, _) = lab.bind(1, DeviceProperties::default());
    let hwpt = lab.attach(device, 0, ioas).unwrap();
    for pt in [ioas, hwpt] {
        assert_eq!(lab.attach(device, 0, pt), Err(Errno::EBUSY));
    }
    lab.detach(device, 0);
    assert!(lab.attach(device, 0, ioas).is_ok());
}

/// IOMMUFD-2.9, IOMMUFD-8.12: one automatic HWPT for all that fit, which goes
/// with the last.
#[test]
fn automatic_hwpts_come_and_go() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let (one, two) = (lab.mock(ioas).unwrap(), lab.mock(ioas).unwrap());
    assert_eq!(one.hwpt, two.hwpt);
    let manual = lab.hwpt(one.device, ioas, 0).unwrap();
    assert_ne!(lab.mock(ioas).unwrap().hwpt, manual, "2.10: never a manual one");
    assert_eq!(lab.destroy(one.hwpt), Err(Errno::EBUSY));
    assert_eq!(lab.destroy(ioas), Err(Errno::EBUSY));

    let (device, _) = lab.bind(1, DeviceProperties::default());
    let real = lab.attach(device, 0, ioas).unwrap();
    assert_ne!(real, one.hwpt, "EINVAL of one means: try the next");
    lab.detach(device, 0);
    assert_eq!(lab.destroy(real), Err(Errno::ENOENT));
}

/// SELF-6.12, IOMMUFD-8.16
#[test]
fn replacing_away_ends_an_automatic_hwpt() {
    let mut lab = Lab::new();
    let (ioas, other) = (lab.ioas(), lab.ioas());
    let mock = lab.mock(ioas).unwrap();
    let replace = |lab: &mut Lab, pt| lab.test(op::MOCK_DOMAIN_REPLACE, mock.object, &[pt]).map(|cmd| cmd.u32_at(16));
    assert_eq!(replace(&mut lab, ioas), Ok(mock.hwpt), "the same again");
    assert_eq!(replace(&mut lab, 99), Err(Errno::ENOENT));
    assert_eq!(lab.test(op::MOCK_DOMAIN_REPLACE, mock.device, &[ioas]), Err(Errno::ENOENT), "no mock's object");
    let new = replace(&mut lab, other).unwrap();
    assert_eq!(lab.destroy(mock.hwpt), Err(Errno::ENOENT), "gone");
    assert_eq!(lab.destroy(ioas), Ok(()));
    assert_eq!(replace(&mut lab, other), Ok(new));

    let (device, _) = lab.bind(1, DeviceProperties::default());
    assert_eq!(lab.replace(device, 0, other), Err(Errno::EINVAL), "not attached");
}

/// IOMMUFD-8.8, SELF-6.17
#[test]
fn tracking_needs_a_device_that_tracks() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock(ioas).unwrap();
    let hwpt = lab.hwpt(mock.device, ioas, DIRTY_TRACKING).unwrap();
    assert!(lab.mock(hwpt).is_ok());
    assert_eq!(lab.mock_with(hwpt, test::DEVICE_NO_DIRTY).unwrap_err(), Errno::EINVAL);
    let able = DeviceProperties { dirty_tracking: true, ..DeviceProperties::default() };
    let ((able, _), (plain, _)) = (lab.bind(1, able), lab.bind(2, DeviceProperties::default()));
    let hwpt = lab.hwpt(able.0, ioas, DIRTY_TRACKING).unwrap();
    assert_eq!(lab.attach(able, 0, hwpt), Ok(hwpt));
    assert_eq!(lab.attach(plain, 0, hwpt), Err(Errno::EINVAL));
}

/// IOMMUFD-8.9, IOMMUFD-8.13, IOMMUFD-8.14, SELF-6.15
#[test]
fn pasids_need_hwpts_made_for_them() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock_with(ioas, test::DEVICE_PASID).unwrap();
    let (flagged, plain) = (lab.hwpt(mock.device, ioas, PASID).unwrap(), lab.hwpt(mock.device, ioas, 0).unwrap());
    let attach = |lab: &mut Lab, pasid, pt| lab.test(op::PASID_ATTACH, mock.object, &[pasid, pt]).map(|c| c.u32_at(20));
    let rid = |lab: &mut Lab, pt| lab.test(op::MOCK_DOMAIN_REPLACE, mock.object, &[pt]).map(|cmd| cmd.u32_at(16));
    assert_eq!(attach(&mut lab, 100, flagged), Err(Errno::EINVAL), "the RID's is not");
    assert_eq!(rid(&mut lab, flagged), Ok(flagged));
    assert_eq!(attach(&mut lab, 100, plain), Err(Errno::EINVAL));
    assert_eq!(attach(&mut lab, 100, ioas), Err(Errno::EINVAL), "an automatic one never is");
    assert!(lab.check_pasid(mock, 100, 0));
    assert_eq!(attach(&mut lab, 100, flagged), Ok(flagged));
    assert!(lab.check_pasid(mock, 100, flagged));
    assert_eq!(attach(&mut lab, 100, flagged), Err(Errno::EBUSY));
    assert_eq!(rid(&mut lab, plain), Err(Errno::EINVAL), "while a PASID is attached");
    assert_eq!(attach(&mut lab, 1 << 20, flagged), Err(Errno::EINVAL), "beyond the device's");
    assert_eq!(attach(&mut lab, 0, flagged), Err(Errno::EBUSY), "PASID 0 is the RID");
    for _ in 0..2 {
        assert!(lab.test(op::PASID_DETACH, mock.object, &[100]).is_ok(), "8.18: no error if it is not attached");
    }
    assert_eq!(rid(&mut lab, plain), Ok(plain));
    assert_eq!(lab.test(op::PASID_REPLACE, mock.object, &[200, flagged]).unwrap_err(), Errno::EINVAL);
}

/// IOMMUFD-8.13: without an attached RID PASIDs can be attached; 8.16, SELF-4.8:
/// a driver that fails leaves the old one.
#[test]
fn a_failed_replace_leaves_the_old_one() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock_with(ioas, test::DEVICE_PASID).unwrap();
    let hwpts = [PASID, PASID].map(|flags| lab.hwpt(mock.device, ioas, flags).unwrap());
    lab.detach(ObjectId(mock.device), 0);
    let pasid = |lab: &mut Lab, op, pt| lab.test(op, mock.object, &[1024, pt]).map(|cmd| cmd.u32_at(20));
    assert_eq!(pasid(&mut lab, op::PASID_ATTACH, hwpts[0]), Ok(hwpts[0]));
    assert_eq!(pasid(&mut lab, op::PASID_REPLACE, hwpts[1]), Err(Errno::ENOMEM));
    assert!(lab.check_pasid(mock, 1024, hwpts[0]));
    assert_eq!(lab.destroy(hwpts[1]), Ok(()), "nobody has it");
    assert!(lab.test(op::PASID_DETACH, mock.object, &[1024]).is_ok());
    assert_eq!(lab.destroy(hwpts[0]), Ok(()));
}

/// IOMMUFD-8.15, FAULT-3.1: the last row of its table.
#[test]
fn a_vf_that_shares_page_requests_has_no_fault_queue() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let shares = DeviceProperties { vf_of_pri_pf: true, ..DeviceProperties::default() };
    let (vf, _) = lab.bind(1, shares);
    let (fault_id, _) = lab.fault_queue();
    let cmd = abi::HwptAlloc { dev_id: vf.0, pt_id: ioas, flags: 4, fault_id, ..abi::HwptAlloc::default() };
    let hwpt = lab.call(cmd).unwrap().out_hwpt_id;
    assert_eq!(lab.attach(vf, 0, hwpt), Err(Errno::EINVAL));
    assert!(lab.attach(vf, 0, ioas).is_ok());
    assert_eq!(lab.replace(vf, 0, hwpt), Err(Errno::EINVAL));
}

fn ranges(lab: &mut Lab, ioas_id: u32) -> Vec<(u64, u64)> {
    let allowed_iovas = lab.client.room(16 * 8);
    let cmd = abi::IoasIovaRanges { ioas_id, num_iovas: 8, allowed_iovas, ..abi::IoasIovaRanges::default() };
    let count = lab.call(cmd).unwrap().num_iovas;
    let range = |n| lab.client.get::<IovaRange>(allowed_iovas + 16 * n);
    (0..u64::from(count)).map(range).map(|range| (range.start, range.last)).collect()
}

/// The interrupt window of x86.
const MSI: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

fn with_msi() -> DeviceProperties {
    DeviceProperties { reserved: vec![MSI], max_pasids: 16, ..DeviceProperties::default() }
}

/// IOMMUFD-4.6, IOMMUFD-8.14, IOMMUFD-8.17: regions that a device cannot use
/// come with its RID's attachment, and go with it.
#[test]
fn reserved_regions_follow_the_device() {
    let mut lab = Lab::new();
    let (ioas, other) = (lab.ioas(), lab.ioas());
    let (device, _) = lab.bind(1, with_msi());
    let last = (1 << 48) - 1;
    let hwpt = lab.hwpt(device.0, ioas, PASID).unwrap();
    assert_eq!(lab.attach(device, 3, hwpt), Ok(hwpt));
    assert_eq!(ranges(&mut lab, ioas), [(0, last)], "a PASID reserves nothing");
    lab.detach(device, 3);
    lab.attach(device, 0, ioas).unwrap();
    let without_msi = [(0, MSI.0 - 1), (MSI.1 + 1, last)];
    assert_eq!(ranges(&mut lab, ioas), without_msi);
    lab.replace(device, 0, other).unwrap();
    assert_eq!((ranges(&mut lab, ioas), ranges(&mut lab, other)), (vec![(0, last)], without_msi.to_vec()));
    lab.detach(device, 0);
    assert_eq!(ranges(&mut lab, other), [(0, u64::MAX)]);
}

/// IOMMUFD-4.9, IOMMUFD-8.17: a region that is mapped already is in the way; the
/// old attachment stays.
#[test]
fn a_mapped_region_is_in_the_way() {
    let mut lab = Lab::new();
    let (ioas, other) = (lab.ioas(), lab.ioas());
    let (device, _) = lab.bind(1, with_msi());
    lab.map(ioas, MEMORY, PAGE, MSI.0).unwrap();
    assert_eq!(lab.attach(device, 0, ioas), Err(Errno::EADDRINUSE));
    assert_eq!(lab.destroy(ioas + 2), Err(Errno::EBUSY), "the device itself is there");
    let hwpt = lab.attach(device, 0, other).unwrap();
    assert_eq!(lab.replace(device, 0, ioas), Err(Errno::EADDRINUSE));
    assert_eq!(lab.replace(device, 0, hwpt), Ok(hwpt));
    assert_eq!(ranges(&mut lab, ioas), [(0, u64::MAX)]);
    assert_eq!(lab.destroy(ioas), Ok(()), "nothing holds it");
}

/// IOMMUFD-2.7: whatever was made goes with the context.
#[test]
fn closing_ends_everything() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock_with(ioas, test::DEVICE_PASID).unwrap();
    lab.map(ioas, MEMORY, 16 * PAGE, test::APERTURE_START).unwrap();
    let parent = lab.hwpt(mock.device, ioas, NEST_PARENT | PASID).unwrap();
    let nested = lab.mock_hwpt(mock.device, parent, PASID, 0, &test::HwptData::default()).unwrap();
    lab.test(op::MOCK_DOMAIN_REPLACE, mock.object, &[nested]).unwrap();
    lab.test(op::PASID_ATTACH, mock.object, &[5, parent]).unwrap();
    lab.iommufd.release(lab.file);
    lab.file = lab.files.allocate();
    lab.iommufd.open(lab.file, false);
    assert!(lab.test_wide(op::MD_CHECK_REFS, 0, &[16 * PAGE, MEMORY, 0]).is_ok());
    assert_eq!(lab.ioas(), 1);
}
