// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reports for people.

use std::fmt::Write;

use super::{GroupReport, HotReset, ResetReport};

// Writing to a String cannot fail; results are dropped for that.

/// IOMMU groups as a table.
#[must_use]
pub fn group_table(groups: &[GroupReport]) -> String {
    let mut table = String::from("group  viable  function      held by           why together\n");
    for group in groups {
        let viable = if group.viable { "yes" } else { "no" };
        let rows = group.functions.len().max(group.why.len());
        for row in 0..rows {
            let head = if row == 0 { (group.group.to_string(), viable) } else { (String::new(), "") };
            let (address, holder) = group.functions.get(row).map_or(("", ""), |(a, h)| (a, h));
            let why = group.why.get(row).map_or("", String::as_str);
            let line = format!("{:5}  {:6}  {address:12}  {holder:16}  {why}", head.0, head.1);
            let _ = writeln!(table, "{}", line.trim_end());
        }
    }
    table
}

/// Reset groups as a table.
#[must_use]
pub fn reset_table(groups: &[ResetReport]) -> String {
    let mut table = String::from("reset         kind      function      held by           group  hot reset\n");
    for reset in groups {
        for (row, member) in reset.functions.iter().enumerate() {
            let (name, kind, answer) = match row {
                0 => (reset.name.as_str(), reset.kind.as_str(), answer(&reset.hot_reset)),
                _ => ("", "", String::new()),
            };
            let group = member.group.map_or_else(|| "-".to_owned(), |group| group.to_string());
            let line = format!("{name:12}  {kind:8}  {:12}  {:16}  {group:5}  {answer}", member.address, member.holder);
            let _ = writeln!(table, "{}", line.trim_end());
        }
    }
    table
}

/// One reset group in sentences.
#[must_use]
pub fn reset_details(reset: &ResetReport) -> String {
    let mut text = format!("{} {}: {}.\n", reset.kind, reset.name, reset.why);
    for member in &reset.functions {
        let group = member.group.map_or_else(|| "no group".to_owned(), |group| format!("group {group}"));
        let own = match member.function_resets.as_slice() {
            [] => "no reset of its own".to_owned(),
            methods => format!("by itself: {}", methods.join(" ")),
        };
        let _ = writeln!(text, "  {}  {}, {group}, {own}", member.address, member.holder);
    }
    let _ = writeln!(text, "hot reset: {}", answer(&reset.hot_reset));
    if let HotReset::Refused { in_the_way } = &reset.hot_reset {
        for reason in in_the_way {
            let _ = writeln!(text, "  {reason}");
        }
    }
    text
}

fn answer(hot_reset: &HotReset) -> String {
    match hot_reset {
        HotReset::Allowed => "allowed".to_owned(),
        HotReset::Needs { groups } => {
            let numbers: Vec<String> = groups.iter().map(u32::to_string).collect();
            match numbers.as_slice() {
                [one] => format!("for who has group {one}"),
                _ => format!("for who has groups {}", numbers.join(", ")),
            }
        }
        HotReset::Refused { in_the_way } => {
            format!("EINVAL: {}", in_the_way.first().map_or("", String::as_str))
        }
        HotReset::Impossible { why } => format!("ENODEV: {why}"),
    }
}
