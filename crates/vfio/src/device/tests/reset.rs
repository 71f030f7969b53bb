// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RESET (vfio-api.md, section 6.7; vfio-error-recovery.md, section 6).

use pci::{FunctionSpec, ResetMethod};
use uapi::Errno;
use uapi::vfio::device::RESET;

use super::{MASTER, MEMORY, Rig, spec};
use crate::Options;
use crate::testing::Asked;
use ::device::ResetKind;

/// API-179
#[test]
fn without_a_method() {
    // A function that keeps its state in D3hot, with a neighbour.
    let spec = FunctionSpec { flr: false, no_soft_reset: true, ..spec() };
    let mut lab = crate::testing::Lab::new(Options::default());
    let log = super::plug(&mut lab, super::ADDRESS, spec.clone());
    super::plug(&mut lab, pci::Address::new(0, 1, 0, 1), spec);
    let number = lab.board.fabric.group(super::ADDRESS).unwrap();
    let (_, group) = lab.container_with(number, 3);
    let file = lab.get_device_fd(group, "0000:01:00.0").unwrap();
    assert_eq!(lab.ioctl(file, RESET, 0), Err(Errno::EINVAL));
    assert!(!log.lock().unwrap().iter().any(|asked| matches!(asked, Asked::Reset(_))));
}

/// API-179
#[test]
fn methods() {
    for (change, kind) in [
        (FunctionSpec { flr: true, ..spec() }, ResetKind::FunctionLevel),
        (FunctionSpec { flr: false, af_flr: true, ..spec() }, ResetKind::FunctionLevel),
        (FunctionSpec { flr: false, ..spec() }, ResetKind::PowerManagement),
        (FunctionSpec { flr: false, no_soft_reset: true, ..spec() }, ResetKind::Bus),
    ] {
        let mut rig = Rig::with(change, Options::default());
        rig.asked();
        assert_eq!(rig.ioctl(RESET, 0), Ok(0));
        let resets: Vec<Asked> = rig.asked().into_iter().filter(|a| matches!(a, Asked::Reset(_))).collect();
        assert_eq!(resets, [Asked::Reset(kind)]);
    }
}

/// API-180, API-182, ERR-077, ERR-078, ERR-080
#[test]
fn hardware_comes_back_and_the_shadow_stays() {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    rig.bind_fds(2, 0, &[fd]).unwrap();
    rig.set_command(MEMORY | MASTER);
    rig.cfg_write(0x10, 4, 0xdead_c000);
    rig.cfg_write(0x3c, 1, 0x33);
    let command = rig.hw(4, 2);
    let bar = rig.hw(0x10, 4);
    let pm = rig.cap(1);
    rig.cfg_write(pm + 4, 2, 3);
    rig.asked();
    assert_eq!(rig.ioctl(RESET, 0), Ok(0));
    assert_eq!((rig.hw(4, 2), rig.hw(0x10, 4), rig.hw(pm + 4, 2) & 3), (command, bar, 0));
    let msix = rig.cap(0x11);
    assert_eq!(rig.hw(msix + 2, 2) & 0x8000, 0x8000);
    assert_eq!((rig.cfg(0x10, 4), rig.cfg(0x3c, 1)), (0xdead_c004, 0x33));
    assert!(rig.mapped());
    // The windows appear again after the reset, with what the device stores.
    let asked = rig.asked();
    let reset = asked.iter().rposition(|a| matches!(a, Asked::Reset(_))).unwrap();
    assert!(asked[reset..].contains(&Asked::Publish));
}

/// API-180: memory that was off stays off.
#[test]
fn memory_stays_off() {
    let mut rig = Rig::new();
    rig.set_command(0);
    assert_eq!(rig.ioctl(RESET, 0), Ok(0));
    assert!(!rig.mapped());
    assert_eq!(rig.hw(4, 2) & MEMORY, 0);
}

/// API-181, API-183, ERR-083: the device stays open, and so do its eventfds.
#[test]
fn interrupts_stay() {
    let mut rig = Rig::new();
    let (fd, event) = rig.event();
    let (err, error) = rig.event();
    rig.bind_fds(2, 0, &[fd]).unwrap();
    rig.bind_fds(3, 0, &[err]).unwrap();
    assert_eq!(rig.ioctl(RESET, 0), Ok(0));
    rig.endpoint().interrupts.message(0);
    assert_eq!(event.take(), 1);
    assert!(rig.lab.vfio.signal_error(super::ADDRESS));
    assert_eq!(error.take(), 1);

    let mut rig = Rig::new();
    let (fd, event) = rig.event();
    rig.bind_fds(0, 0, &[fd]).unwrap();
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(rig.ioctl(RESET, 0), Ok(0));
    rig.endpoint().interrupts.set_pin(true);
    assert_eq!(event.take(), 1, "still masked");
    rig.irqs(0, 0x11, 0, 1, &[]).unwrap();
    assert_eq!(event.take(), 1);
}

fn resets(asked: Vec<Asked>) -> Vec<Asked> {
    asked.into_iter().filter(|asked| matches!(asked, Asked::Reset(_))).collect()
}

/// ERR-073, ERR-075, ERR-077: a reset by the host, under a program that has the
/// device open and without.
#[test]
fn by_the_host() {
    let mut rig = Rig::new();
    rig.set_command(MEMORY | MASTER);
    let (command, bar) = (rig.hw(4, 2), rig.hw(0x10, 4));
    rig.asked();
    rig.lab.vfio.host_reset(super::ADDRESS, &mut rig.lab.board).unwrap();
    assert_eq!(resets(rig.asked()), [Asked::Reset(ResetKind::FunctionLevel)]);
    assert_eq!((rig.hw(4, 2), rig.hw(0x10, 4)), (command, bar));
    assert!(rig.mapped());

    let file = rig.file;
    rig.lab.release(file);
    let pm = rig.cap(1);
    for (method, kind) in [(None, ResetKind::FunctionLevel), (Some(ResetMethod::Pm), ResetKind::PowerManagement)] {
        rig.lab.board.slots.get_mut(&super::ADDRESS).unwrap().reset_methods = method.map(|method| vec![method]);
        rig.function().write(4, 2, MEMORY);
        let (command, bar) = (rig.hw(4, 2), rig.hw(0x10, 4));
        rig.function().write(pm + 4, 2, 3);
        rig.asked();
        rig.lab.vfio.host_reset(super::ADDRESS, &mut rig.lab.board).unwrap();
        assert_eq!(resets(rig.asked()).last(), Some(&Asked::Reset(kind)));
        assert_eq!((rig.hw(4, 2), rig.hw(0x10, 4), rig.hw(pm + 4, 2) & 3), (command, bar, 0));
    }
}

/// ERR-068, ERR-069, ERR-072: the methods that the host's administrator chose,
/// in their order; API-179, ERR-074: what the program gets when none is left,
/// and while somebody else holds the device's lock.
#[test]
fn chosen_methods() {
    let mut rig = Rig::new();
    let choose = |rig: &mut Rig, methods: &[ResetMethod]| {
        rig.lab.board.slots.get_mut(&super::ADDRESS).unwrap().reset_methods = Some(methods.to_vec());
    };
    for (methods, kind) in [
        (&[ResetMethod::Bus, ResetMethod::Flr][..], ResetKind::Bus),
        (&[ResetMethod::Pm], ResetKind::PowerManagement),
        // The capability is not there: the next.
        (&[ResetMethod::AfFlr, ResetMethod::Flr], ResetKind::FunctionLevel),
    ] {
        choose(&mut rig, methods);
        rig.asked();
        assert_eq!(rig.ioctl(RESET, 0), Ok(0));
        assert_eq!(resets(rig.asked()), [Asked::Reset(kind)]);
    }
    choose(&mut rig, &[]);
    assert_eq!(rig.ioctl(RESET, 0), Err(Errno::ENOTTY));
    assert_eq!(rig.lab.vfio.host_reset(super::ADDRESS, &mut rig.lab.board), Err(Errno::ENOTTY));
    choose(&mut rig, &[ResetMethod::Flr]);
    rig.lab.board.slots.get_mut(&super::ADDRESS).unwrap().locked = true;
    rig.asked();
    assert_eq!(rig.ioctl(RESET, 0), Err(Errno::EAGAIN));
    assert_eq!(resets(rig.asked()), []);
    assert!(rig.mapped());
}
