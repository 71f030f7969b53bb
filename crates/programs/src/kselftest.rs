// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's own selftests: what their TAP reports say, and what was expected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use crate::place::target_directory;
use crate::{Outcome, Vfuse, Way, build_file};

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `ok`.
    Passed,
    /// `ok … # SKIP reason`.
    Skipped(String),
    /// `not ok`, with what the case said.
    Failed(String),
}

/// All cases of one run of one binary, by their names: `fixture.variant.test`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The binary.
    pub binary: String,
    /// Verdicts by name.
    pub cases: BTreeMap<String, Verdict>,
    text: String,
}

/// What is expected of a run, by name. A name may end in `*`.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// How many cases there are.
    plan: usize,
    /// These skip themselves.
    skip: Vec<String>,
    /// These fail, and why.
    fail: Vec<(String, String)>,
}

impl Expected {
    /// So many cases, all of which pass.
    #[must_use]
    pub fn all(plan: usize) -> Expected {
        Expected { plan, ..Expected::default() }
    }

    /// But these skip themselves.
    #[must_use]
    pub fn skipping<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Expected {
        self.skip.extend(names.into_iter().map(Into::into));
        self
    }

    /// Adds cases that fail for this reason. It is said at once, too.
    pub fn expect_failures(&mut self, names: &[&str], why: &str) {
        eprintln!("cannot pass: {}: {why}", names.join(", "));
        self.fail.extend(names.iter().map(|&name| (name.to_owned(), why.to_owned())));
    }

    fn skips(&self, name: &str) -> bool {
        self.skip.iter().any(|pattern| matches(pattern, name))
    }

    /// Why a case fails, if it is to.
    fn fails(&self, name: &str) -> Option<&str> {
        self.fail.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, why)| why.as_str())
    }
}

/// Runs a selftest of `build/selftests` under this `vfuse`, with arguments
/// (filters of its harness, addresses of devices) and the interface to the
/// IOMMU that it takes where it has no variants of its own.
///
/// # Panics
/// If it takes too long, or its report is not whole.
#[track_caller]
#[must_use]
pub fn selftest(vfuse: &Vfuse, binary: &str, mode: Option<&str>, arguments: &[&str]) -> Report {
    let program = vfuse.place.program(&build_file(&format!("selftests/{binary}")));
    let mut command = vec!["env".into()];
    command.extend(mode.map(|mode| format!("VFIO_SELFTESTS_IOMMU_MODE={mode}").into()));
    command.push(program.into_os_string());
    command.extend(arguments.iter().map(Into::into));
    Report::of(binary, &vfuse.run(command))
}

impl Report {
    /// Reads a TAP report.
    ///
    /// # Panics
    /// If it has not as many cases as its plan.
    #[track_caller]
    #[must_use]
    pub fn of(binary: &str, outcome: &Outcome) -> Report {
        let report = Report::parse(binary, &outcome.text);
        report.unwrap_or_else(|problem| panic!("{binary}: {problem}:\n{}", outcome.text))
    }

    fn parse(binary: &str, text: &str) -> Result<Report, String> {
        let mut cases = BTreeMap::new();
        let mut plan = None;
        let mut said = String::new();
        for line in text.lines() {
            if let Some(number) = line.strip_prefix("1..") {
                plan = number.trim().parse::<usize>().ok();
            } else if let Some(rest) = line.strip_prefix("ok ") {
                let (name, skip) = rest.split_once(" # SKIP").map_or((rest, None), |(name, why)| (name, Some(why)));
                let verdict = skip.map_or(Verdict::Passed, |why| Verdict::Skipped(why.trim().to_owned()));
                cases.insert(case_name(name)?, verdict);
                said.clear();
            } else if let Some(rest) = line.strip_prefix("not ok ") {
                cases.insert(case_name(rest)?, Verdict::Failed(std::mem::take(&mut said)));
            } else if !line.starts_with("#  ") {
                // What a case says of itself begins with its file, or with
                // its name; the harness's own lines are indented.
                let _ = writeln!(said, "{}", line.trim_start_matches("# "));
            }
        }
        let plan = plan.ok_or("no plan")?;
        if cases.len() != plan {
            return Err(format!("{} cases of {plan}", cases.len()));
        }
        Ok(Report { binary: binary.to_owned(), cases, text: text.to_owned() })
    }

    /// Keeps the run for the totals that `make test` prints, and compares it
    /// with what was expected. The mode is that of a binary which has no
    /// variants for it.
    ///
    /// # Panics
    /// If a case ended otherwise.
    #[track_caller]
    pub fn expect(&self, way: Way, mode: &str, expected: &Expected) {
        self.keep(way, mode, expected);
        let mut wrong = String::new();
        for (name, verdict) in &self.cases {
            let (skip, fail) = (expected.skips(name), expected.fails(name).is_some());
            let right = match verdict {
                Verdict::Passed => !skip && !fail,
                Verdict::Skipped(_) => skip,
                Verdict::Failed(_) => fail,
            };
            if !right {
                let said = match verdict {
                    Verdict::Passed => "passed, which is new".to_owned(),
                    Verdict::Skipped(why) => format!("skipped: {why}"),
                    Verdict::Failed(said) => format!("failed: {}", said.trim()),
                };
                let _ = writeln!(wrong, "{name} {said}");
            }
        }
        assert!(wrong.is_empty(), "{} in {way:?}, not as expected:\n{wrong}\n{}", self.binary, self.text);
        assert_eq!(self.cases.len(), expected.plan, "{}: cases\n{}", self.binary, self.text);
    }

    /// Names of those that passed.
    #[must_use]
    pub fn passed(&self) -> BTreeSet<&str> {
        let passed = self.cases.iter().filter(|(_, verdict)| **verdict == Verdict::Passed);
        passed.map(|(name, _)| name.as_str()).collect()
    }

    /// A line for each case in `target/selftests`, for `cargo xtask selftests`:
    /// binary, way, name, verdict and reason, with tabs between them.
    fn keep(&self, way: Way, mode: &str, expected: &Expected) {
        let directory = target_directory().join("selftests");
        let mut lines = String::new();
        for (name, verdict) in &self.cases {
            let (word, why) = match verdict {
                Verdict::Passed => ("passed", String::new()),
                Verdict::Skipped(why) => ("skipped", why.clone()),
                Verdict::Failed(said) => match expected.fails(name) {
                    Some(why) => ("failed", why.to_owned()),
                    None => ("failed", format!("UNEXPECTED: {}", said.lines().next().unwrap_or_default())),
                },
            };
            let _ = writeln!(lines, "{}\t{}\t{name}\t{word}\t{why}", self.binary, way.name());
        }
        let file = directory.join(format!("{}+{}+{mode}.tsv", self.binary, way.name()));
        fs::create_dir_all(&directory).and_then(|()| fs::write(&file, lines)).expect("target can be written");
    }
}

/// `3 fixture.variant.test` without its number.
fn case_name(rest: &str) -> Result<String, String> {
    let (_, name) = rest.split_once(' ').ok_or_else(|| format!("no name in {rest:?}"))?;
    Ok(name.split(" # ").next().unwrap_or(name).trim().to_owned())
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "TAP version 13
1..3
# Starting 3 tests from 2 test cases.
#  RUN           a.v.one ...
#            OK  a.v.one
ok 1 a.v.one
#  RUN           a.v.two ...
# a.c:254:two:Expected -1 (-1) != self->fd (-1)
# two: Test terminated by assertion
#          FAIL  a.v.two
not ok 2 a.v.two
#  RUN           b.three ...
#      SKIP      no pages
#            OK  b.three
ok 3 b.three # SKIP no pages
";

    #[test]
    fn verdicts_are_read() {
        let report = Report::parse("x", TEXT).unwrap();
        assert_eq!(report.passed(), BTreeSet::from(["a.v.one"]));
        assert_eq!(report.cases["b.three"], Verdict::Skipped("no pages".to_owned()));
        let said = "a.c:254:two:Expected -1 (-1) != self->fd (-1)\ntwo: Test terminated by assertion\n";
        assert_eq!(report.cases["a.v.two"], Verdict::Failed(said.to_owned()));
    }

    #[test]
    fn a_report_that_ends_early_is_none() {
        let cut = TEXT.split_once("ok 3").unwrap().0;
        assert_eq!(Report::parse("x", cut).unwrap_err(), "2 cases of 3");
        assert_eq!(Report::parse("x", "Bail out!\n").unwrap_err(), "no plan");
    }
}
