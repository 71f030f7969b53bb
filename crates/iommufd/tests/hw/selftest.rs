// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_TEST_CMD`, op by op.

use std::sync::Arc;

use caller::testing::{Client, TestPlatform};
use caller::{Accounts, FileIds};
use iommufd::{Call, Iommufd, Options};
use uapi::Errno;
use uapi::iommufd::{IoasMapFile, IoasUnmap};
use uapi::iommufd_test::{self as test, TestCmd, op};
use zerocopy::IntoBytes;

use crate::lab::{Lab, MEMORY, NEST_PARENT, PAGE};

const AT: u64 = test::APERTURE_START;

/// IOMMUFD-1.2: a lab that does not ask for it has no such call.
#[test]
fn only_a_lab_that_asks_has_it() {
    let platform = Arc::<TestPlatform>::default();
    let mut plain = Iommufd::new(platform, Options::default(), Accounts::new(false));
    let (mut files, client) = (FileIds::default(), Client::new(1));
    let file = files.allocate();
    plain.open(file, false);
    let mut call = Call { caller: &client, files: &mut files };
    assert_eq!(plain.ioctl(file, 0x3ba0, 0, &mut call), Err(Errno::ENOTTY), "nothing is read before");
    assert!(plain.device_file(file).is_none());
    let mut lab = Lab::new();
    let mut call = Call { caller: &lab.client, files: &mut lab.files };
    assert_eq!(lab.iommufd.ioctl(lab.file, 0x3ba0, 0, &mut call), Err(Errno::EFAULT));
    assert_eq!(lab.test(99, 0, &[]).unwrap_err(), Errno::EOPNOTSUPP);
    let short = TestCmd { op: op::SET_TEMP_MEMORY_LIMIT, args: [12, 0, 0, 0, 0, 0], ..TestCmd::default() };
    for (size, expected) in [(67u32, Err(Errno::EINVAL)), (68, Ok(caller::Reply::Value(0)))] {
        let at = lab.client.put(&TestCmd { size, ..short });
        let mut call = Call { caller: &lab.client, files: &mut lab.files };
        assert_eq!(lab.iommufd.ioctl(lab.file, 0x3ba0, at, &mut call), expected);
    }
}

/// SELF-3.1, SELF-6.8
#[test]
fn reserving() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let reserve =
        |lab: &mut Lab, ioas, start, length| lab.test_wide(op::ADD_RESERVED, ioas, &[start, length]).map(|_| ());
    assert_eq!(reserve(&mut lab, 99, 0, 0), Err(Errno::EINVAL));
    assert_eq!(reserve(&mut lab, 99, u64::MAX, 2), Err(Errno::EOVERFLOW));
    assert_eq!(reserve(&mut lab, 99, 0, 1), Err(Errno::ENOENT));
    lab.map(ioas, MEMORY, PAGE, AT).unwrap();
    assert_eq!(reserve(&mut lab, ioas, AT, 1), Err(Errno::EADDRINUSE));
    assert_eq!(reserve(&mut lab, ioas, AT + PAGE, PAGE), Ok(()));
    assert_eq!(lab.map(ioas, MEMORY, PAGE, AT + PAGE), Err(Errno::EINVAL));
}

/// SELF-3.2, SELF-3.12
#[test]
fn making_a_mock_device() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    assert_eq!(lab.mock_with(ioas, 2).unwrap_err(), Errno::EINVAL);
    lab.map(ioas, MEMORY, PAGE, PAGE).unwrap();
    assert_eq!(lab.mock(ioas).unwrap_err(), Errno::EADDRINUSE);
    let other = lab.ioas();
    assert_eq!(other, ioas + 1, "all undone");
    let mock = lab.mock(other).unwrap();
    assert_eq!((mock.object, mock.device, mock.hwpt), (other + 1, other + 2, other + 3));
    assert_eq!(lab.destroy(mock.device), Err(Errno::EBUSY));
    assert_eq!(lab.destroy(mock.object), Ok(()));
    assert_eq!((lab.destroy(mock.device), lab.destroy(mock.hwpt)), (Err(Errno::ENOENT), Err(Errno::ENOENT)));
    assert_eq!(lab.destroy(other), Ok(()));
}

/// SELF-3.3, SELF-4.1
#[test]
fn comparing_translations() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock(ioas).unwrap();
    lab.map(ioas, MEMORY + 2048, PAGE, AT + 2048).unwrap();
    let check = |lab: &mut Lab, hwpt, args: [u64; 3]| lab.test_wide(op::MD_CHECK_MAP, hwpt, &args).map(|_| ());
    let hwpt = mock.hwpt;
    assert_eq!(check(&mut lab, hwpt, [AT + 2048, PAGE, MEMORY + 2048]), Ok(()));
    assert_eq!(check(&mut lab, hwpt, [AT + 2048, PAGE, MEMORY]), Err(Errno::EINVAL));
    assert_eq!(check(&mut lab, hwpt, [AT + 2048, 2 * PAGE, MEMORY + 2048]), Err(Errno::EINVAL), "not all of it");
    assert_eq!(check(&mut lab, hwpt, [AT + 2048, PAGE, 0x7000_0000]), Err(Errno::EFAULT));
    for args in [[AT + 1, 2048, MEMORY], [AT, 1, MEMORY], [AT, 2048, MEMORY + 1], [AT, 2048, u64::MAX - 2047]] {
        assert_eq!(check(&mut lab, hwpt, args), Err(Errno::EINVAL));
    }
    assert_eq!(check(&mut lab, ioas, [AT, 2048, MEMORY]), Err(Errno::ENOENT));
    let (real, _) = lab.bind(1, iommufd::DeviceProperties::default());
    let aligned = lab.ioas();
    let other = lab.hwpt(real.0, aligned, 0).unwrap();
    assert_eq!(check(&mut lab, other, [AT, 2048, MEMORY]), Err(Errno::EINVAL), "not the mock's");
    assert_eq!(lab.map(ioas, MEMORY, PAGE, test::APERTURE_LAST + 1), Err(Errno::EINVAL));
}

/// SELF-3.4, IOMMUFD-7.3
#[test]
fn counting_pins() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let refs = |lab: &mut Lab, address, length, refs: u64| {
        lab.test_wide(op::MD_CHECK_REFS, 0, &[length, address, refs]).map(|_| ())
    };
    lab.map(ioas, MEMORY, 2 * PAGE, AT).unwrap();
    assert_eq!(refs(&mut lab, MEMORY, 4 * PAGE, 0), Ok(()), "lazy");
    let (one, two) = (lab.mock(ioas).unwrap(), lab.ioas());
    assert_eq!(refs(&mut lab, MEMORY, 2 * PAGE, 1), Ok(()));
    assert_eq!(refs(&mut lab, MEMORY + 2 * PAGE, PAGE, 0), Ok(()));
    assert_eq!(refs(&mut lab, MEMORY + PAGE, 2 * PAGE, 1), Err(Errno::EIO));
    let extra = lab.hwpt(one.device, ioas, 0).unwrap();
    assert_eq!(refs(&mut lab, MEMORY, 2 * PAGE, 1), Ok(()), "a second domain pins nothing more");
    lab.destroy(extra).unwrap();
    lab.map(two, MEMORY + PAGE + 2048, 2048, AT).unwrap();
    lab.mock(two).unwrap();
    assert_eq!(refs(&mut lab, MEMORY + PAGE, PAGE, 2), Ok(()), "another map does, by whole pages");
    lab.destroy(one.object).unwrap();
    assert_eq!(refs(&mut lab, MEMORY, PAGE, 0), Ok(()));
    assert_eq!(refs(&mut lab, MEMORY + 1, PAGE, 0), Err(Errno::EINVAL));
    assert_eq!(refs(&mut lab, MEMORY, 1, 0), Err(Errno::EINVAL));
    assert_eq!(refs(&mut lab, 0x7000_0000, PAGE, 0), Err(Errno::EFAULT));
}

/// SELF-3.5, SELF-3.6, SELF-3.7, IOMMUFD-13.1, IOMMUFD-13.5
#[test]
fn accesses_that_pin() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    assert_eq!(lab.test(op::CREATE_ACCESS, ioas, &[0, 2]).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(lab.test(op::CREATE_ACCESS, 99, &[0, 1]).unwrap_err(), Errno::ENOENT);
    let plain = lab.test(op::CREATE_ACCESS, ioas, &[0, 0]).unwrap().u32_at(16);
    let fd = lab.test(op::CREATE_ACCESS, ioas, &[0, 1]).unwrap().u32_at(16);
    lab.map(ioas, MEMORY, 4 * PAGE, AT).unwrap();
    let pin = |lab: &mut Lab, fd, flags: u64, range: (u64, u64), address| {
        lab.test_wide(op::ACCESS_PAGES, fd, &[flags, range.0, range.1, address]).map(|cmd| cmd.u32_at(20))
    };
    let all = (AT, 4 * PAGE);
    assert_eq!(pin(&mut lab, fd, 0, (AT, (16 << 20) + 1), 0), Err(Errno::ENOMEM));
    assert_eq!(pin(&mut lab, fd, 2, all, 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(pin(&mut lab, 99, 0, all, 0), Err(Errno::EBADFD));
    assert_eq!(pin(&mut lab, plain, 0, all, 0), Err(Errno::EOPNOTSUPP), "it does not pin");
    assert_eq!(pin(&mut lab, fd, 0, all, MEMORY + PAGE), Err(Errno::EBADE), "other pages");
    assert_eq!(pin(&mut lab, fd, 1, all, MEMORY), Ok(1), "the one that failed had number 0");
    assert_eq!(pin(&mut lab, fd, 1 << 16, (PAGE << 32, PAGE), MEMORY + PAGE), Ok(2), "area 0, offset a page");
    let unpin = |lab: &mut Lab, fd, id| lab.test(op::DESTROY_ACCESS_PAGES, fd, &[id]).map(|_| ());
    assert_eq!(unpin(&mut lab, fd, 0), Err(Errno::ENOENT));
    assert_eq!(unpin(&mut lab, 99, 1), Err(Errno::EBADFD));
    assert_eq!(unpin(&mut lab, fd, 1), Ok(()));
    let unmap = IoasUnmap { ioas_id: ioas, iova: AT, length: 4 * PAGE, ..IoasUnmap::default() };
    assert_eq!(lab.call(unmap).map(|cmd| cmd.length), Ok(4 * PAGE), "its callback lets go");
    assert_eq!(unpin(&mut lab, fd, 2), Err(Errno::ENOENT));

    lab.map(ioas, MEMORY, 4 * PAGE, AT).unwrap();
    pin(&mut lab, fd, 0, all, MEMORY).unwrap();
    let refs = |lab: &mut Lab, refs| lab.test_wide(op::MD_CHECK_REFS, 0, &[4 * PAGE, MEMORY, refs]).map(|_| ());
    assert_eq!(refs(&mut lab, 1), Ok(()));
    for fd in [fd, plain] {
        let file = lab.file_of(fd);
        lab.iommufd.release(file);
    }
    assert_eq!(refs(&mut lab, 0), Ok(()), "its file is closed");
    assert_eq!(lab.destroy(ioas), Ok(()));
}

/// SELF-3.8, SELF-3.11, SELF-3.9
#[test]
fn accesses_that_copy() {
    let mut lab = Lab::new();
    let (ioas, other) = (lab.ioas(), lab.ioas());
    let fd = lab.test(op::CREATE_ACCESS, ioas, &[0, 0]).unwrap().u32_at(16);
    lab.map(ioas, MEMORY, PAGE, AT).unwrap();
    lab.map(other, MEMORY + PAGE, PAGE, AT).unwrap();
    let rw = |lab: &mut Lab, fd, args: [u64; 4]| lab.test_wide(op::ACCESS_RW, fd, &args).map(|_| ());
    let from = lab.client.put(&[1u8, 2, 3, 4]);
    assert_eq!(rw(&mut lab, fd, [AT, (16 << 20) + 1, from, 0]), Err(Errno::ENOMEM));
    assert_eq!(rw(&mut lab, fd, [AT, 4, from, 2]), Err(Errno::EOPNOTSUPP));
    assert_eq!(rw(&mut lab, 99, [AT, 4, from, 1]), Err(Errno::EBADFD));
    assert_eq!(rw(&mut lab, fd, [AT + 10, 4, 16, 1]), Err(Errno::EFAULT));
    assert_eq!(rw(&mut lab, fd, [AT + 10, 4, from, 1]), Ok(()));
    assert_eq!(lab.client.get_bytes(MEMORY + 9, 6), [0, 1, 2, 3, 4, 0]);
    let to = lab.client.room(64);
    assert_eq!(rw(&mut lab, fd, [AT + 11, 2, to, 4]), Ok(()));
    assert_eq!(lab.client.get_bytes(to, 3), [2, 3, 0]);
    assert_eq!(lab.test(op::ACCESS_REPLACE_IOAS, fd, &[99]).unwrap_err(), Errno::ENOENT);
    lab.test(op::ACCESS_REPLACE_IOAS, fd, &[other]).unwrap();
    assert_eq!(rw(&mut lab, fd, [AT, 4, from, 1]), Ok(()));
    assert_eq!(lab.client.get_bytes(MEMORY + PAGE, 4), [1, 2, 3, 4]);
    assert_eq!(lab.destroy(ioas), Ok(()));
    for (limit, expected) in [(11, Err(Errno::EINVAL)), (12, Ok(()))] {
        assert_eq!(lab.test(op::SET_TEMP_MEMORY_LIMIT, 0, &[limit]).map(|_| ()), expected);
    }
}

/// SELF-3.10, SELF-3.14, SELF-3.18, SELF-3.19, SELF-3.20, SELF-3.21: names that
/// are none, or another kind's.
#[test]
fn names_that_are_none() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock_with(ioas, test::DEVICE_PASID).unwrap();
    for op in [op::MOCK_DOMAIN_REPLACE, op::PASID_ATTACH, op::PASID_REPLACE, op::PASID_DETACH, op::PASID_CHECK_HWPT] {
        for id in [99, ioas, mock.device] {
            assert_eq!(lab.test(op, id, &[0, 0]).unwrap_err(), Errno::ENOENT);
        }
    }
    for (op, pt) in [(op::PASID_ATTACH, 99), (op::PASID_REPLACE, 99), (op::PASID_CHECK_HWPT, 99)] {
        assert_eq!(lab.test(op, mock.object, &[1, pt]).unwrap_err(), Errno::ENOENT);
    }
    assert_eq!(lab.test(op::PASID_CHECK_HWPT, mock.object, &[1, ioas]).unwrap_err(), Errno::EINVAL, "no HWPT");
    assert!(!lab.check_pasid(mock, 1, mock.hwpt) && lab.check_pasid(mock, 0, mock.hwpt));
    assert_eq!(lab.test(op::MD_CHECK_IOTLB, mock.hwpt, &[0, 0]).unwrap_err(), Errno::ENOENT);
    let (real, _) = lab.bind(1, iommufd::DeviceProperties::default());
    for (op, id, arg) in
        [(op::DEV_CHECK_CACHE, real.0, 0), (op::TRIGGER_IOPF, 0, real.0), (op::TRIGGER_VEVENT, 0, real.0)]
    {
        assert_eq!(lab.test(op, id, &[arg]).unwrap_err(), Errno::EINVAL, "behind another IOMMU");
    }
    let parent = lab.hwpt(mock.device, ioas, NEST_PARENT).unwrap();
    assert_eq!(lab.attach(real, 0, parent), Err(Errno::EINVAL), "the mock's HWPT");
}

/// SELF-3.22, SELF-3.23, IOMMUFD-5.11
#[test]
fn buffers_that_are_taken_away() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    lab.mock(ioas).unwrap();
    let get = |lab: &mut Lab, length: u32| {
        let mut cmd = TestCmd { size: 72, op: op::DMABUF_GET, ..TestCmd::default() };
        cmd.set_u32(16, length);
        let at = lab.client.put(cmd.as_bytes());
        let mut call = Call { caller: &lab.client, files: &mut lab.files };
        lab.iommufd.ioctl(lab.file, 0x3ba0, at, &mut call).map(|reply| match reply {
            caller::Reply::Value(fd) => fd as u32,
            other => panic!("{other:?}"),
        })
    };
    for length in [0, 512 * 4096 + 1] {
        assert_eq!(get(&mut lab, length), Err(Errno::EINVAL));
    }
    let fd = get(&mut lab, 4097).unwrap();
    let map = |lab: &mut Lab, length, iova| {
        let base = IoasMapFile { flags: 7, ioas_id: ioas, fd: fd.cast_signed(), ..IoasMapFile::default() };
        lab.call(IoasMapFile { length, iova, ..base }).map(|_| ())
    };
    assert_eq!(map(&mut lab, 3 * PAGE, AT), Err(Errno::EINVAL), "rounded up to pages, no more");
    assert_eq!(map(&mut lab, 2 * PAGE, AT), Ok(()));
    let revoke = |lab: &mut Lab, fd, on| lab.test(op::DMABUF_REVOKE, 0, &[fd, on]).map(|_| ());
    let foreign = lab.client.foreign_fd().cast_unsigned();
    assert_eq!((revoke(&mut lab, 99, 1), revoke(&mut lab, foreign, 1)), (Err(Errno::EBADF), Err(Errno::EINVAL)));
    assert_eq!(revoke(&mut lab, fd, 1), Ok(()));
    assert_eq!(map(&mut lab, PAGE, AT + 2 * PAGE), Err(Errno::ENODEV));
    assert_eq!(revoke(&mut lab, fd, 0), Ok(()));
    assert_eq!(map(&mut lab, PAGE, AT + 2 * PAGE), Ok(()));
    let unmap = IoasUnmap { ioas_id: ioas, iova: AT, length: 2 * PAGE, ..IoasUnmap::default() };
    assert_eq!(lab.call(unmap).map(|cmd| cmd.length), Ok(2 * PAGE), "the area has stayed");
}
