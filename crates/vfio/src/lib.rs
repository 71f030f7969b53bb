// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of the VFIO subsystem: containers, groups, devices.
//!
//! [`Vfio`] is the whole subsystem. It is driven by calls with the id of an
//! open file; what it knows of the caller comes through [`caller::Caller`].
#![forbid(unsafe_code)]

mod args;
mod device;

use std::sync::Arc;

use ::device::{Board, DeviceFile};
use caller::{Caller, FileId, FileIds, Platform, Reply, WatchId};
use uapi::Errno;

/// What Linux takes as module options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `vfio_iommu_type1.dma_entry_limit`.
    pub dma_entry_limit: u32,
    /// `vfio_iommu_type1.allow_unsafe_interrupts`.
    pub allow_unsafe_interrupts: bool,
    /// `vfio_pci.enable_sriov`.
    pub enable_sriov: bool,
    /// `vfio_pci.disable_idle_d3`.
    pub disable_idle_d3: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { dma_entry_limit: 65535, allow_unsafe_interrupts: false, enable_sriov: false, disable_idle_d3: false }
    }
}

/// The VFIO subsystem.
#[derive(Debug)]
pub struct Vfio {
    platform: Arc<dyn Platform>,
    options: Options,
}

/// What a call may use besides its own arguments.
pub struct Context<'a> {
    /// Who calls.
    pub caller: &'a dyn Caller,
    /// What is plugged in.
    pub board: &'a mut Board,
    /// Where ids of new files come from.
    pub files: &'a mut FileIds,
}

impl Vfio {
    /// The subsystem as after loading its modules.
    #[must_use]
    pub fn new(platform: Arc<dyn Platform>, options: Options) -> Vfio {
        Vfio { platform, options }
    }

    /// `open("/dev/vfio/vfio")`.
    pub fn open_container(&mut self, file: FileId) {
        let _ = file;
    }

    /// `open("/dev/vfio/N")`.
    pub fn open_group(&mut self, file: FileId, group: u32, cx: &mut Context<'_>) -> Result<(), Errno> {
        let _ = (file, group, cx);
        Err(Errno::ENODEV)
    }

    /// `ioctl` on a container, group or device file.
    pub fn ioctl(&mut self, file: FileId, request: u32, arg: u64, cx: &mut Context<'_>) -> Result<Reply, Errno> {
        let _ = (file, request, arg, cx, &self.platform, &self.options);
        Err(Errno::ENOTTY)
    }

    /// `pread`: copies to the caller's buffer at `buf`; the bytes done.
    pub fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, cx: &mut Context<'_>) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, cx);
        Err(Errno::EINVAL)
    }

    /// `pwrite`: copies from the caller's buffer at `buf`; the bytes done.
    pub fn write(&mut self, file: FileId, offset: u64, buf: u64, len: u64, cx: &mut Context<'_>) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, cx);
        Err(Errno::EINVAL)
    }

    /// Whether `mmap(len, shared, offset)` of a device file is allowed.
    pub fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, board: &Board) -> Result<(), Errno> {
        let _ = (file, offset, len, shared, board);
        Err(Errno::EINVAL)
    }

    /// The last descriptor and mapping of a file are gone.
    pub fn release(&mut self, file: FileId, board: &mut Board) {
        let _ = (file, board);
    }

    /// A watched event was signalled.
    pub fn event_fired(&mut self, watch: WatchId, board: &mut Board) {
        let _ = (watch, board);
    }

    /// The shared pages of an open device; what a front door makes its
    /// descriptor from.
    #[must_use]
    pub fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        let _ = file;
        None
    }
}
