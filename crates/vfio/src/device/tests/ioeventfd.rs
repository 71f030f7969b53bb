// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOEVENTFD: API-184 to API-188.

use uapi::Errno;
use uapi::vfio::device::{IOEVENTFD, Ioeventfd};

use super::{Rig, TABLE, VECTORS};
use crate::testing::Asked;

fn ask(rig: &mut Rig, bar: u32, pos: u64, size: u32, data: u64, fd: i32) -> Result<(), Errno> {
    let offset = uapi::region::offset(0, bar) + pos;
    let request = Ioeventfd { argsz: 32, flags: size, offset, data, fd, reserved: 0 };
    rig.call(IOEVENTFD, &request).map(|_| ())
}

/// API-184
#[test]
fn arguments() {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    let good = Ioeventfd { argsz: 28, flags: 4, offset: uapi::region::offset(0, 3), data: 1, fd, reserved: 0 };
    assert_eq!(rig.ioctl(IOEVENTFD, 0), Err(Errno::EFAULT));
    for bad in [
        Ioeventfd { argsz: 27, ..good },
        Ioeventfd { flags: 0, ..good },
        Ioeventfd { flags: 3, ..good },
        Ioeventfd { flags: 16, ..good },
        Ioeventfd { flags: 20, ..good },
        Ioeventfd { fd: -2, ..good },
    ] {
        assert_eq!(rig.call(IOEVENTFD, &bad), Err(Errno::EINVAL), "{bad:?}");
    }
    assert!(rig.call(IOEVENTFD, &good).is_ok());
}

/// API-185
#[test]
fn places() {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    let end = TABLE + u64::from(VECTORS) * 16;
    for (bar, pos, size) in [
        (6, 0, 4),
        (7, 0, 4),
        (1, 0, 4),
        (3, 254, 4),
        (3, 256, 1),
        (0, TABLE, 4),
        (0, TABLE - 1, 2),
        (0, end - 1, 1),
        (3, 0, 8),
    ] {
        assert_eq!(ask(&mut rig, bar, pos, size, 0, fd), Err(Errno::EINVAL), "{bar} {pos:#x} {size}");
    }
    assert_eq!(ask(&mut rig, 0, TABLE - 4, 4, 0, fd), Ok(()));
    assert_eq!(ask(&mut rig, 0, end, 4, 0, fd), Ok(()));
    assert_eq!(ask(&mut rig, 2, 0, 2, 0, fd), Ok(()), "I/O as well");
}

/// API-186
#[test]
fn adding_and_removing() {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    let foreign = rig.lab.client.foreign_fd();
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, -1), Err(Errno::ENODEV));
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, 999), Err(Errno::EBADF));
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, foreign), Err(Errno::EINVAL));
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, fd), Ok(()));
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, fd), Err(Errno::EEXIST));
    assert_eq!(ask(&mut rig, 3, 0, 2, 7, fd), Ok(()), "another size");
    assert_eq!(ask(&mut rig, 3, 0, 4, 8, fd), Ok(()), "other data");
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, -1), Ok(()));
    assert_eq!(ask(&mut rig, 3, 0, 4, 7, -1), Err(Errno::ENODEV));
    assert_eq!(rig.watched(), 2);
    for data in 100..1098 {
        assert_eq!(ask(&mut rig, 3, 0, 4, data, fd), Ok(()));
    }
    assert_eq!(ask(&mut rig, 3, 0, 4, 2000, fd), Err(Errno::ENOSPC));
    // API-188
    rig.lab.release(rig.file);
    assert_eq!(rig.watched(), 0);
}

/// API-187
#[test]
fn a_signal_stores() {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    ask(&mut rig, 3, 6, 4, 0x1122_3344_5566_7788, fd).unwrap();
    rig.asked();
    rig.fire();
    assert_eq!(rig.asked(), [Asked::Write(3, 6, vec![0x88, 0x77]), Asked::Write(3, 8, vec![0x66, 0x55])]);
    rig.set_command(0);
    rig.asked();
    rig.fire();
    assert_eq!(rig.asked(), [], "dropped");
}
