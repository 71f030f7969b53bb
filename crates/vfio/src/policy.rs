// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which extensions of error recovery a device has, as the lab file or its
//! program says ([`uapi::vfio::recovery`]).

use std::str::FromStr;

use uapi::Errno;
use uapi::vfio::recovery::RecoveryFlags;

const MS: u64 = 1_000_000;
/// The longest wait that can be asked for, in milliseconds.
const LONGEST: u32 = 600_000;

/// Recovery extensions of a device; Linux's behaviour by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryPolicy {
    /// What is on.
    pub flags: RecoveryFlags,
    /// Nanoseconds that an access waits for recovery at most.
    pub wait: u64,
    /// Nanoseconds that the host waits for the user's link reset.
    pub user_reset: u64,
}

impl Default for RecoveryPolicy {
    fn default() -> RecoveryPolicy {
        // Linux gives a device a minute to come back from a reset.
        RecoveryPolicy { flags: RecoveryFlags::empty(), wait: 90_000 * MS, user_reset: 10_000 * MS }
    }
}

impl RecoveryPolicy {
    /// Whether an extension is on.
    #[must_use]
    pub fn has(&self, flag: RecoveryFlags) -> bool {
        self.flags.contains(flag)
    }

    /// Takes times in milliseconds; 0 leaves one as it is. `EINVAL` above ten
    /// minutes.
    pub fn set_times(&mut self, wait_ms: u32, reset_ms: u32) -> Result<(), Errno> {
        if wait_ms > LONGEST || reset_ms > LONGEST {
            return Err(Errno::EINVAL);
        }
        for (time, ms) in [(&mut self.wait, wait_ms), (&mut self.user_reset, reset_ms)] {
            if ms != 0 {
                *time = u64::from(ms) * MS;
            }
        }
        Ok(())
    }

    /// The two times in milliseconds.
    #[must_use]
    pub fn times(&self) -> (u32, u32) {
        let ms = |time: u64| u32::try_from(time / MS).unwrap_or(u32::MAX);
        (ms(self.wait), ms(self.user_reset))
    }
}

/// Names of extensions, separated by spaces: `block non-fatal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryNames(pub RecoveryFlags);

impl FromStr for RecoveryNames {
    type Err = String;

    fn from_str(text: &str) -> Result<RecoveryNames, String> {
        let mut flags = RecoveryFlags::empty();
        for word in text.split([' ', '+']).filter(|word| !word.is_empty()) {
            let found = RecoveryFlags::NAMES.iter().find(|(name, _)| *name == word);
            let (_, flag) = found.ok_or_else(|| {
                let names = RecoveryFlags::NAMES.map(|(name, _)| name).join(", ");
                format!("`{word}` is not a recovery extension; there are {names}")
            })?;
            flags |= *flag;
        }
        Ok(RecoveryNames(flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times() {
        let all: RecoveryNames = "non-fatal passive-reset block disconnect user-reset".parse().unwrap();
        assert_eq!(all.0, RecoveryFlags::all());
        assert_eq!("".parse(), Ok(RecoveryNames::default()));
        assert!("blocked".parse::<RecoveryNames>().unwrap_err().contains("`blocked` is not"));
        let mut policy = RecoveryPolicy::default();
        assert_eq!(policy.set_times(0, 1), Ok(()));
        assert_eq!(policy.times(), (90_000, 1));
        assert_eq!(policy.set_times(600_001, 1), Err(Errno::EINVAL));
    }
}
