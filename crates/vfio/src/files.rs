// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What concerns several files: a group entering a container, a device opened
//! through a group, and who keeps whom when files are closed.

use ::device::Board;
use caller::{Capability, FileId, Reply};
use pci::Address;
use uapi::Errno;
use uapi::vfio::group::{GET_DEVICE_FD, GET_STATUS, NAME_MAX, SET_CONTAINER, Status, StatusFlags, UNSET_CONTAINER};

use crate::container::Surroundings;
use crate::group::Group;
use crate::ownership::Kind;
use crate::{Context, Vfio, args};

/// Whether a device of the group is bound through its own node (API-036).
/// There are no such nodes yet.
fn group_busy_by_cdev(group: u32) -> bool {
    let _ = group;
    false
}

impl Vfio {
    pub(crate) fn container_ioctl(
        &mut self,
        file: FileId,
        request: u32,
        arg: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let container = self.containers.get_mut(&file).ok_or(Errno::EBADF)?;
        let mut around = Surroundings {
            options: &self.options,
            table: &self.table,
            locked: &self.locked,
            board: cx.board,
            caller: cx.caller,
        };
        container.ioctl(request, arg, &mut around)
    }

    /// API-036
    pub(crate) fn group_open(&mut self, file: FileId, group: u32, cx: &mut Context<'_>) -> Result<(), Errno> {
        if self.table.vfio_devices(cx.board, group).is_empty() {
            return Err(Errno::ENODEV);
        }
        let kind = self.table.kind(group);
        if kind == Kind::NoIommu && !cx.caller.capable(Capability::SysRawio) {
            return Err(Errno::EPERM);
        }
        if group_busy_by_cdev(group) {
            return Err(Errno::EBUSY);
        }
        self.groups.open(file, group, kind)
    }

    pub(crate) fn group_ioctl(
        &mut self,
        file: FileId,
        request: u32,
        arg: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let done = |()| Reply::Value(0);
        match request {
            GET_STATUS => self.get_status(file, arg, cx).map(done),
            SET_CONTAINER => self.set_container(file, arg, cx).map(done),
            UNSET_CONTAINER => self.unset_container(file, cx.board).map(done),
            GET_DEVICE_FD => self.get_device_fd(file, arg, cx).map(Reply::NewFile),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn group(&self, file: FileId) -> Result<&Group, Errno> {
        self.groups.get(file).ok_or(Errno::EBADF)
    }

    /// Whether the IOMMU group behind the file is gone.
    fn is_lost(&self, group: &Group, board: &Board) -> bool {
        group.is_lost() || self.table.vfio_devices(board, group.number).is_empty()
    }

    /// API-038, API-039
    fn get_status(&self, file: FileId, arg: u64, cx: &Context<'_>) -> Result<(), Errno> {
        let mut status: Status = args::read(cx.caller, arg, size_of::<Status>())?;
        let group = self.group(file)?;
        if self.is_lost(group, cx.board) {
            return Err(Errno::ENODEV);
        }
        let flags = if group.container.is_some() {
            StatusFlags::CONTAINER_SET | StatusFlags::VIABLE
        } else if self.table.kernel_owns_dma(cx.board, group.number) {
            StatusFlags::empty()
        } else {
            StatusFlags::VIABLE
        };
        status.flags = flags.bits();
        args::write_prefix(cx.caller, arg, &status, size_of::<Status>())
    }

    /// API-042, API-043
    fn set_container(&mut self, file: FileId, arg: u64, cx: &mut Context<'_>) -> Result<(), Errno> {
        let fd: i32 = args::read_plain(cx.caller, arg)?;
        let other = cx.caller.file(fd)?;
        let group = self.group(file)?;
        if group.container.is_some() {
            return Err(Errno::EINVAL);
        }
        if self.is_lost(group, cx.board) {
            return Err(Errno::ENODEV);
        }
        let (number, kind) = (group.number, group.kind);
        let Some((id, container)) = other.and_then(|id| Some((id, self.containers.get_mut(&id)?))) else {
            return Err(Errno::EBADFD);
        };
        let mut around = Surroundings {
            options: &self.options,
            table: &self.table,
            locked: &self.locked,
            board: cx.board,
            caller: cx.caller,
        };
        container.attach(file, number, kind, &mut around)?;
        if let Some(group) = self.groups.get_mut(file) {
            group.container = Some(id);
        }
        tracing::debug!(name: "vfio.set_container", group = number, container = id.0);
        Ok(())
    }

    /// API-046
    fn unset_container(&mut self, file: FileId, board: &Board) -> Result<(), Errno> {
        let group = self.group(file)?;
        if group.container.is_none() {
            return Err(Errno::EINVAL);
        }
        if group.has_open_devices() {
            return Err(Errno::EBUSY);
        }
        self.detach_container(file, board);
        Ok(())
    }

    /// API-047 to API-051
    fn get_device_fd(&mut self, file: FileId, arg: u64, cx: &mut Context<'_>) -> Result<FileId, Errno> {
        let name = args::read_string(cx.caller, arg, NAME_MAX)?;
        // Bytes that are no UTF-8 are in no name and no option.
        let name = String::from_utf8_lossy(&name);
        let group = self.group(file)?;
        let candidates = if group.is_lost() { Vec::new() } else { self.table.vfio_devices(cx.board, group.number) };
        let device = candidates
            .into_iter()
            .filter(|address| !cx.board.is_leaving(*address))
            .find(|address| self.devices.matches(*address, &name));
        let device = device.ok_or(Errno::ENODEV)?;
        self.devices.check_options(device, &name, cx.board)?;
        let group = self.group(file)?;

        let container = group.container.and_then(|id| self.containers.get(&id)).ok_or(Errno::EINVAL)?;
        if !container.has_iommu() {
            return Err(Errno::EINVAL);
        }
        if group.kind == Kind::NoIommu && !group.has_open(device) && !cx.caller.capable(Capability::SysRawio) {
            return Err(Errno::EPERM);
        }
        let new = cx.files.allocate();
        self.devices.open(new, device, &name, cx)?;
        self.groups.device_opened(file, device);
        tracing::debug!(name: "vfio.get_device_fd", device = %device, file = new.0);
        Ok(new)
    }

    fn detach_container(&mut self, file: FileId, board: &Board) {
        let Some(id) = self.groups.get_mut(file).and_then(|group| group.container.take()) else { return };
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.detach(file, &self.table, &self.locked, board);
        if container.is_gone() {
            self.containers.remove(&id);
        }
        tracing::debug!(name: "vfio.unset_container", group_file = file.0, container = id.0);
    }

    pub(crate) fn file_release(&mut self, file: FileId, board: &mut Board) {
        if let Some(container) = self.containers.get_mut(&file) {
            container.close();
            if container.is_gone() {
                self.containers.remove(&file);
            }
        } else if self.groups.get(file).is_some() {
            if self.groups.close(file) {
                self.close_group(file, board);
            }
        } else if let Some(device) = self.devices.release(file, board)
            && let Some(group) = self.groups.device_closed(device)
        {
            self.close_group(group, board);
        }
    }

    /// API-055
    fn close_group(&mut self, file: FileId, board: &Board) {
        self.detach_container(file, board);
        self.groups.remove(file);
    }

    pub(crate) fn group_function_added(&self, address: Address, board: &Board) {
        let group = self.table.group_of(board, address).and_then(|number| self.groups.by_number(number));
        if let Some(container) = group.and_then(|(_, group)| self.containers.get(&group.container?)) {
            container.function_added(address, board);
        }
    }

    pub(crate) fn group_driver_unbound(&mut self, address: Address, board: &Board) {
        let Some(number) = self.table.group_of(board, address) else { return };
        if !self.table.vfio_devices(board, number).is_empty() {
            return;
        }
        if let Some(file) = self.groups.lose(number) {
            self.detach_container(file, board);
        }
    }
}
