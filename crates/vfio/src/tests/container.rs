// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers: API-007 to API-022.

use ::device::Driver;
use caller::{Capability, FileId};
use uapi::Errno;
use uapi::vfio::container::{CHECK_EXTENSION, GET_API_VERSION, SET_IOMMU};
use uapi::vfio::group::UNSET_CONTAINER;
use uapi::vfio::type1::{DIRTY_PAGES, DISABLE, ENABLE, GET_INFO, MAP_DMA, UNMAP_DMA};

use super::{PAGE, RAM, RW, Type1Lab};
use crate::Options;
use crate::testing::Lab;

/// The answers to extensions 1 to 11.
fn extensions(lab: &mut Lab, container: FileId) -> Vec<u64> {
    (1..12).map(|n| lab.ioctl(container, CHECK_EXTENSION, n).unwrap()).collect()
}

const UNSET: [u64; 11] = [1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0];
const TYPE1: [u64; 11] = [1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0];

fn noiommu_lab() -> Lab {
    let options = Options { enable_unsafe_noiommu_mode: true, ..Options::default() };
    let mut lab = Lab::new(options);
    lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
    lab.add_noiommu(9, "0000:02:00.0");
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    lab
}

/// API-007: each open is a container of its own.
#[test]
fn containers_are_independent() {
    let mut lab = Lab::with_group();
    let (first, group) = lab.container_with(7, 1);
    let second = lab.open_container();
    assert_eq!(extensions(&mut lab, second), UNSET);
    assert_eq!(lab.ioctl(second, SET_IOMMU, 1), Err(Errno::EINVAL));
    assert_eq!(lab.set_container(group, second), Err(Errno::EINVAL));
    assert_eq!(extensions(&mut lab, first), TYPE1);
}

/// API-008
#[test]
fn version_is_0_in_every_state() {
    let mut lab = Lab::with_group();
    let container = lab.open_container();
    assert_eq!(lab.ioctl(container, GET_API_VERSION, u64::MAX), Ok(0));
    let group = lab.open_group(7).unwrap();
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.ioctl(container, GET_API_VERSION, 0), Ok(0));
    lab.ioctl(container, SET_IOMMU, 3).unwrap();
    assert_eq!(lab.ioctl(container, GET_API_VERSION, 0), Ok(0));
}

/// API-009, API-010, API-011
#[test]
fn extensions_before_and_after_set_iommu() {
    for number in [1, 3] {
        let mut lab = Lab::with_group();
        let container = lab.open_container();
        assert_eq!(extensions(&mut lab, container), UNSET);
        for number in [0, 12, 1 << 32 | 1, u64::MAX] {
            assert_eq!(lab.ioctl(container, CHECK_EXTENSION, number), Ok(0), "{number:#x}");
        }
        let group = lab.open_group(7).unwrap();
        lab.set_container(group, container).unwrap();
        assert_eq!(extensions(&mut lab, container), UNSET);
        lab.ioctl(container, SET_IOMMU, number).unwrap();
        assert_eq!(extensions(&mut lab, container), TYPE1);
    }
}

#[test]
fn dma_cc_is_what_the_iommu_enforces() {
    let mut lab = Lab::new(Options { cache_coherency: false, ..Options::default() });
    lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
    let (container, _) = lab.container_with(7, 3);
    assert_eq!(lab.ioctl(container, CHECK_EXTENSION, 4), Ok(0));
}

/// API-012, API-013, API-014
#[test]
fn set_iommu() {
    let mut lab = Lab::with_group();
    let container = lab.open_container();
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EINVAL), "no group");
    assert_eq!(lab.ioctl(container, SET_IOMMU, 77), Err(Errno::EINVAL), "no group");
    let group = lab.open_group(7).unwrap();
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.ioctl(container, SET_IOMMU, 9), Err(Errno::EINVAL), "claimed, but no type");
    for number in [0, 2, 4, 5, 6, 7, 8, 10, 11, 1 << 32 | 1] {
        assert_eq!(lab.ioctl(container, SET_IOMMU, number), Err(Errno::ENODEV), "{number}");
    }
    assert_eq!(lab.ioctl(container, SET_IOMMU, 1), Ok(0));
    for number in [1, 3, 77] {
        assert_eq!(lab.ioctl(container, SET_IOMMU, number), Err(Errno::EINVAL), "set already");
    }
}

/// API-014, API-044: the error of the attach is the error of SET_IOMMU, and
/// then the container has no backend.
#[test]
fn set_iommu_that_cannot_attach() {
    let mut lab = Lab::new(Options { interrupt_remapping: false, ..Options::default() });
    lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
    let (container, group) = (lab.open_container(), lab.open_group(7).unwrap());
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EPERM));
    assert_eq!(extensions(&mut lab, container), UNSET);
    assert_eq!(lab.ioctl(container, GET_INFO, 0), Err(Errno::EINVAL));

    let unsafe_too = Options { interrupt_remapping: false, allow_unsafe_interrupts: true, ..Options::default() };
    let mut lab = Lab::new(unsafe_too);
    lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
    lab.container_with(7, 3);
}

/// API-015: groups are attached when there is a backend, whichever came first.
#[test]
fn devices_are_attached_with_the_backend() {
    let mut t = Type1Lab::new(3);
    let second = t.lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
    // Two functions in one group: both are attached.
    let sibling = t.lab.add(8, "0000:02:00.1", None);
    t.map(RW, RAM, 0x10_0000, PAGE).unwrap();
    assert!(t.dma_write(0x10_0000, 5));
    let reads = |endpoint: &::device::Endpoint| {
        endpoint.requester.set_bus_master(true);
        let mut bytes = [0; 1];
        endpoint.requester.session().read(0x10_0000, &mut bytes).ok().map(|()| bytes[0])
    };
    assert_eq!(reads(&second), None);
    let group = t.lab.open_group(8).unwrap();
    assert_eq!(reads(&second), None);
    t.lab.set_container(group, t.container).unwrap();
    assert_eq!((reads(&second), reads(&sibling)), (Some(5), Some(5)));
    t.lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    assert_eq!((reads(&second), reads(&sibling)), (None, None));
    assert_eq!(t.dma_read(0x10_0000), Some(5), "the other group stays");
}

/// A function that is plugged into a group in use shares its mappings.
#[test]
fn function_added_to_a_group_in_use() {
    let mut t = Type1Lab::new(3);
    t.map(RW, RAM, 0, PAGE).unwrap();
    for (group, expected) in [(7, true), (8, false)] {
        let endpoint = t.lab.add(group, "0000:03:00.0", None);
        t.lab.vfio.function_added("0000:03:00.0".parse().unwrap(), &t.lab.board, &mut t.lab.iommufd);
        endpoint.requester.set_bus_master(true);
        assert_eq!(endpoint.requester.session().read(0, &mut [0]).is_ok(), expected);
        t.lab.vfio.table.remove_member("0000:03:00.0".parse().unwrap());
    }
}

/// API-017
#[test]
fn requests_for_the_backend() {
    let mut t = Type1Lab::new(3);
    let empty = t.lab.open_container();
    for request in [0, GET_INFO, MAP_DMA, UNMAP_DMA, ENABLE, DISABLE, DIRTY_PAGES, 0x3b67, 0x3bff] {
        assert_eq!(t.lab.ioctl(empty, request, 0), Err(Errno::EINVAL), "{request:#x}");
    }
    // API-100: type1 knows neither ENABLE nor DISABLE.
    for request in [0, ENABLE, DISABLE, 0x3b67, 0x3b76, 0x3bff] {
        assert_eq!(t.ioctl(request, 0), Err(Errno::ENOTTY), "{request:#x}");
    }
}

/// API-018
#[test]
fn no_read_write_or_mmap() {
    let mut t = Type1Lab::new(3);
    for file in [t.container, t.group] {
        let (vfio, mut cx) = t.lab.parts();
        assert_eq!(vfio.read(file, 0, RAM, 8, &mut cx), Err(Errno::EINVAL));
        assert_eq!(vfio.write(file, 0, RAM, 8, &mut cx), Err(Errno::EINVAL));
        assert_eq!(vfio.mmap(file, 0, PAGE, true, cx.board), Err(Errno::ENODEV));
    }
}

/// API-019: closing the container's file changes nothing while a group is in.
#[test]
fn container_lives_while_a_group_is_in() {
    let mut t = Type1Lab::new(3);
    t.map(RW, RAM, 0, PAGE).unwrap();
    let container = t.container;
    t.lab.release(container);
    assert!(t.dma_write(0, 1), "mappings stay in force");
    assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 1);
    assert_eq!(t.lab.ioctl(t.group, UNSET_CONTAINER, 0), Ok(0));
    assert!(!t.dma_write(0, 1));
    assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 0);
    assert!(t.lab.vfio.containers.is_empty());
}

/// API-020, API-021
#[test]
fn last_group_resets_the_container() {
    let mut t = Type1Lab::new(1);
    t.lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
    let second = t.lab.open_group(8).unwrap();
    t.lab.set_container(second, t.container).unwrap();
    t.map(RW, RAM, 0, PAGE).unwrap();
    t.lab.ioctl(t.group, UNSET_CONTAINER, 0).unwrap();
    assert_eq!(extensions(&mut t.lab, t.container), TYPE1, "one is left");
    assert_eq!(t.map(RW, RAM, 0, PAGE), Err(Errno::EEXIST));
    t.lab.ioctl(second, UNSET_CONTAINER, 0).unwrap();
    assert_eq!(extensions(&mut t.lab, t.container), UNSET);
    assert_eq!(t.map(RW, RAM, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(t.lab.ioctl(t.container, SET_IOMMU, 3), Err(Errno::EINVAL));
    t.lab.set_container(t.group, t.container).unwrap();
    assert_eq!(t.lab.ioctl(t.container, SET_IOMMU, 3), Ok(0));
    assert_eq!(t.map(RW, RAM, 0, PAGE), Ok(()), "the mapping had gone");
}

/// API-010, API-011, API-016, API-022
#[test]
fn noiommu() {
    let mut lab = noiommu_lab();
    let container = lab.open_container();
    assert_eq!(lab.ioctl(container, CHECK_EXTENSION, 8), Ok(1));
    let group = lab.open_group(9).unwrap();
    lab.set_container(group, container).unwrap();
    let mut answers = [0; 11];
    answers[7] = 1;
    assert_eq!(extensions(&mut lab, container), answers, "only the backend for such groups is asked");
    for number in [1, 3, 9] {
        assert_eq!(lab.ioctl(container, SET_IOMMU, number), Err(Errno::ENODEV));
    }
    lab.client.capabilities.borrow_mut().clear();
    assert_eq!(lab.ioctl(container, SET_IOMMU, 8), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    assert_eq!(lab.ioctl(container, SET_IOMMU, 8), Ok(0));
    assert_eq!(extensions(&mut lab, container), answers);
    assert_eq!(lab.ioctl(container, MAP_DMA, 0), Err(Errno::ENOTTY));

    let real = lab.open_group(7).unwrap();
    assert_eq!(lab.set_container(real, container), Err(Errno::EPERM));
    let other = lab.open_container();
    lab.set_container(real, other).unwrap();
    assert_eq!(lab.ioctl(other, CHECK_EXTENSION, 8), Ok(0), "not asked for real groups");
    assert_eq!(lab.ioctl(other, SET_IOMMU, 8), Err(Errno::ENODEV));
    lab.ioctl(group, UNSET_CONTAINER, 0).unwrap();
    assert_eq!(lab.set_container(group, other), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().clear();
    assert_eq!(lab.set_container(group, container), Err(Errno::EPERM), "API-043");
}

/// Without the module option the number is not claimed.
#[test]
fn noiommu_mode_off() {
    let mut lab = Lab::with_group();
    let container = lab.open_container();
    assert_eq!(lab.ioctl(container, CHECK_EXTENSION, 8), Ok(0));
}
