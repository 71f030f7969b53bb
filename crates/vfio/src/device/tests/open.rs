// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open and close: API-052 to API-055, API-189 to API-191, API-269 to
//! API-274.

use pci::cap;
use uapi::Errno;

use super::{ADDRESS, INTX_DISABLE, MASTER, MEMORY, Rig, spec};
use crate::Options;
use crate::testing::{Asked, Lab};
use ::device::{Mode, ResetKind};

/// API-189, API-190, API-191
#[test]
fn first_open() {
    let mut lab = Lab::new(Options::default());
    let log = super::plug(&mut lab, ADDRESS, spec());
    let function = lab.board.fabric.function_mut(ADDRESS).unwrap();
    let pm = function.capability(cap::PM).unwrap();
    function.write(cap::COMMAND, 2, MASTER | INTX_DISABLE);
    function.write(pm + 4, 2, 3);
    let number = lab.board.fabric.group(ADDRESS).unwrap();
    let (_, group) = lab.container_with(number, 3);
    lab.get_device_fd(group, "0000:01:00.0").unwrap();
    let function = lab.board.fabric.function(ADDRESS).unwrap();
    assert_eq!(function.power_state(), 0);
    let command = function.command();
    assert_eq!(command & (cap::COMMAND_MASTER | cap::COMMAND_INTX_DISABLE), 0);
    assert_eq!(command & 3, 3, "memory and I/O decode");
    assert!(log.lock().unwrap().contains(&Asked::Reset(ResetKind::FunctionLevel)));
}

/// API-053
#[test]
fn files_share_the_device() {
    let mut rig = Rig::new();
    rig.asked();
    let other = rig.reopen();
    assert_eq!(rig.asked(), [], "no open work");
    assert_eq!(rig.lab.platform.made.lock().unwrap().len(), 1);
    rig.cfg_write(0x3c, 1, 0x5a);
    let first = std::mem::replace(&mut rig.file, other);
    assert_eq!(rig.cfg(0x3c, 1), 0x5a);
    rig.lab.release(first);
    assert_eq!(rig.cfg(0x3c, 1), 0x5a);
    assert!(!rig.asked().iter().any(|a| matches!(a, Asked::Reset(_))));
    rig.lab.release(other);
    assert!(rig.asked().contains(&Asked::Reset(ResetKind::FunctionLevel)));
    assert_eq!(rig.lab.vfio.device_address(other), None);
}

/// API-269, API-270, API-188
#[test]
fn last_close() {
    let mut rig = Rig::new();
    let (fd, event) = rig.event();
    let before = rig.hw(4, 2);
    rig.bind_fds(2, 0, &[fd, fd]).unwrap();
    rig.bind_fds(3, 0, &[fd]).unwrap();
    rig.bind_fds(4, 0, &[fd]).unwrap();
    rig.set_command(MEMORY | MASTER | INTX_DISABLE);
    let pm = rig.cap(1);
    rig.cfg_write(pm + 4, 2, 3);
    let aer = rig.ext(1);
    rig.cfg_write(aer + 8, 4, 0x10);
    rig.asked();
    rig.lab.release(rig.file);
    assert_eq!(std::sync::Arc::strong_count(&event), 2, "every eventfd is dropped");
    assert_eq!(rig.endpoint().interrupts.mode(), Mode::None);
    assert!(!rig.mapped());
    assert!(rig.asked().contains(&Asked::Reset(ResetKind::FunctionLevel)));
    assert_eq!((rig.hw(4, 2), rig.hw(pm + 4, 2) & 3), (before & !MASTER, 0), "as at open");
    let msix = rig.cap(0x11);
    assert_eq!(rig.hw(msix + 2, 2) & 0x8000, 0);
    assert_ne!(rig.hw(aer + 8, 4), 0x10, "the state of open");
    assert!(!rig.lab.vfio.is_open(ADDRESS));
    // The next user finds nothing of this one's.
    rig.file = rig.reopen();
    assert_eq!(rig.cfg(4, 2) & (MASTER | INTX_DISABLE), 0);
    assert_eq!(rig.bind_fds(0, 0, &[fd]), Ok(0));
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(event.take(), 1);
}

/// The next open finds its regions at the same offsets.
#[test]
fn device_numbers_are_stable() {
    let mut rig = Rig::new();
    let offset = rig.region(0).unwrap().offset;
    rig.lab.release(rig.file);
    rig.file = rig.reopen();
    assert_eq!(rig.region(0).unwrap().offset, offset);
}

/// API-273
#[test]
fn unbound_devices_are_not_opened() {
    let mut rig = Rig::new();
    rig.lab.bind("0000:01:00.0", None);
    assert_eq!(rig.lab.get_device_fd(rig.group, "0000:01:00.0"), Err(Errno::ENODEV));
}

/// API-272
#[test]
fn the_user_is_asked_once_it_listens() {
    let mut rig = Rig::new();
    assert!(!rig.lab.vfio.request_release(ADDRESS));
    let (fd, event) = rig.event();
    rig.bind_fds(4, 0, &[fd]).unwrap();
    assert!(rig.lab.vfio.request_release(ADDRESS));
    assert!(rig.lab.vfio.request_release(ADDRESS), "as often as the host likes");
    assert_eq!(event.take(), 2);
    rig.lab.release(rig.file);
    assert!(!rig.lab.vfio.request_release(ADDRESS));
}

/// API-054, API-055, API-274
#[test]
fn a_device_outlives_its_group_s_descriptor() {
    let mut rig = Rig::new();
    rig.lab.release(rig.container);
    rig.lab.release(rig.group);
    assert_eq!(rig.cfg(0, 4), 0x0010_1b36);
    rig.lab.release(rig.file);
    let number = rig.lab.board.fabric.group(ADDRESS).unwrap();
    assert!(rig.lab.open_group(number).is_ok());
}
