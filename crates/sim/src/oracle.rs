// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an observer of the calls that succeeded knows: who has what open, and
//! what devices may therefore touch. Written from the fact sheets, not from the
//! code it judges.

use std::collections::BTreeMap;
use std::ops::Range;

use caller::FileId;
use pci::Address;

use crate::client::Touch;
use crate::spaces::{SpaceId, Spaces};

/// A live DMA mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) iova: Range<u64>,
    /// Addresses that it has pointed to; more than one after a VADDR update.
    pub(crate) vaddr: Vec<u64>,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Container {
    client: usize,
    /// The type of `VFIO_SET_IOMMU`.
    iommu: Option<u64>,
    pub(crate) maps: Vec<Map>,
    open: bool,
}

#[derive(Debug)]
pub(crate) enum File {
    Container,
    Group {
        container: Option<FileId>,
        open: bool,
    },
    Device {
        group: FileId,
        address: Address,
    },
    /// A device's own node: the context that it is bound to, and the IOAS that
    /// its device uses.
    Cdev {
        address: Address,
        bound: Option<FileId>,
        ioas: Option<SpaceId>,
    },
}

/// The observer.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) files: BTreeMap<FileId, File>,
    pub(crate) containers: BTreeMap<FileId, Container>,
    pub(crate) iommufd: Spaces,
}

impl Oracle {
    pub(crate) fn opened_container(&mut self, file: FileId, client: usize) {
        self.files.insert(file, File::Container);
        self.containers.insert(file, Container { client, open: true, ..Container::default() });
    }

    pub(crate) fn opened_group(&mut self, file: FileId) {
        self.files.insert(file, File::Group { container: None, open: true });
    }

    pub(crate) fn opened_device(&mut self, file: FileId, group: FileId, address: Address) {
        self.files.insert(file, File::Device { group, address });
    }

    pub(crate) fn set_container(&mut self, group: FileId, to: FileId) {
        if let Some(File::Group { container, .. }) = self.files.get_mut(&group) {
            *container = Some(to);
        }
    }

    pub(crate) fn unset_container(&mut self, group: FileId) {
        if let Some(File::Group { container, .. }) = self.files.get_mut(&group)
            && let Some(left) = container.take()
        {
            self.group_left(left);
        }
    }

    pub(crate) fn set_iommu(&mut self, container: FileId, kind: u64) {
        if let Some(container) = self.containers.get_mut(&container) {
            container.iommu = Some(kind);
        }
    }

    pub(crate) fn mapped(&mut self, container: FileId, flags: u32, iova: u64, vaddr: u64, size: u64) {
        let Some(container) = self.containers.get_mut(&container) else { return };
        let range = iova..iova.saturating_add(size);
        if flags & 4 != 0 {
            if let Some(map) = container.maps.iter_mut().find(|m| m.iova == range) {
                map.vaddr.push(vaddr);
            }
            return;
        }
        container.maps.push(Map { iova: range, vaddr: vec![vaddr], read: flags & 1 != 0, write: flags & 2 != 0 });
    }

    /// API-085, API-087
    pub(crate) fn unmapped(&mut self, container: FileId, flags: u32, iova: u64, size: u64) {
        let Some(container) = self.containers.get_mut(&container) else { return };
        if flags & 4 != 0 {
            return;
        }
        if flags & 2 != 0 {
            container.maps.clear();
            return;
        }
        let range = iova..iova.saturating_add(size);
        if container.iommu == Some(1) && container.maps.iter().any(|m| m.iova.start < iova && iova < m.iova.end) {
            return;
        }
        container.maps.retain(|m| !range.contains(&m.iova.start));
    }

    /// Closes a file; the device if it was one.
    pub(crate) fn closed(&mut self, file: FileId) -> Option<Address> {
        match self.files.get_mut(&file) {
            Some(File::Container) => {
                self.files.remove(&file);
                if let Some(container) = self.containers.get_mut(&file) {
                    container.open = false;
                }
                self.forget(file);
                None
            }
            Some(File::Group { open, .. }) => {
                *open = false;
                self.group_done(file);
                None
            }
            Some(File::Cdev { address, .. }) => {
                let address = *address;
                self.files.remove(&file);
                Some(address)
            }
            Some(File::Device { group, address }) => {
                let (group, address) = (*group, *address);
                self.files.remove(&file);
                self.group_done(group);
                Some(address)
            }
            None => None,
        }
    }

    /// API-054, API-055: a group lives as long as a descriptor of it or of one
    /// of its devices.
    fn group_done(&mut self, file: FileId) {
        let Some(File::Group { open: false, container }) = self.files.get(&file) else { return };
        let container = *container;
        let used = self.files.values().any(|f| matches!(f, File::Device { group, .. } if *group == file));
        if used {
            return;
        }
        self.files.remove(&file);
        if let Some(container) = container {
            self.group_left(container);
        }
    }

    /// API-020: with the last group all mappings go.
    fn group_left(&mut self, container: FileId) {
        if self.groups_in(container) == 0
            && let Some(state) = self.containers.get_mut(&container)
        {
            state.maps.clear();
            state.iommu = None;
        }
        self.forget(container);
    }

    fn groups_in(&self, container: FileId) -> usize {
        let inside = |f: &&File| matches!(f, File::Group { container: Some(c), .. } if *c == container);
        self.files.values().filter(inside).count()
    }

    fn forget(&mut self, container: FileId) {
        if self.groups_in(container) == 0 && self.containers.get(&container).is_some_and(|c| !c.open) {
            self.containers.remove(&container);
        }
    }

    /// What an open device may reach by DMA: whose memory, and its mappings.
    pub(crate) fn space_of(&self, address: Address) -> Option<(usize, &[Map])> {
        // Who attaches one of a group attaches them all, as Linux does
        // (iommufd_hw_pagetable_attach). Here the functions of a bus are one.
        let attached = self.files.values().filter_map(|file| match file {
            File::Cdev { address: a, ioas: Some(ioas), .. } if a.bus == address.bus => Some((*a != address, *ioas)),
            _ => None,
        });
        if let Some((_, ioas)) = attached.min_by_key(|(other, _)| *other) {
            let space = self.iommufd.get(ioas)?;
            return Some((space.client, &space.maps));
        }
        let container = self.container_of(address)?;
        Some((container.client, &container.maps))
    }

    /// The container through which an open device does its DMA.
    fn container_of(&self, address: Address) -> Option<&Container> {
        let group = self.files.values().find_map(|f| match f {
            File::Device { group, address: a } if *a == address => Some(*group),
            _ => None,
        })?;
        match self.files.get(&group)? {
            File::Group { container, .. } => self.containers.get(&(*container)?),
            _ => None,
        }
    }

    /// Law: a device touches only what is mapped for it, with the right that
    /// it needs, of the program that has it.
    pub(crate) fn may(&self, address: Address, client: usize, touch: &Touch) -> bool {
        self.space_of(address).is_some_and(|(whose, maps)| whose == client && covers(maps, touch))
    }
}

fn covers(maps: &[Map], touch: &Touch) -> bool {
    let mut at = touch.vaddr.start;
    while at < touch.vaddr.end {
        let fits = maps.iter().filter(|m| if touch.write { m.write } else { m.read });
        let ends = fits.flat_map(|m| {
            let len = m.iova.end - m.iova.start;
            m.vaddr.iter().filter(move |v| (**v..**v + len).contains(&at)).map(move |v| v + len)
        });
        match ends.max() {
            Some(end) => at = end,
            None => return false,
        }
    }
    true
}
