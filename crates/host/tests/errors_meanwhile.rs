// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors while something else is under way: an unplug, a close, another
//! recovery. Nobody is left waiting, and every count of an eventfd has its
//! reason.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use host::lab::Behaviour;
use pci::aer::AerError;
use pci::cap;
use world::*;

const C: &str = "0000:02:00.0";
const ON: [u8; 2] = [6, 0];

fn port(n: u8, more: &str) -> String {
    format!("[[port]]\naddr = \"00:0{n}.0\"\nbus = {n}\n{more}\n")
}

/// Nothing is under way, and nobody waits.
#[track_caller]
fn is_over(w: &World) {
    assert!(w.host.is_calm());
    assert_eq!((w.host.waiting(), w.host.deadline()), (0, None));
}

/// ERR-018: a device is pulled out, and its user has not let go when the port
/// reports an error. The removal has the device's lock, so recovery waits; when
/// the device has gone there is nobody left to recover.
#[test]
fn while_a_device_is_unplugged() {
    let mut w = World::new(&format!("{}{}", port(1, "hotplug = true"), function(0)));
    let (a, error) = w.user(A);
    let request = w.event(a, 4);
    w.host.misbehave(at(A), Behaviour::Remove, &AerError::default()).unwrap();
    assert_eq!((error.take(), request.take()), (0, 1));
    w.raise(PORT, NONFATAL);
    w.pass(1_000);
    // What it reports itself gets nowhere.
    w.raise(A, FATAL);
    w.pass(1_000);
    assert_eq!((error.take(), w.host.is_recovering(at(A))), (0, true));
    w.host.release(a);
    w.settle();
    assert!(w.host.board().fabric.function(at(A)).is_none());
    is_over(&w);
}

/// In the middle of the recovery that it is in: the recovery ends, then the
/// device leaves.
#[test]
fn a_device_is_unplugged_while_it_recovers() {
    for names in ["", "block non-fatal passive-reset"] {
        let text = format!("{}{}{}", extensions(names), port(1, "hotplug = true\nlink_ms = 300"), function(0));
        let mut w = World::new(&text);
        let (a, error) = w.user(A);
        let request = w.event(a, 4);
        w.raise(A, FATAL);
        w.pass(50);
        assert_eq!((error.take(), w.host.is_recovering(at(A))), (1, true));
        w.host.misbehave(at(A), Behaviour::Remove, &AerError::default()).unwrap();
        w.pass(100_000);
        assert_eq!((error.take(), request.take() > 0), (1, true), "{names}: recovery has failed");
        w.host.release(a);
        assert!(w.host.board().fabric.function(at(A)).is_none());
        is_over(&w);
    }
}

/// ERR-018: a device is closed, and its reset holds recovery up. Who opens it
/// next finds it as ever.
#[test]
fn while_a_closed_device_is_reset() {
    for names in ["", "block"] {
        let text = format!("{}{}ready_ms = 700\n{}", extensions(names), function(0), function(1));
        let mut w = World::new(&text);
        let (a, (_b, error)) = (w.open(A), w.user(B));
        let bar = w.host.board().fabric.function(at(A)).unwrap().peek(cap::BAR0, 4);
        w.store(a, CONFIG, 4, &ON);
        w.host.release(a);
        w.raise(B, NONFATAL);
        w.pass(500);
        assert_eq!((error.take(), w.host.is_recovering(at(B))), (0, true), "it is being reset");
        w.settle();
        assert_eq!(error.take(), 1);
        let group = w.client.file_id(w.groups[0]).unwrap();
        let a = w.open_device(group, A);
        assert_eq!((w.host.board().fabric.function(at(A)).unwrap().peek(cap::BAR0, 4), w.command(A) & 4), (bar, 0));
        w.store(a, CONFIG, 4, &ON);
        assert_ne!(w.load(a, 0, 8, 4), !0);
        w.settle();
        is_over(&w);
    }
}

/// The same port has them one after the other; another port recovers beside
/// it, and its user is not told.
#[test]
fn while_another_recovery_runs() {
    let third = "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\n";
    let slow = port(1, "link_ms = 900");
    let mut w = World::new(&format!("{}{slow}{}{}{third}", extensions("block"), function(0), function(1)));
    let ((a, a_err), (_b, b_err), (c, c_err)) = (w.user(A), w.user(B), w.user(C));
    w.store(a, CONFIG, 4, &ON);
    w.store(c, CONFIG, 4, &ON);
    w.raise(A, FATAL);
    w.pass(100);
    assert_eq!((a_err.take(), b_err.take(), c_err.take()), (1, 1, 0));
    w.raise(C, FATAL);
    w.pass(500);
    assert_eq!((a_err.take(), b_err.take(), c_err.take()), (0, 0, 1));
    assert!(w.host.is_recovering(at(A)) && !w.host.is_recovering(at(C)), "the other is over");
    assert_ne!(w.load(c, 0, 8, 4), !0);
    w.settle();
    // While the link is reset the root port is silent (ERR-049).
    w.raise(PORT, FATAL);
    w.raise(PORT, NONFATAL);
    w.settle();
    assert_eq!((a_err.take(), b_err.take(), c_err.take()), (1, 1, 0), "the second is not heard of");
    w.raise(PORT, NONFATAL);
    w.settle();
    assert_eq!((a_err.take(), b_err.take(), c_err.take()), (1, 1, 0));
    assert_ne!(w.load(a, 0, 8, 4), !0);
    is_over(&w);
}

/// A poisoned TLP: the function logs it with its parity bit, and reports it as
/// non-fatal (section 3, bit 12).
#[test]
fn a_poisoned_tlp() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    w.host.misbehave(at(A), Behaviour::Poison, &AerError::default()).unwrap();
    w.settle();
    assert_eq!((error.take(), w.host.error_counters(at(A)).nonfatal[12]), (1, 1));
    assert_eq!(w.load(a, CONFIG, 6, 2) & 0x8000, 0x8000, "detected parity error");
    assert_ne!(w.load(a, 0, 8, 4), !0, "it works on");
}
