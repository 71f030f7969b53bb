// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Huge pages of the machine, taken for a test and given back.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::{Way, run_child};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages of 2 MiB that are there as long as this lives.
///
/// The tests that use them run one at a time (`programs` in nextest.toml).
#[derive(Debug)]
pub struct HugePages {
    before: u64,
}

impl HugePages {
    /// Sees to it that the machine has this many.
    ///
    /// # Panics
    /// If it cannot have them.
    #[must_use]
    pub fn reserve(count: u64) -> HugePages {
        HugePages::try_reserve(count).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Sees to it that the machine has this many.
    ///
    /// # Errors
    /// Why it cannot have them.
    pub fn try_reserve(count: u64) -> Result<HugePages, String> {
        let pages = HugePages { before: read() };
        if pages.before < count {
            write(count)?;
            let now = read();
            if now < count {
                return Err(format!("only {now} of {count} huge pages of 2 MiB: memory is too full or too scattered"));
            }
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if read() != self.before
            && let Err(why) = write(self.before)
        {
            eprintln!("huge pages were not given back: {why}");
        }
    }
}

fn read() -> u64 {
    fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse().ok()).expect("a kernel with huge pages")
}

fn write(count: u64) -> Result<(), String> {
    let mut command: Command = Way::RootNamespaces.command("sysctl");
    command.arg(format!("vm.nr_hugepages={count}"));
    let outcome = run_child(command, Duration::from_secs(30));
    if outcome.status.success() { Ok(()) } else { Err(format!("cannot set {COUNT}: {}", outcome.text.trim())) }
}
