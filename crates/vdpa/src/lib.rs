// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vdpa bus and vhost-vdpa: virtio devices whose data path a program maps
//! itself, and everything behind `/dev/vhost-vdpa-N`.
//!
//! # How it is built
//!
//! A device of the bus is a `device::virtio::VirtioEndpoint` behind a parent: the
//! driver that Linux would have for it. Parents differ in how mappings reach
//! the device and in what a reset does to them; [`ParentSpec`] says how, and
//! `parent` does it. `open` is an open node: its requests in the order of
//! Linux's checks, its messages, its records. Records and the device's own
//! table are two things (`iotlb`, `parent::tables`): no reset touches the
//! first, and what one does to the second is what IOTLB_PERSIST is about
//! ([`OnReset`], [`Vdpa::explain`]).
//!
//! # What it doesn't implement
//!
//! - **`/dev/vduse`**: the parent `vduse` is like one, but its device is a
//!   model of the lab.
//! - **`virtio_vdpa`**: every device of the bus is bound to `vhost_vdpa`.
//! - **Physical runs**: in PA mode an UPDATE is one record (VDPA-7.11).
#![forbid(unsafe_code)]

mod bus;
mod device;
mod explain;
mod iotlb;
mod open;
mod parent;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use ::device::{DeviceFile, VirtioEndpoint};
use caller::{Accounts, Caller, FileId, Platform};
use uapi::Errno;

pub use bus::{Deletion, DeviceConfig, DeviceInfo};
pub use explain::Explanation;
pub use parent::{MAX_ENTRIES, Mapping, OnReset, Parent, ParentSpec, UnknownWord};

use crate::device::VdpaDevice;
use crate::open::{Cx, ENOTSUPP};

/// The bus, and vhost-vdpa's nodes.
#[derive(Debug)]
pub struct Vdpa {
    platform: Arc<dyn Platform>,
    accounts: Accounts,
    devices: BTreeMap<String, VdpaDevice>,
    /// Which device an open file is of.
    files: BTreeMap<FileId, String>,
    /// Kick eventfds ever listened to.
    watches: u64,
}

const PAGE: u64 = 4096;

impl Vdpa {
    /// The bus without devices. Pinned memory is counted in `accounts`.
    #[must_use]
    pub fn new(platform: Arc<dyn Platform>, accounts: Accounts) -> Vdpa {
        Vdpa { platform, accounts, devices: BTreeMap::new(), files: BTreeMap::new(), watches: 0 }
    }

    /// Devices, for whoever gives them turns.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<VirtioEndpoint>> {
        self.devices.values().map(|device| &device.driver.endpoint)
    }

    /// `open("/dev/vhost-vdpa-N")`: `ENXIO` if there is none, `EBUSY` (VDPA-1.2).
    pub fn open(&mut self, file: FileId, number: u32) -> Result<(), Errno> {
        let device = self.devices.values_mut().find(|device| device.number == Some(number) && !device.leaving);
        let device = device.ok_or(Errno::ENXIO)?;
        device.open(file, &self.platform)?;
        self.files.insert(file, device.name.clone());
        Ok(())
    }

    /// `ioctl` (VDPA-3).
    pub fn ioctl(&mut self, file: FileId, request: u32, arg: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let (device, mut cx) = self.call(file, caller)?;
        device.ioctl(request, arg, &mut cx)
    }

    /// `write` and `writev`: one message, gathered from `(address, length)`
    /// (VDPA-7.1).
    pub fn write(&mut self, file: FileId, parts: &[(u64, u64)], caller: &dyn Caller) -> Result<u64, Errno> {
        let (device, mut cx) = self.call(file, caller)?;
        device.write(parts, &mut cx)
    }

    /// Whether a doorbell may be mapped (VDPA-6.10); `read` if the mapping could
    /// be read.
    pub fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, read: bool) -> Result<(), Errno> {
        let device = self.device(file).ok_or(Errno::EBADF)?;
        if len.div_ceil(PAGE) != 1 || !shared || read {
            return Err(Errno::EINVAL);
        }
        if !device.driver.spec.doorbell {
            return Err(ENOTSUPP);
        }
        if offset / PAGE >= u64::from(device.driver.queues()) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The doorbell pages of an open node.
    #[must_use]
    pub fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        self.device(file)?.open.as_ref()?.pages.clone()
    }

    /// The last reference to a file has gone. A device that waited for it to be
    /// deleted goes too (VDPA-1.9): its name.
    pub fn release(&mut self, file: FileId) -> Option<String> {
        let name = self.files.remove(&file)?;
        let Vdpa { devices, platform, accounts, .. } = self;
        let device = devices.get_mut(&name)?;
        device.close(platform, accounts);
        if !device.leaving {
            return None;
        }
        devices.remove(&name);
        Some(name)
    }

    fn device(&self, file: FileId) -> Option<&VdpaDevice> {
        self.devices.get(self.files.get(&file)?)
    }

    fn call<'a>(&'a mut self, file: FileId, caller: &'a dyn Caller) -> Result<(&'a mut VdpaDevice, Cx<'a>), Errno> {
        let Vdpa { platform, accounts, devices, files, watches } = self;
        let device = files.get(&file).and_then(|name| devices.get_mut(name)).ok_or(Errno::EBADF)?;
        debug_assert!(device.open.as_ref().is_none_or(|open| open.file == file));
        Ok((device, Cx { caller, platform, accounts, watches }))
    }
}
