// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checksums left to the receiver, for a receiver that takes none.

use device::FRAME_HEADER;
use zerocopy::{FromBytes, IntoBytes};

use crate::virtio::spec::net::{Header, NEEDS_CSUM};

/// Makes the checksum of a frame whole, if it is partial. Whether it could.
pub(super) fn complete(frame: &mut [u8]) -> bool {
    let Some((head, body)) = frame.split_at_mut_checked(FRAME_HEADER) else { return false };
    let Ok(mut header) = Header::read_from_bytes(head) else { return false };
    if header.flags & NEEDS_CSUM == 0 {
        return true;
    }
    let (start, offset) = (usize::from(header.csum_start.get()), usize::from(header.csum_offset.get()));
    let Some(data) = body.get_mut(start..) else { return false };
    // The place of the sum holds that of the pseudo header.
    let sum = fold(sum(data));
    let Some(place) = data.get_mut(offset..offset + 2) else { return false };
    // A sum of 0 would mean that there is none.
    place.copy_from_slice(&(if sum == 0xffff { sum } else { !sum }).to_be_bytes());
    header.flags &= !NEEDS_CSUM;
    header.csum_start.set(0);
    header.csum_offset.set(0);
    head.copy_from_slice(header.as_bytes());
    true
}

/// The sum of big endian words.
pub(super) fn sum(data: &[u8]) -> u64 {
    let mut words = data.chunks_exact(2);
    let mut sum: u64 = 0;
    for word in &mut words {
        sum += word.try_into().map_or(0, |word| u64::from(u16::from_be_bytes(word)));
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

/// A sum as ones' complement has it.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071's example: the sum of these words is ddf2.
    #[test]
    fn sums_are_those_of_the_internet() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(sum(&[0x01, 0x02, 0x03])), 0x0402);
    }

    #[test]
    fn a_partial_sum_becomes_whole() {
        let header = Header { flags: NEEDS_CSUM, csum_start: 2.into(), csum_offset: 1.into(), ..Header::default() };
        let mut frame = header.as_bytes().to_vec();
        frame.extend([9, 9, 1, 0, 2, 3]);
        assert!(complete(&mut frame));
        // 0100 + 0203 = 0303.
        assert_eq!(frame[12..], [9, 9, 1, 0xfc, 0xfc, 3]);
        assert_eq!(frame[..12], [0; 12]);
        let outside = Header { flags: NEEDS_CSUM, csum_start: 2.into(), csum_offset: 3.into(), ..Header::default() };
        let mut frame = outside.as_bytes().to_vec();
        frame.extend([9, 9, 1, 0, 2, 3]);
        assert!(!complete(&mut frame));
    }
}
