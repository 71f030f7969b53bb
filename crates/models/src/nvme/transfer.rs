// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Read and Write (6.9, 6.15): data moves between the disk and the program's
//! own memory with nothing in between.
//!
//! Commands of one kind and namespace that stand one behind the other in a
//! queue are a batch. All of them are translated in one session, and their
//! data moves in one call of the disk, because a program's memory that can
//! only be reached by system calls costs one each time. Every command still
//! has a status of its own. There is no order among the commands of a queue
//! (6.1), but one before a batch is done when the batch begins.

use device::{DiskPart, Io};
use iommu::Access;

use super::Controller;
use super::controller::BURST;
use super::error::Error;
use super::io::{Extent, find, transfer};
use super::prp;
use super::spec::{Command, NvmOpcode, Status};

/// Bytes that a batch of more than one command moves at most: whoever unmaps
/// waits for it.
const BATCH_BYTES: u64 = 512 << 10;

/// A command of a batch.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    extent: Extent,
    /// Ends of its runs and of its places among those of the batch.
    runs: usize,
    places: usize,
    result: Result<(), Error>,
}

const NONE: Transfer = Transfer { extent: Extent { offset: 0, len: 0 }, runs: 0, places: 0, result: Ok(()) };

/// Which way a command moves data; `None` if it is neither Read nor Write.
fn direction(command: &Command) -> Option<NvmOpcode> {
    NvmOpcode::from_raw(command.opcode).filter(|opcode| matches!(opcode, NvmOpcode::Read | NvmOpcode::Write))
}

impl Controller {
    /// How many of the first commands of an I/O queue are a batch that moves
    /// no more than `bytes`, or a single command more than that; 0 if the first
    /// one is neither Read nor Write.
    pub(super) fn batch(&self, commands: &[Command], bytes: u64) -> usize {
        let Some(first) = commands.first().filter(|first| direction(first).is_some()) else { return 0 };
        let shift = find(&self.namespaces, first).map_or(0, |namespace| namespace.shift);
        let mut left = BATCH_BYTES.min(bytes);
        let fits = |command: &&Command| {
            let len = command.blocks() << shift;
            let fits = len <= left;
            left = left.saturating_sub(len);
            fits && command.opcode == first.opcode && command.nsid == first.nsid
        };
        commands.iter().take(BURST).take_while(fits).count().max(1)
    }

    /// Executes a batch and completes its commands in order; the bytes moved.
    pub(super) fn transfer(&mut self, io: &mut Io<'_>, sq: u16, commands: &[Command]) -> u64 {
        let mut batch = [NONE; BURST];
        for (command, transfer) in commands.iter().zip(&mut batch) {
            self.trace_command(sq, command);
            match self.check_transfer(command) {
                Ok(extent) => transfer.extent = extent,
                Err(error) => transfer.result = Err(error),
            }
        }
        let Some(batch) = batch.get_mut(..commands.len()) else { return 0 };
        let write = commands.first().and_then(direction) == Some(NvmOpcode::Write);
        self.move_data(io, commands, batch, write);
        if write {
            self.make_batch_durable(commands, batch);
        }
        let mut moved = 0;
        for (command, Transfer { extent, result, .. }) in commands.iter().zip(batch) {
            self.take(sq);
            match result {
                Ok(()) => {
                    let [count, bytes] = match write {
                        true => [&mut self.logs.writes, &mut self.logs.bytes_written],
                        false => [&mut self.logs.reads, &mut self.logs.bytes_read],
                    };
                    *count += 1;
                    *bytes += extent.len;
                    moved += extent.len;
                    self.complete(sq, command.cid.get(), 0, Status::SUCCESS, false);
                }
                Err(error) => self.command_failed(sq, command, error),
            }
        }
        moved
    }

    fn check_transfer(&self, command: &Command) -> Result<Extent, Error> {
        if command.is_fused() || command.uses_sgl() {
            return Err(Status::INVALID_FIELD.into());
        }
        let namespace = find(&self.namespaces, command)?;
        if direction(command) == Some(NvmOpcode::Write) {
            namespace.check_writable()?;
        }
        Ok(transfer(namespace, command)?)
    }

    /// Moves the data of those commands that have not failed. One that cannot
    /// be translated wholly moves nothing.
    fn move_data(&mut self, io: &Io<'_>, commands: &[Command], batch: &mut [Transfer], write: bool) {
        let Some(namespace) = commands.first().and_then(|command| find(&self.namespaces, command).ok()) else { return };
        let disk = &*namespace.disk;
        let (access, failed): (_, fn(_) -> _) =
            if write { (Access::Read, Error::Write) } else { (Access::Write, Error::Read) };
        let mut session = io.dma.session();
        self.runs.clear();
        for (command, transfer) in commands.iter().zip(batch.iter_mut()) {
            let before = self.runs.len();
            if transfer.result.is_ok() {
                let len = transfer.extent.len as usize;
                transfer.result = prp::append(&mut session, command, len, self.page, &mut self.runs);
            }
            if transfer.result.is_err() {
                self.runs.truncate(before);
            }
            transfer.runs = self.runs.len();
        }
        let mut gather = session.gather(&mut self.places);
        let mut first = 0;
        for transfer in batch.iter_mut() {
            let before = gather.len();
            let runs = self.runs.get(first..transfer.runs).unwrap_or_default();
            first = transfer.runs;
            if let Err(fault) = runs.iter().try_for_each(|run| gather.add(run.iova, run.len, access)) {
                gather.truncate(before);
                transfer.result = Err(fault.into());
            }
            transfer.places = gather.len();
        }
        let mut parts = Vec::with_capacity(gather.len());
        let mut first = 0;
        for transfer in batch.iter() {
            let mut offset = transfer.extent.offset;
            for segment in gather.segments(first..transfer.places) {
                let part = DiskPart::new(offset, segment);
                offset += part.segment.len() as u64;
                parts.push(part);
            }
            first = transfer.places;
        }
        if write {
            disk.write_many(&mut parts);
        } else {
            disk.read_many(&mut parts);
        }
        let mut first = 0;
        for transfer in batch {
            let own = parts.get(first..transfer.places).unwrap_or_default();
            first = transfer.places;
            if let Some(error) = own.iter().find_map(|part| part.result.err()) {
                transfer.result = Err(failed(error));
            }
        }
    }

    /// Without a session: a flush may take long. One does for all.
    fn make_batch_durable(&self, commands: &[Command], batch: &mut [Transfer]) {
        let mut flushed = None;
        for (command, transfer) in commands.iter().zip(batch) {
            if transfer.result.is_ok()
                && self.wants_durable(command)
                && let Ok(namespace) = find(&self.namespaces, command)
            {
                let flushed = *flushed.get_or_insert_with(|| namespace.disk.flush());
                transfer.result = flushed.map_err(Error::Write);
            }
        }
    }
}
