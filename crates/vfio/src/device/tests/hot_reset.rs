// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot reset through groups (vfio-hot-reset.md).

use caller::FileId;
use pci::{Address, FunctionSpec};
use uapi::Errno;
use uapi::vfio::device::{DependentDevice, GET_PCI_HOT_RESET_INFO, HotResetInfo, PCI_HOT_RESET};
use zerocopy::IntoBytes;

use super::{ADDRESS, MEMORY, Rig, plug, spec};
use crate::Options;
use crate::testing::{Asked, Lab};
use ::device::{Driver, ResetKind};

const SECOND: Address = Address::new(0, 1, 0, 1);

/// Two functions on one bus, without a reset of their own; the first is open.
fn two() -> (Rig, std::sync::Arc<std::sync::Mutex<Vec<Asked>>>) {
    two_with(spec())
}

fn two_with(spec: FunctionSpec) -> (Rig, std::sync::Arc<std::sync::Mutex<Vec<Asked>>>) {
    let mut lab = Lab::new(Options::default());
    let spec = FunctionSpec { flr: false, no_soft_reset: true, ..spec };
    let log = plug(&mut lab, ADDRESS, spec.clone());
    let second = plug(&mut lab, SECOND, spec);
    let number = lab.board.fabric.group(ADDRESS).unwrap();
    let (container, group) = lab.container_with(number, 3);
    let file = lab.get_device_fd(group, &ADDRESS.to_string()).unwrap();
    (Rig { lab, log, container, group, file }, second)
}

fn info(rig: &mut Rig, argsz: u32) -> (Result<u64, Errno>, HotResetInfo, Vec<DependentDevice>) {
    let arg = rig.lab.client.room(4096);
    {
        use caller::Caller;
        rig.lab.client.write(arg, [argsz, 9, 9].as_bytes()).unwrap();
    }
    let result = rig.ioctl(GET_PCI_HOT_RESET_INFO, arg);
    let head: HotResetInfo = rig.lab.client.get(arg);
    let list = (0..u64::from(head.count.min(16))).map(|i| rig.lab.client.get(arg + 12 + 8 * i)).collect();
    (result, head, list)
}

fn reset(rig: &mut Rig, fds: &[i32]) -> Result<u64, Errno> {
    let head = [12 + 4 * fds.len() as u32, 0, fds.len() as u32];
    let arg = rig.lab.client.put_bytes(&[head.as_bytes(), fds.as_bytes()].concat());
    rig.ioctl(PCI_HOT_RESET, arg)
}

/// HOT-004, HOT-005, HOT-007, HOT-008, HOT-009, HOT-011, HOT-015, HOT-051
#[test]
fn info_lists_the_bus() {
    let (mut rig, _) = two();
    assert_eq!(rig.ioctl(GET_PCI_HOT_RESET_INFO, 0), Err(Errno::EFAULT));
    assert_eq!(info(&mut rig, 11).0, Err(Errno::EINVAL));
    for argsz in [12, 19, 20, 27] {
        let (result, head, _) = info(&mut rig, argsz);
        assert_eq!((result, head), (Err(Errno::ENOSPC), HotResetInfo { argsz, flags: 0, count: 2 }));
    }
    for argsz in [28, 29, 100] {
        let (result, head, list) = info(&mut rig, argsz);
        assert_eq!((result, head), (Ok(0), HotResetInfo { argsz, flags: 0, count: 2 }));
        let group_id = |address| rig.lab.board.fabric.group(address).unwrap();
        let expected = [(ADDRESS, 0), (SECOND, 1)].map(|(address, devfn)| DependentDevice {
            group_id: group_id(address),
            segment: 0,
            bus: 1,
            devfn,
        });
        assert_eq!(list, expected);
    }
}

/// HOT-002, HOT-006, HOT-019
#[test]
fn a_root_bus_is_not_reset() {
    let mut lab = Lab::new(Options::default());
    let address = Address::new(0, 0, 9, 0);
    let log = plug(&mut lab, address, spec());
    let number = lab.board.fabric.group(address).unwrap();
    let (container, group) = lab.container_with(number, 3);
    let file = lab.get_device_fd(group, &address.to_string()).unwrap();
    let mut rig = Rig { lab, log, container, group, file };
    assert_eq!(info(&mut rig, 100).0, Err(Errno::ENODEV));
    let fd = rig.lab.client.fd(rig.group);
    assert_eq!(reset(&mut rig, &[fd]), Err(Errno::ENODEV));
}

/// HOT-016, HOT-017, HOT-018, HOT-020, HOT-021, HOT-033
#[test]
fn reset_arguments() {
    // Without isolation both are in one group.
    let (mut rig, _) = two_with(FunctionSpec { acs: None, ..spec() });
    rig.lab.client.capabilities.borrow_mut().clear();
    let group = rig.lab.client.fd(rig.group);
    let device = rig.lab.client.fd(rig.file);
    assert_eq!(rig.ioctl(PCI_HOT_RESET, 0), Err(Errno::EFAULT));
    for head in [[11, 0, 1], [16, 1, 1], [12, 0, 0]] {
        let arg = rig.lab.client.put(&[head[0], head[1], head[2], group as u32]);
        assert_eq!(rig.ioctl(PCI_HOT_RESET, arg), Err(Errno::EINVAL), "{head:?}");
    }
    assert_eq!(reset(&mut rig, &[group, group, group]), Err(Errno::EINVAL), "more than devices");
    assert_eq!(reset(&mut rig, &[999]), Err(Errno::EBADF));
    assert_eq!(reset(&mut rig, &[device]), Err(Errno::EINVAL));
    assert_eq!(reset(&mut rig, &[group, group]), Ok(0), "twice is as good as once");
}

fn other_group(rig: &mut Rig) -> Option<FileId> {
    let number = rig.lab.board.fabric.group(SECOND).unwrap();
    (rig.lab.board.fabric.group(ADDRESS) != Some(number)).then(|| rig.lab.open_group(number).unwrap())
}

/// HOT-023, HOT-025, HOT-052, HOT-053
#[test]
fn all_must_be_owned() {
    let (mut rig, _) = two();
    let group = rig.lab.client.fd(rig.group);
    if let Some(other) = other_group(&mut rig) {
        assert_eq!(reset(&mut rig, &[group]), Err(Errno::EINVAL));
        let other = rig.lab.client.fd(other);
        assert_eq!(reset(&mut rig, &[group, other]), Ok(0), "its device need not be open");
    }
    for driver in [None, Some(Driver::Kernel("nvme".into()))] {
        rig.lab.bind("0000:01:00.1", driver);
        assert_eq!(reset(&mut rig, &[group]), Err(Errno::EINVAL));
        assert_eq!(info(&mut rig, 100).0, Ok(0));
    }
}

/// HOT-028, HOT-037, HOT-038, HOT-039, HOT-040, HOT-041
#[test]
fn everything_comes_back() {
    let (mut rig, second) = two();
    let mut fds = vec![rig.lab.client.fd(rig.group)];
    if let Some(other) = other_group(&mut rig) {
        fds.push(rig.lab.client.fd(other));
    }
    let (fd, event) = rig.event();
    rig.bind_fds(2, 0, &[fd]).unwrap();
    rig.cfg_write(0x10, 4, 0xdead_c000);
    let bar = rig.hw(0x10, 4);
    let pm = rig.cap(1);
    rig.cfg_write(pm + 4, 2, 3);
    rig.asked();
    assert_eq!(reset(&mut rig, &fds), Ok(0));
    assert!(rig.asked().contains(&Asked::Reset(ResetKind::Bus)));
    assert!(second.lock().unwrap().contains(&Asked::Reset(ResetKind::Bus)));
    assert_eq!((rig.hw(pm + 4, 2) & 3, rig.hw(4, 2) & MEMORY, rig.hw(0x10, 4)), (0, MEMORY, bar));
    assert_eq!(rig.cfg(0x10, 4), 0xdead_c004);
    assert!(rig.mapped());
    rig.endpoint().interrupts.message(0);
    assert_eq!(event.take(), 1);
}

/// HOT-042: nobody is told of a hot reset.
#[test]
fn no_index_tells_of_it() {
    let (mut rig, _) = two_with(FunctionSpec { acs: None, ..spec() });
    let second = rig.lab.get_device_fd(rig.group, &SECOND.to_string()).unwrap();
    let events: Vec<_> = [3u32, 4]
        .into_iter()
        .map(|index| {
            let (fd, event) = rig.event();
            let file = std::mem::replace(&mut rig.file, second);
            rig.bind_fds(index, 0, &[fd]).unwrap();
            rig.file = file;
            event
        })
        .collect();
    let fd = rig.lab.client.fd(rig.group);
    assert_eq!(reset(&mut rig, &[fd]), Ok(0));
    assert!(events.iter().all(|event| event.take() == 0));
}

/// HOT-045: a reset at close that cannot be done is not told, and tried again
/// at the next close.
#[test]
fn a_reset_at_close_is_tried_again() {
    let (mut rig, second) = two_with(FunctionSpec { acs: None, ..spec() });
    let is_reset = |log: &std::sync::Mutex<Vec<Asked>>| {
        std::mem::take(&mut *log.lock().unwrap()).contains(&Asked::Reset(ResetKind::Bus))
    };
    rig.lab.board.slots.get_mut(&SECOND).unwrap().locked = true;
    rig.lab.release(rig.file);
    assert!(!is_reset(&rig.log) && !is_reset(&second));
    rig.lab.board.slots.get_mut(&SECOND).unwrap().locked = false;
    // The sibling, which has nothing to be reset for itself, brings it about.
    let other = rig.lab.get_device_fd(rig.group, &SECOND.to_string()).unwrap();
    rig.lab.release(other);
    assert!(is_reset(&rig.log) && is_reset(&second));
}

/// HOT-035, HOT-003, HOT-023: who is bound to vfio-pci is in the set; what is
/// on a bus below is not, but is affected.
#[test]
fn sets_have_what_is_bound() {
    let (mut rig, _) = two_with(FunctionSpec { acs: None, ..spec() });
    let fd = rig.lab.client.fd(rig.group);
    assert_eq!(reset(&mut rig, &[fd]), Ok(0));
    rig.lab.bind("0000:01:00.1", None);
    assert_eq!(reset(&mut rig, &[fd]), Err(Errno::EINVAL), "it has left the set");
    rig.lab.bind("0000:01:00.1", Some(Driver::VfioPci));
    assert_eq!(reset(&mut rig, &[fd]), Ok(0), "and joins it again");

    let mut lab = Lab::new(Options::default());
    let mut builder = pci::FabricBuilder::new();
    let below = Address::new(0, 2, 0, 0);
    builder.plug_auto(ADDRESS, spec());
    builder.add(pci::Item::port(pci::Place::At(SECOND), pci::PortType::PcieToPciBridge).leads_to(2));
    builder.plug_auto(below, spec());
    lab.board.fabric = builder.build().unwrap();
    let (dummy, log) = crate::testing::Dummy::new(spec());
    super::bind(&mut lab, ADDRESS, dummy);
    super::bind(&mut lab, below, crate::testing::Dummy::new(spec()).0);
    let numbers = [ADDRESS, below].map(|address| lab.board.fabric.group(address).unwrap());
    let (container, group) = lab.container_with(numbers[0], 3);
    let file = lab.get_device_fd(group, &ADDRESS.to_string()).unwrap();
    let mut rig = Rig { lab, log, container, group, file };
    let (_, head, _) = info(&mut rig, 100);
    assert_eq!(head.count, 3, "the bridge and what is below it are affected");
    let mut fds = vec![rig.lab.client.fd(rig.group)];
    if numbers[0] != numbers[1] {
        let other = rig.lab.open_group(numbers[1]).unwrap();
        fds.push(rig.lab.client.fd(other));
    }
    assert_eq!(reset(&mut rig, &fds), Err(Errno::EINVAL));
}

/// HOT-032: groups without IOMMU are as good as others, without a right of
/// their own at the reset.
#[test]
fn groups_without_iommu() {
    let mut lab = Lab::new(Options { enable_unsafe_noiommu_mode: true, ..Options::default() });
    let spec = FunctionSpec { flr: false, no_soft_reset: true, ..spec() };
    let log = plug(&mut lab, ADDRESS, spec.clone());
    plug(&mut lab, SECOND, spec);
    lab.vfio.add_noiommu_group(40, vec![ADDRESS]);
    lab.vfio.add_noiommu_group(41, vec![SECOND]);
    lab.client.capabilities.borrow_mut().push(caller::Capability::SysRawio);
    let (container, group) = lab.container_with(40, 8);
    let file = lab.get_device_fd(group, &ADDRESS.to_string()).unwrap();
    let other = lab.open_group(41).unwrap();
    let mut rig = Rig { lab, log, container, group, file };
    assert_eq!(info(&mut rig, 100).2.iter().map(|d| d.group_id).collect::<Vec<_>>(), [40, 41]);
    rig.lab.client.capabilities.borrow_mut().clear();
    let fds = [rig.group, other].map(|file| rig.lab.client.fd(file));
    assert_eq!(reset(&mut rig, &fds[..1]), Err(Errno::EINVAL));
    assert_eq!(reset(&mut rig, &fds), Ok(0));
}

/// HOT-047, HOT-048, HOT-049: the way of a VMM: it looks who is affected, and
/// resets all at once if they are its own, each made quiet before and set up
/// after; else it falls back to the function's own reset.
#[test]
fn as_a_vmm_does_it() {
    let (mut rig, _) = two();
    let group_ids = |rig: &mut Rig| -> Vec<u32> {
        let (first, head, _) = info(rig, 12);
        assert_eq!(first, Err(Errno::ENOSPC));
        let (_, _, list) = info(rig, 12 + 8 * head.count);
        list.iter().map(|device| device.group_id).collect()
    };
    let ids = group_ids(&mut rig);
    let own = [rig.lab.board.fabric.group(ADDRESS).unwrap()];
    let missing: Vec<u32> = ids.iter().copied().filter(|id| !own.contains(id)).collect();
    if !missing.is_empty() {
        let fd = rig.lab.client.fd(rig.group);
        assert_eq!(reset(&mut rig, &[fd]), Err(Errno::EINVAL));
        assert_eq!(rig.ioctl(uapi::vfio::device::RESET, 0), Err(Errno::EINVAL), "it has none of its own");
    }
    let mut fds = vec![rig.lab.client.fd(rig.group)];
    for id in missing {
        let group = rig.lab.open_group(id).unwrap();
        fds.push(rig.lab.client.fd(group));
    }
    let command = rig.cfg(4, 2);
    let pm = rig.cap(1);
    rig.cfg_write(pm + 4, 2, 0);
    rig.cfg_write(4, 2, command & !(MEMORY | super::MASTER | 1));
    rig.asked();
    assert_eq!(reset(&mut rig, &fds), Ok(0));
    assert_eq!(rig.asked().iter().filter(|a| matches!(a, Asked::Reset(_))).count(), 1, "once");
    rig.cfg_write(4, 2, command);
    assert!(rig.mapped());
    assert_eq!(rig.cfg(4, 2), command);
}

/// HOT-043, HOT-044, HOT-046
#[test]
fn the_last_close_of_the_set_resets_the_bus() {
    let (mut rig, second) = two();
    let group = other_group(&mut rig).unwrap_or(rig.group);
    if group != rig.group {
        rig.lab.set_container(group, rig.container).unwrap();
    }
    let other = rig.lab.get_device_fd(group, &SECOND.to_string()).unwrap();
    let is_reset = |log: &std::sync::Mutex<Vec<Asked>>| log.lock().unwrap().contains(&Asked::Reset(ResetKind::Bus));
    rig.lab.release(rig.file);
    assert!(!is_reset(&rig.log), "its sibling is in use");
    rig.lab.release(other);
    assert!(is_reset(&rig.log) && is_reset(&second));
}
