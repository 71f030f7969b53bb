// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Function addresses, `DDDD:BB:DD.F`.

use std::fmt;
use std::str::FromStr;

/// Segment, bus, device and function of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Segment (Linux: domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    devfn: u8,
}

/// Text that is not a function address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a PCI address; write it as DDDD:BB:DD.F or BB:DD.F, for example 0000:01:00.0")]
pub struct AddressError(String);

impl Address {
    /// An address; `device` is taken modulo 32, `function` modulo 8.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Address {
        Address { segment, bus, devfn: (device & 31) << 3 | function & 7 }
    }

    /// An address from the packed device and function byte.
    #[must_use]
    pub const fn from_devfn(segment: u16, bus: u8, devfn: u8) -> Address {
        Address { segment, bus, devfn }
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function packed in a byte.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// Requester id: bus in the high byte, devfn in the low one.
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | self.devfn as u16
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device(), self.function())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let device = hex(parts.next()?, 2)?;
            let bus = hex(parts.next()?, 2)?;
            let segment = parts.next().map_or(Some(0), |s| hex(s, 4))?;
            let function = hex(function, 1)?;
            if parts.next().is_some() || device > 31 || function > 7 {
                return None;
            }
            Some(Address::new(segment, bus as u8, device as u8, function as u8))
        };
        parse().ok_or_else(|| AddressError(text.to_owned()))
    }
}

fn hex(text: &str, digits: usize) -> Option<u16> {
    let plain = !text.is_empty() && text.len() <= digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u16::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for (text, shown) in
            [("0000:01:00.0", "0000:01:00.0"), ("1:1f.7", "0000:01:1f.7"), ("ABCD:ff:02.3", "abcd:ff:02.3")]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in
            ["", "01:00", "01:20.0", "01:00.8", "0:0:0:0.0", "00001:00:00.0", "0000:01:00.0 ", "+1:00.0", "01:00.-1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
