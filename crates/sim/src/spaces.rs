// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an observer knows of the address spaces of `/dev/iommu`: which there
//! are, and what is mapped in them. Written from the fact sheet iommufd-api.md,
//! not from the code it judges.

use std::collections::BTreeMap;

use caller::FileId;

use crate::oracle::Map;

/// An IOAS: its context's file, and its id.
pub(crate) type SpaceId = (FileId, u32);

/// An IOAS.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Whose memory is mapped: contexts are not passed on here.
    pub(crate) client: usize,
    pub(crate) maps: Vec<Map>,
}

/// All of them, and the HWPTs that stand for one.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    ioases: BTreeMap<SpaceId, Space>,
    hwpts: BTreeMap<SpaceId, u32>,
    /// Where the VFIO calls of a context go.
    pub(crate) compat: BTreeMap<FileId, u32>,
}

impl Spaces {
    pub(crate) fn get(&self, id: SpaceId) -> Option<&Space> {
        self.ioases.get(&id)
    }

    /// IOASes and HWPTs of a context.
    pub(crate) fn objects(&self, context: FileId) -> Vec<u32> {
        let all = self.ioases.keys().chain(self.hwpts.keys());
        all.filter(|(of, _)| *of == context).map(|(_, id)| *id).collect()
    }

    /// The IOAS that an IOAS or HWPT stands for.
    pub(crate) fn ioas_of(&self, context: FileId, object: u32) -> Option<SpaceId> {
        let id = self.hwpts.get(&(context, object)).copied().unwrap_or(object);
        self.ioases.contains_key(&(context, id)).then_some((context, id))
    }

    pub(crate) fn allocated(&mut self, id: SpaceId, client: usize) {
        self.ioases.entry(id).or_default().client = client;
    }

    pub(crate) fn allocated_hwpt(&mut self, id: SpaceId, of: u32) {
        if let Some((_, ioas)) = self.ioas_of(id.0, of) {
            self.hwpts.insert(id, ioas);
        }
    }

    /// IOMMUFD-2.11, IOMMUFD-3.3
    pub(crate) fn destroyed(&mut self, id: SpaceId) {
        self.hwpts.remove(&id);
        if self.ioases.remove(&id).is_some() {
            self.compat.retain(|context, compat| (*context, *compat) != id);
        }
    }

    pub(crate) fn mapped(&mut self, id: SpaceId, map: Map) {
        if let Some(space) = self.ioases.get_mut(&id) {
            space.maps.push(map);
        }
    }

    /// IOMMUFD-5.14, IOMMUFD-5.15: one area for each slice of the source.
    pub(crate) fn copied(
        &mut self,
        from: SpaceId,
        to: SpaceId,
        (src, dst, length): (u64, u64, u64),
        prot: (bool, bool),
    ) {
        let Some(source) = self.ioases.get(&from) else { return };
        let mut copies = Vec::new();
        for map in &source.maps {
            let (start, end) = (map.iova.start.max(src), map.iova.end.min(src + length));
            if start < end {
                let vaddr = map.vaddr.iter().map(|vaddr| vaddr + (start - map.iova.start)).collect();
                let iova = dst + (start - src)..dst + (end - src);
                copies.push(Map { iova, vaddr, read: prot.0, write: prot.1 });
            }
        }
        if let Some(target) = self.ioases.get_mut(&to) {
            target.maps.extend(copies);
        }
    }

    /// IOMMUFD-5.18, IOMMUFD-5.19: areas wholly in the range go, in ascending
    /// order up to one that is only partly in it.
    pub(crate) fn unmapped(&mut self, id: SpaceId, first: u64, last: u64) {
        let Some(space) = self.ioases.get_mut(&id) else { return };
        space.maps.sort_by_key(|map| map.iova.start);
        let inside = |map: &Map| first <= map.iova.start && map.iova.end - 1 <= last;
        let touches = |map: &&Map| map.iova.start <= last && first < map.iova.end;
        let end = space.maps.iter().find(|map| touches(map) && !inside(map)).map_or(u64::MAX, |map| map.iova.start);
        space.maps.retain(|map| !(inside(map) && map.iova.start < end));
    }

    /// Forgets what is mapped.
    #[cfg(test)]
    pub(crate) fn deceive(&mut self) {
        self.ioases.values_mut().for_each(|space| space.maps.clear());
    }
}
