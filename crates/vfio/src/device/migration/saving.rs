// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a saving stream gives (vfio-migration.md, section 5).
//!
//! First the whole of the device's memory once, then what has changed since;
//! when the device has stopped, the rest of that, its registers and the end.

use ::device::saved::{Frame, HEADER, Kind, MAX_PAYLOAD};

use super::memory::{DeviceMemory, GRANULE};

/// A saving session.
#[derive(Debug)]
pub(super) struct Saving {
    /// The frame that is being read, and how much of it was.
    frame: Vec<u8>,
    read: usize,
    /// Frames so far.
    number: u32,
    /// Bytes given.
    given: u64,
    hello: Vec<u8>,
    part: Part,
    /// Registers, once the device has stopped.
    model: Option<Vec<u8>>,
    /// The stream starts anew when so much was given.
    reinit_after: Option<u64>,
    /// It has, and nobody was told.
    reinit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Hello,
    /// The memory once, from this granule on.
    Once(usize),
    /// What has changed since.
    Changes(usize),
    /// Registers from this byte on.
    Model(usize),
    End,
    Over,
}

/// What there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Bytes.
    Bytes,
    /// None until more has changed (`ENOMSG`).
    Later,
    /// None any more.
    Over,
}

/// Bytes that `granules` take in the stream, or fewer.
fn framed(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(MAX_PAYLOAD as u64) * HEADER as u64
}

impl Saving {
    /// A session of a device whose state begins with `hello`; of `memory`
    /// everything is to be saved.
    pub(super) fn new(hello: Vec<u8>, memory: &mut DeviceMemory, reinit_after: Option<u64>) -> Saving {
        memory.all_dirty();
        Saving {
            frame: Vec::new(),
            read: 0,
            number: 0,
            given: 0,
            hello,
            part: Part::Hello,
            model: None,
            reinit_after,
            reinit: false,
        }
    }

    /// The device has stopped, with these registers.
    pub(super) fn stop(&mut self, model: Vec<u8>) {
        self.model = Some(model);
    }

    /// Bytes given so far.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// Makes the next frame, if the last one was read.
    pub(super) fn prepare(&mut self, memory: &mut DeviceMemory) -> Ready {
        if self.read < self.frame.len() {
            return Ready::Bytes;
        }
        if self.model.is_none() && self.reinit_after.is_some_and(|after| self.given >= after) {
            self.reinit_after = None;
            self.reinit = true;
            memory.all_dirty();
            self.part = Part::Hello;
        }
        self.frame.clear();
        self.read = 0;
        while self.frame.is_empty() {
            let number = self.number;
            let most = MAX_PAYLOAD / GRANULE;
            self.part = match self.part {
                Part::Hello => {
                    Frame::put(&mut self.frame, Kind::Hello, number, memory.size(), &self.hello);
                    Part::Once(0)
                }
                Part::Once(from) => match memory.take_dirty(from, false, most) {
                    Some((at, bytes)) => {
                        Frame::put(&mut self.frame, Kind::Bulk, number, at, bytes);
                        Part::Once((at as usize + bytes.len()).div_ceil(GRANULE))
                    }
                    None => Part::Changes(0),
                },
                Part::Changes(from) => match (memory.take_dirty(from, true, most), &self.model) {
                    (Some((at, bytes)), _) => {
                        Frame::put(&mut self.frame, Kind::Bulk, number, at, bytes);
                        Part::Changes((at as usize + bytes.len()).div_ceil(GRANULE))
                    }
                    (None, None) => return Ready::Later,
                    (None, Some(_)) => Part::Model(0),
                },
                Part::Model(from) => {
                    let model = self.model.as_deref().unwrap_or_default();
                    let rest = model.get(from..).unwrap_or_default();
                    let piece = rest.get(..rest.len().min(MAX_PAYLOAD)).unwrap_or_default();
                    if piece.is_empty() {
                        Part::End
                    } else {
                        Frame::put(&mut self.frame, Kind::Model, number, from as u64, piece);
                        Part::Model(from + piece.len())
                    }
                }
                Part::End => {
                    Frame::put(&mut self.frame, Kind::End, number, u64::from(number), &[]);
                    Part::Over
                }
                Part::Over => return Ready::Over,
            };
        }
        self.number = self.number.wrapping_add(1);
        Ready::Bytes
    }

    /// Bytes of the prepared frame that are still to be read.
    pub(super) fn bytes(&self) -> &[u8] {
        self.frame.get(self.read..).unwrap_or_default()
    }

    /// So many of them were read.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.read += bytes;
        self.given += bytes as u64;
    }

    /// `initial_bytes` and `dirty_bytes` (MIG-037, MIG-038).
    pub(super) fn precopy(&self, memory: &DeviceMemory) -> (u64, u64) {
        let open = (self.frame.len() - self.read.min(self.frame.len())) as u64;
        let whole = memory.size();
        match self.part {
            Part::Hello => (open + (HEADER + self.hello.len()) as u64 + framed(whole), 0),
            Part::Once(from) if (from * GRANULE) as u64 != whole.next_multiple_of(GRANULE as u64) => {
                (open + framed(whole.saturating_sub((from * GRANULE) as u64)), 0)
            }
            // The last frame of the first part.
            Part::Once(_) if open > 0 => (open, 0),
            _ => (0, open + framed(memory.dirty_bytes())),
        }
    }

    /// Whether new initial data has appeared since it was asked last (MIG-042).
    pub(super) fn take_reinit(&mut self) -> bool {
        std::mem::take(&mut self.reinit)
    }

    /// Bytes that are left if the device stops now (MIG-045).
    pub(super) fn left(&self, memory: &DeviceMemory, model: u64) -> u64 {
        let open = (self.frame.len() - self.read.min(self.frame.len())) as u64;
        let hello = if self.part == Part::Hello { (HEADER + self.hello.len()) as u64 } else { 0 };
        open + hello + framed(memory.dirty_bytes()) + framed(model) + HEADER as u64
    }
}
