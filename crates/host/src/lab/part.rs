// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys of a mediated device: a part of a function that several users share.

use std::ops::RangeInclusive;
use std::str::FromStr;

use pci::Address;

use super::LabError;
use super::section::{Number, Section};

/// PASIDs have 20 bits, and 0 is nobody's.
const PASIDS: RangeInclusive<u32> = 1..=0xf_ffff;

/// A part of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// The function.
    pub parent: Address,
    /// Its name; `None`: one is made.
    pub uuid: Option<String>,
    /// Whether it has a group of its own.
    pub group: bool,
    /// The PASID of requests that name none; `None`: the lowest that is free.
    pub pasid: Option<u32>,
    /// What it may use besides.
    pub pasids: RangeInclusive<u32>,
}

/// `group`.
struct Group(bool);

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Group, String> {
        match text {
            "own" => Ok(Group(true)),
            "none" => Ok(Group(false)),
            _ => Err(format!("`{text}` is neither own nor none")),
        }
    }
}

/// `FIRST-LAST`.
struct Range(RangeInclusive<u32>);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let number = |text: &str| text.trim().parse().ok().map(|Number(n)| n).and_then(|n| u32::try_from(n).ok());
        let parts = text.split_once('-').and_then(|(first, last)| Some(number(first)?..=number(last)?));
        let fits = |range: &RangeInclusive<u32>| range.start() <= range.end() && PASIDS.contains(range.start());
        let range = parts.filter(|range| fits(range) && PASIDS.contains(range.end()));
        range.map(Range).ok_or_else(|| format!("`{text}` is not FIRST-LAST, from 1 to 0xfffff"))
    }
}

impl PartSpec {
    /// The keys, if `parent` is given.
    pub(super) fn decode(section: &mut Section) -> Result<Option<PartSpec>, LabError> {
        let Some(parent) = section.take("parent")? else { return Ok(None) };
        let place = section.place_of("uuid");
        let uuid: Option<String> = section.take("uuid")?;
        if uuid.as_deref().is_some_and(|uuid| !is_uuid(uuid)) {
            return Err(LabError::new(&place, "`uuid` is like 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"));
        }
        let Group(group) = section.take_or("group", Group(true))?;
        let place = section.place_of("pasid");
        let pasid = section.take("pasid")?.map(|Number(pasid)| u32::try_from(pasid).unwrap_or(0));
        if pasid.is_some_and(|pasid| !PASIDS.contains(&pasid)) {
            return Err(LabError::new(&place, "`pasid` is 1 to 0xfffff"));
        }
        let Range(pasids) = section.take_or("pasids", Range(PASIDS))?;
        Ok(Some(PartSpec { parent, uuid, group, pasid, pasids }))
    }
}

fn is_uuid(text: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.split('-').all(digits)
}

#[cfg(test)]
mod tests {
    use crate::Lab;

    fn complaint(keys: &str) -> String {
        let text = format!("[[device]]\nmodel = \"dsa\"\n{keys}\n");
        Lab::parse("a.toml", &text).expect_err(keys).to_string()
    }

    #[test]
    fn what_a_part_can_be() {
        let mut lab = Lab::default();
        lab.add_device("dsa,parent=01:00.0,group=none,pasid=7,pasids=0x10-31").unwrap();
        let part = lab.devices[0].part.clone().unwrap();
        assert_eq!((part.parent.to_string(), part.group, part.pasid), ("0000:01:00.0".to_owned(), false, Some(7)));
        assert_eq!(part.pasids, 16..=31);
        let parent = "parent = \"01:00.0\"\n";
        for (keys, message) in [
            ("pasid = 0", "a.toml:4:9: `pasid` is 1 to"),
            ("pasids = \"9-3\"", "a.toml:4:10: `pasids`: `9-3` is not FIRST-LAST"),
            ("pasids = \"1-0x100000\"", "is not FIRST-LAST"),
            ("group = \"mine\"", "neither own nor none"),
            ("uuid = \"x\"", "`uuid` is like"),
            ("driver = \"idxd\"", "unknown key `driver`"),
            ("addr = \"02:00.0\"", "unknown key `addr`"),
        ] {
            let said = complaint(&format!("{parent}{keys}"));
            assert!(said.contains(message), "{said}");
        }
        assert!(complaint("pasid = 3").contains("unknown key `pasid`"));
    }
}
