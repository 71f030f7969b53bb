// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups: `/dev/vfio/N`.
//!
//! A group's file is the way from a container to the group's devices. It can
//! be open once. Devices opened through it keep it: closing its descriptor
//! changes nothing until they are closed (API-054).

use std::collections::{BTreeMap, BTreeSet};

use caller::FileId;
use iommufd::ContextId;
use pci::Address;
use uapi::Errno;

use crate::ownership::Kind;

/// What a group's container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// `/dev/vfio/vfio`.
    Container(FileId),
    /// `/dev/iommu`, or `/dev/vfio/vfio` served by iommufd (API-023).
    Iommufd(ContextId),
}

/// An open group file.
#[derive(Debug)]
pub(crate) struct Group {
    /// Number of the IOMMU group.
    pub(crate) number: u32,
    /// What stands behind it.
    pub(crate) kind: Kind,
    /// The container that it is in.
    pub(crate) container: Option<Holder>,
    /// Devices opened through it.
    devices: BTreeSet<Address>,
    /// Its last VFIO device was unbound: the node is gone, and a new one of
    /// the same number is another group.
    lost: bool,
    closed: bool,
}

impl Group {
    /// Whether requests still find the IOMMU group.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// The container, if it is one of VFIO's own.
    pub(crate) fn own_container(&self) -> Option<FileId> {
        match self.container? {
            Holder::Container(file) => Some(file),
            Holder::Iommufd(_) => None,
        }
    }

    /// Whether a device opened through the group is still open: then it cannot
    /// leave its container (API-046).
    pub(crate) fn has_open_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Whether this device is open through the group.
    pub(crate) fn has_open(&self, device: Address) -> bool {
        self.devices.contains(&device)
    }
}

/// All open group files.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    files: BTreeMap<FileId, Group>,
    by_number: BTreeMap<u32, FileId>,
    by_device: BTreeMap<Address, FileId>,
}

impl Groups {
    /// Opens; `EBUSY` while it is open already (API-035).
    pub(crate) fn open(&mut self, file: FileId, number: u32, kind: Kind) -> Result<(), Errno> {
        if self.by_number.contains_key(&number) {
            return Err(Errno::EBUSY);
        }
        let group = Group { number, kind, container: None, devices: BTreeSet::new(), lost: false, closed: false };
        self.by_number.insert(number, file);
        self.files.insert(file, group);
        Ok(())
    }

    /// The group of a file.
    pub(crate) fn get(&self, file: FileId) -> Option<&Group> {
        self.files.get(&file)
    }

    /// The group of a file, to be changed.
    pub(crate) fn get_mut(&mut self, file: FileId) -> Option<&mut Group> {
        self.files.get_mut(&file)
    }

    /// The open group of a number.
    pub(crate) fn by_number(&self, number: u32) -> Option<(FileId, &Group)> {
        let file = *self.by_number.get(&number)?;
        Some((file, self.files.get(&file)?))
    }

    /// What the group is in through which a device is open.
    pub(crate) fn holder_of(&self, device: Address) -> Option<Holder> {
        self.files.get(self.by_device.get(&device)?)?.container
    }

    /// A device was opened through a group.
    pub(crate) fn device_opened(&mut self, file: FileId, device: Address) {
        if let Some(group) = self.files.get_mut(&file) {
            group.devices.insert(device);
            self.by_device.insert(device, file);
        }
    }

    /// The last file of a device was closed. Returns the group's file if that
    /// was all that kept it.
    pub(crate) fn device_closed(&mut self, device: Address) -> Option<FileId> {
        let file = self.by_device.remove(&device)?;
        let group = self.files.get_mut(&file)?;
        group.devices.remove(&device);
        (group.closed && group.devices.is_empty()).then_some(file)
    }

    /// The file's last descriptor is gone. Returns whether nothing keeps it.
    pub(crate) fn close(&mut self, file: FileId) -> bool {
        self.files.get_mut(&file).is_some_and(|group| {
            group.closed = true;
            group.devices.is_empty()
        })
    }

    /// Forgets a file that nothing keeps.
    pub(crate) fn remove(&mut self, file: FileId) {
        if let Some(group) = self.files.remove(&file)
            && !group.lost
        {
            self.by_number.remove(&group.number);
        }
    }

    /// Whether no group file is open.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.by_number.is_empty() && self.by_device.is_empty()
    }

    /// The group's last VFIO device was unbound.
    pub(crate) fn lose(&mut self, number: u32) -> Option<FileId> {
        let file = self.by_number.remove(&number)?;
        self.files.get_mut(&file)?.lost = true;
        Some(file)
    }
}
