// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files as people write them for the `aer-inject` tool: accepted, and they do
//! what they say; and those that are refused.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use host::NotInjected;
use pci::aer::{InjectError, parse};
use world::*;

/// Injects a file at function A; what the root port and the user count:
/// correctable, non-fatal, fatal messages, and signals of ERR.
fn injected(text: &str) -> ([u64; 3], u64) {
    let mut w = World::pair("");
    let (_, error) = w.user(A);
    let stanzas = parse(text).unwrap();
    w.host.inject(&stanzas, stanzas.iter().all(|s| s.target.is_none()).then(|| at(A))).unwrap();
    w.settle();
    (w.host.root_error_counters(at(PORT)), error.take())
}

/// ERR-063, ERR-065, ERR-066, ERR-067: the examples that the tool's
/// documentation, kernel developers' mails and test suites show.
#[test]
fn examples_do_what_they_say() {
    let hint = "# PCI_ID [WWWW:]XX.YY.Z\n";
    for (text, counts) in [
        // One error of each kind, where to given on the command line.
        ("AER\nCOR_STATUS BAD_TLP\nHEADER_LOG 0 1 2 3\n", ([1, 0, 0], 0)),
        (&format!("AER\n{hint}UNCOR_STATUS COMP_ABORT\nHEADER_LOG 0 1 2 3\n"), ([0, 1, 0], 1)),
        ("AER\nUNCOR_STATUS MALF_TLP\nHEADER_LOG 0 1 2 3\n", ([0, 0, 1], 1)),
        ("AER\nUNCOR_STATUS TRAIN\nHEADER_LOG 0 1 2 3\n", ([0, 1, 0], 1)),
        // Where to in the file, in both ways.
        ("AER\nPCI_ID 0000:01:00.0\nUNCOR_STATUS COMP_ABORT\nHEADER_LOG 0 1 2 3\n", ([0, 1, 0], 1)),
        ("AER\nDOMAIN 0\nBUS 1 DEV 0 FN 0\nCOR_STATUS BAD_TLP\n", ([1, 0, 0], 0)),
        ("AER BUS 0x1 DEV 0 FN 1\nUNCOR_STATUS UNX_COMP\nHEADER_LOG 0 1 2 3\n", ([0, 1, 0], 1)),
        // Several errors of one function at once.
        (&format!("AER\n{hint}COR_STATUS BAD_TLP\nUNCOR_STATUS COMP_ABORT\nHEADER_LOG 0 1 2 3\n"), ([1, 1, 0], 1)),
        ("AER COR_STATUS RCVR BAD_TLP BAD_DLLP REP_ROLL REP_TIMER\n", ([1, 0, 0], 0)),
        ("AER UNCOR_STATUS POISON_TLP COMP_TIME ECRC UNSUP\n", ([0, 1, 0], 1)),
        ("AER UNCOR_STATUS DLP FCP RX_OVER MALF_TLP\n", ([0, 0, 1], 1)),
        // One after the other.
        (
            "AER\nPCI_ID 01:00.0\nCOR_STATUS BAD_TLP\nHEADER_LOG 0 1 2 3\n#\n\
             AER\nPCI_ID 01:00.1\nUNCOR_STATUS COMP_ABORT\nHEADER_LOG 4 5 6 7\n",
            ([1, 1, 0], 1),
        ),
    ] {
        assert_eq!(injected(text), counts, "{text}");
    }
}

/// ERR-053, ERR-061, ERR-062: absent functions, masked errors, and errors under
/// the wrong heading; nothing reaches the user.
#[test]
fn files_that_are_refused() {
    let mut w = World::pair("");
    let (_, error) = w.user(A);
    let nowhere = at("0000:07:00.0");
    let mut refused = |text: &str| match w.host.inject(&parse(text).unwrap(), None) {
        Err(NotInjected::Refused { error }) => error,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(refused("AER PCI_ID 07:00.0 COR_STATUS BAD_TLP"), InjectError::NoDevice(nowhere));
    let masked = InjectError::CorrectableMasked(at(A), 1 << 13);
    assert_eq!(refused("AER PCI_ID 01:00.0 COR_STATUS 0x2000"), masked, "advisory non-fatal errors are masked");
    let masked = InjectError::UncorrectableMasked(at(A), 1 << 22);
    assert_eq!(refused("AER PCI_ID 01:00.0 UNCOR_STATUS 0x400000"), masked, "so are internal errors");
    w.settle();
    assert_eq!((w.host.root_error_counters(at(PORT)), error.take()), ([0, 0, 0], 0));
    for (text, complaint) in [
        ("AER\nPCI_ID 01:00.0\nCOR_STATUS COMP_ABORT\n", "3:12: `COMP_ABORT`"),
        ("AER\nUNCOR_STATUS COMP_ABORT BAD_TLP\n", "2:25: `BAD_TLP`"),
        ("AER\nHEADER_LOG 0 1 2\n", "2:1: HEADER_LOG is not followed by a number"),
        ("COR_STATUS BAD_TLP\n", "1:1: `COR_STATUS`: an error begins with AER"),
        ("AER\n  PCI_ID 1:0.0\n", "2:10: `1:0.0` is not a PCI address"),
    ] {
        let got = parse(text).unwrap_err().to_string();
        assert!(got.starts_with(complaint), "{text}: {got}");
    }
}
