// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_MAP_DMA`.

use caller::{Accounts, Caller, Pinned, is_user_range};
use iommu::{MapError, Mapping, Prot};
use uapi::Errno;
use uapi::vfio::type1::{DmaMap, MapFlags};

use super::{PAGE, TRACKED_PAGES_MAX, Type1, charged, tag};
use crate::args;

impl Type1 {
    pub(super) fn map_dma(&mut self, arg: u64, caller: &dyn Caller, locked: &Accounts) -> Result<(), Errno> {
        let map: DmaMap = args::read(caller, arg, size_of::<DmaMap>())?;
        let flags = MapFlags::from_bits(map.flags).ok_or(Errno::EINVAL)?;
        if map.size == 0 {
            return Err(Errno::EINVAL);
        }
        let last = map.iova.checked_add(map.size - 1).ok_or(Errno::EOVERFLOW)?;
        map.vaddr.checked_add(map.size - 1).ok_or(Errno::EOVERFLOW)?;
        let set_vaddr = flags.contains(MapFlags::VADDR);
        if set_vaddr == flags.intersects(MapFlags::READ | MapFlags::WRITE) {
            return Err(Errno::EINVAL); // API-070
        }
        if (map.size | map.iova | map.vaddr) & (PAGE - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        let present = self.overlap(map.iova, last);
        if set_vaddr {
            return self.set_vaddr(&present.ok_or(Errno::ENOENT)?, &map, last, caller, locked);
        }
        if present.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.available == 0 {
            return Err(Errno::ENOSPC);
        }
        if self.groups > 0 && !self.ranges.iter().any(|r| r.start <= map.iova && last <= r.end) {
            return Err(Errno::EINVAL); // API-074
        }

        let mut prot = Prot::empty();
        prot.set(Prot::READ, flags.contains(MapFlags::READ));
        prot.set(Prot::WRITE, flags.contains(MapFlags::WRITE));
        let pages = map.size / PAGE;
        let pinned = pin(caller, locked, map.vaddr, pages, prot)?;
        if self.tracking && pages > TRACKED_PAGES_MAX {
            return Err(Errno::EINVAL); // no bitmap of that size, API-093
        }

        // Only the table can fail below.
        let Pinned { memory, offset } = pinned;
        let (peer, charged) = if memory.is_peer() { (tag::PEER, 0) } else { (0, pages) };
        let owner = self.owners.add(caller.process(), charged);
        locked.charge(caller.process(), charged);
        let tag = owner << tag::OWNER_SHIFT | peer;
        let mapping = Mapping { first: map.iova, last, prot, memory, offset, tag };
        if let Err(error) = self.space.map(mapping) {
            self.owners.remove(owner, 1, charged, locked);
            return Err(match error {
                MapError::Overlap => Errno::EEXIST,
                MapError::NoMemory => Errno::ENOMEM,
            });
        }
        self.available -= 1;
        self.untrackable += u64::from(pages > TRACKED_PAGES_MAX);
        tracing::trace!(name: "vfio.map_dma", iova = map.iova, size = map.size, vaddr = map.vaddr, flags = map.flags);
        Ok(())
    }

    /// Gives a mapping whose `vaddr` was taken away a new one (API-072). The
    /// caller pays for its pages from now on.
    fn set_vaddr(
        &mut self,
        present: &Mapping,
        map: &DmaMap,
        last: u64,
        caller: &dyn Caller,
        locked: &Accounts,
    ) -> Result<(), Errno> {
        if present.tag & tag::INVALID == 0 || present.first != map.iova || present.last != last {
            return Err(Errno::EINVAL);
        }
        let peer = present.tag & tag::PEER;
        let pages = charged(present);
        let mut owner = present.tag >> tag::OWNER_SHIFT;
        if self.owners.process(owner) != Some(caller.process()) {
            locked.try_charge(caller, pages)?;
            self.owners.remove(owner, 1, pages, locked);
            owner = self.owners.add(caller.process(), pages);
        }
        // Linux goes on with the pages that it pinned and looks at the new
        // address only when it pins again. The same pages are reached here
        // through the new address if the old one went with its program.
        let pinned = is_user_range(map.vaddr, map.size)
            .then(|| caller.pin(map.vaddr, map.size, present.prot.contains(Prot::WRITE)).ok())
            .flatten();
        self.space.update(map.iova, &mut |m| m.tag = owner << tag::OWNER_SHIFT | peer);
        if let Some(Pinned { memory, offset }) = pinned.filter(|pinned| pinned.memory.is_peer() == (peer != 0)) {
            // If there is no memory for that, the pages that it has are kept.
            self.space.update(map.iova, &mut |m| (m.memory, m.offset) = (memory.clone(), offset));
        }
        self.invalid -= 1;
        tracing::trace!(name: "vfio.set_vaddr", iova = map.iova, size = map.size, vaddr = map.vaddr);
        Ok(())
    }
}

/// Pins pages, in order: the first that is over the limit or cannot be pinned
/// decides the error. `ENOMEM`, `EFAULT` (API-075). A device's pages are
/// reserved ones, which are not counted.
fn pin(caller: &dyn Caller, locked: &Accounts, vaddr: u64, pages: u64, prot: Prot) -> Result<Pinned, Errno> {
    let write = prot.contains(Prot::WRITE);
    let pin = |pages: u64| {
        let len = pages * PAGE;
        if is_user_range(vaddr, len) { caller.pin(vaddr, len, write) } else { Err(Errno::EFAULT) }
    };
    match locked.check(caller, pages) {
        Ok(()) => pin(pages),
        Err(room) => match pin(pages) {
            Ok(pinned) if pinned.memory.is_peer() => Ok(pinned),
            _ if room == 0 => Err(Errno::ENOMEM),
            _ => pin(room).and(Err(Errno::ENOMEM)),
        },
    }
}
