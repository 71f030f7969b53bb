// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot reset by users of devices' own nodes: HOT-012 to HOT-014, HOT-018,
//! HOT-025, HOT-031, HOT-053.

use caller::{Caller, FileId};
use uapi::Errno;
use uapi::vfio::device::{DependentDevice, GET_PCI_HOT_RESET_INFO, HotResetInfo, PCI_HOT_RESET};
use zerocopy::IntoBytes;

use crate::Options;
use crate::testing::Lab;
use ::device::Driver;

/// Three functions of one bus: two in group 7, the third in group 8.
fn lab() -> Lab {
    let mut lab = Lab::new(Options::default());
    for (function, group) in [(0, 7), (1, 7), (2, 8)] {
        lab.plug_in(group, &format!("0000:01:00.{function}"), Some(Driver::VfioPci));
    }
    lab
}

/// Flags, and the id that each function has.
fn info(lab: &mut Lab, file: FileId) -> (u32, Vec<u32>) {
    let arg = lab.client.room(4096);
    lab.client.write(arg, [4096u32, 0, 0].as_bytes()).unwrap();
    lab.ioctl(file, GET_PCI_HOT_RESET_INFO, arg).unwrap();
    let head: HotResetInfo = lab.client.get(arg);
    let entry = |n: u32| lab.client.get::<DependentDevice>(arg + 12 + 8 * u64::from(n)).group_id;
    (head.flags, (0..head.count).map(entry).collect())
}

fn reset(lab: &mut Lab, file: FileId, fds: &[i32]) -> Result<u64, Errno> {
    let head = [12 + 4 * fds.len() as u32, 0, fds.len() as u32];
    let arg = lab.client.put_bytes(&[head.as_bytes(), fds.as_bytes()].concat());
    lab.ioctl(file, PCI_HOT_RESET, arg)
}

/// HOT-012, HOT-013, HOT-014, HOT-053
#[test]
fn info_tells_ids_of_the_context() {
    let mut lab = lab();
    let [iommufd, other] = [(); 2].map(|()| lab.open_iommufd());
    let [first, second, third] = [0, 1, 2].map(|number| lab.open_cdev(number).unwrap());
    lab.ioas(iommufd);
    assert_eq!(lab.bind_cdev(first, iommufd), Ok(2));
    assert_eq!(info(&mut lab, first), (1, vec![2, 0, u32::MAX]));
    assert_eq!(reset(&mut lab, first, &[]), Err(Errno::EINVAL), "not all are its own");
    assert_eq!(lab.bind_cdev(third, other), Ok(1));
    assert_eq!(info(&mut lab, first), (1, vec![2, 0, u32::MAX]), "another context's");
    assert_eq!(info(&mut lab, third), (1, vec![u32::MAX, u32::MAX, 1]));
    lab.release(third);
    let third = lab.open_cdev(2).unwrap();
    assert_eq!(lab.bind_cdev(third, iommufd), Ok(3));
    assert_eq!(info(&mut lab, first), (3, vec![2, 0, 3]));
    assert_eq!(lab.bind_cdev(second, iommufd), Ok(4));
    assert_eq!(info(&mut lab, first), (3, vec![2, 4, 3]));
    // A kernel driver's function is in no dev_set.
    lab.release(third);
    lab.bind("0000:01:00.2", Some(Driver::Kernel("nvme".into())));
    assert_eq!(info(&mut lab, first), (1, vec![2, 4, u32::MAX]));
}

/// HOT-018, HOT-022, HOT-025, HOT-030, HOT-050
#[test]
fn an_owner_of_all_resets_without_naming_groups() {
    let mut lab = lab();
    let iommufd = lab.open_iommufd();
    let [first, third] = [0, 2].map(|number| lab.open_cdev(number).unwrap());
    lab.bind_cdev(first, iommufd).unwrap();
    lab.bind_cdev(third, iommufd).unwrap();
    assert_eq!(reset(&mut lab, first, &[]), Ok(0), "the second one is in a group of its");
    let fd = lab.client.fd(iommufd);
    assert_eq!(reset(&mut lab, first, &[fd]), Err(Errno::EINVAL), "count");
    lab.release(third);
    assert_eq!(reset(&mut lab, first, &[]), Err(Errno::EINVAL), "not opened, but not its own either");
}

/// HOT-018, HOT-031: a group's user cannot name what is bound by its node, nor
/// reset without naming groups.
#[test]
fn group_and_node_users_do_not_mix() {
    let mut lab = lab();
    let (_, group) = lab.container_with(7, 3);
    let device = lab.get_device_fd(group, "0000:01:00.0").unwrap();
    let iommufd = lab.open_iommufd();
    let third = lab.open_cdev(2).unwrap();
    lab.bind_cdev(third, iommufd).unwrap();
    assert_eq!(info(&mut lab, device), (0, vec![7, 7, 8]), "groups, as ever");
    assert_eq!(reset(&mut lab, device, &[]), Err(Errno::EINVAL));
    let fds = [group, third].map(|file| lab.client.fd(file));
    assert_eq!(reset(&mut lab, device, &fds), Err(Errno::EINVAL));
    assert_eq!(reset(&mut lab, device, &fds[..1]), Err(Errno::EINVAL));
    assert_eq!(reset(&mut lab, third, &[]), Err(Errno::EINVAL));
    lab.release(third);
    let other = lab.open_group(8).unwrap();
    let fds = [group, other].map(|file| lab.client.fd(file));
    assert_eq!(reset(&mut lab, device, &fds), Ok(0));
}

/// HOT-018: a device of a group in an iommufd is a group's device.
#[test]
fn a_compat_users_resets_by_groups() {
    let mut lab = lab();
    let iommufd = lab.open_iommufd();
    let groups = [7, 8].map(|number| lab.open_group(number).unwrap());
    for group in groups {
        lab.set_container(group, iommufd).unwrap();
    }
    let device = lab.get_device_fd(groups[0], "0000:01:00.0").unwrap();
    assert_eq!(info(&mut lab, device), (0, vec![7, 7, 8]));
    assert_eq!(reset(&mut lab, device, &[]), Err(Errno::EINVAL));
    let fds = groups.map(|file| lab.client.fd(file));
    assert_eq!(reset(&mut lab, device, &fds), Ok(0));
}
