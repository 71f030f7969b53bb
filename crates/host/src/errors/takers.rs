// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors that somebody beside the program answers for (extension).
//!
//! A taker (`vfuse aer-bridge`) takes the notices of some functions: their
//! non-fatal errors, and if it asked for them the fatal ones, are told to it
//! in place of the ERR eventfd. Failed recovery always goes to the eventfd.
//! A notice is owed until the taker has answered it; when the taker goes, what
//! it owes is told by the eventfd after all, so no error is lost with it.

use std::collections::{BTreeMap, BTreeSet};

use pci::Address;
use pci::recovery::Channel;

use crate::host::Host;

/// Who has taken notices; good for one [`Host::take_errors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TakerId(u64);

/// Why notices cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// There is no such function.
    #[error("there is no function at {0}")]
    NoFunction(Address),
    /// Its errors are the kernel driver's.
    #[error("{0} is not bound to vfio-pci")]
    NotVfio(Address),
    /// Somebody else has.
    #[error("the errors of {0} are taken already")]
    Taken(Address),
}

/// Who is told of errors in place of the ERR eventfd.
#[derive(Debug, Default)]
pub(super) struct Takers {
    made: u64,
    of: BTreeMap<Address, Taker>,
    owed: BTreeSet<Address>,
}

#[derive(Clone, Copy, Debug)]
struct Taker {
    id: TakerId,
    fatal: bool,
}

impl Takers {
    /// Whether the taker of this function is told that its channel is in this
    /// state; else the eventfd is.
    pub(super) fn takes(&mut self, address: Address, channel: Channel) -> bool {
        let taken = match (self.of.get(&address), channel) {
            (Some(_), Channel::Normal) => true,
            (Some(taker), Channel::Frozen) => taker.fatal,
            (None, _) | (_, Channel::PermFailure) => false,
        };
        if taken {
            self.owed.insert(address);
        } else {
            self.owed.remove(&address);
        }
        taken
    }
}

impl Host {
    /// From now on non-fatal errors of these functions, and if `fatal` fatal
    /// ones, are shown as `aer.notice` events only, and do not signal the ERR
    /// eventfd. All or none are taken.
    pub fn take_errors(&mut self, functions: &[Address], fatal: bool) -> Result<TakerId, NotTaken> {
        for address in functions {
            if self.board.fabric.function(*address).is_none() {
                return Err(NotTaken::NoFunction(*address));
            }
            if self.board.driver(*address) != Some(&device::Driver::VfioPci) {
                return Err(NotTaken::NotVfio(*address));
            }
            if self.errors.takers.of.contains_key(address) {
                return Err(NotTaken::Taken(*address));
            }
        }
        let takers = &mut self.errors.takers;
        takers.made += 1;
        let id = TakerId(takers.made);
        takers.of.extend(functions.iter().map(|address| (*address, Taker { id, fatal })));
        Ok(id)
    }

    /// The user of a function knows of its error by other means. Whether a
    /// notice was owed.
    pub fn answered_error(&mut self, address: Address) -> bool {
        self.errors.takers.owed.remove(&address)
    }

    /// The taker has gone. Notices that it has not answered go to the ERR
    /// eventfd.
    pub fn give_errors_back(&mut self, id: TakerId) {
        let of = &mut self.errors.takers.of;
        let gone: Vec<Address> = of.iter().filter(|(_, taker)| taker.id == id).map(|(a, _)| *a).collect();
        of.retain(|_, taker| taker.id != id);
        for address in gone {
            if self.errors.takers.owed.remove(&address) {
                let told = self.vfio.signal_error(address);
                super::kernel::notice(address, "owed", if told { "err" } else { "nobody" });
            }
        }
    }
}
