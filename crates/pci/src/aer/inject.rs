// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux's `aer_inject` makes of errors that somebody injects (ERR-060 to
//! ERR-063).

use super::spec::{register, root};
use crate::{Address, Fabric, PortType, Signal, cap};

/// Errors to inject at a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Where; `None` if the text does not say.
    pub target: Option<Address>,
    /// Bits of the correctable status.
    pub correctable: u32,
    /// Bits of the uncorrectable status.
    pub uncorrectable: u32,
    /// TLP header.
    pub header: [u32; 4],
    /// Line and column of its `AER`, from 1.
    pub place: (usize, usize),
}

/// Why an injection is refused, in Linux's order of checks (ERR-061, ERR-062).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// `ENODEV`.
    #[error("there is no function at {0}")]
    NoDevice(Address),
    /// `ENODEV`.
    #[error("{0}: neither a root port nor an event collector above it")]
    NoRoot(Address),
    /// `EPROTONOSUPPORT`.
    #[error("{0} has no Advanced Error Reporting capability")]
    NoCapability(Address),
    /// `EPROTONOSUPPORT`.
    #[error("the root port {0} has no Advanced Error Reporting capability")]
    NoRootCapability(Address),
    /// `EINVAL`.
    #[error("{0} masks all the correctable errors given ({1:#x})")]
    CorrectableMasked(Address, u32),
    /// `EINVAL`.
    #[error("{0} masks all the uncorrectable errors given ({1:#x})")]
    UncorrectableMasked(Address, u32),
    /// `ENODEV`.
    #[error("nobody serves error messages at {0}: its driver is not pcieport")]
    NoService(Address),
}

impl Injection {
    /// The record that is written to `/dev/aer_inject`: 28 to 32 bytes, what is
    /// missing of the domain being zero; `None` (Linux: `EINVAL`) for any other
    /// length (ERR-060). Without a target if there is no such domain.
    #[must_use]
    pub fn from_record(record: &[u8]) -> Option<Injection> {
        if !(28..=32).contains(&record.len()) {
            return None;
        }
        let word = |at: usize| {
            let byte = |i: usize| u32::from(record.get(at + i).copied().unwrap_or(0));
            byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
        };
        let byte = |at: usize| record.get(at).copied().unwrap_or(0);
        Some(Injection {
            target: u16::try_from(word(28)).ok().map(|domain| Address::new(domain, byte(0), byte(1), byte(2))),
            uncorrectable: word(4),
            correctable: word(8),
            header: [word(12), word(16), word(20), word(24)],
            place: (1, 1),
        })
    }
}

impl Fabric {
    /// Makes a function look as if it had reported errors, whatever its enables
    /// say, and the root port above as if it had been told. `served` says
    /// whether a root port's driver has its error service.
    ///
    /// Masked bits are set all the same; they show with the next injection.
    pub fn inject(
        &mut self,
        address: Address,
        injection: &Injection,
        served: impl FnOnce(Address) -> bool,
    ) -> Result<(), InjectError> {
        if !self.functions.contains_key(&address) {
            return Err(InjectError::NoDevice(address));
        }
        let port = self.error_root(address).ok_or(InjectError::NoRoot(address))?;
        let aer_of = |fabric: &Fabric, at| fabric.functions.get(&at)?.extended_capability(cap::EXT_AER);
        let aer = aer_of(self, address).ok_or(InjectError::NoCapability(address))?;
        let root_aer = aer_of(self, port).ok_or(InjectError::NoRootCapability(port))?;
        let function = self.functions.get_mut(&address).ok_or(InjectError::NoDevice(address))?;
        let severity = function.peek(aer + register::SEVERITY, 4);
        let correctable_mask = function.peek(aer + register::CORRECTABLE_MASK, 4);
        let uncorrectable_mask = function.peek(aer + register::UNCORRECTABLE_MASK, 4);
        function.or(aer + register::UNCORRECTABLE_STATUS, injection.uncorrectable);
        function.or(aer + register::CORRECTABLE_STATUS, injection.correctable);
        for (word, offset) in injection.header.into_iter().zip((register::HEADER_LOG..).step_by(4)) {
            function.set(aer + offset, 4, word);
        }
        let masked = |given: u32, mask: u32| given != 0 && given & !mask == 0;
        if masked(injection.correctable, correctable_mask) {
            return Err(InjectError::CorrectableMasked(address, injection.correctable));
        }
        if masked(injection.uncorrectable, uncorrectable_mask) {
            return Err(InjectError::UncorrectableMasked(address, injection.uncorrectable));
        }
        if let Some(first) = super::route::bits(injection.uncorrectable & !uncorrectable_mask).next() {
            let control = function.peek(aer + register::CONTROL, 4) & !0x1f;
            function.set(aer + register::CONTROL, 4, control | first.trailing_zeros());
        }
        if let Some(root) = self.functions.get_mut(&port) {
            let before = root.peek(root_aer + register::ROOT_STATUS, 4);
            let id = u32::from(address.requester_id());
            if injection.correctable != 0 {
                root.set(root_aer + register::SOURCE, 2, id);
            }
            if injection.uncorrectable != 0 {
                root.set(root_aer + register::SOURCE + 2, 2, id);
            }
            let status = made_up(before, injection, severity);
            root.set(root_aer + register::ROOT_STATUS, 4, status);
        }
        if !served(port) {
            return Err(InjectError::NoService(port));
        }
        self.signal(Signal::RootError(port));
        Ok(())
    }

    /// The root port above a function, itself if it is one, or the collector
    /// of an integrated endpoint.
    #[must_use]
    pub fn error_root(&self, address: Address) -> Option<Address> {
        let mut at = address;
        loop {
            match self.port_type(at)? {
                PortType::RootPort | PortType::EventCollector => return Some(at),
                _ => match self.parent(at) {
                    Some(bridge) => at = bridge,
                    None => {
                        return self.collector(at).filter(|_| self.port_type(at) == Some(PortType::IntegratedEndpoint));
                    }
                },
            }
        }
    }
}

/// Root status after an injection. In hardware the source register would keep
/// the first id; here it has the last.
fn made_up(before: u32, injection: &Injection, severity: u32) -> u32 {
    let mut status = before;
    if injection.correctable != 0 {
        status |= if status & root::COR != 0 { root::MULTI_COR } else { root::COR };
    }
    if injection.uncorrectable != 0 {
        let first = status & root::UNCOR == 0;
        if !first {
            status |= root::MULTI_UNCOR;
        }
        if severity & injection.uncorrectable != 0 {
            status |= root::FATAL | if first { root::FIRST_FATAL } else { 0 };
        } else {
            status |= root::NONFATAL;
        }
        status |= root::UNCOR;
    }
    status
}
