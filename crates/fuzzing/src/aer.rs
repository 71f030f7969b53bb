// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files of the `aer-inject` tool: any text, injected into a lab with drivers
//! of every kind.
//!
//! An input is text. Laws: a complaint names a place in the text; whatever is
//! injected, recovery ends in bounded time and every function still answers.

use std::sync::Arc;

use caller::Platform;
use host::{Host, Lab};
use models::testing::MemoryDisk;
use pci::{Answers, aer};
use sim::SimPlatform;

/// More is refused for its length before it is looked at.
const LONGEST: usize = 4 << 10;
/// Injections of an input; the rest is only read.
const MOST: usize = 20;

const LAB: &str = r#"
[[port]]
addr = "00:01.0"
bus = 1
dpc = true
[[device]]
model = "ioat"
addr = "01:00.0"
[[device]]
model = "ioat"
addr = "01:00.1"
driver = "nic"
[[device]]
model = "ioat"
addr = "02:00.0"
driver = "nic"
on_error = "normal=need-reset frozen=disconnect slot_reset=recovered"
[[device]]
model = "ioat"
addr = "03:00.0"
driver = "none"
ready_ms = 50
"#;

#[derive(Debug)]
struct NoDisks;

impl host::Storage for NoDisks {
    fn open(&self, _: &host::lab::DiskSpec) -> Result<Arc<dyn device::Disk>, String> {
        Ok(MemoryDisk::new(4096))
    }
}

/// The body of the target `aer`.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(&data[..data.len().min(LONGEST)]) else { return };
    let injections = match aer::parse(text) {
        Ok(injections) => injections,
        Err(error) => {
            let line = text.split('\n').nth(error.line.wrapping_sub(1));
            let inside = line.is_some_and(|line| (1..=line.chars().count() + 1).contains(&error.column));
            assert!(inside && !error.message.is_empty(), "{error}");
            return;
        }
    };
    for injection in &injections {
        let (line, column) = injection.place;
        let at = text.split('\n').nth(line - 1).and_then(|line| line.get(column - 1..));
        assert!(
            at.is_none_or(|at| at.get(..3).is_some_and(|word| word.eq_ignore_ascii_case("AER"))),
            "{line}:{column}"
        );
    }
    let platform = SimPlatform::new(1);
    let lab = Lab::parse("aer", LAB).expect("the lab is well-formed");
    let mut host = Host::new(lab, Arc::clone(&platform) as _, Box::new(NoDisks)).expect("the lab can be built");
    for injection in injections.iter().take(MOST) {
        // Refusals are those of Linux; tested beside the code.
        let _ = host.inject(std::slice::from_ref(injection), None);
    }
    let mut rounds = 0;
    while let Some(deadline) = host.deadline() {
        platform.advance(deadline.saturating_sub(platform.now()));
        host.elapse();
        rounds += 1;
        assert!(rounds < 10_000, "recovery does not end");
    }
    assert!(host.is_calm());
    for (address, function) in host.board().fabric.functions() {
        assert_eq!(function.answers(), Answers::Yes, "{address}");
        assert!(!host.is_recovering(address) && !host.board().fabric.is_contained(address), "{address}");
    }
}

/// Seeds: each names what it is about.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let texts: [(&str, &str); 14] = [
        ("correctable", "AER\nPCI_ID 0000:01:00.0\nCOR_STATUS BAD_TLP\nHEADER_LOG 0 1 2 3\n"),
        ("nonfatal", "AER\nPCI_ID 01:00.0\nUNCOR_STATUS COMP_ABORT\nHEADER_LOG 0 1 2 3\n"),
        ("fatal", "AER\nPCI_ID 01:00.1\nUNCOR_STATUS MALF_TLP\n"),
        ("both", "AER ID 02:00.0 COR BAD_TLP UNCOR COMP_ABORT HL 010 0x9 0xa 0xB"),
        (
            "several",
            "AER ID 01:00.0 COR 1 AER ID 01:00.1 UNCOR 0x1000 AER ID 02:00.0 UNCOR DLP\nAER ID 03:00.0 UNCOR FCP\n",
        ),
        ("port", "AER BUS 0 DEV 1 FN 0 UNCOR_STATUS DLP\n"),
        ("domain", "AER DOMAIN 1 BUS 1 DEV 0 FN 0 COR RCVR\n"),
        ("lower-case", "# comment\naer\npci_id 03:00.0\ncor_status rcvr rep_timer\n"),
        ("masked", "AER ID 01:00.0 COR 0x2000 AER ID 01:00.0 UNCOR 0x400000"),
        ("every-bit", "AER ID 01:00.0 COR 0xffffffff UNCOR 4294967295"),
        ("nowhere", "AER COR RCVR\nAER ID 7f:1f.7 COR RCVR"),
        ("empty", "# nothing"),
        ("wrong", "AER\nPCI_ID 1:2.3\n"),
        ("unicode", "AER\n\u{fc} COR"),
    ];
    texts.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect()
}
