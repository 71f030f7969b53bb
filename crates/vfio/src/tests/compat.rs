// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups whose container is an iommufd: API-023, API-040, API-042.

use caller::{Caller, FileId};
use uapi::Errno;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::group::{GET_STATUS, UNSET_CONTAINER};
use uapi::vfio::type1::MAP_DMA;

use super::{PAGE, RAM, give_memory};
use crate::Options;
use crate::testing::Lab;
use ::device::Driver;

const ONE: &str = "0000:01:00.0";
const DESTROY: u32 = 0x3b80;
const VFIO_IOAS: u32 = 0x3b88;

/// A group in an iommufd.
fn lab() -> (Lab, FileId, FileId) {
    let mut lab = Lab::new(Options::default());
    lab.plug_in(7, ONE, Some(Driver::VfioPci));
    give_memory(&lab.client);
    let (iommufd, group) = (lab.open_iommufd(), lab.open_group(7).unwrap());
    assert_eq!(lab.set_container(group, iommufd), Ok(0));
    (lab, iommufd, group)
}

fn status(lab: &mut Lab, group: FileId) -> u32 {
    let arg = lab.client.put(&[8u32, 0]);
    lab.ioctl(group, GET_STATUS, arg).unwrap();
    lab.client.get::<[u32; 2]>(arg)[1]
}

fn ioctl(lab: &mut Lab, iommufd: FileId, request: u32, arg: u64) -> Result<u64, Errno> {
    let mut call = iommufd::Call { caller: &lab.client, files: &mut lab.files };
    match lab.iommufd.ioctl(iommufd, request, arg, &mut call)? {
        caller::Reply::Value(value) => Ok(value),
        other => panic!("unexpected {other:?}"),
    }
}

/// API-023, API-026, API-042
#[test]
fn an_iommufd_is_a_container() {
    let (mut lab, iommufd, group) = lab();
    assert_eq!(lab.set_container(group, iommufd), Err(Errno::EINVAL));
    assert_eq!(status(&mut lab, group), 3);
    assert_eq!(ioctl(&mut lab, iommufd, SET_IOMMU, 3), Ok(0));
    // GET gives the IOAS that the group's devices attach to.
    let ioas = lab.iommufd_call(iommufd, VFIO_IOAS, [12, 0, 0]).unwrap()[1];
    let device = lab.get_device_fd(group, ONE).unwrap();
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, ioas]), Err(Errno::EBUSY));
    let endpoint = lab.endpoint(ONE);
    endpoint.requester.set_bus_master(true);
    lab.client.write(RAM, &[0x77]).unwrap();
    let map = [32 | 3 << 32, RAM, 0x10_0000, PAGE];
    let arg = lab.client.put(&map);
    assert_eq!(ioctl(&mut lab, iommufd, MAP_DMA, arg), Ok(0));
    let mut byte = [0];
    endpoint.requester.session().read(0x10_0000, &mut byte).unwrap();
    assert_eq!(byte, [0x77]);
    lab.release(device);
    assert!(endpoint.requester.session().read(0x10_0000, &mut byte).is_err());
    assert_eq!(lab.iommufd_call(iommufd, DESTROY, [8, ioas]).map(drop), Ok(()));
    assert_eq!(lab.get_device_fd(group, ONE), Err(Errno::ENODEV), "no IOAS to attach to");
    assert!(lab.vfio.bindings.is_empty());
    // API-046: nothing keeps it.
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Ok(0));
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EINVAL));
}

/// API-042: what is neither.
#[test]
fn other_files_are_no_containers() {
    let (mut lab, _, group) = lab();
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    let arg = lab.client.put(&lab.client.foreign_fd());
    assert_eq!(lab.ioctl(group, 0x3b68, arg), Err(Errno::EBADFD));
    let arg = lab.client.put(&9999);
    assert_eq!(lab.ioctl(group, 0x3b68, arg), Err(Errno::EBADF));
}

/// API-040
#[test]
fn ownership_is_claimed_when_a_device_is_opened() {
    let (mut lab, iommufd, group) = lab();
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    lab.plug_in(7, "0000:01:00.1", Some(Driver::Kernel("nvme".into())));
    assert_eq!(status(&mut lab, group), 0, "not viable");
    assert_eq!(lab.set_container(group, iommufd), Ok(0));
    assert_eq!(status(&mut lab, group), 3);
    assert_eq!(lab.get_device_fd(group, ONE), Err(Errno::EPERM));
    lab.bind("0000:01:00.1", None);
    let device = lab.get_device_fd(group, ONE).unwrap();
    let again = lab.get_device_fd(group, ONE).unwrap();
    // UNSET_CONTAINER takes no look at devices; they stay the context's.
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Ok(0));
    assert_eq!(status(&mut lab, group), 0);
    let container = lab.open_container();
    assert_eq!(lab.set_container(group, container), Err(Errno::EPERM));
    lab.release(device);
    assert_eq!(status(&mut lab, group), 0);
    lab.release(again);
    assert_eq!(status(&mut lab, group), 1);
    assert_eq!(lab.set_container(group, container), Ok(0));
}

/// The context lives as long as a group has it for a container.
#[test]
fn a_group_keeps_its_context() {
    let (mut lab, iommufd, group) = lab();
    lab.release(iommufd);
    let device = lab.get_device_fd(group, ONE).unwrap();
    lab.release(group);
    lab.release(device);
    assert!(lab.vfio.bindings.is_empty() && lab.vfio.groups.is_empty());
}

/// API-016, API-022: a group without IOMMU in an iommufd.
#[test]
fn without_iommu_nothing_is_translated() {
    let mut lab = Lab::new(Options { enable_unsafe_noiommu_mode: true, ..Options::default() });
    lab.client.capabilities.borrow_mut().push(caller::Capability::SysRawio);
    let spec = pci::FunctionSpec::default();
    lab.board.fabric.plug_auto(ONE.parse().unwrap(), spec).unwrap();
    lab.add_noiommu(0, ONE);
    let (iommufd, group) = (lab.open_iommufd(), lab.open_group(0).unwrap());
    assert_eq!(lab.set_container(group, iommufd), Ok(0));
    let device = lab.get_device_fd(group, ONE).unwrap();
    lab.release(device);
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    let other = lab.open_iommufd();
    let ioas = lab.ioas(other);
    lab.iommufd_call(other, VFIO_IOAS, [12, ioas, 1]).unwrap();
    assert_eq!(lab.set_container(group, other), Err(Errno::EINVAL), "there is an IOAS");
}
