// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One reset domain: a reset of the function is one of every part, a reset of
//! a part concerns its own work only.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use models::dsa::spec;
use uapi::Errno;
use uapi::vfio::device::RESET;

use crate::users::{HOLE, Shared, User};

const PARENT: &str = "/sys/bus/pci/devices/0000:01:00.0";

/// Two users whose descriptors wait for a page.
fn two() -> (Shared, [User; 2]) {
    let mut s = Shared::new("");
    let mut users = [s.user(0), s.user(1)];
    for (user, pasid) in users.iter_mut().zip(10..) {
        let queue = user.queue(&mut s);
        user.attach(&mut s, pasid, queue).unwrap();
        user.submit(&mut s, 0, Some(pasid), HOLE);
        assert_eq!(user.outstanding(), 1);
    }
    (s, users)
}

fn is_enabled(user: &mut User, s: &mut Shared) -> bool {
    user.load(s, 0, spec::GENSTS) & 3 == 1
}

/// FAULT-5.4: `VFIO_DEVICE_RESET` of one user, and the reset at its close.
#[test]
fn of_one_user() {
    let (mut s, [mut one, mut other]) = two();
    s.host.ioctl(one.device, RESET, 0, &one.client).unwrap();
    assert_eq!((one.outstanding(), other.outstanding()), (0, 1));
    assert!(!is_enabled(&mut one, &mut s) && is_enabled(&mut other, &mut s));
    one.start(&mut s);
    s.host.release(one.device);
    assert_eq!(other.outstanding(), 1);
    assert!(is_enabled(&mut other, &mut s));
}

/// ERR-073: the host resets the function: each part is as after power on, its
/// requests forgotten, and can be used again.
#[test]
fn of_the_function() {
    let (mut s, mut users) = two();
    s.host.store(&format!("{PARENT}/reset"), b"1").unwrap();
    for (user, pasid) in users.iter_mut().zip(10..) {
        assert_eq!(user.outstanding(), 0);
        assert!(!is_enabled(user, &mut s));
        user.start(&mut s);
        assert!(is_enabled(user, &mut s));
        user.submit(&mut s, 1, Some(pasid), HOLE);
        assert_eq!(user.outstanding(), 1);
    }
}

/// The driver that lends parts stays; parts are no functions that a driver of
/// the PCI bus could be bound to.
#[test]
fn the_driver_stays() {
    let (mut s, users) = two();
    assert_eq!(s.host.store("/sys/bus/pci/drivers/idxd/unbind", b"0000:01:00.0"), Err(Errno::EBUSY));
    assert_eq!(s.host.store("/sys/bus/pci/drivers/vfio-pci/unbind", b"ffff:00:00.0"), Err(Errno::ENODEV));
    for user in users {
        s.host.release(user.device);
    }
    assert_eq!(s.host.store("/sys/bus/pci/drivers/idxd/unbind", b"0000:01:00.0"), Err(Errno::EBUSY));
}
