// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open device files: what a program does with a device once it has its
//! descriptor.

use std::sync::Arc;

use ::device::{Board, DeviceFile};
use caller::{FileId, Platform, Reply, WatchId};
use pci::Address;
use uapi::Errno;

use crate::{Context, Options};

/// Every device that a program has open.
#[derive(Debug)]
pub(crate) struct Devices {
    platform: Arc<dyn Platform>,
}

impl Devices {
    /// No device is open.
    pub(crate) fn new(platform: Arc<dyn Platform>, options: &Options) -> Devices {
        let _ = options;
        Devices { platform }
    }

    /// Whether what a program passed to GET_DEVICE_FD names this device: the
    /// address, alone or followed by a space and options (API-049).
    pub(crate) fn matches(&self, address: Address, name: &str) -> bool {
        let shown = address.to_string();
        name.strip_prefix(shown.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// Opens a device whose container checks have passed, as `file`. `name` is
    /// what the program passed to GET_DEVICE_FD.
    pub(crate) fn open(
        &mut self,
        file: FileId,
        address: Address,
        name: &str,
        cx: &mut Context<'_>,
    ) -> Result<(), Errno> {
        let _ = (file, address, name, cx, &self.platform);
        Err(Errno::ENODEV)
    }

    /// Whether the file is an open device.
    pub(crate) fn is_device(&self, file: FileId) -> bool {
        let _ = file;
        false
    }

    /// `ioctl` on a device file.
    pub(crate) fn ioctl(
        &mut self,
        file: FileId,
        request: u32,
        arg: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let _ = (file, request, arg, cx);
        Err(Errno::ENOTTY)
    }

    /// `pread`: the bytes done.
    pub(crate) fn read(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, cx);
        Err(Errno::EINVAL)
    }

    /// `pwrite`: the bytes done.
    pub(crate) fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, cx);
        Err(Errno::EINVAL)
    }

    /// Whether the range of a device file may be mapped.
    pub(crate) fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, board: &Board) -> Result<(), Errno> {
        let _ = (file, offset, len, shared, board);
        Err(Errno::EINVAL)
    }

    /// A file's last descriptor and mapping are gone. The device's address if
    /// it was the last file of it, and the close work is done.
    pub(crate) fn release(&mut self, file: FileId, board: &mut Board) -> Option<Address> {
        let _ = (file, board);
        None
    }

    /// A watched event was signalled.
    pub(crate) fn event_fired(&mut self, watch: WatchId, board: &mut Board) {
        let _ = (watch, board);
    }

    /// The shared pages of an open device.
    pub(crate) fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        let _ = file;
        None
    }

    /// The device that a file is of.
    pub(crate) fn address(&self, file: FileId) -> Option<Address> {
        let _ = file;
        None
    }
}
