// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices' own nodes: API-102 to API-121, and who keeps whom out.

use caller::testing::MemFile;
use caller::{Caller, FileId};
use uapi::Errno;
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT, GET_INFO};
use zerocopy::IntoBytes;

use super::{PAGE, give_memory};
use crate::Options;
use crate::testing::Lab;
use ::device::Driver;

const ONE: &str = "0000:01:00.0";
const TWO: &str = "0000:02:00.0";
const DESTROY: u32 = 0x3b80;

/// A lab with 0000:01:00.0 in group 7 (vfio0), and 0000:02:00.0 and .1 in
/// group 8 (vfio1, vfio2).
fn lab() -> Lab {
    let mut lab = Lab::new(Options::default());
    for (group, address) in [(7, ONE), (8, TWO), (8, "0000:02:00.1")] {
        lab.plug_in(group, address, Some(Driver::VfioPci));
    }
    give_memory(&lab.client);
    lab
}

/// The first device bound, with its context.
fn bound() -> (Lab, FileId, FileId) {
    let mut lab = lab();
    let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
    assert_eq!(lab.bind_cdev(cdev, iommufd), Ok(1));
    (lab, iommufd, cdev)
}

/// Where the program can read these words and not write them.
fn read_only(lab: &Lab, words: &[u32]) -> u64 {
    const AT: u64 = 0x5000_0000_0000;
    let file = MemFile::new(9, PAGE);
    lab.client.memory.map_file(AT, PAGE, true, &file, 0);
    lab.client.memory.map_file(AT + PAGE, PAGE, false, &file, 0);
    lab.client.write(AT, words.as_bytes()).unwrap();
    AT + PAGE
}

fn info(lab: &mut Lab, file: FileId) -> Result<u64, Errno> {
    let arg = lab.client.put(&[16u32, 0, 0, 0]);
    lab.ioctl(file, GET_INFO, arg)
}

/// API-102
#[test]
fn numbers_are_the_lowest_free() {
    let mut lab = lab();
    let number = |lab: &Lab, address: &str| lab.vfio.cdev_number(address.parse().unwrap());
    assert_eq!([number(&lab, ONE), number(&lab, TWO), number(&lab, "0000:02:00.1")], [Some(0), Some(1), Some(2)]);
    lab.bind(ONE, None);
    lab.vfio.driver_unbound(ONE.parse().unwrap(), &lab.board, &mut lab.iommufd);
    assert_eq!(number(&lab, ONE), None);
    assert_eq!(lab.open_cdev(0), Err(Errno::ENODEV));
    lab.plug_in(9, "0000:03:00.0", Some(Driver::VfioPci));
    assert_eq!(number(&lab, "0000:03:00.0"), Some(0));
    lab.plug_in(10, "0000:04:00.0", Some(Driver::Kernel("nvme".into())));
    assert_eq!(number(&lab, "0000:04:00.0"), None);
}

/// API-121
#[test]
fn without_iommu_there_is_no_node() {
    let mut lab = Lab::new(Options { enable_unsafe_noiommu_mode: true, ..Options::default() });
    lab.add_noiommu(0, ONE);
    lab.vfio.driver_bound(ONE.parse().unwrap(), &lab.board);
    assert_eq!(lab.vfio.cdev_number(ONE.parse().unwrap()), None);
}

/// API-103, API-122
#[test]
fn an_open_node_only_binds() {
    let mut lab = lab();
    let [one, two] = [(); 2].map(|()| lab.open_cdev(0).unwrap());
    for request in [0, GET_INFO, ATTACH_IOMMUFD_PT, DETACH_IOMMUFD_PT, 0x3b6f, 0xffff_ffff] {
        assert_eq!(lab.ioctl(one, request, 0), Err(Errno::EINVAL));
    }
    let buf = lab.client.room(16);
    let offset = uapi::region::offset(0, 7);
    {
        let (vfio, mut cx) = lab.parts();
        assert_eq!(vfio.read(one, offset, buf, 4, &mut cx), Err(Errno::EINVAL));
        assert_eq!(vfio.write(one, offset, buf, 4, &mut cx), Err(Errno::EINVAL));
    }
    assert_eq!(lab.vfio.mmap(one, offset, 4096, true, &lab.board), Err(Errno::EINVAL));
    let iommufd = lab.open_iommufd();
    assert_eq!(lab.bind_cdev(one, iommufd), Ok(1));
    assert_eq!(info(&mut lab, one), Ok(0));
    assert_eq!(info(&mut lab, two), Err(Errno::EINVAL), "each open is a file of its own");
    // API-104
    assert_eq!(lab.bind_cdev(two, iommufd), Err(Errno::EINVAL));
    lab.release(one);
    assert_eq!(lab.bind_cdev(two, iommufd), Ok(1));
    assert_eq!(info(&mut lab, two), Ok(0));
}

/// API-105: each check before the next.
#[test]
fn binding_is_checked_in_order() {
    let mut lab = lab();
    let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
    let (good, other) = (lab.client.fd(iommufd) as u32, lab.client.foreign_fd() as u32);
    let bind = |lab: &mut Lab, file, words: &[u32]| {
        let arg = lab.client.put(words);
        lab.ioctl(file, BIND_IOMMUFD, arg)
    };
    assert_eq!(lab.ioctl(cdev, BIND_IOMMUFD, 8), Err(Errno::EFAULT));
    assert_eq!(bind(&mut lab, cdev, &[15, 9, u32::MAX, 0]), Err(Errno::EINVAL));
    let long = |tail| [28, 2, u32::MAX, 0, 0, 0, tail];
    assert_eq!(bind(&mut lab, cdev, &long(1)), Err(Errno::E2BIG));
    assert_eq!(bind(&mut lab, cdev, &long(0)), Err(Errno::EINVAL));
    assert_eq!(bind(&mut lab, cdev, &[16, 0, u32::MAX, 0]), Err(Errno::EINVAL));
    assert_eq!(bind(&mut lab, cdev, &[16, 2, good, 0]), Err(Errno::EINVAL));
    // API-037: before anything is looked up.
    let group = lab.open_group(7).unwrap();
    assert_eq!(bind(&mut lab, cdev, &[16, 0, 9999, 0]), Err(Errno::EBUSY));
    lab.release(group);
    // No VF and no PF: no token, and its address is looked at first.
    assert_eq!(bind(&mut lab, cdev, &[24, 1, 9999, 0, 8, 0]), Err(Errno::EFAULT));
    let token = lab.client.put(&[7u8; 16]);
    let words = [24, 1, 9999, 0, token as u32, (token >> 32) as u32];
    assert_eq!(bind(&mut lab, cdev, &words), Err(Errno::EINVAL));
    // API-107: without the flag it is not read.
    assert_eq!(bind(&mut lab, cdev, &[24, 0, 9999, 0, 8, 0]), Err(Errno::EBADF));
    assert_eq!(bind(&mut lab, cdev, &[16, 0, other, 0]), Err(Errno::EBADFD));
    assert_eq!(bind(&mut lab, cdev, &[28, 0, good, 0, 0, 0, 0]), Ok(0));
    assert_eq!(bind(&mut lab, cdev, &[16, 0, 9999, 0]), Err(Errno::EINVAL), "bound already");
    assert_eq!(lab.ioctl(cdev, BIND_IOMMUFD, 8), Err(Errno::EFAULT), "that still comes first");
    let second = lab.open_cdev(0).unwrap();
    assert_eq!(bind(&mut lab, second, &[16, 0, 9999, 0]), Err(Errno::EBADF));
    assert_eq!(bind(&mut lab, second, &[16, 0, good, 0]), Err(Errno::EINVAL));
}

/// API-105: on a group's file, after the argument's own checks.
#[test]
fn a_groups_file_does_not_bind() {
    let mut lab = lab();
    let (_, group) = lab.container_with(7, 3);
    let device = lab.get_device_fd(group, ONE).unwrap();
    let bind = |lab: &mut Lab, words: &[u32]| {
        let arg = lab.client.put(words);
        lab.ioctl(device, BIND_IOMMUFD, arg)
    };
    assert_eq!(bind(&mut lab, &[28, 0, 0, 0, 0, 0, 1]), Err(Errno::E2BIG));
    assert_eq!(bind(&mut lab, &[16, 0, 9999, 0]), Err(Errno::EINVAL));
    // API-120
    assert_eq!(lab.ioctl(device, ATTACH_IOMMUFD_PT, 8), Err(Errno::ENOTTY));
    assert_eq!(lab.ioctl(device, DETACH_IOMMUFD_PT, 8), Err(Errno::ENOTTY));
}

/// API-108
#[test]
fn a_reply_that_cannot_be_written_undoes_the_bind() {
    let mut lab = lab();
    let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
    let fd = lab.client.fd(iommufd) as u32;
    let arg = read_only(&lab, &[16, 0, fd, 0]);
    assert_eq!(lab.ioctl(cdev, BIND_IOMMUFD, arg), Err(Errno::EFAULT));
    assert_eq!(info(&mut lab, cdev), Err(Errno::EINVAL));
    assert!(lab.vfio.bindings.is_empty() && !lab.vfio.devices.is_open(ONE.parse().unwrap()));
    assert_eq!(lab.bind_cdev(cdev, iommufd), Ok(1), "its id is free again");
}

/// API-106
#[test]
fn an_iommu_that_is_not_safe_is_refused() {
    let bind = |options: Options| {
        let mut lab = Lab::new(options);
        lab.plug_in(7, ONE, Some(Driver::VfioPci));
        let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
        lab.bind_cdev(cdev, iommufd)
    };
    assert_eq!(bind(Options { cache_coherency: false, ..Options::default() }), Err(Errno::EINVAL));
    assert_eq!(bind(Options { interrupt_remapping: false, ..Options::default() }), Err(Errno::EPERM));
}

/// API-110, GRP-029, GRP-030
#[test]
fn a_group_belongs_to_one_context() {
    let mut lab = lab();
    let [one, two] = [(); 2].map(|()| lab.open_iommufd());
    let (first, second) = (lab.open_cdev(1).unwrap(), lab.open_cdev(2).unwrap());
    assert_eq!(lab.bind_cdev(first, one), Ok(1));
    assert_eq!(lab.bind_cdev(second, two), Err(Errno::EPERM));
    assert_eq!(lab.bind_cdev(second, one), Ok(2));
    let check = |lab: &Lab| lab.vfio.check_bind(TWO.parse().unwrap(), &Driver::Kernel("nvme".into()), &lab.board);
    assert_eq!(check(&lab), Err(Errno::EBUSY));
    lab.release(first);
    assert_eq!(lab.iommufd_call(one, DESTROY, [8, 1]), Err(Errno::ENOENT));
    lab.release(second);
    assert_eq!(check(&lab), Ok(()));
    let second = lab.open_cdev(2).unwrap();
    assert_eq!(lab.bind_cdev(second, two), Ok(1));
    lab.release(second);
    // A kernel driver owns the DMA.
    lab.bind(TWO, Some(Driver::Kernel("nvme".into())));
    let second = lab.open_cdev(2).unwrap();
    assert_eq!(lab.bind_cdev(second, two), Err(Errno::EPERM));
}

/// API-036, API-037
#[test]
fn a_bound_node_keeps_the_group_out() {
    let mut lab = lab();
    let iommufd = lab.open_iommufd();
    let [first, second] = [1, 2].map(|number| lab.open_cdev(number).unwrap());
    let group = lab.open_group(8).unwrap();
    lab.release(group);
    lab.bind_cdev(first, iommufd).unwrap();
    lab.bind_cdev(second, iommufd).unwrap();
    assert_eq!(lab.open_group(8), Err(Errno::EBUSY));
    assert!(lab.open_group(7).is_ok(), "another group");
    lab.release(first);
    assert_eq!(lab.open_group(8), Err(Errno::EBUSY));
    lab.release(second);
    let group = lab.open_group(8).unwrap();
    let again = lab.open_cdev(1).unwrap();
    assert_eq!(lab.bind_cdev(again, iommufd), Err(Errno::EBUSY));
    lab.release(group);
    assert_eq!(lab.bind_cdev(again, iommufd), Ok(1));
}

/// API-109, IOMMUFD-2.4, IOMMUFD-2.5
#[test]
fn closing_unbinds() {
    let (mut lab, iommufd, cdev) = bound();
    let ioas = lab.ioas(iommufd);
    lab.attach(cdev, ioas, None).unwrap();
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, 1]), Err(Errno::EBUSY));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, ioas]), Err(Errno::EBUSY));
    lab.release(cdev);
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, 1]), Err(Errno::ENOENT));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, ioas]).map(drop), Ok(()));
    assert!(lab.vfio.bindings.is_empty() && !lab.vfio.is_open(ONE.parse().unwrap()));
}

/// A context lives as long as a device is bound to it.
#[test]
fn a_bound_device_keeps_its_context() {
    let (mut lab, iommufd, cdev) = bound();
    let ioas = lab.ioas(iommufd);
    lab.release(iommufd);
    assert!(lab.attach(cdev, ioas, None).is_ok());
    assert_eq!(lab.detach(cdev, None), Ok(0));
    lab.release(cdev);
}

/// API-112, API-113, API-115, API-118
#[test]
fn attaching_is_checked_in_order() {
    let (mut lab, iommufd, cdev) = bound();
    let ioas = lab.ioas(iommufd);
    let call = |lab: &mut Lab, request, words: &[u32]| {
        let arg = lab.client.put(words);
        lab.ioctl(cdev, request, arg)
    };
    assert_eq!(lab.ioctl(cdev, ATTACH_IOMMUFD_PT, 8), Err(Errno::EFAULT));
    assert_eq!(call(&mut lab, ATTACH_IOMMUFD_PT, &[11, 2, ioas]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, ATTACH_IOMMUFD_PT, &[12, 2, ioas]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, ATTACH_IOMMUFD_PT, &[15, 1, ioas, 1]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, ATTACH_IOMMUFD_PT, &[12, 0, 999]), Err(Errno::ENOENT));
    assert_eq!(call(&mut lab, ATTACH_IOMMUFD_PT, &[12, 0, 1]), Err(Errno::EINVAL), "a device");
    assert_eq!(lab.ioctl(cdev, DETACH_IOMMUFD_PT, 8), Err(Errno::EFAULT));
    assert_eq!(call(&mut lab, DETACH_IOMMUFD_PT, &[7, 0]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, DETACH_IOMMUFD_PT, &[8, 2]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, DETACH_IOMMUFD_PT, &[11, 1, 0]), Err(Errno::EINVAL));
    assert_eq!(call(&mut lab, DETACH_IOMMUFD_PT, &[8, 0]), Ok(0), "not attached");
    let hwpt = lab.attach(cdev, ioas, None).unwrap();
    assert!(hwpt != ioas && lab.iommufd_call(iommufd, DESTROY, [8, hwpt]) == Err(Errno::EBUSY));
    assert_eq!(lab.detach(cdev, None), Ok(0));
    assert_eq!(lab.detach(cdev, None), Ok(0));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, hwpt]), Err(Errno::ENOENT), "IOMMUFD-2.9");
}

/// API-114, API-115
#[test]
fn attaching_again_replaces() {
    let (mut lab, iommufd, cdev) = bound();
    let (one, two) = (lab.ioas(iommufd), lab.ioas(iommufd));
    let first = lab.attach(cdev, one, None).unwrap();
    assert_eq!(lab.attach(cdev, one, None), Ok(first));
    assert_eq!(lab.attach(cdev, 999, None), Err(Errno::ENOENT));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, one]), Err(Errno::EBUSY), "the old one stays");
    lab.attach(cdev, two, None).unwrap();
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, one]).map(drop), Ok(()));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, two]), Err(Errno::EBUSY));
}

/// API-119: PASID 0 is the device's requests without one, but counted apart.
#[test]
fn pasid_0_is_tracked_apart() {
    let (mut lab, iommufd, cdev) = bound();
    let ioas = lab.ioas(iommufd);
    lab.attach(cdev, ioas, Some(0)).unwrap();
    lab.attach(cdev, ioas, Some(0)).unwrap();
    assert_eq!(lab.attach(cdev, ioas, None), Err(Errno::EBUSY));
    assert_eq!(lab.detach(cdev, None), Ok(0));
    assert_eq!(lab.attach(cdev, ioas, None), Err(Errno::EBUSY), "only its own detach undoes it");
    assert_eq!(lab.detach(cdev, Some(0)), Ok(0));
    assert!(lab.attach(cdev, ioas, None).is_ok());
    // IOMMUFD-8.13: an IOAS by a PASID.
    assert_eq!(lab.attach(cdev, ioas, Some(5)), Err(Errno::EINVAL));
    assert_eq!(lab.detach(cdev, Some(5)), Ok(0));
    assert_eq!(lab.attach(cdev, ioas, Some(1 << 31)), Err(Errno::ENOSPC));
}

/// API-117
#[test]
fn a_reply_that_cannot_be_written_detaches() {
    let (mut lab, iommufd, cdev) = bound();
    let ioas = lab.ioas(iommufd);
    let arg = read_only(&lab, &[12, 0, ioas]);
    assert_eq!(lab.ioctl(cdev, ATTACH_IOMMUFD_PT, arg), Err(Errno::EFAULT));
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, ioas]).map(drop), Ok(()));
}

/// API-111: DMA goes through what is attached, and nowhere before and after.
#[test]
fn dma_goes_where_the_device_is_attached() {
    let (mut lab, iommufd, cdev) = bound();
    let endpoint = lab.endpoint(ONE);
    endpoint.requester.set_bus_master(true);
    let mut byte = [0u8];
    let mut load = |iova| endpoint.requester.session().read(iova, &mut byte).map(|()| byte[0]);
    assert!(load(0x10_0000).is_err());
    let ioas = lab.ioas(iommufd);
    lab.client.write(super::RAM, &[0x5a]).unwrap();
    // FIXED | WRITEABLE | READABLE
    let va = super::RAM;
    let map = [40, 7, ioas, 0, va as u32, (va >> 32) as u32, PAGE as u32, 0, 0x10_0000, 0];
    lab.iommufd_call(iommufd, 0x3b85, map).unwrap();
    assert!(load(0x10_0000).is_err());
    lab.attach(cdev, ioas, None).unwrap();
    assert_eq!(load(0x10_0000).ok(), Some(0x5a));
    lab.detach(cdev, None).unwrap();
    assert!(load(0x10_0000).is_err());
}

/// API-105: the token, of a VF under a PF that vfio-pci has, is in
/// `device/tests/token.rs`; here, that a program without it is still refused.
#[test]
fn nothing_is_left_of_a_bind_that_fails() {
    let mut lab = lab();
    let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
    lab.bind(ONE, None);
    assert_eq!(lab.bind_cdev(cdev, iommufd), Err(Errno::ENODEV), "its driver has gone");
    assert!(lab.vfio.bindings.is_empty());
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, 1]), Err(Errno::ENOENT));
    assert!(lab.client.read(8, &mut [0]).is_err());
}
