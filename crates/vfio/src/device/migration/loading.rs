// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a resuming stream takes (MIG-031 to MIG-034).
//!
//! Memory is taken over frame by frame, registers when the stream has come to
//! its end and nothing was wrong.

use ::device::migration::LoadError;
use ::device::saved::{Frame, HEADER, Kind, MAX_PAYLOAD};

use super::memory::DeviceMemory;

/// Most bytes of registers.
const MAX_MODEL: usize = 16 << 20;

/// A resuming session.
#[derive(Debug)]
pub(super) struct Loading {
    /// The frame that is being written.
    frame: Vec<u8>,
    /// Its header, once that is whole.
    header: Option<Frame>,
    number: u32,
    /// What the stream must begin with.
    hello: Vec<u8>,
    begun: bool,
    model: Vec<u8>,
    ended: bool,
    /// Bytes taken.
    taken: u64,
    error: Option<LoadError>,
}

impl Loading {
    /// A session of a device whose state begins with `hello`.
    pub(super) fn new(hello: Vec<u8>) -> Loading {
        Loading {
            frame: Vec::new(),
            header: None,
            number: 0,
            hello,
            begun: false,
            model: Vec::new(),
            ended: false,
            taken: 0,
            error: None,
        }
    }

    /// Bytes taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// How many bytes are wanted next; never none.
    pub(super) fn wanted(&self) -> usize {
        match &self.header {
            Some(frame) => HEADER + frame.len - self.frame.len(),
            None => HEADER - self.frame.len(),
        }
        .max(1)
    }

    /// Takes at most [`wanted`](Self::wanted) bytes. After an error nothing is
    /// taken any more.
    pub(super) fn take(
        &mut self,
        len: usize,
        memory: &mut DeviceMemory,
        fill: impl FnOnce(&mut [u8]) -> Result<(), uapi::Errno>,
    ) -> Result<Result<(), LoadError>, uapi::Errno> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        let start = self.frame.len();
        self.frame.resize(start + len, 0);
        if let Err(errno) = fill(self.frame.get_mut(start..).unwrap_or_default()) {
            self.frame.truncate(start);
            return Err(errno);
        }
        self.taken += len as u64;
        let result = self.advance(memory);
        self.error = result.err();
        Ok(result)
    }

    fn advance(&mut self, memory: &mut DeviceMemory) -> Result<(), LoadError> {
        if self.ended {
            return Err(LoadError::Corrupt("bytes behind the end"));
        }
        let Some((header, payload)) = self.frame.split_first_chunk::<HEADER>() else { return Ok(()) };
        let frame = match self.header {
            Some(frame) => frame,
            None => *self.header.insert(Frame::parse(header)?),
        };
        if payload.len() < frame.len {
            return Ok(());
        }
        frame.check(header, payload)?;
        if frame.number != self.number {
            return Err(LoadError::Corrupt("a frame is missing or out of order"));
        }
        if frame.kind != Kind::Hello && !self.begun {
            return Err(LoadError::Corrupt("the stream does not say whose it is"));
        }
        match frame.kind {
            Kind::Hello if frame.at != memory.size() || payload != self.hello => return Err(LoadError::OtherDevice),
            Kind::Hello if !self.model.is_empty() => return Err(LoadError::Corrupt("a beginning behind registers")),
            Kind::Hello => self.begun = true,
            Kind::Bulk if !memory.store(frame.at, payload) => {
                return Err(LoadError::Corrupt("memory beyond the device's"));
            }
            Kind::Bulk => {}
            Kind::Model if frame.at != self.model.len() as u64 || payload.len() > MAX_MODEL - self.model.len() => {
                return Err(LoadError::Corrupt("registers out of order"));
            }
            Kind::Model => self.model.extend_from_slice(payload),
            Kind::End => self.ended = true,
        }
        self.number = self.number.wrapping_add(1);
        self.header = None;
        self.frame.clear();
        Ok(())
    }

    /// The registers, if the stream is whole.
    pub(super) fn finish(&self) -> Result<&[u8], LoadError> {
        match self.error {
            Some(error) => Err(error),
            None if self.ended => Ok(&self.model),
            None => Err(LoadError::Truncated),
        }
    }
}

const _: () = assert!(MAX_PAYLOAD < MAX_MODEL);
