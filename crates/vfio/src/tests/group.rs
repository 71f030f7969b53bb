// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups: API-034 to API-056, and who stands in their way.

use ::device::Driver;
use caller::{Capability, FileId};
use uapi::Errno;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::group::{GET_STATUS, SET_CONTAINER, Status, UNSET_CONTAINER};

use super::PAGE;
use crate::Options;
use crate::testing::Lab;

fn status(lab: &mut Lab, group: FileId) -> Result<u32, Errno> {
    let arg = lab.client.put(&Status { argsz: 8, flags: 0xffff_ffff });
    lab.ioctl(group, GET_STATUS, arg).map(|_| lab.client.get::<Status>(arg).flags)
}

const NVME: &str = "0000:01:00.0";

fn kernel(name: &str) -> Option<Driver> {
    Some(Driver::Kernel(name.into()))
}

/// API-034, API-036: the node is there while a VFIO driver has a device of it.
#[test]
fn node_needs_a_vfio_device() {
    let mut lab = Lab::new(Options::default());
    lab.add(7, NVME, None);
    lab.add(7, "0000:01:00.1", kernel("nvme"));
    assert_eq!(lab.open_group(7), Err(Errno::ENODEV));
    assert_eq!(lab.open_group(8), Err(Errno::ENODEV));
    lab.bind(NVME, Some(Driver::VfioPci));
    assert!(lab.open_group(7).is_ok());
}

/// API-035
#[test]
fn opens_once() {
    let mut lab = Lab::with_group();
    let group = lab.open_group(7).unwrap();
    assert_eq!(lab.open_group(7), Err(Errno::EBUSY));
    lab.release(group);
    assert!(lab.open_group(7).is_ok());
}

/// API-036: rights before busy.
#[test]
fn open_of_noiommu_group() {
    let mut lab = Lab::new(Options { enable_unsafe_noiommu_mode: true, ..Options::default() });
    lab.add_noiommu(9, "0000:02:00.0");
    assert_eq!(lab.open_group(9), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    lab.open_group(9).unwrap();
    assert_eq!(lab.open_group(9), Err(Errno::EBUSY));
    lab.client.capabilities.borrow_mut().clear();
    assert_eq!(lab.open_group(9), Err(Errno::EPERM));
    lab.bind("0000:02:00.0", None);
    assert_eq!(lab.open_group(9), Err(Errno::ENODEV));
}

/// API-038
#[test]
fn status_checks() {
    let mut lab = Lab::with_group();
    let group = lab.open_group(7).unwrap();
    assert_eq!(lab.ioctl(group, GET_STATUS, 0), Err(Errno::EFAULT));
    let arg = lab.client.put(&Status { argsz: 7, flags: 9 });
    assert_eq!(lab.ioctl(group, GET_STATUS, arg), Err(Errno::EINVAL));
    assert_eq!(lab.client.get::<Status>(arg), Status { argsz: 7, flags: 9 });
    let arg = lab.client.put(&Status { argsz: 800, flags: 9 });
    assert_eq!(lab.ioctl(group, GET_STATUS, arg), Ok(0));
    assert_eq!(lab.client.get::<Status>(arg), Status { argsz: 800, flags: 1 }, "flags only");
    // Readable, but not writable.
    let rom = 0x5000_0000_0000;
    lab.client.memory.map(rom, PAGE, true);
    caller::Caller::write(&lab.client, rom, &[8]).unwrap();
    lab.client.memory.map(rom, PAGE, false);
    assert_eq!(lab.ioctl(group, GET_STATUS, rom), Err(Errno::EFAULT));
    lab.bind(NVME, None);
    assert_eq!(status(&mut lab, group), Err(Errno::ENODEV));
    assert_eq!(lab.ioctl(group, GET_STATUS, 0), Err(Errno::EFAULT));
}

/// API-039, API-041, GRP-027, GRP-028, GRP-086
#[test]
fn viability() {
    let mut lab = Lab::with_group();
    let group = lab.open_group(7).unwrap();
    lab.add(7, "0000:00:01.0", Some(Driver::Pcieport));
    lab.add(7, "0000:01:00.1", None);
    assert_eq!(status(&mut lab, group), Ok(1), "ports and functions without driver do not hurt");
    lab.bind("0000:01:00.1", kernel("nvme"));
    assert_eq!(status(&mut lab, group), Ok(0));
    lab.bind("0000:01:00.1", None);
    assert_eq!(status(&mut lab, group), Ok(1));
    lab.bind("0000:01:00.1", Some(Driver::VfioPci));
    assert_eq!(status(&mut lab, group), Ok(1));
    let container = lab.open_container();
    lab.set_container(group, container).unwrap();
    assert_eq!(status(&mut lab, group), Ok(3));
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    assert_eq!(status(&mut lab, group), Ok(1));
}

/// API-043, GRP-030: open works, the status shows it, SET_CONTAINER fails.
#[test]
fn group_with_a_kernel_driver() {
    let mut lab = Lab::with_group();
    lab.add(7, "0000:01:00.1", kernel("nvme"));
    let (container, group) = (lab.open_container(), lab.open_group(7).unwrap());
    assert_eq!(status(&mut lab, group), Ok(0));
    assert_eq!(lab.set_container(group, container), Err(Errno::EPERM));
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EINVAL), "no group came in");
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
}

/// GRP-029
#[test]
fn kernel_drivers_cannot_be_bound_to_an_owned_group() {
    let mut lab = Lab::with_group();
    lab.add(7, "0000:01:00.1", None);
    lab.add(8, "0000:02:00.0", None);
    let check = |lab: &Lab, address: &str, driver| lab.vfio.check_bind(address.parse().unwrap(), &driver, &lab.board);
    let nvme = || Driver::Kernel("nvme".into());
    let (container, group) = (lab.open_container(), lab.open_group(7).unwrap());
    assert_eq!(check(&lab, "0000:01:00.1", nvme()), Ok(()), "open is not owned");
    lab.set_container(group, container).unwrap();
    assert_eq!(check(&lab, "0000:01:00.1", nvme()), Err(Errno::EBUSY));
    assert_eq!(check(&lab, "0000:01:00.1", Driver::VfioPci), Ok(()));
    assert_eq!(check(&lab, "0000:01:00.1", Driver::Pcieport), Ok(()));
    assert_eq!(check(&lab, "0000:02:00.0", nvme()), Ok(()), "another group");
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    assert_eq!(check(&lab, "0000:01:00.1", nvme()), Ok(()));
}

/// GRP-087: a kernel driver on the PF does not make the VF's own group unviable.
#[test]
fn vf_in_its_own_group() {
    let mut lab = Lab::new(Options::default());
    lab.add(3, "0000:01:00.0", kernel("ixgbe"));
    lab.add(4, "0000:01:10.0", Some(Driver::VfioPci));
    let group = lab.open_group(4).unwrap();
    assert_eq!(status(&mut lab, group), Ok(1));
    let container = lab.open_container();
    assert_eq!(lab.set_container(group, container), Ok(0));
}

/// API-042, in the order of the checks.
#[test]
fn set_container_checks() {
    let mut lab = Lab::with_group();
    let (container, group) = (lab.open_container(), lab.open_group(7).unwrap());
    let put = |lab: &Lab, fd: i32| lab.client.put(&fd);
    assert_eq!(lab.ioctl(group, SET_CONTAINER, 8), Err(Errno::EFAULT));
    let arg = put(&lab, -1);
    assert_eq!(lab.ioctl(group, SET_CONTAINER, arg), Err(Errno::EBADF));
    let (event, _) = lab.client.eventfd();
    for fd in [event, lab.client.foreign_fd(), lab.client.fd(group)] {
        let arg = put(&lab, fd);
        assert_eq!(lab.ioctl(group, SET_CONTAINER, arg), Err(Errno::EBADFD));
    }
    assert_eq!(lab.set_container(group, container), Ok(0));
    assert_eq!(lab.set_container(group, container), Err(Errno::EINVAL));
    let arg = put(&lab, event);
    assert_eq!(lab.ioctl(group, SET_CONTAINER, arg), Err(Errno::EINVAL), "set already comes before the file's kind");
    let arg = put(&lab, -1);
    assert_eq!(lab.ioctl(group, SET_CONTAINER, arg), Err(Errno::EBADF));
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    lab.bind(NVME, None);
    let arg = put(&lab, event);
    assert_eq!(lab.ioctl(group, SET_CONTAINER, arg), Err(Errno::ENODEV));
    assert_eq!(lab.set_container(group, container), Err(Errno::ENODEV));
}

/// API-043: the backend's error, and the group stays outside.
#[test]
fn set_container_that_the_backend_refuses() {
    let mut lab = Lab::with_group();
    lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
    let (container, _) = lab.container_with(7, 3);
    lab.vfio.options.interrupt_remapping = false;
    let group = lab.open_group(8).unwrap();
    assert_eq!(lab.set_container(group, container), Err(Errno::EPERM));
    assert_eq!(status(&mut lab, group), Ok(1));
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
}

/// API-046
#[test]
fn unset_container() {
    let mut lab = Lab::with_group();
    let (container, group) = (lab.open_container(), lab.open_group(7).unwrap());
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0xdead), Ok(0), "the argument does not count");
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
}

/// API-055
#[test]
fn closing_the_group_leaves_the_container() {
    let mut lab = Lab::with_group();
    let (container, group) = lab.container_with(7, 3);
    lab.release(group);
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EINVAL), "empty again");
    let group = lab.open_group(7).unwrap();
    assert_eq!(status(&mut lab, group), Ok(1));
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Ok(0));
}

/// API-056
#[test]
fn unknown_requests() {
    let mut lab = Lab::with_group();
    let group = lab.open_group(7).unwrap();
    for request in [0, 0x3b64, 0x3b65, 0x3b66, 0x3b6b, 0x3b70, 0x3b71, 0x3bff, 0x5401] {
        assert_eq!(lab.ioctl(group, request, 0), Err(Errno::ENOTTY), "{request:#x}");
    }
}

/// API-002: the same number is another request on another kind of file.
#[test]
fn requests_go_by_kind_of_file() {
    let mut lab = Lab::with_group();
    let (container, group) = lab.container_with(7, 3);
    assert_eq!(lab.ioctl(container, 0x3b67, 0), Err(Errno::ENOTTY));
    assert_eq!(lab.ioctl(group, 0x3b67, 0), Err(Errno::EFAULT));
    assert_eq!(lab.ioctl(container, 0x3b70, 0), Err(Errno::EFAULT));
    assert_eq!(lab.ioctl(group, 0x3b70, 0), Err(Errno::ENOTTY));
}

/// API-034, API-038: an open group whose last device is unbound is dead; a
/// later binding makes a new group.
#[test]
fn group_that_loses_its_devices() {
    let mut lab = Lab::with_group();
    let (container, group) = lab.container_with(7, 3);
    lab.bind(NVME, None);
    lab.vfio.driver_unbound(NVME.parse().unwrap(), &lab.board, &mut lab.iommufd);
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EINVAL), "the group left");
    lab.bind(NVME, Some(Driver::VfioPci));
    assert_eq!(status(&mut lab, group), Err(Errno::ENODEV));
    assert_eq!(lab.set_container(group, container), Err(Errno::ENODEV));
    assert_eq!(lab.get_device_fd(group, NVME), Err(Errno::ENODEV));
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
    let fresh = lab.open_group(7).unwrap();
    assert_eq!(status(&mut lab, fresh), Ok(1));
    lab.release(group);
    assert_eq!(lab.open_group(7), Err(Errno::EBUSY), "the fresh one is open still");
}
