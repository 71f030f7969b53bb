// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys of `model = "dsa"`.

use std::ops::RangeInclusive;
use std::str::FromStr;

use models::dsa::{Breaks, Config, MAX_BATCH, MAX_ENGINES, MAX_ENTRIES, MAX_QUEUES, MAX_TRANSFER};

use super::LabError;
use super::section::{Number, Section, Size, Switch};

pub(super) fn decode(section: &mut Section) -> Result<Config, LabError> {
    let usual = Config::default();
    Ok(Config {
        queues: number(section, "queues", usual.queues.into(), 1..=MAX_QUEUES.into())? as u8,
        entries: number(section, "entries", usual.entries.into(), 1..=MAX_ENTRIES.into())? as u16,
        engines: number(section, "engines", usual.engines.into(), 1..=MAX_ENGINES.into())? as u8,
        max_transfer: power(section, "max_transfer", usual.max_transfer, 12..=MAX_TRANSFER)?,
        max_batch: power(section, "max_batch", usual.max_batch, 1..=MAX_BATCH)?,
        operations: section.take_or("operations", Switch(usual.operations))?.0,
        handles: section.take_or("handles", Switch(usual.handles))?.0,
        breaks: section.take_or("page_requests", Rules(usual.breaks))?.0,
    })
}

/// `page_requests`: rules that are broken, separated by spaces.
struct Rules(Breaks);

impl FromStr for Rules {
    type Err = String;

    fn from_str(text: &str) -> Result<Rules, String> {
        let rule = |word: &str| match word {
            "wrong-index" => Ok(Breaks::WRONG_INDEX),
            "no-last" => Ok(Breaks::NO_LAST),
            "over-capacity" => Ok(Breaks::OVER_CAPACITY),
            "after-stop" => Ok(Breaks::AFTER_STOP),
            "wrong-pasid" => Ok(Breaks::WRONG_PASID),
            _ => Err(format!("`{word}` is none of wrong-index, no-last, over-capacity, after-stop and wrong-pasid")),
        };
        text.split_whitespace().filter(|word| *word != "good").map(rule).collect::<Result<Breaks, _>>().map(Rules)
    }
}

fn number(section: &mut Section, key: &'static str, usual: u64, range: RangeInclusive<u64>) -> Result<u64, LabError> {
    let place = section.place_of(key);
    let Number(value) = section.take_or(key, Number(usual))?;
    if range.contains(&value) {
        return Ok(value);
    }
    Err(LabError::new(&place, format!("`{key}` is {} to {}", range.start(), range.end())))
}

/// log2 of a power of two.
fn power(section: &mut Section, key: &'static str, usual: u8, range: RangeInclusive<u8>) -> Result<u8, LabError> {
    let place = section.place_of(key);
    let Size(value) = section.take_or(key, Size(1 << usual))?;
    let log2 = value.checked_ilog2().filter(|_| value.is_power_of_two()).and_then(|log2| u8::try_from(log2).ok());
    log2.filter(|log2| range.contains(log2)).ok_or_else(|| {
        let [first, last] = [range.start(), range.end()].map(|log2| 1_u64 << log2);
        LabError::new(&place, format!("`{key}` is a power of two from {first} to {last}"))
    })
}
