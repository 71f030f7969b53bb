// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `make bench`: a table of what vfuse costs, each figure beside a floor or a
//! peer that was measured in the same run, and the goal for the two.
//!
//! A machine's speed drifts and its cores are shared, so the two sides of a
//! row take turns many times and the medians count. Figures mean something as
//! ratios, on the machine and in the run in which they were taken; nothing
//! here is a test, and a goal that is missed is no failure. The exit status is
//! 1 only if a row could not be measured.
//!
//! The clients of `vfuse run` are this program again, with a word that says
//! which ([`client`]); the floor under them is [`floor`], a supervisor that
//! answers at once.
//!
//! `vfuse-bench [GROUP]...` measures some of the groups only. `VFUSE` names
//! the program to measure, else it is the one beside this program.
#![deny(unsafe_code)]

mod accelerator;
mod calls;
mod client;
mod copies;
mod dirty;
mod faults;
mod floor;
mod idle;
mod iommufd;
mod maps;
mod migration;
mod process;
mod qemu;
mod recovery;
mod resets;
mod start;
mod table;
mod timing;
mod translation;
mod vdpa;

use std::process::ExitCode;

use table::Table;

/// Measures the rows of one group.
type Group = fn(&mut Table);

const GROUPS: [(&str, Group); 14] = [
    ("calls", calls::rows),
    ("maps", maps::rows),
    ("translation", translation::rows),
    ("dirty", dirty::rows),
    ("iommufd", iommufd::rows),
    ("copies", copies::rows),
    ("dsa", accelerator::rows),
    ("faults", faults::rows),
    ("recovery", recovery::rows),
    ("vdpa", vdpa::rows),
    ("migration", migration::rows),
    ("qemu", qemu::rows),
    ("idle", idle::rows),
    ("start", start::rows),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, kind] = words.as_slice()
        && word == client::WORD
    {
        return client::run(kind);
    }
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    if let Some(word) = words.iter().find(|word| !names.contains(&word.as_str())) {
        eprintln!("vfuse-bench: no group is called {word}; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    // Others on the machine are to disturb as little as they can. Programs that
    // are started inherit it; who may not, measures as it is.
    let _ = rustix::process::setpriority_process(None, -20);
    // Where sessions are scheduled as groups the first counts only within ours.
    let _ = std::fs::write("/proc/self/autogroup", "-20");
    let mut table = Table::new();
    for (name, rows) in GROUPS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            rows(&mut table);
        }
    }
    table.finish()
}
