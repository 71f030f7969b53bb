// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TCP segments made in software, for a receiver that takes none to be made.
//!
//! What Linux does before it hands a packet to a device without the offload:
//! each segment has the headers of the whole, with its own length, sequence
//! number and (IPv4) identification. FIN and PSH are on the last one, CWR on
//! the first. Checksums are whole.

use device::{FRAME_HEADER, Frames};
use zerocopy::FromBytes;

use super::checksum::{fold, sum};
use crate::virtio::spec::net::{Header, NEEDS_CSUM};

/// Smaller segments are taken for this size, as Linux does.
const SMALLEST: usize = 8;

const ETHERNET: usize = 14;
const TCP: usize = 20;
/// Where a TCP header has its checksum.
const TCP_SUM: u16 = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Which version of IP carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V4,
    V6,
}

/// Where the headers of a frame are, from its Ethernet header on.
#[derive(Clone, Copy, Debug)]
struct Layout {
    version: Version,
    ip: usize,
    tcp: usize,
    data: usize,
    size: usize,
}

impl Layout {
    /// `None` if the frame is not what its header says.
    fn of(header: &Header, body: &[u8], version: Version) -> Option<Layout> {
        let size = usize::from(header.gso_size.get());
        if size == 0 || header.flags & NEEDS_CSUM == 0 || header.csum_offset.get() != TCP_SUM {
            return None;
        }
        let mut ip = ETHERNET;
        while matches!(word(body, ip - 2)?, 0x8100 | 0x88a8) {
            ip += 4;
        }
        let (kind, least) = match version {
            Version::V4 => (0x0800, ip + 20),
            Version::V6 => (0x86dd, ip + 40),
        };
        let tcp = usize::from(header.csum_start.get());
        // At most 64 bytes of VLAN tags and the like: `ip` is small.
        let good = word(body, ip - 2)? == kind && tcp >= least && tcp - ip <= usize::from(u16::MAX);
        let data = tcp + usize::from(*body.get(tcp + 12)? >> 4) * 4;
        (good && data >= tcp + TCP && data <= body.len()).then_some(Layout {
            version,
            ip,
            tcp,
            data,
            size: size.max(SMALLEST),
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value.to_be_bytes();
    }
}

/// Adds the segments of a frame to `out`, as long as that has less than `frames`
/// frames and `bytes` bytes; the rest is lost. How many were added; `None` if it
/// is not what its header says.
pub(super) fn segment(frame: &[u8], version: Version, out: &mut Frames, frames: usize, bytes: usize) -> Option<usize> {
    let header = Header::read_from_bytes(frame.get(..FRAME_HEADER)?).ok()?;
    let body = frame.get(FRAME_HEADER..)?;
    let layout = Layout::of(&header, body, version)?;
    let (head, data) = body.split_at_checked(layout.data)?;
    let mut added = 0;
    // A frame without data is a segment, too.
    let count = data.len().div_ceil(layout.size).max(1);
    for number in 0..count {
        if out.len() >= frames || out.size() >= bytes {
            break;
        }
        let start = number * layout.size;
        let part = data.get(start..(start + layout.size).min(data.len()))?;
        let at = out.len();
        out.add(FRAME_HEADER + head.len() + part.len());
        let (zeros, own) = out.get_mut(at)?.split_at_mut_checked(FRAME_HEADER)?;
        zeros.fill(0);
        let (own_head, own_data) = own.split_at_mut_checked(head.len())?;
        own_head.copy_from_slice(head);
        own_data.copy_from_slice(part);
        finish(own, &layout, number, number + 1 == count);
        added += 1;
    }
    Some(added)
}

/// Gives a copy of the headers, with its data behind, what is its own.
fn finish(own: &mut [u8], layout: &Layout, number: usize, last: bool) {
    let Layout { version, ip, tcp, size, .. } = *layout;
    let length = own.len();
    if let Some(sequence) = own.get_mut(tcp + 4..).and_then(|rest| rest.first_chunk_mut()) {
        // Sequence numbers wrap.
        *sequence = u32::from_be_bytes(*sequence).wrapping_add((number * size) as u32).to_be_bytes();
    }
    if let Some(flags) = own.get_mut(tcp + 13) {
        *flags &= !((if last { 0 } else { FIN | PSH }) | (if number == 0 { 0 } else { CWR }));
    }
    match version {
        Version::V4 => {
            put(own, ip + 2, (length - ip) as u16);
            let id = word(own, ip + 4).unwrap_or(0).wrapping_add(number as u16);
            put(own, ip + 4, id);
            put(own, ip + 10, 0);
            let sum = !fold(sum(own.get(ip..tcp).unwrap_or_default()));
            put(own, ip + 10, sum);
        }
        Version::V6 => put(own, ip + 4, (length - ip - 40) as u16),
    }
    put(own, tcp + usize::from(TCP_SUM), 0);
    // Of the pseudo header: addresses, length, protocol.
    let addresses = match version {
        Version::V4 => own.get(ip + 12..ip + 20),
        Version::V6 => own.get(ip + 8..ip + 40),
    };
    let pseudo = sum(addresses.unwrap_or_default()) + (length - tcp) as u64 + 6;
    let all = fold(pseudo + sum(own.get(tcp..).unwrap_or_default()));
    put(own, tcp + usize::from(TCP_SUM), !all);
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// A frame with so much data behind headers of this version.
    fn whole(version: Version, vlan: bool, data: usize, size: u16, flags: u8) -> Vec<u8> {
        let mut body = vec![2; 12];
        if vlan {
            body.extend([0x81, 0, 0, 5]);
        }
        match version {
            Version::V4 => {
                body.extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            }
            Version::V6 => {
                body.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64]);
                body.extend(1..=32);
            }
        }
        let tcp = body.len();
        body.extend([0, 80, 1, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x80, flags, 1, 0, 0xde, 0xad, 0, 0]);
        body.extend([1; 12]);
        body.extend((0..data).map(|n| n as u8));
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: if version == Version::V4 { 1 } else { 4 },
            gso_size: size.into(),
            csum_start: (tcp as u16).into(),
            csum_offset: 16.into(),
            ..Header::default()
        };
        [header.as_bytes(), &body].concat()
    }

    /// As a receiver verifies it: sums over everything are all ones.
    fn is_whole(body: &[u8], version: Version, ip: usize, tcp: usize) -> bool {
        let (addresses, own) = match version {
            Version::V4 => (&body[ip + 12..ip + 20], fold(sum(&body[ip..tcp])) == 0xffff),
            Version::V6 => (&body[ip + 8..ip + 40], true),
        };
        let pseudo = sum(addresses) + 6 + (body.len() - tcp) as u64;
        own && fold(pseudo + sum(&body[tcp..])) == 0xffff
    }

    /// 5.1.6.2: as Linux makes them where a device cannot.
    #[test]
    fn segments_are_as_linux_makes_them() {
        for (version, vlan) in [(Version::V4, false), (Version::V4, true), (Version::V6, false), (Version::V6, true)] {
            let frame = whole(version, vlan, 2501, 1000, FIN | PSH | CWR | 0x10);
            let mut out = Frames::new();
            assert_eq!(segment(&frame, version, &mut out, 100, 1 << 20), Some(3));
            let ip = ETHERNET + if vlan { 4 } else { 0 };
            let tcp = ip + if version == Version::V4 { 20 } else { 40 };
            let mut data = Vec::<u8>::new();
            for (number, segment) in out.iter().enumerate() {
                let (head, body) = segment.split_at(FRAME_HEADER);
                assert_eq!(head, [0; FRAME_HEADER]);
                assert!(is_whole(body, version, ip, tcp), "{version:?} {number}");
                let sequence = u32::from_be_bytes(*body[tcp + 4..].first_chunk().unwrap());
                assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(1000 * number as u32));
                let flags = [CWR | 0x10, 0x10, FIN | PSH | 0x10][number];
                assert_eq!(body[tcp + 13], flags);
                match version {
                    Version::V4 => {
                        assert_eq!(word(body, ip + 2), Some((body.len() - ip) as u16));
                        assert_eq!(word(body, ip + 4), Some(0xffff_u16.wrapping_add(number as u16)));
                    }
                    Version::V6 => assert_eq!(word(body, ip + 4), Some((body.len() - tcp) as u16)),
                }
                data.extend(&body[tcp + 32..]);
            }
            assert!(data.iter().copied().eq((0..2501).map(|n| n as u8)));
        }
    }

    #[test]
    fn what_is_not_what_it_says_makes_no_segments() {
        let good = whole(Version::V4, false, 100, 50, 0);
        let try_one = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            let mut out = Frames::new();
            let result = segment(&frame, Version::V4, &mut out, 100, 1 << 20);
            assert_eq!(result.unwrap_or(0), out.len());
            result
        };
        assert_eq!(try_one(&|_| ()), Some(2));
        assert_eq!(try_one(&|f| f[0] = 0), None, "no checksum is asked for");
        assert_eq!(try_one(&|f| f[4..6].fill(0)), None, "segments of 0 bytes");
        assert_eq!(try_one(&|f| f[4..6].copy_from_slice(&[1, 0])), Some(13), "Linux takes 1 for 8");
        assert_eq!(try_one(&|f| f[6] = 33), None, "TCP inside IP");
        assert_eq!(try_one(&|f| f[7] = 0xff), None, "TCP behind the end");
        assert_eq!(try_one(&|f| f[8] = 6), None, "a sum elsewhere");
        assert_eq!(try_one(&|f| f[12 + 12] = 0x86), None, "not IPv4");
        assert_eq!(try_one(&|f| f[12 + 34 + 12] = 0x40), None, "a TCP header of 16 bytes");
        assert_eq!(try_one(&|f| f.truncate(12 + 34 + 25)), None, "a TCP header cut off");
        assert_eq!(try_one(&|f| f.truncate(12 + 34 + 32)), Some(1), "no data");
        assert_eq!(try_one(&|f| f.truncate(5)), None);
        let mut tags = vec![0; 12 + 12];
        tags.extend([0x81, 0].repeat(100));
        tags[..12].copy_from_slice(&good[..12]);
        assert_eq!(segment(&tags, Version::V4, &mut Frames::new(), 9, 9999), None, "tags without an end");
    }

    #[test]
    fn a_wire_makes_segments_for_whom_it_must() {
        use crate::virtio::net::Wire;
        use device::{NetPort, Offloads};

        let (one, other) = Wire::new(1);
        other.set_pairs(1);
        let count = |takes: Offloads, ecn: u8| {
            other.set_offloads(takes);
            let mut frame = whole(Version::V4, false, 2501, 1000, CWR);
            frame[1] |= ecn;
            let mut frames = Frames::new();
            frames.push(&frame);
            frames.push(&frame[..FRAME_HEADER + ETHERNET]);
            one.send(0, &mut frames);
            other.receive(0, &mut frames, 64);
            frames.len()
        };
        assert_eq!(count(Offloads::TCP, 0x80), 2, "they pass as they are");
        assert_eq!(count(Offloads::default(), 0), 3);
        assert_eq!(count(Offloads { ecn: false, ..Offloads::TCP }, 0x80), 3);
        assert_eq!(count(Offloads { ecn: false, tso6: false, ..Offloads::TCP }, 0), 2);
        assert_eq!(count(Offloads { tso4: false, ..Offloads::TCP }, 0), 3);
        assert_eq!(other.dropped(), 3, "what is no TCP cannot be cut");
    }

    #[test]
    fn a_frame_makes_as_many_segments_as_there_is_room_for() {
        let frame = whole(Version::V4, false, 60_000, 8, 0);
        let mut out = Frames::new();
        assert_eq!(segment(&frame, Version::V4, &mut out, 100, 1 << 20), Some(100));
        let mut out = Frames::new();
        assert_eq!(segment(&frame, Version::V4, &mut out, 9999, 1000), Some(12));
        assert!(out.size() < 1100);
    }
}
