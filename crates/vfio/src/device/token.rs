// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VF tokens: what a PF's user and its VFs' users must both know (vfio-api.md,
//! section 2.1).

use std::collections::BTreeMap;
use std::sync::Arc;

use ::device::{Board, Driver};
use caller::Platform;
use pci::{Address, PortType, cap};
use uapi::Errno;

/// Bytes of a token.
pub(super) const TOKEN_SIZE: usize = 16;
/// Characters of a token in a device's name.
const TEXT_SIZE: usize = 36;
/// Option that gives a token.
const OPTION: &str = "vf_token=";

/// Tokens of all PFs.
#[derive(Debug)]
pub(super) struct Tokens {
    platform: Arc<dyn Platform>,
    pfs: BTreeMap<Address, Pf>,
}

#[derive(Debug)]
struct Pf {
    token: [u8; TOKEN_SIZE],
    /// Open VFs.
    users: u32,
}

impl Tokens {
    pub(super) fn new(platform: Arc<dyn Platform>) -> Tokens {
        Tokens { platform, pfs: BTreeMap::new() }
    }

    /// Whether the function is a PF bound to vfio-pci: then it has a token.
    pub(super) fn has(&self, address: Address, board: &Board) -> bool {
        let capable = |f: &pci::Function| f.extended_capability(cap::EXT_SRIOV).is_some();
        board.driver(address) == Some(&Driver::VfioPci) && board.fabric.function(address).is_some_and(capable)
    }

    pub(super) fn set(&mut self, address: Address, token: [u8; TOKEN_SIZE]) {
        self.pf(address).token = token;
    }

    /// A VF is opened.
    pub(super) fn add_user(&mut self, vf: Address, board: &Board) {
        if let Some(pf) = self.pf_of(vf, board) {
            self.pf(pf).users += 1;
        }
    }

    /// A VF is closed.
    pub(super) fn remove_user(&mut self, vf: Address, board: &Board) {
        if let Some(pf) = self.pf_of(vf, board) {
            let pf = self.pf(pf);
            pf.users = pf.users.saturating_sub(1);
        }
    }

    /// A function has lost its driver: its next one starts with a new token.
    pub(super) fn forget(&mut self, address: Address) {
        self.pfs.remove(&address);
    }

    /// Checks the token that a user gives, or its absence, and keeps the
    /// first one that a PF's user gives (API-057 to API-060).
    pub(super) fn check(
        &mut self,
        address: Address,
        token: Option<[u8; TOKEN_SIZE]>,
        board: &Board,
    ) -> Result<(), Errno> {
        let function = board.fabric.function(address).ok_or(Errno::ENODEV)?;
        if function.spec().port_type == PortType::VirtualFunction {
            let Some(pf) = self.pf_of(address, board) else {
                return if token.is_none() { Ok(()) } else { Err(Errno::EINVAL) };
            };
            let expected = self.pf(pf).token;
            return if token == Some(expected) { Ok(()) } else { Err(Errno::EACCES) };
        }
        if !self.has(address, board) {
            return if token.is_none() { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let pf = self.pf(address);
        match token {
            None if pf.users > 0 => Err(Errno::EACCES),
            Some(token) if pf.users > 0 && token != pf.token => Err(Errno::EACCES),
            Some(token) => {
                pf.token = token;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The PF of a VF, if that is bound to vfio-pci.
    fn pf_of(&self, vf: Address, board: &Board) -> Option<Address> {
        board.fabric.physical_function(vf).filter(|pf| self.has(*pf, board))
    }

    /// Nobody knows the first token (API-061).
    fn pf(&mut self, address: Address) -> &mut Pf {
        let platform = &self.platform;
        self.pfs.entry(address).or_insert_with(|| {
            let mut token = platform.random();
            // Version 4, variant 1.
            token[6] = token[6] & 0x0f | 0x40;
            token[8] = token[8] & 0x3f | 0x80;
            Pf { token, users: 0 }
        })
    }
}

/// Whether the name is this device's: its address, alone or followed by a
/// space and options (API-049). The options.
pub(super) fn options_of(address: Address, name: &str) -> Option<&str> {
    let options = name.strip_prefix(address.to_string().as_str())?;
    (options.is_empty() || options.starts_with(' ')).then_some(options)
}

/// The token among the options; `EINVAL` for what is no option (API-050).
pub(super) fn parse(mut options: &str) -> Result<Option<[u8; TOKEN_SIZE]>, Errno> {
    let mut token = None;
    loop {
        options = options.trim_start_matches(' ');
        if options.is_empty() {
            return Ok(token);
        }
        let text = options.strip_prefix(OPTION).filter(|_| token.is_none()).ok_or(Errno::EINVAL)?;
        let uuid = text.get(..TEXT_SIZE).ok_or(Errno::EINVAL)?;
        token = Some(parse_uuid(uuid).ok_or(Errno::EINVAL)?);
        options = &text[TEXT_SIZE..];
    }
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn parse_uuid(text: &str) -> Option<[u8; TOKEN_SIZE]> {
    let dashes = text.bytes().enumerate().all(|(i, b)| (b == b'-') == matches!(i, 8 | 13 | 18 | 23));
    let digits: Option<Vec<u8>> = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|digits| dashes && digits.len() == 2 * TOKEN_SIZE)?;
    let mut uuid = [0; TOKEN_SIZE];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "00112233-4455-6677-8899-aAbBcCdDeEfF";

    /// API-049
    #[test]
    fn name_is_the_address_and_options() {
        let address = Address::new(0, 1, 0, 0);
        assert_eq!(options_of(address, "0000:01:00.0"), Some(""));
        assert_eq!(options_of(address, "0000:01:00.0 x"), Some(" x"));
        for other in ["0000:01:00.1", "0000:01:00.00", "0000:01:00.0x", "01:00.0", "", "0000:01:00"] {
            assert_eq!(options_of(address, other), None, "{other}");
        }
    }

    /// API-050
    #[test]
    fn the_only_option_is_a_token() {
        let token =
            Some([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("   "), Ok(None));
        assert_eq!(parse(&format!(" vf_token={UUID}")), Ok(token));
        assert_eq!(parse(&format!("  vf_token={UUID}  ")), Ok(token));
        for wrong in [
            " x".to_owned(),
            " vf_token=".to_owned(),
            format!(" vf_token={}", &UUID[..35]),
            format!(" vf_token={UUID}0"),
            format!(" vf_token={UUID} vf_token={UUID}"),
            format!(" vf_token={}", UUID.replace('-', "0")),
            format!(" vf_token={}", UUID.replace('3', "g")),
            " vf_token=00112233-4455-6677-8899-aabbccddeéé".to_owned(),
        ] {
            assert_eq!(parse(&wrong), Err(Errno::EINVAL), "{wrong}");
        }
    }
}
