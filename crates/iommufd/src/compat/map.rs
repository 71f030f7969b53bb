// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_MAP_DMA` and `VFIO_IOMMU_UNMAP_DMA`.

use caller::Caller;
use iommu::Prot;
use uapi::Errno;
use uapi::vfio::type1::{DmaMap, DmaUnmap, MapFlags, UnmapFlags};
use zerocopy::{FromBytes, IntoBytes};

use crate::context::Context;
use crate::ioas::Place;

fn read<T: FromBytes + IntoBytes>(caller: &dyn Caller, arg: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(arg, value.as_mut_bytes())?;
    Ok(value)
}

impl Context {
    /// IOMMUFD-12.4
    pub(super) fn compat_map_dma(&mut self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let map: DmaMap = read(caller, arg)?;
        let known = MapFlags::READ | MapFlags::WRITE;
        if (map.argsz as usize) < size_of::<DmaMap>() || map.flags & !known.bits() != 0 {
            return Err(Errno::EINVAL);
        }
        let flags = MapFlags::from_bits_truncate(map.flags);
        let mut prot = Prot::empty();
        prot.set(Prot::READ, flags.contains(MapFlags::READ));
        prot.set(Prot::WRITE, flags.contains(MapFlags::WRITE));
        let ioas = self.compat_ioas()?;
        self.map_user(ioas, map.vaddr, map.size, Place::Fixed(map.iova), prot, caller)?;
        tracing::trace!(name: "iommufd.map_dma", iova = map.iova, size = map.size, vaddr = map.vaddr);
        Ok(())
    }

    /// IOMMUFD-12.5
    pub(super) fn compat_unmap_dma(&mut self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut unmap: DmaUnmap = read(caller, arg)?;
        if (unmap.argsz as usize) < size_of::<DmaUnmap>() || unmap.flags & !UnmapFlags::ALL.bits() != 0 {
            return Err(Errno::EINVAL);
        }
        let id = self.compat_ioas()?;
        let (bytes, done) = if unmap.flags != 0 {
            if unmap.iova != 0 || unmap.size != 0 {
                return Err(Errno::EINVAL);
            }
            self.unmap(id, 0, u64::MAX)
        } else {
            let ioas = self.ioases.get_mut(&id).ok_or(Errno::ENODEV)?;
            if !ioas.huge_pages() {
                // Areas end where the range does (IOMMUFD-12.6).
                ioas.cut(unmap.iova.wrapping_add(unmap.size).wrapping_sub(1), &mut self.backing)?;
                if let Some(before) = unmap.iova.checked_sub(1) {
                    ioas.cut(before, &mut self.backing)?;
                }
            }
            self.unmap_range(id, unmap.iova, unmap.size)
        };
        tracing::trace!(name: "iommufd.unmap_dma", iova = unmap.iova, size = unmap.size, removed = bytes);
        unmap.size = bytes;
        caller.write(arg, unmap.as_bytes())?;
        done
    }
}
