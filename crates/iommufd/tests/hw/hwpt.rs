// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `HWPT_ALLOC`, `GET_HW_INFO` and `HWPT_INVALIDATE`.

use uapi::Errno;
use uapi::iommufd::{self as abi, HwptAlloc, HwptInvalidate};
use uapi::iommufd_test as test;
use zerocopy::IntoBytes;

use crate::lab::{DIRTY_TRACKING, FAULT_ID_VALID, Lab, MEMORY, NEST_PARENT, PAGE, PASID};

/// IOMMUFD-8.1, IOMMUFD-8.5: reserved field, data, device, what it is of, in this order.
#[test]
fn the_order_of_checks() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    let alloc = |lab: &mut Lab, reserved, data, dev_id, pt_id| {
        let (data_type, data_len) = data;
        let base = HwptAlloc { reserved, data_type, data_len, dev_id, pt_id, ..HwptAlloc::default() };
        lab.call(base).map(|cmd| cmd.out_hwpt_id)
    };
    assert_eq!(alloc(&mut lab, 1, (0, 8), 99, 99), Err(Errno::EOPNOTSUPP));
    assert_eq!(alloc(&mut lab, 0, (0, 8), 99, 99), Err(Errno::EINVAL), "data of no type");
    assert_eq!(alloc(&mut lab, 0, (1, 0), 99, 99), Err(Errno::EINVAL), "a type without data");
    assert_eq!(alloc(&mut lab, 0, (0, 0), 99, 99), Err(Errno::ENOENT));
    assert_eq!(alloc(&mut lab, 0, (0, 0), ioas, 99), Err(Errno::ENOENT), "not a device");
    assert_eq!(alloc(&mut lab, 0, (0, 0), device, 99), Err(Errno::EINVAL), "not ENOENT");
    assert_eq!(alloc(&mut lab, 0, (0, 0), device, device), Err(Errno::EINVAL), "8.5");
    assert_eq!(alloc(&mut lab, 0, (1, 8), device, ioas), Err(Errno::EOPNOTSUPP), "8.2: not the mock's type");
}

/// IOMMUFD-8.2
#[test]
fn flags_of_paging_hwpts() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let (device, plain) = (lab.mock(ioas).unwrap().device, lab.mock_with(ioas, test::DEVICE_NO_DIRTY).unwrap().device);
    assert_eq!(lab.hwpt(device, ioas, 16), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.hwpt(plain, ioas, DIRTY_TRACKING), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.hwpt(device, ioas, FAULT_ID_VALID | NEST_PARENT), Err(Errno::EOPNOTSUPP));
    for flags in [0, NEST_PARENT, DIRTY_TRACKING, PASID, NEST_PARENT | DIRTY_TRACKING | PASID] {
        let hwpt = lab.hwpt(device, ioas, flags).unwrap();
        assert_eq!(lab.destroy(hwpt), Ok(()));
    }
}

/// IOMMUFD-8.2, IOMMUFD-2.5: it is filled when the call returns, and holds its
/// IOAS.
#[test]
fn a_new_hwpt_has_what_is_mapped() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    lab.map(ioas, MEMORY, 2 * PAGE, test::APERTURE_START).unwrap();
    let hwpt = lab.hwpt(device, ioas, 0).unwrap();
    let check = |lab: &mut Lab, at| {
        lab.test_wide(test::op::MD_CHECK_MAP, hwpt, &[test::APERTURE_START, 2 * PAGE, at]).map(|_| ())
    };
    assert_eq!(check(&mut lab, MEMORY), Ok(()));
    assert_eq!(check(&mut lab, MEMORY + PAGE), Err(Errno::EINVAL));
    assert_eq!(lab.destroy(ioas), Err(Errno::EBUSY));

    let other = lab.ioas();
    lab.map(other, MEMORY, PAGE, PAGE).unwrap();
    assert_eq!(lab.hwpt(device, other, 0), Err(Errno::EADDRINUSE), "below the aperture");
    let bad = lab.ioas();
    lab.map(bad, 0x7000_0000, PAGE, test::APERTURE_START).unwrap();
    assert_eq!(lab.hwpt(device, bad, 0), Err(Errno::EFAULT));
    for ioas in [other, bad] {
        assert_eq!(lab.destroy(ioas), Ok(()), "nothing left behind");
    }
}

/// IOMMUFD-8.3, IOMMUFD-2.10
#[test]
fn nested_hwpts_have_a_nesting_parent() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock(ioas).unwrap();
    let data = test::HwptData { iotlb: 7, pagetable_type: 0 };
    let parent = lab.hwpt(mock.device, ioas, NEST_PARENT).unwrap();
    let plain = lab.hwpt(mock.device, ioas, 0).unwrap();
    assert_eq!(lab.mock_hwpt(mock.device, parent, DIRTY_TRACKING, 0, &data), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.hwpt(mock.device, parent, 0), Err(Errno::EOPNOTSUPP), "no data");
    assert_eq!(lab.mock_hwpt(mock.device, plain, 0, 0, &data), Err(Errno::EINVAL));
    assert_eq!(lab.mock_hwpt(mock.device, mock.hwpt, 0, 0, &data), Err(Errno::EINVAL), "an automatic one");
    let nested = lab.mock_hwpt(mock.device, parent, PASID, 0, &data).unwrap();
    assert_eq!(lab.mock_hwpt(mock.device, nested, 0, 0, &data), Err(Errno::EINVAL));
    assert_eq!(lab.destroy(parent), Err(Errno::EBUSY));
    assert_eq!(lab.destroy(nested), Ok(()));
    assert_eq!(lab.destroy(parent), Ok(()));
}

/// IOMMUFD-8.6, SELF-4.3
#[test]
fn the_driver_s_data_has_a_type_and_a_length() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    let at = lab.client.put(&[7u32, 0, 0, 0]);
    let alloc = |lab: &mut Lab, pt_id, data_type, data_len, data_uptr| {
        let cmd = HwptAlloc { dev_id: device, pt_id, data_type, data_len, data_uptr, ..HwptAlloc::default() };
        lab.call(cmd).map(|cmd| cmd.out_hwpt_id)
    };
    for (kind, len, expected) in [
        (1, 8, Err(Errno::EOPNOTSUPP)),
        (test::HWPT_DATA, 3, Err(Errno::EINVAL)),
        (test::HWPT_DATA, 9, Err(Errno::EINVAL)),
        (test::HWPT_DATA, 4, Ok(())),
        (test::HWPT_DATA, 8, Ok(())),
    ] {
        assert_eq!(alloc(&mut lab, ioas, kind, len, at).map(|_| ()), expected, "{kind:#x}, {len}");
    }
    assert_eq!(alloc(&mut lab, ioas, test::HWPT_DATA, 8, 16), Err(Errno::EFAULT));
    let bad_type = lab.client.put(&[0u32, 2]);
    assert_eq!(alloc(&mut lab, ioas, test::HWPT_DATA, 8, bad_type), Err(Errno::EOPNOTSUPP));
}

/// IOMMUFD-8.7
#[test]
fn the_fault_queue_is_looked_up_last() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    let (fault, file) = lab.fault_queue();
    let alloc = |lab: &mut Lab, flags, fault_id| {
        lab.call(HwptAlloc { dev_id: device, pt_id: ioas, flags, fault_id, ..HwptAlloc::default() })
    };
    let before = lab.hwpt(device, ioas, 0).unwrap();
    assert_eq!(alloc(&mut lab, FAULT_ID_VALID, ioas).unwrap_err(), Errno::ENOENT);
    assert_eq!(alloc(&mut lab, 0, ioas).map(|cmd| cmd.out_hwpt_id), Ok(before + 1), "ignored, and nothing left");
    let hwpt = alloc(&mut lab, FAULT_ID_VALID, fault).unwrap().out_hwpt_id;
    lab.iommufd.release(file);
    assert_eq!(lab.destroy(fault), Err(Errno::EBUSY), "2.5: the HWPT has it");
    assert_eq!(lab.destroy(hwpt), Ok(()));
    assert_eq!(lab.destroy(fault), Ok(()));
}

/// IOMMUFD-1.5, IOMMUFD-2.2: a reply that cannot be written undoes what was made.
#[test]
fn an_unwritable_reply_leaves_nothing() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    lab.client.memory.map(0x6000_0000, PAGE, false);
    let cmd = HwptAlloc { size: 48, dev_id: device, pt_id: ioas, ..HwptAlloc::default() };
    lab.client.memory.store(0x6000_0000, cmd.as_bytes());
    let mut call = iommufd::Call { caller: &lab.client, files: &mut lab.files };
    let result = lab.iommufd.ioctl(lab.file, 0x3b89, 0x6000_0000, &mut call);
    assert_eq!(result, Err(Errno::EFAULT));
    assert_eq!(lab.destroy(device + 2), Err(Errno::ENOENT), "never to be seen");
    let object = lab.mock(ioas).unwrap().object;
    assert_eq!(object, device + 2, "the id is free again: the mock's HWPT has the one before");
}

/// IOMMUFD-10.1, IOMMUFD-10.2, IOMMUFD-10.3, IOMMUFD-10.4, SELF-4.2
#[test]
fn hardware_information() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock_with(ioas, test::DEVICE_PASID).unwrap();
    let ask = |lab: &mut Lab, flags, dev_id, data_type, data_len, data_uptr| {
        lab.call(abi::GetHwInfo { flags, dev_id, data_type, data_len, data_uptr, ..abi::GetHwInfo::default() })
    };
    assert_eq!(ask(&mut lab, 2, 99, 0, 0, 0), Err(Errno::EOPNOTSUPP));
    let reserved = abi::GetHwInfo { reserved: [0, 1, 0], dev_id: 99, ..abi::GetHwInfo::default() };
    assert_eq!(lab.call(reserved), Err(Errno::EOPNOTSUPP));
    assert_eq!(ask(&mut lab, 0, ioas, 0, 0, 0), Err(Errno::ENOENT));

    let none = ask(&mut lab, 0, mock.device, 1, 0, 0).unwrap();
    assert_eq!((none.data_type, none.data_len), (test::HW_INFO, 8), "the type asked for is ignored");
    assert_eq!((none.out_capabilities, none.out_max_pasid_log2), (9, 20));
    assert_eq!(ask(&mut lab, 1, mock.device, 1, 0, 0), Err(Errno::EOPNOTSUPP));
    assert!(ask(&mut lab, 1, mock.device, test::HW_INFO, 0, 0).is_ok());

    let at = lab.client.put(&[0xffu8; 32]);
    let whole = ask(&mut lab, 0, mock.device, 0, 16, at).unwrap();
    assert_eq!(whole.data_len, 8);
    let bytes = lab.client.get_bytes(at, 20);
    assert_eq!(bytes[..8], [0, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde]);
    assert_eq!((&bytes[8..16], &bytes[16..]), (&[0; 8][..], &[0xff; 4][..]), "the rest of the buffer is zero");
    let short = ask(&mut lab, 0, mock.device, 0, 5, at + 16).unwrap();
    assert_eq!(short.data_len, 8);
    assert_eq!(lab.client.get_bytes(at + 16, 6), [0, 0, 0, 0, 0xef, 0xff]);
    assert_eq!(ask(&mut lab, 0, mock.device, 0, 8, 16), Err(Errno::EFAULT));

    let plain = lab.mock_with(ioas, test::DEVICE_NO_DIRTY).unwrap();
    let info = ask(&mut lab, 0, plain.device, 0, 0, 0).unwrap();
    assert_eq!((info.out_capabilities, info.out_max_pasid_log2), (8, 0));
}

/// IOMMUFD-11.1, IOMMUFD-11.2, IOMMUFD-11.3, IOMMUFD-11.4, SELF-4.4
#[test]
fn invalidations() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let device = lab.mock(ioas).unwrap().device;
    let parent = lab.hwpt(device, ioas, NEST_PARENT).unwrap();
    let data = test::HwptData { iotlb: 7, pagetable_type: 0 };
    let nested = lab.mock_hwpt(device, parent, 0, 0, &data).unwrap();
    let invalidate = |lab: &mut Lab, hwpt_id, data_type, entries: &[[u32; 2]], entry_len, reserved| {
        let data_uptr = lab.client.put(entries);
        let entry_num = entries.len() as u32;
        let cmd = HwptInvalidate { size: 0, hwpt_id, data_uptr, data_type, entry_len, entry_num, reserved };
        let (cmd, result) = lab.raw(cmd);
        (cmd.entry_num, result.map(|_| ()))
    };
    let word = |lab: &mut Lab, n| {
        [7, 0].into_iter().find(|value| lab.test(test::op::MD_CHECK_IOTLB, nested, &[n, *value]).is_ok())
    };
    assert_eq!(word(&mut lab, 0), Some(7));
    assert_eq!(word(&mut lab, 4), None, "there are four");

    let ok = [[0, 0]];
    assert_eq!(invalidate(&mut lab, nested, test::TYPE, &ok, 8, 1), (0, Err(Errno::EOPNOTSUPP)));
    for len in [0, 4097] {
        assert_eq!(invalidate(&mut lab, 99, test::TYPE, &ok, len, 0), (0, Err(Errno::EINVAL)));
    }
    let many =
        HwptInvalidate { hwpt_id: 99, data_uptr: 1, entry_len: 8, entry_num: (1 << 19) + 1, ..Default::default() };
    assert_eq!(lab.call(many).unwrap_err(), Errno::EINVAL);
    let nowhere = HwptInvalidate { hwpt_id: nested, entry_len: 8, entry_num: 1, ..Default::default() };
    assert_eq!(lab.call(nowhere).unwrap_err(), Errno::EINVAL);
    assert_eq!(invalidate(&mut lab, 99, test::TYPE, &ok, 8, 0), (0, Err(Errno::ENOENT)));
    assert_eq!(invalidate(&mut lab, parent, test::TYPE, &ok, 8, 0), (0, Err(Errno::EINVAL)));

    assert_eq!(invalidate(&mut lab, nested, test::TYPE, &[], 0, 0), (0, Ok(())), "asks for the type");
    assert_eq!(invalidate(&mut lab, nested, 1, &[], 0, 0), (0, Err(Errno::EINVAL)));
    for len in [1, 9] {
        assert_eq!(invalidate(&mut lab, nested, test::TYPE, &ok, len, 0), (0, Err(Errno::EINVAL)));
    }
    assert_eq!(invalidate(&mut lab, nested, test::TYPE, &[[2, 9]], 8, 0), (0, Err(Errno::EOPNOTSUPP)), "flags first");
    assert_eq!(invalidate(&mut lab, nested, test::TYPE, &[[1, 4]], 8, 0), (0, Err(Errno::EINVAL)), "even with all");
    assert_eq!(word(&mut lab, 0), Some(7));
    let stops = invalidate(&mut lab, nested, test::TYPE, &[[0, 1], [0, 2], [0, 4], [0, 3]], 8, 0);
    assert_eq!(stops, (2, Err(Errno::EINVAL)));
    assert_eq!([0, 1, 2, 3].map(|n| word(&mut lab, n)), [Some(7), Some(0), Some(0), Some(7)]);
    assert_eq!(invalidate(&mut lab, nested, test::TYPE, &[[1, 0]], 8, 0), (1, Ok(())));
    assert_eq!([0, 3].map(|n| word(&mut lab, n)), [Some(0), Some(0)]);

    lab.client.memory.map(0x6000_0000, PAGE, false);
    let cmd = HwptInvalidate { size: 32, hwpt_id: 99, ..HwptInvalidate::default() };
    lab.client.memory.store(0x6000_0000, cmd.as_bytes());
    let mut call = iommufd::Call { caller: &lab.client, files: &mut lab.files };
    let result = lab.iommufd.ioctl(lab.file, 0x3b8d, 0x6000_0000, &mut call);
    assert_eq!(result, Err(Errno::EFAULT), "what cannot be written back counts more");
}
