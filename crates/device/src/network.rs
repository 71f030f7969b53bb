// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network behind a device model.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::Wake;

/// Bytes that each frame begins with: a virtio-net header with its
/// `num_buffers`, as TAP devices have it too.
pub const FRAME_HEADER: usize = 12;
/// Longest frame, its header included: 64 KiB of payload and its headers.
pub const MAX_FRAME: usize = FRAME_HEADER + 65536 + 64;

/// Frames one behind the other, each with its header.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// Never shorter than what was ever used: making room costs nothing then.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    /// No frames.
    #[must_use]
    pub const fn new() -> Frames {
        Frames { bytes: Vec::new(), ends: Vec::new() }
    }

    /// Forgets all frames; keeps the room.
    #[inline]
    pub fn clear(&mut self) {
        self.ends.clear();
    }

    /// Number of frames.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all frames.
    #[inline]
    #[must_use]
    pub fn size(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    #[inline]
    fn range(&self, number: usize) -> Option<Range<usize>> {
        let end = *self.ends.get(number)?;
        Some(self.start(number)..end)
    }

    /// A frame.
    #[inline]
    #[must_use]
    pub fn get(&self, number: usize) -> Option<&[u8]> {
        self.bytes.get(self.range(number)?)
    }

    /// A frame, to be changed.
    #[inline]
    pub fn get_mut(&mut self, number: usize) -> Option<&mut [u8]> {
        let range = self.range(number)?;
        self.bytes.get_mut(range)
    }

    /// All frames in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|number| self.get(number))
    }

    /// The lengths of the frames from number `from` on.
    #[inline]
    pub fn lengths(&self, from: usize) -> impl Iterator<Item = usize> {
        let mut start = self.start(from);
        self.ends.get(from..).unwrap_or_default().iter().map(move |end| end - std::mem::replace(&mut start, *end))
    }

    /// The frames from number `from` on, to be changed.
    #[inline]
    pub fn iter_mut(&mut self, from: usize) -> impl Iterator<Item = &mut [u8]> {
        let start = self.start(from);
        let mut rest = self.bytes.get_mut(start..).unwrap_or_default();
        let lengths = self.ends.get(from..).unwrap_or_default().iter().scan(start, |start, end| {
            let len = end - *start;
            *start = *end;
            Some(len)
        });
        lengths.map_while(move |len| rest.split_off_mut(..len))
    }

    /// Where frame number `number` starts, or would.
    #[inline]
    fn start(&self, number: usize) -> usize {
        number.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    /// Adds a frame of `len` bytes, whatever they are.
    #[inline]
    pub fn add(&mut self, len: usize) {
        let end = self.size() + len;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_multiple_of(4096), 0);
        }
        self.ends.push(end);
    }

    /// Adds a copy of a frame.
    pub fn push(&mut self, frame: &[u8]) {
        let number = self.len();
        self.add(frame.len());
        if let Some(place) = self.get_mut(number) {
            place.copy_from_slice(frame);
        }
    }

    /// The last frame is shorter than it was made.
    pub fn cut(&mut self, len: usize) {
        let start = self.start(self.len().saturating_sub(1));
        if let Some(end) = self.ends.last_mut() {
            *end = (*end).min(start + len);
        }
    }

    /// Takes the last frame away.
    pub fn pop(&mut self) {
        self.ends.pop();
    }

    /// The bytes of all frames, one behind the other.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let size = self.size();
        self.bytes.get_mut(..size).unwrap_or_default()
    }
}

/// What a receiver of frames leaves to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Takes partial checksums. Without it the rest is nothing.
    pub checksum: bool,
    /// Takes TCPv4 segments to be.
    pub tso4: bool,
    /// Takes TCPv6 segments to be.
    pub tso6: bool,
    /// Takes those with ECN.
    pub ecn: bool,
    /// Takes UDP fragments to be.
    pub ufo: bool,
}

impl Offloads {
    /// Those of TCP.
    pub const TCP: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: false };
}

/// A network, as a device is plugged into it. Called from the device's turns,
/// and never waits.
pub trait NetPort: Send + Sync + Debug {
    /// What may be sent to it, and may come from it where the driver takes it.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// The largest payload of a frame, if it says one.
    fn mtu(&self) -> Option<u16> {
        None
    }

    /// Sends frames from a pair of queues; `frames` is empty afterwards. What
    /// cannot go at once is dropped, as on any network.
    fn send(&self, pair: u16, frames: &mut Frames);

    /// Puts what has come for a pair of queues into `frames`, which is empty: at
    /// most `limit` frames, each of [`FRAME_HEADER`] to [`MAX_FRAME`] bytes.
    fn receive(&self, pair: u16, frames: &mut Frames, limit: usize);

    /// What the driver takes from now on.
    fn set_offloads(&self, offloads: Offloads) {
        let _ = offloads;
    }

    /// The driver uses so many pairs of queues; 0: it does not run, and what
    /// comes is dropped.
    fn set_pairs(&self, pairs: u16) {
        let _ = pairs;
    }

    /// Whether the link is up.
    fn is_up(&self) -> bool {
        true
    }

    /// Whom to wake when something has come.
    fn set_wake(&self, wake: Arc<dyn Wake>) {
        let _ = wake;
    }
}
