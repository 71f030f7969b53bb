// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which lines of the fact sheets have a test.
//!
//! A test covers a line by naming its id (`API-072`, a range `API-147..151`).
//! Only test code counts: files in a `tests` directory or called `tests.rs`,
//! and what follows `#[cfg(test)]` in any other.

use std::collections::{BTreeMap, BTreeSet};
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sheet {
    name: String,
    prefix: String,
    lines: u32,
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

/// Prints the report; an error if a sheet is below the goal.
pub(crate) fn report() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sheets: Sheets = toml::from_str(&std::fs::read_to_string(root.join("conformance/sheets.toml"))?)?;
    let mut text = Vec::new();
    collect(&root.join("crates"), &mut text)?;
    let mut poor = Vec::new();
    for sheet in &sheets.sheet {
        let cited = cited(&sheet.prefix, &text)?;
        let scope: BTreeSet<u32> = (1..=sheet.lines).collect();
        if let Some(unknown) = cited.difference(&scope).next() {
            bail!("a test cites {}-{unknown:03}, which the sheet {} does not have", sheet.prefix, sheet.name);
        }
        let later = excused(&sheet.later)?;
        let out = excused(&sheet.out)?;
        let owed: BTreeSet<u32> = scope.iter().filter(|n| !later.contains_key(n)).copied().collect();
        let covered = owed.intersection(&cited).count();
        let share = covered as f64 / owed.len().max(1) as f64;
        println!("{}: {covered} of {} lines in scope covered ({:.1}%)", sheet.name, owed.len(), share * 100.0);
        for n in owed.difference(&cited) {
            let why = out.get(n).map_or("no test yet", String::as_str);
            println!("  {}-{n:03} not covered: {why}", sheet.prefix);
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

fn excused(excuses: &[Excuse]) -> Result<BTreeMap<u32, String>> {
    let mut lines = BTreeMap::new();
    for excuse in excuses {
        let (first, last) = excuse.lines.split_once('-').unwrap_or((&excuse.lines, &excuse.lines));
        let number = |text: &str| text.parse().with_context(|| format!("`{}` is not a line or a range", excuse.lines));
        for n in number(first)?..=number(last)? {
            lines.insert(n, excuse.why.clone());
        }
    }
    Ok(lines)
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

fn cited(prefix: &str, text: &[String]) -> Result<BTreeSet<u32>> {
    let id =
        Regex::new(&format!(r"\b{prefix}-(\d{{3}})(?:\s*(?:\.\.=?|…|–|-|to|through)\s*(?:{prefix}-)?(\d{{3}}))?\b"))?;
    let mut lines = BTreeSet::new();
    for found in text.iter().flat_map(|t| id.captures_iter(t)) {
        let first: u32 = found[1].parse()?;
        let last = found.get(2).map_or(Ok(first), |m| m.as_str().parse())?;
        lines.extend(first..=last);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_ranges_are_found() {
        let text = ["X-001, X-003..005 and X-010 to X-012, X-020–021; not AX-030".to_owned()];
        let lines = cited("X", &text).unwrap();
        assert_eq!(lines, BTreeSet::from([1, 3, 4, 5, 10, 11, 12, 20, 21]));
    }
}
