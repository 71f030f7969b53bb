// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors that a lab plans: `[[error]]`.

use std::str::FromStr;

use pci::aer::spec::{CORRECTABLE_NAMES, UNCORRECTABLE_NAMES};
use pci::{Address, aer};

use super::LabError;
use super::section::{Number, Place, Section, Switch};

/// What happens besides bits in registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Nothing: the function only reports.
    #[default]
    Report,
    /// The function stops answering until its bus is reset: loads give ones,
    /// DMA stops. The port above reports a completion timeout.
    Timeout,
    /// The function receives a poisoned TLP.
    Poison,
    /// The link above the function fails; the port reports Surprise Down. A
    /// reset trains it again.
    LinkDown,
    /// The device is pulled out of its slot.
    Remove,
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Behaviour, String> {
        Ok(match text {
            "report" => Behaviour::Report,
            "timeout" => Behaviour::Timeout,
            "poison" => Behaviour::Poison,
            "link-down" => Behaviour::LinkDown,
            "remove" => Behaviour::Remove,
            _ => return Err(format!("`{text}` is not one of report, timeout, poison, link-down, remove")),
        })
    }
}

/// When a planned error happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// So many nanoseconds after the lab has started.
    At(u64),
    /// When programs have made so many calls on the device.
    Calls(u64),
    /// When the device has read memory so many times.
    Reads(u64),
    /// When it has written memory so many times.
    Writes(u64),
}

/// A planned error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorSpec {
    /// The function or port.
    pub device: Address,
    /// Bits of the correctable status.
    pub correctable: u32,
    /// Bits of the uncorrectable status.
    pub uncorrectable: u32,
    /// TLP header.
    pub header: Option<[u32; 4]>,
    /// The conditions of an advisory non-fatal error hold.
    pub advisory: bool,
    /// What happens besides.
    pub behaviour: Behaviour,
    /// When.
    pub when: When,
    /// Where it was described.
    pub place: Place,
}

/// Names or numbers of errors, separated by spaces.
struct Bits<const CORRECTABLE: bool>(u32);

impl<const CORRECTABLE: bool> FromStr for Bits<CORRECTABLE> {
    type Err = String;

    fn from_str(text: &str) -> Result<Bits<CORRECTABLE>, String> {
        let (linux, inject): (&[(u8, &str)], _) = if CORRECTABLE {
            (&CORRECTABLE_NAMES, &aer::CORRECTABLE_KEYWORDS[..])
        } else {
            (&UNCORRECTABLE_NAMES, &aer::UNCORRECTABLE_KEYWORDS[..])
        };
        let mut bits = 0;
        for word in text.split([' ', '+', '|']).filter(|word| !word.is_empty()) {
            let named = inject.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, bit)| *bit);
            let counted = linux.iter().find(|(_, name)| name.eq_ignore_ascii_case(word)).map(|(n, _)| 1 << n);
            let number = || word.parse::<Number>().ok().and_then(|Number(n)| u32::try_from(n).ok());
            bits |= named.or(counted).or_else(number).ok_or_else(|| {
                let names: Vec<&str> = inject.iter().map(|(name, _)| *name).collect();
                format!("`{word}` is neither a number nor an error; errors are {}", names.join(", "))
            })?;
        }
        let known = if CORRECTABLE { aer::spec::CORRECTABLE } else { aer::spec::UNCORRECTABLE };
        if bits & !known != 0 {
            return Err(format!("{bits:#x} has bits that no error has"));
        }
        Ok(Bits(bits))
    }
}

/// Four numbers.
struct Header([u32; 4]);

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Header, String> {
        let words = text.split_whitespace().map(|word| {
            let Number(number) = word.parse()?;
            u32::try_from(number).map_err(|_| format!("{number:#x} has more than 32 bits"))
        });
        let words: Vec<u32> = words.collect::<Result<_, String>>()?;
        let words = words.try_into().map_err(|_| "a header is four numbers".to_owned())?;
        Ok(Header(words))
    }
}

impl ErrorSpec {
    pub(super) fn decode(mut section: Section) -> Result<ErrorSpec, LabError> {
        let place = section.place.clone();
        let device = section.take("device")?.ok_or_else(|| LabError::new(&place, "an error needs `device`"))?;
        let Bits::<true>(correctable) = section.take_or("correctable", Bits(0))?;
        let Bits::<false>(uncorrectable) = section.take_or("uncorrectable", Bits(0))?;
        let header = section.take("header_log")?.map(|Header(words)| words);
        let Switch(advisory) = section.take_or("advisory", Switch(false))?;
        let behaviour = section.take_or("behaviour", Behaviour::Report)?;
        let mut when = Vec::new();
        if let Some(Number(ms)) = section.take("at_ms")? {
            when.push(When::At(ms.saturating_mul(1_000_000)));
        }
        for (key, kind) in [
            ("after_calls", When::Calls as fn(u64) -> When),
            ("after_dma_reads", When::Reads),
            ("after_dma_writes", When::Writes),
        ] {
            when.extend(section.take(key)?.map(|Number(n)| kind(n)));
        }
        section.finish()?;
        let [when] = when[..] else {
            let message = "an error needs one of `at_ms`, `after_calls`, `after_dma_reads` and `after_dma_writes`";
            return Err(LabError::new(&place, message));
        };
        if behaviour == Behaviour::Report && correctable | uncorrectable == 0 {
            let message = "an error needs `correctable`, `uncorrectable` or a `behaviour`";
            return Err(LabError::new(&place, message));
        }
        Ok(ErrorSpec { device, correctable, uncorrectable, header, advisory, behaviour, when, place })
    }
}
