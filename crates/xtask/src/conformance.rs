// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which lines of the fact sheets have a test.
//!
//! A test covers a line by naming its id: `API-072`, a range `API-147..151`;
//! in a sheet of sections `IOMMUFD-5.2`, a range `IOMMUFD-5.2..4`. Only test
//! code counts: files in a `tests` directory or called `tests.rs`, and what
//! follows `#[cfg(test)]` in any other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde::Deserialize;

/// Share of the lines in scope that must be covered.
const GOAL: f64 = 0.95;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sheets {
    sheet: Vec<Sheet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sheet {
    name: String,
    prefix: String,
    /// Lines of a sheet that numbers them through.
    #[serde(default)]
    lines: u32,
    /// Lines of each section of a sheet that numbers them in each.
    #[serde(default)]
    sections: Vec<u32>,
    /// Lines that belong to a part of the project that is not built yet.
    #[serde(default)]
    later: Vec<Excuse>,
    /// Lines that this project cannot or need not cover.
    #[serde(default)]
    out: Vec<Excuse>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Excuse {
    lines: String,
    why: String,
}

/// A line of a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    /// None in a sheet that numbers its lines through.
    section: Option<u32>,
    number: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.section {
            Some(section) => write!(f, "{section}.{}", self.number),
            None => write!(f, "{:03}", self.number),
        }
    }
}

/// Prints the report; an error if a sheet is below the goal.
pub(crate) fn report() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sheets: Sheets = toml::from_str(&std::fs::read_to_string(root.join("conformance/sheets.toml"))?)?;
    let mut text = Vec::new();
    collect(&root.join("crates"), &mut text)?;
    let mut poor = Vec::new();
    for sheet in &sheets.sheet {
        let cited = sheet.cited(&text)?;
        let scope = sheet.scope();
        if let Some(unknown) = cited.difference(&scope).next() {
            bail!("a test cites {}-{unknown}, which the sheet {} does not have", sheet.prefix, sheet.name);
        }
        let later = sheet.excused(&sheet.later)?;
        let out = sheet.excused(&sheet.out)?;
        let owed: BTreeSet<Line> = scope.iter().filter(|n| !later.contains_key(n)).copied().collect();
        let covered = owed.intersection(&cited).count();
        let share = covered as f64 / owed.len().max(1) as f64;
        println!("{}: {covered} of {} lines in scope covered ({:.1}%)", sheet.name, owed.len(), share * 100.0);
        for n in owed.difference(&cited) {
            let why = out.get(n).map_or("no test yet", String::as_str);
            println!("  {}-{n} not covered: {why}", sheet.prefix);
        }
        for excuse in &sheet.later {
            println!("  {}-{} later: {}", sheet.prefix, excuse.lines, excuse.why);
        }
        if share < GOAL {
            poor.push(sheet.name.as_str());
        }
    }
    if !poor.is_empty() {
        bail!("below {:.0}%: {}", GOAL * 100.0, poor.join(", "));
    }
    Ok(())
}

impl Sheet {
    fn scope(&self) -> BTreeSet<Line> {
        let sections = (1..).zip(&self.sections);
        let in_sections = sections.flat_map(|(section, lines)| Self::lines(Some(section), 1, *lines));
        Self::lines(None, 1, self.lines).chain(in_sections).collect()
    }

    fn lines(section: Option<u32>, first: u32, last: u32) -> impl Iterator<Item = Line> {
        (first..=last).map(move |number| Line { section, number })
    }

    /// Lines that tests name, whether the sheet has them or not.
    fn cited(&self, text: &[String]) -> Result<BTreeSet<Line>> {
        let prefix = &self.prefix;
        let (section, number) = if self.sections.is_empty() { ("()", r"\d{3}") } else { (r"(\d+)\.", r"\d+") };
        let again = section.replace(['(', ')'], "");
        let again = if again.is_empty() { String::new() } else { format!("(?:{again})?") };
        let id = Regex::new(&format!(
            r"\b{prefix}-{section}({number})(?:\s*(?:\.\.=?|…|–|-|to|through)\s*(?:{prefix}-)?{again}({number}))?\b"
        ))?;
        let mut lines = BTreeSet::new();
        for found in text.iter().flat_map(|t| id.captures_iter(t)) {
            let section = if found[1].is_empty() { None } else { Some(found[1].parse()?) };
            let first: u32 = found[2].parse()?;
            let last = found.get(3).map_or(Ok(first), |m| m.as_str().parse())?;
            lines.extend(Self::lines(section, first, last));
        }
        Ok(lines)
    }

    /// Reads `012`, `012-015`, `5.2`, `5.2-4`.
    fn excused(&self, excuses: &[Excuse]) -> Result<BTreeMap<Line, String>> {
        let mut lines = BTreeMap::new();
        for excuse in excuses {
            let text = &excuse.lines;
            let number = |part: &str| part.parse::<u32>().with_context(|| format!("`{text}` is not a line or a range"));
            let (section, range) = match text.split_once('.') {
                Some((section, range)) => (Some(number(section)?), range),
                None => (None, text.as_str()),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            for line in Self::lines(section, number(first)?, number(last)?) {
                lines.insert(line, excuse.why.clone());
            }
        }
        Ok(lines)
    }
}

fn collect(dir: &Path, text: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, text)?;
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with(file!()) {
            text.extend(test_code(&path)?);
        }
    }
    Ok(())
}

fn test_code(path: &PathBuf) -> Result<Option<String>> {
    let content = std::fs::read_to_string(path)?;
    let is_test = path.components().any(|c| c.as_os_str() == "tests")
        || path.file_name().is_some_and(|n| n.to_string_lossy().ends_with("tests.rs"));
    if is_test {
        return Ok(Some(content));
    }
    Ok(content.find("#[cfg(test)]").map(|at| content[at..].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(lines: u32, sections: &[u32]) -> Sheet {
        Sheet { prefix: "X".to_owned(), lines, sections: sections.to_vec(), ..Sheet::default() }
    }

    fn shown(lines: impl IntoIterator<Item = Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.to_string()).collect()
    }

    #[test]
    fn ids_and_ranges_are_found() {
        let text = ["X-001, X-003..005 and X-010 to X-012, X-020–021; not AX-030".to_owned()];
        let lines = sheet(30, &[]).cited(&text).unwrap();
        assert_eq!(shown(lines), ["001", "003", "004", "005", "010", "011", "012", "020", "021"]);
    }

    #[test]
    fn ids_of_sections_are_found() {
        let text = ["X-1.1, X-1.3..5, X-2.10 to X-2.11 and X-3.1–3.2. X-4 is a section".to_owned()];
        let lines = sheet(0, &[5, 11, 2]).cited(&text).unwrap();
        assert_eq!(shown(lines), ["1.1", "1.3", "1.4", "1.5", "2.10", "2.11", "3.1", "3.2"]);
    }

    #[test]
    fn lines_that_a_sheet_has() {
        assert_eq!(shown(sheet(2, &[]).scope()), ["001", "002"]);
        assert_eq!(shown(sheet(0, &[2, 1]).scope()), ["1.1", "1.2", "2.1"]);
        let excuse = |lines: &str| Excuse { lines: lines.to_owned(), why: String::new() };
        let lines = sheet(0, &[]).excused(&[excuse("5.2-4"), excuse("6.1"), excuse("012-013")]).unwrap();
        assert_eq!(shown(lines.into_keys()), ["012", "013", "5.2", "5.3", "5.4", "6.1"]);
    }
}
