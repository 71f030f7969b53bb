// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From TOML text to sections.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::LabError;
use super::section::{Pair, Place, Section};

/// The tables of a lab file. `[name]` becomes a section called `[name]`, each
/// element of `[[name]]` one called `name`.
pub(super) fn sections(name: &str, text: &str) -> Result<Vec<Section>, LabError> {
    let document = DeTable::parse(text).map_err(|error| {
        let place = Place::in_file(name, text, error.span().map_or(0, |s| s.start));
        LabError::new(&place, error.message().to_owned())
    })?;
    let place = |offset| Place::in_file(name, text, offset);
    let mut found: Vec<(usize, Section)> = Vec::new();
    let mut add = |what: String, table: &DeTable<'_>, at: usize| -> Result<(), LabError> {
        let mut section = Section::new(what, place(at));
        for (key, value) in table.iter() {
            section.pairs.push(pair(key, value, &place)?);
        }
        found.push((at, section));
        Ok(())
    };
    for (key, value) in document.get_ref().iter() {
        let what = key.get_ref().to_string();
        match value.get_ref() {
            DeValue::Table(table) => add(format!("[{what}]"), table, key.span().start)?,
            DeValue::Array(items) => {
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(table) => add(what.clone(), table, item.span().start)?,
                        _ => return Err(LabError::new(&place(item.span().start), format!("`{what}` is not a table"))),
                    }
                }
            }
            _ => {
                let message = format!(
                    "`{what}` stands outside of a table; a lab has [iommu], [fault], [vfio], [aer], [[port]], [[device]], [[vdpa]], [[error]]"
                );
                return Err(LabError::new(&place(key.span().start), message));
            }
        }
    }
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, section)| section).collect())
}

fn pair(
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    place: &dyn Fn(usize) -> Place,
) -> Result<Pair, LabError> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Integer(number) => {
            let prefix = if number.radix() == 16 { "0x" } else { "" };
            format!("{prefix}{}", number.as_str())
        }
        DeValue::Float(number) => number.as_str().to_owned(),
        _ => {
            let message = format!("`{}` takes a string, a number or true/false", key.get_ref());
            return Err(LabError::new(&place(value.span().start), message));
        }
    };
    Ok(Pair { key: key.get_ref().to_string(), value: text, place: place(value.span().start) })
}
