// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who keeps whom: containers, groups and devices opened and closed in every
//! order, on a fabric of two functions that share a group and one apart.

use ::device::Driver;
use caller::{Capability, FileId, Reply};
use pci::{Bar, BarKind, FabricBuilder, FunctionSpec, Item, Place};
use proptest::prelude::*;
use uapi::Errno;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::group::{GET_DEVICE_FD, GET_STATUS, Status, UNSET_CONTAINER};
use uapi::vfio::type1::{DmaMap, MAP_DMA};

use super::{PAGE, RAM, RW, give_memory};
use crate::Options;
use crate::testing::Lab;

const FIRST: &str = "0000:01:00.0";
const SIBLING: &str = "0000:01:00.1";
const OTHER: &str = "0000:02:00.0";

fn lab() -> Lab {
    let bar = Bar { size: 0x4000, kind: BarKind::Memory64 { prefetchable: false }, mmap: true };
    let spec = FunctionSpec {
        vendor: 0x1234,
        device: 0x5678,
        class: 0x01_08_02,
        bars: [Some(bar), None, None, None, None, None],
        flr: true,
        ..FunctionSpec::default()
    };
    let mut builder = FabricBuilder::new();
    for address in [FIRST, SIBLING, OTHER] {
        builder.plug_auto(address.parse().unwrap(), spec.clone());
    }
    let mut lab = Lab::with_fabric(&builder, Options::default());
    give_memory(&lab.client);
    for address in [FIRST, SIBLING, OTHER] {
        lab.bind(address, Some(Driver::VfioPci));
    }
    assert_eq!(lab.group_of(FIRST), lab.group_of(SIBLING));
    assert_ne!(lab.group_of(FIRST), lab.group_of(OTHER));
    lab
}

fn map(lab: &mut Lab, container: FileId) {
    let arg = lab.client.put(&DmaMap { argsz: 32, flags: RW, vaddr: RAM, iova: 0, size: PAGE });
    lab.ioctl(container, MAP_DMA, arg).unwrap();
}

fn reaches(lab: &Lab, address: &str) -> bool {
    let endpoint = lab.endpoint(address);
    endpoint.requester.set_bus_master(true);
    endpoint.requester.session().read(0, &mut [0; 4]).is_ok()
}

fn open(lab: &mut Lab) -> (FileId, FileId) {
    lab.container_with(lab.group_of(FIRST), 3)
}

/// API-046: devices keep the group in its container.
#[test]
fn open_devices_keep_the_container() {
    let mut lab = lab();
    let (container, group) = open(&mut lab);
    let first = lab.get_device_fd(group, FIRST).unwrap();
    let sibling = lab.get_device_fd(group, SIBLING).unwrap();
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EBUSY));
    lab.release(first);
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EBUSY));
    lab.release(sibling);
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Ok(0));
    assert_eq!(lab.ioctl(container, SET_IOMMU, 3), Err(Errno::EINVAL));
}

/// API-052: the new file takes reads, writes, maps and requests.
#[test]
fn what_the_descriptor_is() {
    let mut lab = lab();
    let (_, group) = open(&mut lab);
    let device = lab.get_device_fd(group, FIRST).unwrap();
    let buf = lab.client.room(64);
    let (vfio, mut cx) = lab.parts();
    let (bar, config) = (uapi::region::offset(0, 0), uapi::region::offset(0, 7));
    assert_eq!(vfio.read(device, config, buf, 4, &mut cx), Ok(Reply::Value(4)));
    assert_eq!(vfio.write(device, config + 4, buf, 2, &mut cx), Ok(Reply::Value(2)));
    assert_eq!(vfio.mmap(device, bar, 0x4000, true, cx.board), Ok(()));
    assert_eq!(lab.client.get::<u32>(buf), 0x5678_1234);
    assert_eq!(lab.ioctl(device, 0x3b6b, 8), Err(Errno::EFAULT), "GET_INFO");
    assert_eq!(lab.ioctl(device, 0x3b64, 0), Err(Errno::ENOTTY));
}

/// API-053: every descriptor is of the same device; the last one closes it.
#[test]
fn device_opened_twice() {
    let mut lab = lab();
    let (_, group) = open(&mut lab);
    let one = lab.get_device_fd(group, FIRST).unwrap();
    let two = lab.get_device_fd(group, FIRST).unwrap();
    assert_ne!(one, two);
    assert_eq!(lab.vfio.device_address(one), lab.vfio.device_address(two));
    lab.release(one);
    assert_eq!(lab.vfio.device_address(one), None);
    assert!(lab.vfio.device_file(two).is_some());
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Err(Errno::EBUSY));
    lab.release(two);
    assert_eq!(lab.ioctl(group, UNSET_CONTAINER, 0), Ok(0));
    assert_eq!(lab.get_device_fd(group, FIRST), Err(Errno::EINVAL), "no container");
}

/// API-054, API-055: closing the group's descriptor changes nothing until the
/// devices are closed.
#[test]
fn devices_keep_the_group() {
    let mut lab = lab();
    let (container, group) = open(&mut lab);
    map(&mut lab, container);
    let first = lab.get_device_fd(group, FIRST).unwrap();
    let sibling = lab.get_device_fd(group, SIBLING).unwrap();
    lab.release(group);
    let number = lab.group_of(FIRST);
    assert_eq!(lab.open_group(number), Err(Errno::EBUSY));
    lab.release(first);
    assert_eq!(lab.open_group(number), Err(Errno::EBUSY));
    assert!(reaches(&lab, SIBLING));
    // API-019: the container's descriptor goes too, and still nothing changes.
    lab.release(container);
    assert!(reaches(&lab, SIBLING));
    lab.release(sibling);
    assert!(!reaches(&lab, SIBLING));
    assert!(lab.vfio.containers.is_empty());
    assert_eq!(lab.vfio.locked.pages(lab.client.process), 0);
    assert!(lab.open_group(number).is_ok());
}

/// API-047, API-048, API-049, API-051
#[test]
fn get_device_fd_checks() {
    let mut lab = lab();
    lab.bind(SIBLING, None);
    let (container, group) = (lab.open_container(), lab.open_group(lab.group_of(FIRST)).unwrap());
    assert_eq!(lab.ioctl(group, GET_DEVICE_FD, 8), Err(Errno::EFAULT));
    assert_eq!(lab.get_device_fd(group, &"x".repeat(4096)), Err(Errno::EINVAL));
    let no_match = ["", "01:00.0", "0000:01:00.01", "0000:01:00", OTHER, SIBLING, " 0000:01:00.0"];
    for name in no_match.into_iter().chain([&*"x".repeat(4095)]) {
        assert_eq!(lab.get_device_fd(group, name), Err(Errno::ENODEV), "{name}");
    }
    assert_eq!(lab.get_device_fd(group, FIRST), Err(Errno::EINVAL), "no container");
    assert_eq!(lab.get_device_fd(group, SIBLING), Err(Errno::ENODEV), "the name comes first");
    lab.set_container(group, container).unwrap();
    assert_eq!(lab.get_device_fd(group, FIRST), Err(Errno::EINVAL), "no IOMMU");
}

/// API-048, API-051: a device of another group is no device of this one; a
/// device that no driver has is none at all.
#[test]
fn devices_of_the_group_only() {
    let mut lab = lab();
    let (_, group) = open(&mut lab);
    assert_eq!(lab.get_device_fd(group, OTHER), Err(Errno::ENODEV));
    lab.bind(SIBLING, None);
    assert_eq!(lab.get_device_fd(group, SIBLING), Err(Errno::ENODEV));
    assert!(lab.get_device_fd(group, FIRST).is_ok());
}

/// API-050: options are looked at with the name, so before the container.
#[test]
fn options_come_before_the_container() {
    let mut lab = lab();
    let group = lab.open_group(lab.group_of(FIRST)).unwrap();
    for options in [" vf_token=1", " x", " vf_token=2ab74924-c335-45f4-9b16-8569e5b08258 vf_token=1"] {
        let name = format!("{FIRST}{options}");
        assert_eq!(lab.get_device_fd(group, &name), Err(Errno::EINVAL), "{name}");
    }
    assert_eq!(lab.get_device_fd(group, FIRST), Err(Errno::EINVAL));
}

/// API-041, GRP-030 on a real fabric: a sibling that the kernel drives.
#[test]
fn sibling_with_a_kernel_driver() {
    let mut lab = lab();
    lab.bind(SIBLING, Some(Driver::Kernel("nvme".into())));
    let container = lab.open_container();
    let group = lab.open_group(lab.group_of(FIRST)).unwrap();
    let arg = lab.client.put(&Status { argsz: 8, flags: 0 });
    lab.ioctl(group, GET_STATUS, arg).unwrap();
    assert_eq!(lab.client.get::<Status>(arg).flags, 0);
    assert_eq!(lab.set_container(group, container), Err(Errno::EPERM));
    let apart = lab.open_group(lab.group_of(OTHER)).unwrap();
    assert_eq!(lab.set_container(apart, container), Ok(0));
}

/// API-051: rights are looked at behind the container, and only for the first
/// descriptor of a device.
#[test]
fn device_without_iommu() {
    let spec = FunctionSpec { vendor: 0x1234, device: 0x5678, ..FunctionSpec::default() };
    let mut builder = FabricBuilder::new();
    let address = OTHER.parse().unwrap();
    builder.add(Item::new(Place::At(address), spec).without_iommu());
    let options = Options { enable_unsafe_noiommu_mode: true, ..Options::default() };
    let mut lab = Lab::with_fabric(&builder, options);
    lab.bind(OTHER, Some(Driver::VfioPci));
    lab.vfio.add_noiommu_group(40, vec![address]);
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    let (container, group) = (lab.open_container(), lab.open_group(40).unwrap());
    lab.client.capabilities.borrow_mut().clear();
    assert_eq!(lab.get_device_fd(group, OTHER), Err(Errno::EINVAL));
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    lab.set_container(group, container).unwrap();
    lab.ioctl(container, SET_IOMMU, 8).unwrap();
    lab.client.capabilities.borrow_mut().clear();
    assert_eq!(lab.get_device_fd(group, OTHER), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    let first = lab.get_device_fd(group, OTHER).unwrap();
    lab.client.capabilities.borrow_mut().clear();
    let second = lab.get_device_fd(group, OTHER).unwrap();
    lab.release(first);
    assert!(lab.vfio.device_file(second).is_some());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    OpenContainer,
    OpenGroup(usize),
    SetContainer(usize, usize),
    Unset(usize),
    SetIommu(usize, bool),
    OpenDevice(usize, usize),
    Map(usize, u64),
    Close(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::OpenContainer),
        2 => (0..2usize).prop_map(Step::OpenGroup),
        4 => (any::<usize>(), any::<usize>()).prop_map(|(g, c)| Step::SetContainer(g, c)),
        1 => any::<usize>().prop_map(Step::Unset),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(c, v2)| Step::SetIommu(c, v2)),
        4 => (any::<usize>(), 0..3usize).prop_map(|(g, d)| Step::OpenDevice(g, d)),
        2 => (any::<usize>(), 0..8u64).prop_map(|(c, page)| Step::Map(c, page)),
        3 => any::<usize>().prop_map(Step::Close),
    ]
}

fn pick(files: &[FileId], n: usize) -> Option<FileId> {
    files.get(n % files.len().max(1)).copied()
}

proptest! {
    /// API-274: whatever was opened, and in whatever order it is closed,
    /// nothing is left in the end.
    #[test]
    fn nothing_is_left(steps in prop::collection::vec(step(), 1..60), order in any::<u64>()) {
        let mut lab = lab();
        let addresses = [FIRST, SIBLING, OTHER];
        let (mut containers, mut groups, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::OpenContainer => containers.push(lab.open_container()),
                Step::OpenGroup(n) => {
                    let number = lab.group_of([FIRST, OTHER][n]);
                    groups.extend(lab.open_group(number));
                }
                Step::SetContainer(g, c) => {
                    if let (Some(group), Some(container)) = (pick(&groups, g), pick(&containers, c)) {
                        let _ = lab.set_container(group, container);
                    }
                }
                Step::Unset(g) => {
                    if let Some(group) = pick(&groups, g) {
                        let _ = lab.ioctl(group, UNSET_CONTAINER, 0);
                    }
                }
                Step::SetIommu(c, v2) => {
                    if let Some(container) = pick(&containers, c) {
                        let _ = lab.ioctl(container, SET_IOMMU, if v2 { 3 } else { 1 });
                    }
                }
                Step::OpenDevice(g, d) => {
                    if let Some(group) = pick(&groups, g) {
                        devices.extend(lab.get_device_fd(group, addresses[d]));
                    }
                }
                Step::Map(c, page) => {
                    if let Some(container) = pick(&containers, c) {
                        let map = DmaMap { argsz: 32, flags: RW, vaddr: RAM, iova: page * PAGE, size: PAGE };
                        let arg = lab.client.put(&map);
                        let _ = lab.ioctl(container, MAP_DMA, arg);
                    }
                }
                Step::Close(n) => {
                    let kind = [&mut containers, &mut groups, &mut devices].into_iter().nth(n % 3);
                    if let Some(files) = kind.filter(|files| !files.is_empty()) {
                        let file = files.swap_remove(n / 3 % files.len());
                        lab.release(file);
                    }
                }
            }
        }
        let mut files = [containers, groups, devices].concat();
        files.sort_by_key(|file| (file.0 ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for file in files {
            lab.release(file);
        }
        prop_assert!(lab.vfio.containers.is_empty());
        prop_assert!(lab.vfio.groups.is_empty());
        prop_assert_eq!(lab.vfio.locked.pages(lab.client.process), 0);
        for address in addresses {
            prop_assert!(!reaches(&lab, address));
            prop_assert!(!lab.vfio.devices.is_open(address.parse().unwrap()));
        }
    }
}
