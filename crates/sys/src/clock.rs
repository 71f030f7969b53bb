// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time since the lab started.

use std::time::Instant;

use device::Nanos;

/// Counts monotonic nanoseconds from its making. Copies show the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that shows 0 now.
    #[must_use]
    pub fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Nanoseconds since [`new`](Self::new); enough for 584 years.
    #[must_use]
    pub fn now(&self) -> Nanos {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let clock = Clock::new();
        let first = clock.now();
        let copy = clock;
        assert!(copy.now() >= first);
        assert!(first < 1_000_000_000);
    }
}
