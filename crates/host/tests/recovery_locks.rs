// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! While recovery resets a link it has the device locks of all behind it and
//! of the port: who else wants one waits or is turned away, as in Linux.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use caller::{Reply, Wake};
use pci::cap;
use uapi::Errno;
use world::*;

const RESET: u32 = 0x3b6f;
const ON: [u8; 2] = [6, 0];

fn reset_of(address: &str) -> String {
    format!("/sys/bus/pci/devices/{address}/reset")
}

fn bar(w: &World, address: &str) -> u32 {
    w.host.board().fabric.function(at(address)).unwrap().peek(cap::BAR0, 4) & !0xf
}

/// ERR-049, ERR-074, HOT-029: who only tries for the lock is turned away.
#[test]
fn who_tries_for_the_lock() {
    let mut w = World::pair("");
    let (a, b) = (w.open(A), w.open(B));
    w.raise(A, FATAL);
    w.pass(50);
    assert!(w.host.is_recovering(at(A)));
    assert_eq!(w.host.ioctl(a, RESET, 0, &w.client), Err(Errno::EAGAIN));
    assert_eq!(w.host.ioctl(b, RESET, 0, &w.client), Err(Errno::EAGAIN));
    assert_eq!(w.hot_reset(a), Err(Errno::EAGAIN));
    let below = format!("/sys/bus/pci/devices/{PORT}/reset_subordinate");
    assert_eq!(w.host.store(&below, b"1"), Err(Errno::EAGAIN));
    w.settle();
    assert_eq!(w.host.ioctl(a, RESET, 0, &w.client), Ok(Reply::Value(0)));
    assert_eq!(w.hot_reset(a), Ok(Reply::Value(0)));
    assert!(w.host.store(&below, b"1").is_ok());
}

/// ERR-049, ERR-073, ERR-075: a reset by sysfs waits, and so saves no registers
/// of a function that is being reset. Also for a function that takes its time.
#[test]
fn a_reset_by_the_host_waits() {
    for more in ["", "ready_ms = 700\n"] {
        let mut w = World::extended("block", more);
        let ((a, _), (b, _)) = (w.user(A), w.user(B));
        w.store(a, CONFIG, 4, &ON);
        w.store(b, CONFIG, 4, &ON);
        let before = (bar(&w, A), bar(&w, B));
        w.raise(A, FATAL);
        w.pass(50);
        assert_eq!(bar(&w, B), 0, "its link is being reset");
        let reset = parked(w.host.store(&reset_of(B), b"1"));
        w.settle();
        let mut woken = w.host.take_woken();
        woken.retain(|(ticket, _)| *ticket == reset);
        assert_eq!(woken, [(reset, Wake::Retry)]);
        if let Ok(Reply::Parked(_)) = w.host.store(&reset_of(B), b"1") {
            w.settle();
        }
        assert_eq!((bar(&w, A), bar(&w, B)), before);
        assert_eq!((w.command(A) & 6, w.command(B) & 6), (6, 6));
    }
}

/// ERR-049: so do those who bind and unbind.
#[test]
fn drivers_wait() {
    let mut w = World::extended("block", "");
    let (_a, error) = w.user(A);
    w.raise(A, FATAL);
    w.pass(50);
    let unbind = "/sys/bus/pci/drivers/vfio-pci/unbind";
    let waits = parked(w.host.store(unbind, B.as_bytes()));
    assert!(w.host.board().driver(at(B)).is_some());
    // Somebody who waits may be killed.
    let gone = parked(w.host.store(unbind, B.as_bytes()));
    w.host.abandon(gone);
    w.settle();
    assert_eq!(w.host.take_woken(), [(waits, Wake::Retry)]);
    assert_eq!(error.take(), 1, "B had its driver when it was asked");
    assert!(matches!(w.host.store(unbind, B.as_bytes()), Ok(Reply::Value(_))));
    // And back.
    w.raise(A, FATAL);
    w.pass(50);
    w.host.store(&format!("/sys/bus/pci/devices/{B}/driver_override"), b"vfio-pci").unwrap();
    let bind = parked(w.host.store("/sys/bus/pci/drivers_probe", B.as_bytes()));
    w.settle();
    assert_eq!(w.host.take_woken(), [(bind, Wake::Retry)]);
    w.host.store("/sys/bus/pci/drivers_probe", B.as_bytes()).unwrap();
    assert!(w.host.board().driver(at(B)).is_some());
}

/// The port's own lock is among them, and a reset by sysfs has its port's, too:
/// those of siblings go one after the other.
#[test]
fn the_port_is_locked() {
    let mut w = World::pair("");
    let _ = w.user(A);
    w.raise(A, FATAL);
    w.pass(50);
    let unbind = parked(w.host.store("/sys/bus/pci/drivers/pcieport/unbind", PORT.as_bytes()));
    w.settle();
    assert_eq!(w.host.take_woken(), [(unbind, Wake::Retry)]);

    let slow = format!("{}ready_ms = 700\n{}ready_ms = 700\n", function(0), function(1));
    let mut w = World::new(&slow);
    let first = parked(w.host.store(&reset_of(A), b"1"));
    let second = parked(w.host.store(&reset_of(B), b"1"));
    w.settle();
    assert_eq!(w.host.take_woken(), [(first, Wake::Done(Ok(1))), (second, Wake::Retry)]);
    // A program's reset of its function is under that function's lock alone.
    let b = w.open(B);
    let third = parked(w.host.store(&reset_of(A), b"1"));
    let own = parked(w.host.ioctl(b, RESET, 0, &w.client));
    w.settle();
    assert_eq!(w.host.take_woken(), [(third, Wake::Done(Ok(1))), (own, Wake::Done(Ok(0)))]);
}
