// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files of streams: read, write, and the pre-copy information (MIG-023 to
//! MIG-044).

use ::device::migration::Failure;
use ::device::{Board, Nanos};
use caller::{Caller, FileId, Reply, Wait};
use uapi::Errno;
use uapi::vfio::migration::{MIG_GET_PRECOPY_INFO, PRECOPY_INFO_REINIT, PrecopyInfo};

use super::fsm::State;
use super::saving::Ready;
use super::{Migration, Session, Stream, failures};
use crate::{Context, args};

/// An open stream's file. It may outlive its session, and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) struct StreamFile {
    /// The device.
    pub(in crate::device) address: pci::Address,
    /// Opened for writing, or else for reading.
    pub(in crate::device) resuming: bool,
}

/// What the lab makes of a stream.
#[derive(Debug, Default)]
struct Limits {
    breaks: Option<u64>,
    ends: Option<u64>,
    slow: Nanos,
    refuses: bool,
}

/// What a transfer has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) enum Moved {
    /// So many bytes.
    Bytes(u64),
    /// Nothing before this time: the caller waits.
    NotBefore(Nanos),
}

impl Limits {
    fn of(failures: &[Failure]) -> Limits {
        let mut limits = Limits::default();
        for failure in failures {
            match failure {
                Failure::StreamBreaks(at) => limits.breaks = Some(*at),
                Failure::StreamEnds(at) => limits.ends = Some(*at),
                Failure::StreamSlow(time) => limits.slow = *time,
                Failure::Refuses => limits.refuses = true,
                Failure::Arc { .. } | Failure::LoggingLost => {}
            }
        }
        limits
    }

    /// The time that a transfer has to wait for; `until` is kept meanwhile.
    fn wait(&self, until: &mut Option<Nanos>, now: Nanos) -> Option<Nanos> {
        if self.slow == 0 || until.is_some_and(|until| now >= until) {
            *until = None;
            return None;
        }
        Some(*until.get_or_insert(now.saturating_add(self.slow)))
    }

    /// How many of `len` bytes may be moved after `done`: `EIO` where the
    /// stream breaks.
    fn allow(&self, done: u64, len: u64) -> Result<u64, Errno> {
        match self.breaks {
            Some(at) if done >= at => Err(Errno::EIO),
            Some(at) => Ok(len.min(at - done)),
            None => Ok(len),
        }
    }
}

impl Migration {
    /// The stream's descriptor is there.
    pub(super) fn opened(&mut self, file: FileId, readiness: std::sync::Arc<dyn caller::Readiness>) {
        if let Some(session) = &mut self.session {
            session.file = Some(file);
            if matches!(session.stream, Stream::Saving(_)) {
                readiness.set_readable(true);
            }
            session.readiness = Some(readiness);
        }
    }

    fn session_of(&mut self, file: FileId) -> Result<&mut Session, Errno> {
        // MIG-025
        self.session.as_mut().filter(|session| session.file == Some(file)).ok_or(Errno::ENODEV)
    }

    /// `read`: `ENODEV`, `ENOMSG`, `EFAULT`. What could not be delivered is not
    /// read.
    pub(in crate::device) fn read(
        &mut self,
        file: FileId,
        (buf, len): (u64, u64),
        caller: &dyn Caller,
        board: &Board,
        now: Nanos,
    ) -> Result<Moved, Errno> {
        self.session_of(file)?;
        if len == 0 {
            return Ok(Moved::Bytes(0));
        }
        let limits = Limits::of(failures(board, self.address));
        self.pass(now);
        let (state, memory) = (self.state, &mut self.memory);
        let Some(Session { stream: Stream::Saving(saving), until, .. }) = &mut self.session else {
            return Err(Errno::EBADF);
        };
        if let Some(until) = limits.wait(until, now) {
            return Ok(Moved::NotBefore(until));
        }
        let mut done = 0;
        while done < len {
            if limits.ends.is_some_and(|end| saving.given() >= end) {
                break;
            }
            match saving.prepare(memory) {
                Ready::Bytes => {}
                Ready::Over => break,
                Ready::Later if done > 0 || state == State::StopCopy => break,
                Ready::Later => return Err(Errno::ENOMSG), // MIG-028
            }
            let bytes = saving.bytes();
            let want = (len - done).min(bytes.len() as u64);
            let allowed = limits.allow(saving.given(), want);
            let want = match (allowed, limits.ends) {
                (Err(errno), _) if done == 0 => return Err(errno),
                (Err(_), _) => break,
                (Ok(want), Some(end)) => want.min(end - saving.given()),
                (Ok(want), None) => want,
            } as usize;
            let to = buf.checked_add(done).ok_or(Errno::EFAULT)?;
            match caller.write(to, bytes.get(..want).unwrap_or_default()) {
                Ok(()) => {}
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
            saving.consume(want);
            done += want as u64;
        }
        Ok(Moved::Bytes(done))
    }

    /// `write`: `ENODEV`, `EFAULT`, `EINVAL` for what is no state of this
    /// device; then all that follows, too (MIG-031).
    pub(in crate::device) fn write(
        &mut self,
        file: FileId,
        (buf, len): (u64, u64),
        caller: &dyn Caller,
        board: &Board,
        now: Nanos,
    ) -> Result<Moved, Errno> {
        self.session_of(file)?;
        if len == 0 {
            return Ok(Moved::Bytes(0));
        }
        let limits = Limits::of(failures(board, self.address));
        let (address, memory) = (self.address, &mut self.memory);
        let Some(Session { stream: Stream::Loading(loading), until, .. }) = &mut self.session else {
            return Err(Errno::EBADF);
        };
        if let Some(until) = limits.wait(until, now) {
            return Ok(Moved::NotBefore(until));
        }
        if limits.refuses {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        while done < len {
            let part = match limits.allow(loading.taken(), (len - done).min(loading.wanted() as u64)) {
                Ok(part) => part,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            };
            let from = buf.checked_add(done).ok_or(Errno::EFAULT)?;
            match loading.take(part as usize, memory, |to| caller.read(from, to)) {
                Ok(Ok(())) => done += part,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
                Ok(Err(error)) => {
                    tracing::warn!(name: "vfio.migration_refused", device = %address, %error);
                    return Err(Errno::EINVAL);
                }
            }
        }
        Ok(Moved::Bytes(done))
    }

    /// `ioctl` on a saving stream (MIG-036).
    pub(in crate::device) fn precopy_info(
        &mut self,
        file: FileId,
        arg: u64,
        caller: &dyn Caller,
        now: Nanos,
    ) -> Result<(), Errno> {
        let mut info: PrecopyInfo = args::read(caller, arg, size_of::<PrecopyInfo>())?;
        if !matches!(self.state, State::PreCopy | State::PreCopyP2p) {
            return Err(Errno::EINVAL);
        }
        self.session_of(file)?;
        self.pass(now);
        let (v2, memory) = (self.precopy_v2, &mut self.memory);
        let Some(Session { stream: Stream::Saving(saving), .. }) = &mut self.session else {
            return Err(Errno::ENODEV);
        };
        saving.prepare(memory);
        (info.initial_bytes, info.dirty_bytes) = saving.precopy(memory);
        if v2 {
            info.flags = if saving.take_reinit() { PRECOPY_INFO_REINIT } else { 0 };
        }
        args::write_prefix(caller, arg, &info, size_of::<PrecopyInfo>())
    }
}

impl crate::device::Devices {
    /// Whether the file is a stream's.
    pub(crate) fn is_stream(&self, file: FileId) -> bool {
        self.streams.contains_key(&file)
    }

    /// `read` or `write` of a stream: `EBADF` in the other direction, `ESPIPE`
    /// at an offset (MIG-023).
    pub(crate) fn transfer_stream(
        &mut self,
        file: FileId,
        (offset, buf, len): (u64, u64, u64),
        write: bool,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let stream = *self.streams.get(&file).ok_or(Errno::EBADF)?;
        if stream.resuming != write {
            return Err(Errno::EBADF);
        }
        if offset != 0 {
            return Err(Errno::ESPIPE);
        }
        let now = self.now();
        let device = self.open.get_mut(&stream.address);
        let migration = device.and_then(|device| device.migration.as_mut()).ok_or(Errno::ENODEV)?;
        let moved = match write {
            true => migration.write(file, (buf, len), cx.caller, cx.board, now)?,
            false => migration.read(file, (buf, len), cx.caller, cx.board, now)?,
        };
        Ok(match moved {
            Moved::Bytes(bytes) => Reply::Value(bytes),
            Moved::NotBefore(time) => {
                let ticket = cx.parking.park(Wait::Interruptible);
                self.slow.push((time, ticket));
                Reply::Parked(ticket)
            }
        })
    }

    /// `ioctl` on a stream.
    pub(crate) fn stream_ioctl(
        &mut self,
        file: FileId,
        request: u32,
        arg: u64,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        let stream = *self.streams.get(&file).ok_or(Errno::EBADF)?;
        if stream.resuming || request != MIG_GET_PRECOPY_INFO {
            return Err(Errno::ENOTTY);
        }
        let now = self.now();
        let device = self.open.get_mut(&stream.address);
        let migration = device.and_then(|device| device.migration.as_mut()).ok_or(Errno::ENODEV)?;
        migration.precopy_info(file, arg, caller, now)
    }

    /// The stream's last descriptor is closed; its session does not mind.
    pub(crate) fn release_stream(&mut self, file: FileId) {
        self.streams.remove(&file);
    }
}
