// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a device's state is written down: a stream of frames.
//!
//! A frame is a header of 32 bytes and a payload of at most 1 MiB. The header
//! has a checksum of both, and frames are numbered, so what was changed, left
//! out, repeated or moved is noticed before any of it is used. A stream is
//! `Hello` (whose state it is), any number of `Bulk` frames (pieces of the
//! device's internal memory), `Model` (its registers) and `End`.
//!
//! [`Writer`] and [`Reader`] are how models put their registers into a `Model`
//! frame: little-endian integers one after the other, and counted bytes.

use crate::migration::LoadError;

/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes of a header.
pub const HEADER: usize = 32;
/// Version of the framing.
pub const VERSION: u16 = 1;

const MAGIC: u32 = u32::from_le_bytes(*b"VFMS");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Whose state follows. First, and again where the stream starts anew.
    Hello = 1,
    /// Internal memory; `at` is the offset of the first byte.
    Bulk = 2,
    /// Registers; `at` counts the bytes in frames before.
    Model = 3,
    /// Nothing follows.
    End = 4,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Bytes of payload.
    pub len: usize,
    /// Frames before it, modulo 2^32.
    pub number: u32,
    /// Meaning depends on `kind`.
    pub at: u64,
    sum: u64,
}

impl Frame {
    /// Appends a frame to `out`.
    pub fn put(out: &mut Vec<u8>, kind: Kind, number: u32, at: u64, payload: &[u8]) {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(kind as u16).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&at.to_le_bytes());
        let sum = digest(digest(SEED, out.get(start..).unwrap_or_default()), payload);
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(payload);
    }

    /// Reads a header; its sum is checked by [`Frame::check`].
    pub fn parse(header: &[u8; HEADER]) -> Result<Frame, LoadError> {
        let mut reader = Reader::new(header);
        if reader.u32()? != MAGIC {
            return Err(LoadError::Corrupt("no frame begins here"));
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(LoadError::Version(u32::from(version)));
        }
        let kind = match reader.u16()? {
            1 => Kind::Hello,
            2 => Kind::Bulk,
            3 => Kind::Model,
            4 => Kind::End,
            _ => return Err(LoadError::Corrupt("unknown kind of frame")),
        };
        let len = reader.u32()? as usize;
        if len > MAX_PAYLOAD {
            return Err(LoadError::Corrupt("a frame is too long"));
        }
        Ok(Frame { kind, len, number: reader.u32()?, at: reader.u64()?, sum: reader.u64()? })
    }

    /// Whether header and payload are what was written.
    pub fn check(&self, header: &[u8; HEADER], payload: &[u8]) -> Result<(), LoadError> {
        let sum = digest(digest(SEED, header.get(..HEADER - 8).unwrap_or_default()), payload);
        if sum == self.sum && payload.len() == self.len {
            Ok(())
        } else {
            Err(LoadError::Corrupt("a checksum differs"))
        }
    }
}

const SEED: u64 = 0x5646_5553_4500_0001;

/// A checksum that notices any change of one word, at the speed of memory: four
/// lanes, each step of which can be undone.
fn digest(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    let mut lanes = [seed, seed.rotate_left(17), seed.rotate_left(31), seed ^ bytes.len() as u64];
    let mix = |lane: &mut u64, word: u64, odd: u64| *lane = (*lane ^ word).wrapping_mul(odd).rotate_left(29);
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for ((lane, word), odd) in lanes.iter_mut().zip(words).zip(ODD) {
            mix(lane, u64::from_le_bytes(*word), odd);
        }
    }
    for (lane, (part, odd)) in lanes.iter_mut().zip(rest.chunks(8).zip(ODD)) {
        let mut word = [0; 8];
        if let Some(to) = word.get_mut(..part.len()) {
            to.copy_from_slice(part);
        }
        mix(lane, u64::from_le_bytes(word), odd);
    }
    let [a, b, c, d] = lanes;
    let mut sum = a;
    for (lane, odd) in [(b, ODD[1]), (c, ODD[2]), (d, ODD[3])] {
        mix(&mut sum, lane, odd);
    }
    sum
}

/// Puts integers and bytes one after the other.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// What was put.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Puts bytes, counted.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    /// Puts a flag.
    pub fn flag(&mut self, on: bool) {
        self.u8(u8::from(on));
    }

    /// Puts an optional number.
    pub fn option(&mut self, value: Option<u64>) {
        self.flag(value.is_some());
        self.u64(value.unwrap_or(0));
    }
}

macro_rules! integers {
    ($($name:ident)*) => {
        impl Writer {
            $(#[doc = concat!("Puts a `", stringify!($name), "`.")]
            pub fn $name(&mut self, value: $name) {
                self.0.extend_from_slice(&value.to_le_bytes());
            })*
        }

        impl Reader<'_> {
            $(#[doc = concat!("Takes a `", stringify!($name), "`: `Truncated`.")]
            pub fn $name(&mut self) -> Result<$name, LoadError> {
                let (first, rest) = self.0.split_first_chunk().ok_or(LoadError::Truncated)?;
                self.0 = rest;
                Ok($name::from_le_bytes(*first))
            })*
        }
    };
}
integers! { u8 u16 u32 u64 u128 }

/// Takes what a [`Writer`] has put.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Everything is still there.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// Takes counted bytes, at most `most`.
    pub fn bytes(&mut self, most: usize) -> Result<&'a [u8], LoadError> {
        let len = self.u32()? as usize;
        if len > most {
            return Err(LoadError::Corrupt("a field is too long"));
        }
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(LoadError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Takes a flag.
    pub fn flag(&mut self) -> Result<bool, LoadError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(LoadError::Corrupt("a flag is neither on nor off")),
        }
    }

    /// Takes an optional number.
    pub fn option(&mut self) -> Result<Option<u64>, LoadError> {
        match (self.flag()?, self.u64()?) {
            (true, value) => Ok(Some(value)),
            (false, 0) => Ok(None),
            (false, _) => Err(LoadError::Corrupt("a value that is not there")),
        }
    }

    /// Takes a count of at most `most`.
    pub fn count(&mut self, most: usize) -> Result<usize, LoadError> {
        let count = self.u32()? as usize;
        if count > most { Err(LoadError::Corrupt("too many entries")) } else { Ok(count) }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), LoadError> {
        if self.0.is_empty() { Ok(()) } else { Err(LoadError::Corrupt("more than the state")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Frame, LoadError> {
        let (header, payload) = bytes.split_first_chunk::<HEADER>().ok_or(LoadError::Truncated)?;
        let frame = Frame::parse(header)?;
        frame.check(header, payload)?;
        Ok(frame)
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        for len in [0, 1, 7, 8, 31, 32, 33, 100] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut bytes = Vec::new();
            Frame::put(&mut bytes, Kind::Bulk, 7, 0x1000, &payload);
            let frame = parse(&bytes).unwrap();
            assert_eq!((frame.kind, frame.len, frame.number, frame.at), (Kind::Bulk, len, 7, 0x1000));
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(parse(&changed).is_err(), "bit {bit} of {len}");
            }
            for end in 0..bytes.len() {
                assert!(parse(&bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn what_was_put_is_taken() {
        let mut writer = Writer::new();
        writer.u8(1);
        writer.u16(2);
        writer.u32(3);
        writer.u64(4);
        writer.u128(5);
        writer.flag(true);
        writer.option(None);
        writer.option(Some(6));
        writer.bytes(b"seven");
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.u8(), reader.u16(), reader.u32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!((reader.u64(), reader.u128(), reader.flag()), (Ok(4), Ok(5), Ok(true)));
        assert_eq!((reader.option(), reader.option()), (Ok(None), Ok(Some(6))));
        let mut short = reader;
        assert!(matches!(short.bytes(4), Err(LoadError::Corrupt(_))));
        assert_eq!(reader.bytes(5), Ok(&b"seven"[..]));
        assert_eq!(reader.u8(), Err(LoadError::Truncated));
        assert_eq!(reader.finish(), Ok(()));
    }
}
