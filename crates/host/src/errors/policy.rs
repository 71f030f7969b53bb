// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a driver of the pretend kernel takes part in recovery.

use std::str::FromStr;

use pci::recovery::{Call, Channel, Handlers, Vote};

/// What a kernel driver says to each callback; `None`: it has no such
/// callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorPolicy {
    /// `error_detected` after a non-fatal error, and after a fatal one; either
    /// both are there or none.
    pub detected: Option<(Vote, Vote)>,
    /// `mmio_enabled`.
    pub mmio_enabled: Option<Vote>,
    /// `slot_reset`; the driver restores its function's configuration there.
    pub slot_reset: Option<Vote>,
    /// `resume`.
    pub resume: bool,
    /// `cor_error_detected`.
    pub correctable: bool,
}

impl ErrorPolicy {
    /// A driver as Linux's documentation wants it: goes on after a non-fatal
    /// error, wants a reset after a fatal one.
    pub const GOOD: ErrorPolicy = ErrorPolicy {
        detected: Some((Vote::CanRecover, Vote::NeedReset)),
        mmio_enabled: Some(Vote::Recovered),
        slot_reset: Some(Vote::Recovered),
        resume: true,
        correctable: false,
    };
    /// One without handlers.
    pub const NONE: ErrorPolicy =
        ErrorPolicy { detected: None, mmio_enabled: None, slot_reset: None, resume: false, correctable: false };
    /// `pcieport`.
    pub const PORT: ErrorPolicy = ErrorPolicy { resume: false, ..ErrorPolicy::GOOD };
    /// `vfio-pci` (ERR-001, ERR-002).
    pub const VFIO: ErrorPolicy =
        ErrorPolicy { detected: Some((Vote::CanRecover, Vote::CanRecover)), ..ErrorPolicy::NONE };

    /// Which callbacks there are.
    #[must_use]
    pub const fn handlers(&self) -> Handlers {
        Handlers {
            error_detected: self.detected.is_some(),
            mmio_enabled: self.mmio_enabled.is_some(),
            slot_reset: self.slot_reset.is_some(),
            resume: self.resume,
            cor_error_detected: self.correctable,
        }
    }

    /// The answer to a callback.
    #[must_use]
    pub fn vote(&self, call: Call) -> Vote {
        let vote = match call {
            Call::ErrorDetected(Channel::Normal) => self.detected.map(|d| d.0),
            Call::ErrorDetected(Channel::Frozen) => self.detected.map(|d| d.1),
            // The answer does not count.
            Call::ErrorDetected(Channel::PermFailure) => Some(Vote::Disconnect),
            Call::MmioEnabled => self.mmio_enabled,
            Call::SlotReset => self.slot_reset,
            Call::Resume | Call::CorErrorDetected => None,
        };
        vote.unwrap_or(Vote::None)
    }
}

impl Default for ErrorPolicy {
    fn default() -> ErrorPolicy {
        ErrorPolicy::GOOD
    }
}

/// `good`, `none`, or callbacks with their votes, separated by spaces:
/// `normal=need-reset frozen=disconnect mmio_enabled=recovered
/// slot_reset=recovered resume`.
impl FromStr for ErrorPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<ErrorPolicy, String> {
        match text {
            "good" => return Ok(ErrorPolicy::GOOD),
            "none" => return Ok(ErrorPolicy::NONE),
            _ => {}
        }
        let mut policy = ErrorPolicy { detected: Some((Vote::CanRecover, Vote::CanRecover)), ..ErrorPolicy::NONE };
        for word in text.split_whitespace() {
            match word {
                "resume" => policy.resume = true,
                "correctable" => policy.correctable = true,
                _ => {
                    let (callback, name) = word.split_once('=').ok_or_else(|| wrong(word))?;
                    let vote = Vote::ALL.into_iter().find(|vote| vote.name() == name).ok_or_else(|| {
                        let names = Vote::ALL.map(Vote::name).join(", ");
                        format!("`{name}` is not a vote; votes are {names}")
                    })?;
                    match callback {
                        "normal" => policy.detected = policy.detected.map(|(_, frozen)| (vote, frozen)),
                        "frozen" => policy.detected = policy.detected.map(|(normal, _)| (normal, vote)),
                        "mmio_enabled" => policy.mmio_enabled = Some(vote),
                        "slot_reset" => policy.slot_reset = Some(vote),
                        _ => return Err(wrong(word)),
                    }
                }
            }
        }
        Ok(policy)
    }
}

fn wrong(word: &str) -> String {
    format!(
        "`{word}`: write `good`, `none`, or some of normal=VOTE, frozen=VOTE, mmio_enabled=VOTE, slot_reset=VOTE, \
         resume and correctable, for example `normal=need-reset slot_reset=recovered resume`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!("good".parse(), Ok(ErrorPolicy::GOOD));
        assert_eq!("none".parse(), Ok(ErrorPolicy::NONE));
        let told: ErrorPolicy = "normal=need-reset slot_reset=disconnect resume".parse().unwrap();
        assert_eq!(told.vote(Call::ErrorDetected(Channel::Normal)), Vote::NeedReset);
        assert_eq!(told.vote(Call::ErrorDetected(Channel::Frozen)), Vote::CanRecover);
        assert_eq!(told.vote(Call::SlotReset), Vote::Disconnect);
        let handlers = Handlers { error_detected: true, slot_reset: true, resume: true, ..Handlers::default() };
        assert_eq!(told.handlers(), handlers);
        for text in ["bad", "normal", "normal=well", "later=recovered", "normal=need_reset"] {
            assert!(text.parse::<ErrorPolicy>().is_err(), "{text}");
        }
    }
}
