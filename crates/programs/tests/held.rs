// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses to mapped BARs of a device that is blocked or reset: threads of
//! `src/bin/held.rs` wait at them.

use std::path::Path;
use std::time::{Duration, Instant};

use programs::{Outcome, Vfuse, Way, in_each_way};
use rustix::process::Signal;

/// A device that takes its time, and has a fatal error at a call.
fn lab(more: &str) -> String {
    format!(
        "[vfio]\n{more}[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"16M\"\nready_ms = 1000\n\
         [[error]]\ndevice = \"01:00.0\"\nuncorrectable = \"MALF_TLP\"\nafter_calls = 15\n"
    )
}

const BLOCK: &str = "error_recovery = \"block\"\n";

fn held(way: Way, lab: &str, how: &str) -> Outcome {
    let vfuse = Vfuse::new(way).lab(lab).limit(Duration::from_secs(60));
    let held = vfuse.place.program(Path::new(env!("CARGO_BIN_EXE_held"))).display().to_string();
    vfuse.run([&*held, how])
}

/// What a line of the program says behind these words.
fn number(outcome: &Outcome, words: &str) -> u64 {
    let digits = outcome.text.split(words).nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {words}: {}", outcome.text))
}

in_each_way! {
    /// ERR-040, ERR-079, ERR-084: no load shows anything but the register: it
    /// waits until the device is back. Signals come, other waits go on.
    fn loads_wait_for_recovery(way) {
        let outcome = held(way, &lab(BLOCK), "error");
        outcome.succeeded().said("interrupted 0, alarms true");
        assert_eq!(outcome.text.matches("wrong 0, ").count(), 2, "{}", outcome.text);
        assert!(number(&outcome, "blocked for ") >= 1000 && number(&outcome, "longest ") >= 900, "{}", outcome.text);
    }

    /// ERR-079: so it does at a reset that takes time; that is Linux's rule.
    fn loads_wait_for_a_reset(way) {
        let outcome = held(way, &lab(""), "reset");
        outcome.succeeded().said("interrupted 0, alarms true");
        assert_eq!(outcome.text.matches("wrong 0, ").count(), 2, "{}", outcome.text);
        assert!(number(&outcome, "longest ") >= 900, "{}", outcome.text);
    }

    /// One error after the other, each over at once: who is told that an access
    /// failed when the device is back already makes it again.
    fn loads_wait_in_a_storm_of_errors(way) {
        let error = |n: u32| {
            format!("[[error]]\ndevice = \"01:00.0\"\nuncorrectable = \"COMP_ABORT\"\nafter_calls = {}\n", 15 + 3 * n)
        };
        let storm: String = (0..250).map(error).collect();
        let outcome = held(way, &format!("{}{storm}", lab(BLOCK).split("[[error]]").next().unwrap_or_default()), "storm");
        outcome.succeeded().said("interrupted 0, alarms true");
        assert_eq!(outcome.text.matches("wrong 0, ").count(), 2, "{}", outcome.text);
    }

    /// A program that dies while its threads wait leaves nothing behind.
    fn who_waits_can_be_killed(way) {
        let start = Instant::now();
        let outcome = held(way, &lab(&format!("{BLOCK}recovery_wait_ms = 60000\n")).replace("1000\n[[error]]", "\"never\"\n[[error]]"), "killed");
        outcome.killed_by(Signal::KILL);
        assert!(start.elapsed() < Duration::from_secs(20), "{}", outcome.text);
    }

    /// A child that maps the BAR while the device is blocked waits, too.
    fn children_wait(way) {
        let outcome = held(way, &lab(BLOCK), "forks");
        outcome.succeeded().said("child 7");
        assert_eq!(outcome.text.matches("wrong 0, ").count(), 2, "{}", outcome.text);
    }

    /// A program that is traced is left to its tracer: it gets ones.
    fn a_traced_program_is_left_alone(way) {
        let outcome = held(way, &lab(BLOCK), "traced");
        outcome.succeeded().said("alarms true").said("cannot be held");
        assert!(number(&outcome, "wrong ") > 0, "{}", outcome.text);
    }
}
