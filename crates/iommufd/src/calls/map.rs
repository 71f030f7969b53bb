// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_MAP`, `_MAP_FILE`, `_COPY` and `_UNMAP` (iommufd-api.md,
//! section 5).

use std::sync::Arc;

use caller::Caller;
use iommu::Prot;
use uapi::Errno;
use uapi::iommufd::{IoasCopy, IoasMap, IoasMapFile, IoasUnmap, MapFlags};

use crate::backing::{DmaBuf, Origin, Payer};
use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::ioas::{Mapped, Place, Then, check_dma_buf, check_length, put_slices};

/// What the flags of a new mapping ask for: `EOPNOTSUPP`. No right at all is
/// found out later (IOMMUFD-5.1).
fn flags(bits: u32) -> Result<(MapFlags, Prot), Errno> {
    let flags = MapFlags::from_bits(bits).ok_or(Errno::EOPNOTSUPP)?;
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags.contains(MapFlags::READABLE));
    prot.set(Prot::WRITE, flags.contains(MapFlags::WRITEABLE));
    Ok((flags, prot))
}

fn place(flags: MapFlags, iova: u64) -> Place {
    if flags.contains(MapFlags::FIXED_IOVA) { Place::Fixed(iova) } else { Place::Anywhere }
}

impl Context {
    pub(crate) fn ioas_map(&mut self, request: &Request, cmd: &mut IoasMap, caller: &dyn Caller) -> Result<(), Errno> {
        let (flags, prot) = flags(cmd.flags)?;
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if cmd.iova == u64::MAX || cmd.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        if prot.is_empty() {
            return Err(Errno::EINVAL);
        }
        let ioas = self.ids.expect(cmd.ioas_id, Kind::Ioas)?;
        cmd.iova = self.map_user(ioas, cmd.user_va, cmd.length, place(flags, cmd.iova), prot, caller)?;
        tracing::trace!(name: "iommufd.map", ioas = ioas.0, iova = cmd.iova, length = cmd.length, va = cmd.user_va);
        // The mapping stays if this fails (IOMMUFD-5.7).
        request.argument.respond(caller, cmd)
    }

    /// Maps the caller's memory (`iopt_map_user_pages`).
    pub(crate) fn map_user(
        &mut self,
        ioas: ObjectId,
        address: u64,
        length: u64,
        place: Place,
        prot: Prot,
        caller: &dyn Caller,
    ) -> Result<u64, Errno> {
        address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        check_length(length)?;
        let payer = Payer::of(caller, self.process_accounting)?;
        let ioas = self.ioases.get_mut(&ioas).ok_or(Errno::ENOENT)?;
        ioas.map(&Mapped { payer, origin: Origin::User, address, length }, place, prot, &mut self.backing)
    }

    /// `buffer` looks up a dma-buf by the descriptor: `EBADF`.
    pub(crate) fn ioas_map_file(
        &mut self,
        request: &Request,
        cmd: &mut IoasMapFile,
        buffer: impl FnOnce(i32) -> Result<Option<Arc<DmaBuf>>, Errno>,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        let (flags, prot) = flags(cmd.flags)?;
        if cmd.iova == u64::MAX || cmd.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        if prot.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.ids.expect(cmd.ioas_id, Kind::Ioas)?;
        if cmd.length == 0 {
            return Err(Errno::EINVAL);
        }
        cmd.start.checked_add(cmd.length - 1).ok_or(Errno::EOVERFLOW)?;
        let buffer = buffer(cmd.fd)?;
        let place = place(flags, cmd.iova);
        let (address, length) = (cmd.start, cmd.length);
        let mut payer = Payer::of(caller, self.process_accounting)?;
        cmd.iova = match buffer {
            Some(buffer) => {
                payer.mode = crate::backing::Mode::None;
                let mapped = Mapped { payer, origin: Origin::User, address, length };
                let (ioas, backing) = self.ioas_and_backing(cmd.ioas_id)?;
                ioas.map_dma_buf(&buffer, &mapped, place, prot, backing)?
            }
            None => {
                let file = caller.client_file(cmd.fd)?;
                if let Some(size) = file.foreign_dma_buf() {
                    check_dma_buf(size, address, length)?;
                    // Only vfio-pci's can be asked for their memory (IOMMUFD-5.11).
                    return Err(Errno::EOPNOTSUPP);
                }
                let origin = Origin::File(file);
                let mapped = Mapped { payer, origin, address, length };
                let (ioas, backing) = self.ioas_and_backing(cmd.ioas_id)?;
                ioas.map(&mapped, place, prot, backing)?
            }
        };
        tracing::trace!(name: "iommufd.map_file", ioas = cmd.ioas_id, iova = cmd.iova, length, start = cmd.start);
        request.argument.respond(caller, cmd)
    }

    pub(crate) fn ioas_copy(
        &mut self,
        request: &Request,
        cmd: &mut IoasCopy,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        let (flags, prot) = flags(cmd.flags)?;
        if [cmd.length, cmd.src_iova, cmd.dst_iova].contains(&u64::MAX) {
            return Err(Errno::EOVERFLOW);
        }
        if prot.is_empty() {
            return Err(Errno::EINVAL);
        }
        let (source, backing) = self.ioas_and_backing(cmd.src_ioas_id)?;
        let slices = source.slices(cmd.src_iova, cmd.length, backing)?;
        let done = self.ioas_and_backing(cmd.dst_ioas_id).and_then(|(target, backing)| {
            target.map_slices(&slices, cmd.length, place(flags, cmd.dst_iova), prot, backing)
        });
        put_slices(&slices, &mut self.backing);
        cmd.dst_iova = done?;
        tracing::trace!(name: "iommufd.copy", ioas = cmd.dst_ioas_id, iova = cmd.dst_iova, length = cmd.length);
        request.argument.respond(caller, cmd)
    }

    pub(crate) fn ioas_unmap(
        &mut self,
        request: &Request,
        cmd: &mut IoasUnmap,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        let ioas = self.ids.expect(cmd.ioas_id, Kind::Ioas)?;
        let removed = if cmd.iova == 0 && cmd.length == u64::MAX {
            let (bytes, done) = self.unmap(ioas, 0, u64::MAX);
            done?;
            bytes
        } else {
            if cmd.iova == u64::MAX || cmd.length == u64::MAX {
                return Err(Errno::EOVERFLOW);
            }
            let (bytes, done) = self.unmap_range(ioas, cmd.iova, cmd.length);
            done?;
            if bytes == 0 {
                return Err(Errno::ENOENT);
            }
            bytes
        };
        tracing::trace!(name: "iommufd.unmap", ioas = ioas.0, iova = cmd.iova, length = cmd.length, removed);
        cmd.length = removed;
        request.argument.respond(caller, cmd)
    }

    /// Removes the areas in a range: the bytes removed, and how that ended:
    /// `EINVAL`, `EOVERFLOW`, `ENOENT`, `EBUSY`.
    pub(crate) fn unmap_range(&mut self, ioas: ObjectId, iova: u64, length: u64) -> (u64, Result<(), Errno>) {
        if length == 0 {
            return (0, Err(Errno::EINVAL));
        }
        match iova.checked_add(length - 1) {
            Some(last) => self.unmap(ioas, iova, last),
            None => (0, Err(Errno::EOVERFLOW)),
        }
    }

    /// The same from IOVA to IOVA.
    pub(crate) fn unmap(&mut self, id: ObjectId, first: u64, last: u64) -> (u64, Result<(), Errno>) {
        let mut bytes = 0;
        let mut at = first;
        loop {
            let Some(ioas) = self.ioases.get_mut(&id) else { return (bytes, Err(Errno::ENOENT)) };
            let unmapped = ioas.unmap(at, last, &mut self.backing);
            bytes += unmapped.bytes;
            match unmapped.then {
                Then::Done => return (bytes, Ok(())),
                Then::Failed(errno) => return (bytes, Err(errno)),
                Then::Pinned(first, end) => {
                    self.notify_unmap(id, first, end);
                    at = first;
                }
            }
        }
    }
}
