// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Votes of drivers and the state of a function's channel (ERR-019 to
//! ERR-023).

use std::fmt;

/// What a driver says; Linux's `pci_ers_result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Vote {
    /// No opinion.
    None = 1,
    /// Can go on without a reset.
    CanRecover = 2,
    /// The link is to be reset.
    NeedReset = 3,
    /// Given up.
    Disconnect = 4,
    /// Works again.
    Recovered = 5,
    /// There is nobody to ask.
    NoAerDriver = 6,
}

impl Vote {
    /// All of them.
    pub const ALL: [Vote; 6] =
        [Vote::None, Vote::CanRecover, Vote::NeedReset, Vote::Disconnect, Vote::Recovered, Vote::NoAerDriver];

    /// The accumulated result after one more vote.
    #[must_use]
    pub const fn merge(self, vote: Vote) -> Vote {
        match (self, vote) {
            (_, Vote::NoAerDriver) => Vote::NoAerDriver,
            (_, Vote::None) => self,
            (Vote::CanRecover | Vote::Recovered, _) => vote,
            (Vote::Disconnect, Vote::NeedReset) => Vote::NeedReset,
            _ => self,
        }
    }

    /// Its name in lab files: `can-recover` and the like.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Vote::None => "none",
            Vote::CanRecover => "can-recover",
            Vote::NeedReset => "need-reset",
            Vote::Disconnect => "disconnect",
            Vote::Recovered => "recovered",
            Vote::NoAerDriver => "no-aer-driver",
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// State of a function's channel; Linux's `pci_channel_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Channel {
    /// Accesses go through.
    #[default]
    Normal = 1,
    /// They do not.
    Frozen = 2,
    /// They will not again.
    PermFailure = 3,
}

impl Channel {
    /// Takes the new state, unless this one is for ever. Whether it did.
    pub fn set(&mut self, new: Channel) -> bool {
        if *self == Channel::PermFailure && new != Channel::PermFailure {
            return false;
        }
        *self = new;
        true
    }
}
