// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NVM command set (6), without Read and Write (`transfer`).

use device::{Disk, Io};
use iommu::Segment;
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use super::Controller;
use super::error::Error;
use super::namespace::Namespace;
use super::prp;
use super::spec::{ALL_NAMESPACES, Command, NvmOpcode, Range, Status};

/// Maximum data transfer size: 2 MiB, as a power of two above 4 KiB. With
/// 4 KiB pages that is one full PRP list.
pub(crate) const MDTS: u8 = 9;
/// The same in bytes.
pub(crate) const MAX_TRANSFER: u64 = 4096 << MDTS;

/// Bytes compared at a time.
const COMPARE_CHUNK: usize = 64 << 10;

/// Force Unit Access, in dword 12.
const FUA: u32 = 1 << 30;
/// Deallocate, in dword 12 of Write Zeroes.
const DEALLOCATE: u32 = 1 << 25;
/// Attribute Deallocate, in dword 11 of Dataset Management.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// Where the data of a command lie in a namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Controller {
    /// Executes an NVM command; the bytes moved, for the turn's budget.
    pub(super) fn nvm_command(&mut self, io: &mut Io<'_>, command: &Command) -> Result<u64, Error> {
        let opcode = NvmOpcode::from_raw(command.opcode).ok_or(Status::INVALID_OPCODE)?;
        if command.is_fused() || command.uses_sgl() {
            return Err(Status::INVALID_FIELD.into());
        }
        let nsid = command.nsid.get();
        if opcode == NvmOpcode::Flush && nsid == ALL_NAMESPACES {
            self.flush_all()?;
            return Ok(0);
        }
        let namespace = self.namespace(nsid)?;
        if matches!(opcode, NvmOpcode::WriteZeroes | NvmOpcode::DatasetManagement) {
            namespace.check_writable()?;
        }
        match opcode {
            NvmOpcode::Flush => namespace.disk.flush().map_err(Error::Write).map(|()| 0),
            NvmOpcode::Read | NvmOpcode::Write => Err(Status::INTERNAL_ERROR.into()), // Never comes here.
            NvmOpcode::Compare => self.compare(io, command),
            NvmOpcode::WriteZeroes => self.write_zeroes(command),
            NvmOpcode::DatasetManagement => self.dataset_management(io, command),
        }
    }

    /// The namespace with this id.
    pub(super) fn namespace(&self, nsid: u32) -> Result<&Namespace, Status> {
        let index = nsid.checked_sub(1).ok_or(Status::INVALID_NAMESPACE)?;
        self.namespaces.get(index as usize).ok_or(Status::INVALID_NAMESPACE)
    }

    /// Makes all namespaces durable.
    pub(super) fn flush_all(&self) -> Result<(), Error> {
        self.namespaces.iter().try_for_each(|namespace| namespace.disk.flush().map_err(Error::Write))
    }

    fn compare(&mut self, io: &mut Io<'_>, command: &Command) -> Result<u64, Error> {
        let namespace = find(&self.namespaces, command)?;
        let Extent { mut offset, len } = transfer(namespace, command)?;
        let mut session = io.dma.session();
        prp::resolve(&mut session, command, len as usize, self.page, &mut self.runs)?;
        let [ours, theirs] = &mut self.compare_buffers;
        ours.resize(COMPARE_CHUNK, 0);
        theirs.resize(COMPARE_CHUNK, 0);
        for run in &self.runs {
            let mut done = 0;
            while done < run.len {
                let part = COMPARE_CHUNK.min(run.len - done);
                let (Some(ours), Some(theirs)) = (ours.get_mut(..part), theirs.get_mut(..part)) else {
                    return Err(Status::INTERNAL_ERROR.into());
                };
                session.read(run.iova.wrapping_add(done as u64), theirs)?;
                let slice = VolatileSlice::from(&mut *ours);
                namespace.disk.read(offset, &Segment::Direct(slice)).map_err(Error::Read)?;
                if ours != theirs {
                    return Err(Status::COMPARE_FAILURE.into());
                }
                offset += part as u64;
                done += part;
            }
        }
        self.logs.reads += 1;
        self.logs.bytes_read += len;
        Ok(len)
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<u64, Error> {
        let namespace = find(&self.namespaces, command)?;
        // No data move, so MDTS does not count.
        let Extent { offset, len } = extent(namespace, command.slba(), command.blocks())?;
        let disk = &*namespace.disk;
        let zeroed = match command.cdw12.get() & DEALLOCATE {
            0 => disk.write_zeroes(offset, len),
            _ => disk.discard(offset, len),
        };
        zeroed.map_err(Error::Write)?;
        self.make_durable(command, disk)?;
        self.logs.writes += 1;
        Ok(len)
    }

    fn dataset_management(&mut self, io: &mut Io<'_>, command: &Command) -> Result<u64, Error> {
        let namespace = find(&self.namespaces, command)?;
        let count = (command.cdw10.get() & 0xff) as usize + 1;
        let mut ranges = [Range::new_zeroed(); 256];
        let Some(ranges) = ranges.get_mut(..count) else { return Err(Status::INTERNAL_ERROR.into()) };
        prp::receive(&mut io.dma.session(), command, ranges.as_mut_bytes(), self.page, &mut self.runs)?;
        if command.cdw11.get() & ATTRIBUTE_DEALLOCATE == 0 {
            return Ok(0); // Hints only.
        }
        // All of them are checked before one is done.
        let inside = |range: &Range| namespace.contains(range.slba.get(), u64::from(range.blocks.get()));
        if !ranges.iter().all(inside) {
            return Err(Status::LBA_OUT_OF_RANGE.into());
        }
        for range in ranges.iter().filter(|range| range.blocks.get() != 0) {
            let Extent { offset, len } = extent(namespace, range.slba.get(), u64::from(range.blocks.get()))?;
            namespace.disk.discard(offset, len).map_err(Error::Write)?;
        }
        Ok(0)
    }

    /// What was written is durable before the completion if that is wanted.
    fn make_durable(&self, command: &Command, disk: &dyn Disk) -> Result<(), Error> {
        if self.wants_durable(command) {
            disk.flush().map_err(Error::Write)?;
        }
        Ok(())
    }

    /// With FUA, and always while the write cache is off.
    pub(super) fn wants_durable(&self, command: &Command) -> bool {
        command.cdw12.get() & FUA != 0 || !self.features.write_cache
    }
}

pub(super) fn find<'a>(namespaces: &'a [Namespace], command: &Command) -> Result<&'a Namespace, Status> {
    let index = command.nsid.get().checked_sub(1).ok_or(Status::INVALID_NAMESPACE)?;
    namespaces.get(index as usize).ok_or(Status::INVALID_NAMESPACE)
}

/// The extent of a command that moves data: no longer than MDTS, then inside
/// the namespace.
pub(super) fn transfer(namespace: &Namespace, command: &Command) -> Result<Extent, Status> {
    if command.blocks() << namespace.shift > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    extent(namespace, command.slba(), command.blocks())
}

fn extent(namespace: &Namespace, slba: u64, blocks: u64) -> Result<Extent, Status> {
    if !namespace.contains(slba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    Ok(Extent { offset: slba << namespace.shift, len: blocks << namespace.shift })
}
