// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Totals of Linux's own selftests, from what the tests of `programs` have left
//! in `target/selftests`; then nextest's count of all tests once more, so that
//! it is the last line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

/// How many cases of one variant passed, skipped themselves and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    skipped: u32,
    failed: u32,
}

impl Counts {
    fn add(&mut self, verdict: &str) {
        match verdict {
            "passed" => self.passed += 1,
            "skipped" => self.skipped += 1,
            _ => self.failed += 1,
        }
    }

    fn plus(self, other: Counts) -> Counts {
        Counts {
            passed: self.passed + other.passed,
            skipped: self.skipped + other.skipped,
            failed: self.failed + other.failed,
        }
    }

    fn row(self) -> String {
        format!("{:>8} {:>8} {:>8}", self.passed, self.skipped, self.failed)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    /// By binary, fixture and variant, and way.
    counts: BTreeMap<(String, String, String), Counts>,
    /// Who skipped or failed, in which ways: by binary, verdict, reason, name.
    reasons: BTreeMap<(String, String, String, String), BTreeSet<String>>,
}

impl Totals {
    /// Adds the lines of one run: binary, way, name, verdict, reason.
    fn add(&mut self, text: &str, mode: &str) {
        for line in text.lines() {
            let mut fields = line.split('\t').map(str::to_owned);
            let mut field = || fields.next().unwrap_or_default();
            let (binary, way, name, verdict, reason) = (field(), field(), field(), field(), field());
            let variant = name.rsplit_once('.').map_or(name.as_str(), |(variant, _)| variant);
            let variant = if mode.is_empty() { variant.to_owned() } else { format!("{variant}.{mode}") };
            self.counts.entry((binary.clone(), variant, way.clone())).or_default().add(&verdict);
            if verdict != "passed" {
                self.reasons.entry((binary, verdict, reason, name)).or_default().insert(way);
            }
        }
    }

    fn sum(&self, wanted: impl Fn(&str, &str, &str) -> bool) -> Counts {
        let found = self.counts.iter().filter(|((binary, variant, way), _)| wanted(binary, variant, way));
        found.fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts))
    }

    fn print(&self) {
        let binaries: BTreeSet<&String> = self.counts.keys().map(|(binary, ..)| binary).collect();
        println!("Linux's selftests{:>58} {:>8} {:>8}", "passed", "skipped", "failed");
        for binary in binaries {
            let of_binary = self.counts.keys().filter(|(b, ..)| b == binary);
            let (mut variants, mut ways) = (BTreeSet::new(), BTreeSet::new());
            for (_, variant, way) in of_binary {
                variants.insert(variant);
                ways.insert(way);
            }
            println!("{binary:<66} {}", self.sum(|b, _, _| b == binary).row());
            for way in &ways {
                println!("  in {way:<61} {}", self.sum(|b, _, w| b == binary && w == *way).row());
            }
            for variant in variants {
                println!("  {variant:<64} {}", self.sum(|b, v, _| b == binary && v == variant).row());
            }
            for ((_, verdict, reason, name), found) in self.reasons.iter().filter(|((b, ..), _)| b == binary) {
                let found: Vec<&str> = found.iter().map(String::as_str).collect();
                let where_ =
                    if found.len() == ways.len() { String::new() } else { format!(" in {}", found.join(", ")) };
                println!("  {verdict}: {name}{where_}: {reason}");
            }
        }
        println!("{:<66} {}", "all", self.sum(|_, _, _| true).row());
    }
}

/// Prints the table, and the count of all tests.
pub(crate) fn report() -> Result<()> {
    let executable = std::env::current_exe()?;
    let target = executable.ancestors().nth(2).context("xtask lies in target/PROFILE")?;
    let mut totals = Totals::default();
    for (name, text) in files(&target.join("selftests"))? {
        totals.add(&text, mode_of(&name));
    }
    totals.print();
    // nextest keeps its reports beside the sources, wherever the target is.
    let junit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nextest/default/junit.xml");
    if let Ok(report) = std::fs::read_to_string(junit) {
        println!("{}", summary(&report).context("nextest's report has no count")?);
    }
    Ok(())
}

/// The runs in the order of their names; none yet is none.
fn files(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, std::fs::read_to_string(&path)?);
    }
    Ok(files)
}

/// `BINARY+WAY+MODE`: the mode of a binary that has no variants for it.
fn mode_of(name: &str) -> &str {
    name.splitn(3, '+').nth(2).unwrap_or_default()
}

/// nextest's own words for what its `JUnit` report counts.
fn summary(report: &str) -> Option<String> {
    let head = Regex::new(r#"<testsuites [^>]*>"#).ok()?.find(report)?.as_str();
    let number = |name: &str| -> Option<f64> {
        Regex::new(&format!(r#" {name}="([0-9.]+)""#)).ok()?.captures(head)?[1].parse().ok()
    };
    let (tests, failed) = (number("tests")?, number("failures")? + number("errors")?);
    let mut line = format!("Summary [{:>8.3}s] {tests} tests run: {} passed", number("time")?, tests - failed);
    if failed > 0.0 {
        line += &format!(", {failed} failed");
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_by_variant_and_way() {
        let mut totals = Totals::default();
        totals.add("x\troot\ta.v.one\tpassed\t\nx\troot\ta.v.two\tskipped\tno pages\n", "");
        totals.add("x\tnobody\ta.v.one\tfailed\tno rights\n", "");
        totals.add("y\troot\tb.one\tpassed\t\n", mode_of("y+root+type1"));
        assert_eq!(totals.sum(|b, _, _| b == "x"), Counts { passed: 1, skipped: 1, failed: 1 });
        assert_eq!(totals.sum(|_, v, w| v == "a.v" && w == "nobody"), Counts { passed: 0, skipped: 0, failed: 1 });
        assert_eq!(totals.sum(|_, v, _| v == "b.type1").passed, 1);
        assert_eq!(totals.reasons.len(), 2);
    }

    #[test]
    fn the_count_of_all_tests_is_nextests() {
        let report = r#"<?xml version="1.0"?>
<testsuites name="nextest-run" tests="12" failures="1" errors="1" uuid="5" timestamp="t" time="3.25">"#;
        assert_eq!(summary(report).unwrap(), "Summary [   3.250s] 12 tests run: 10 passed, 2 failed");
        assert_eq!(summary("<nothing>"), None);
    }
}
