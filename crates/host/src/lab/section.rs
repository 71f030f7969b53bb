// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys and values of a lab description, wherever they were written.
//!
//! A table of a lab file and a `--device` argument are both a [`Section`]: a
//! list of keys with text values, each knowing its place. One decoder then
//! serves both, and every complaint names the place.

use std::fmt;
use std::str::FromStr;

use super::LabError;

/// Where something was written: `file:line:column`, or the argument it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// A place in a file; `offset` counts bytes.
    pub(super) fn in_file(name: &str, text: &str, offset: usize) -> Place {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Place(format!("{name}:{line}:{column}"))
    }

    /// The lab as a whole, where no line of it is to blame.
    pub(crate) fn whole() -> Place {
        Place("lab".to_owned())
    }

    /// A command-line argument.
    pub(super) fn argument(text: &str) -> Place {
        Place(text.to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) place: Place,
}

/// A table of keys and values.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// What it describes, for messages: `[iommu]`, `device`.
    pub(super) what: String,
    pub(super) place: Place,
    pub(super) pairs: Vec<Pair>,
    /// Keys asked for so far: what [`finish`](Section::finish) offers instead
    /// of an unknown one.
    asked: Vec<&'static str>,
}

impl Section {
    pub(super) fn new(what: impl Into<String>, place: Place) -> Section {
        Section { what: what.into(), place, pairs: Vec::new(), asked: Vec::new() }
    }

    /// Takes the value of `key` out, if it is given.
    pub(super) fn take<T: FromStr>(&mut self, key: &'static str) -> Result<Option<T>, LabError>
    where
        T::Err: fmt::Display,
    {
        self.asked.push(key);
        let Some(at) = self.pairs.iter().position(|p| p.key == key) else {
            return Ok(None);
        };
        let pair = self.pairs.remove(at);
        match pair.value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(LabError::new(&pair.place, format!("`{key}`: {error}"))),
        }
    }

    /// Like [`take`](Section::take), with a default.
    pub(super) fn take_or<T: FromStr>(&mut self, key: &'static str, default: T) -> Result<T, LabError>
    where
        T::Err: fmt::Display,
    {
        Ok(self.take(key)?.unwrap_or(default))
    }

    /// Place of a key that is still there, else of the section.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.pairs.iter().find(|p| p.key == key).map_or(&self.place, |p| &p.place).clone()
    }

    /// Complains about a key that nobody asked for.
    pub(super) fn finish(self) -> Result<(), LabError> {
        let Some(pair) = self.pairs.first() else {
            return Ok(());
        };
        let what = &self.what;
        let keys = self.asked.join(", ");
        Err(LabError::new(&pair.place, format!("unknown key `{}` for {what}; its keys are {keys}", pair.key)))
    }
}

/// A number of bytes: `512`, `4K`, `16M`, `1G`, `2T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("`{text}` is not a size; write bytes, or a number with K, M, G or T, for example 1G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &text[digits.len()..] {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).filter(|n| *n <= i64::MAX as u64).map(Size).ok_or_else(wrong)
    }
}

/// `true`/`false`, also as `on`/`off` on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Switch, String> {
        match text {
            "true" | "on" | "yes" => Ok(Switch(true)),
            "false" | "off" | "no" => Ok(Switch(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        }
    }
}

/// A number, decimal or with 0x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Number, String> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map(Number).map_err(|_| format!("`{text}` is not a number"))
    }
}

/// A time in milliseconds, or `never`; in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis(pub(super) u64);

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Millis, String> {
        if text == "never" {
            return Ok(Millis(u64::MAX));
        }
        let Number(ms) = text.parse()?;
        Ok(Millis(ms.saturating_mul(1_000_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("512", 512), ("4K", 4096), ("16MiB", 16 << 20), ("1G", 1 << 30), ("2T", 2 << 40)] {
            assert_eq!(text.parse::<Size>().map(|s| s.0), Ok(bytes));
        }
        for text in ["", "G", "1.5G", "-1", "1X", "9999999999T", "8388608T"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }
}
