// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Automatic IOVAs (IOMMUFD-5.4).

use uapi::Errno;

use super::Ioas;
use crate::PAGE;

/// Large pages of x86: automatic IOVAs are aligned to no more.
const HUGE_PAGE: u64 = 2 << 20;

/// Where a range of `length` bytes can begin in `first..=last`.
fn fit(first: u64, last: u64, length: u64, alignment: u64, page_offset: u64) -> Option<u64> {
    let start = first.checked_add(alignment - 1)? & !(alignment - 1) | page_offset;
    // A hole of one byte is never used.
    (start < last && last - start >= length - 1).then_some(start)
}

impl Ioas {
    /// The lowest free IOVA for `length` bytes whose first is at `address`:
    /// `EOVERFLOW`, `EINVAL` if it would not be aligned enough, `ENOSPC`.
    pub(super) fn locate(&mut self, address: u64, length: u64) -> Result<u64, Errno> {
        if length == 0 || length >= u64::MAX / 2 {
            return Err(Errno::EOVERFLOW);
        }
        let page_offset = address % PAGE;
        let natural = length.next_power_of_two();
        let wanted = if address == 0 { natural } else { natural.min(1 << address.trailing_zeros()) };
        let alignment = wanted.min(HUGE_PAGE);
        if alignment < self.alignment {
            return Err(Errno::EINVAL);
        }
        self.advance_frontier();
        for (first, last) in self.allowed.spans() {
            let Some(mut at) = fit(first, last, length, alignment, page_offset) else { continue };
            at = at.max(self.frontier);
            while let Some((first, end)) = self.hole(at, last) {
                if let Some(start) = fit(first, end, length, alignment, page_offset) {
                    return Ok(start);
                }
                match end.checked_add(1) {
                    Some(next) if next <= last => at = next,
                    _ => break,
                }
            }
        }
        Err(Errno::ENOSPC)
    }

    /// The first range in `first..=last` that is neither mapped nor reserved.
    fn hole(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let mut at = first;
        loop {
            if at > last {
                return None;
            }
            let mapped = self.space.at_or_after(at).map(|mapping| (mapping.first, mapping.last));
            let reserved = self.reserved.touching(at, u64::MAX);
            let used = match (mapped, reserved) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            match used {
                Some((first, end)) if first <= at => at = end.checked_add(1)?,
                Some((first, _)) => return Some((at, last.min(first - 1))),
                None => return Some((at, last)),
            }
        }
    }

    /// Skips what is used from the frontier on, so that a program that maps
    /// one after the other does not have all of it looked at each time.
    fn advance_frontier(&mut self) {
        self.frontier = self.hole(self.frontier, u64::MAX).map_or(u64::MAX, |(first, _)| first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IOMMUFD-5.4: the offset in the page is the address's, and the last byte
    /// of a hole is not enough.
    #[test]
    fn fits_with_the_offset_of_the_address() {
        assert_eq!(fit(0x1000, 0x1fff, 0x800, 0x800, 0x800), Some(0x1800));
        assert_eq!(fit(0x1000, 0x1fff, 0x801, 0x800, 0x800), None);
        assert_eq!(fit(0x1001, 0x5000, 0x1000, 0x1000, 0), Some(0x2000));
        assert_eq!(fit(0x1000, 0x1000, 1, 1, 0), None);
        assert_eq!(fit(0x1000, 0x1001, 1, 1, 0), Some(0x1000));
        assert_eq!(fit(u64::MAX - 1, u64::MAX, 1, 4096, 0), None);
    }
}
