// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How often a device may have its errors printed (ERR-050).

use super::Nanos;
use crate::aer::Severity;

/// Lines in an interval.
const BURST: u32 = 10;
/// Five seconds.
const INTERVAL: Nanos = 5_000_000_000;

/// The limits of one device.
#[derive(Clone, Debug, Default)]
pub(super) struct RateLimit {
    correctable: Bucket,
    nonfatal: Bucket,
}

#[derive(Clone, Debug, Default)]
struct Bucket {
    begin: Option<Nanos>,
    printed: u32,
}

impl RateLimit {
    /// Whether an error of this severity may be printed now.
    pub(super) fn allows(&mut self, severity: Severity, now: Nanos) -> bool {
        let bucket = match severity {
            Severity::Correctable => &mut self.correctable,
            Severity::NonFatal => &mut self.nonfatal,
            Severity::Fatal => return true,
        };
        if bucket.begin.is_none_or(|begin| now.saturating_sub(begin) > INTERVAL) {
            (bucket.begin, bucket.printed) = (Some(now), 0);
        }
        bucket.printed = bucket.printed.saturating_add(1);
        bucket.printed <= BURST
    }
}
