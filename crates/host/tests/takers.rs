// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extension: errors that somebody beside the program answers for.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use host::NotTaken;
use pci::aer::parse;
use world::*;

/// A taker is told in place of the eventfd, of what it asked for;
/// failed recovery and what it leaves behind go to the eventfd.
#[test]
fn takers_of_errors() {
    let mut w = World::pair("");
    let ((_, a_err), (_, b_err)) = (w.user(A), w.user(B));
    let counts = || (a_err.take(), b_err.take());
    let taker = w.host.take_errors(&[at(A)], false).unwrap();
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!(counts(), (0, 1), "B has no taker");
    assert!(w.host.answered_error(at(A)) && !w.host.answered_error(at(A)));
    w.raise(B, NONFATAL);
    w.settle();
    assert_eq!(counts(), (0, 1));
    w.host.give_errors_back(taker);
    assert_eq!(counts(), (1, 0), "a notice that was owed");
    let taker = w.host.take_errors(&[at(A)], false).unwrap();
    w.raise(A, FATAL);
    w.settle();
    assert_eq!(counts(), (1, 1), "fatal ones were not asked for");
    w.host.give_errors_back(taker);
    w.host.take_errors(&[at(A), at(B)], true).unwrap();
    w.host.give_errors_back(taker);
    w.host.inject(&parse("AER UNCOR_STATUS MALF_TLP").unwrap(), Some(at(B))).unwrap();
    w.settle();
    assert_eq!(counts(), (0, 0), "the other taker has not gone");
    assert!(w.host.answered_error(at(A)) && w.host.answered_error(at(B)));
}

/// ERR-030, ERR-035: a taker of a non-fatal error; its failed recovery signals
/// the eventfd.
#[test]
fn takers_and_failed_recovery() {
    let mut w = World::pair("driver = \"none\"\n");
    let (_, error) = w.user(A);
    w.host.take_errors(&[at(A)], true).unwrap();
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!((error.take(), w.host.answered_error(at(A))), (1, false));
}

#[test]
fn what_cannot_be_taken() {
    let mut w = World::pair("driver = \"nic\"\n");
    let (nowhere, port) = (at("0000:09:00.0"), at(PORT));
    assert_eq!(w.host.take_errors(&[at(A), nowhere], true), Err(NotTaken::NoFunction(nowhere)));
    assert_eq!(w.host.take_errors(&[at(A), at(B)], true), Err(NotTaken::NotVfio(at(B))));
    assert_eq!(w.host.take_errors(&[port], true), Err(NotTaken::NotVfio(port)));
    let taker = w.host.take_errors(&[at(A)], true).unwrap();
    assert_eq!(w.host.take_errors(&[at(A)], true), Err(NotTaken::Taken(at(A))));
    w.host.give_errors_back(taker);
    w.host.take_errors(&[at(A)], true).unwrap();
}
