// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What concerns several files: a group entering a container, a device opened
//! through a group, and who keeps whom when files are closed.

use ::device::Board;
use caller::{Capability, FileId, Reply};
use iommufd::{ContextId, Iommufd};
use pci::Address;
use uapi::Errno;
use uapi::vfio::group::{GET_DEVICE_FD, GET_STATUS, NAME_MAX, SET_CONTAINER, Status, StatusFlags, UNSET_CONTAINER};

use crate::binding::Around;
use crate::container::Surroundings;
use crate::group::{Group, Holder};
use crate::ownership::Kind;
use crate::{Context, Vfio, args};

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
        if self.bindings.has_cdev(group) {
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
            UNSET_CONTAINER => self.unset_container(file, cx.board, cx.iommufd).map(done),
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
        } else if self.dma_is_owned(group.number, cx.board) {
            StatusFlags::empty()
        } else {
            StatusFlags::VIABLE
        };
        status.flags = flags.bits();
        args::write_prefix(cx.caller, arg, &status, size_of::<Status>())
    }

    /// Whether a kernel driver or a context owns the group's DMA.
    fn dma_is_owned(&self, group: u32, board: &Board) -> bool {
        self.table.kernel_owns_dma(board, group) || self.bindings.in_group(group).next().is_some()
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
        let other = other.ok_or(Errno::EBADFD)?;
        if let Some(context) = cx.iommufd.context(other) {
            return self.set_iommufd(file, kind, context, cx);
        }
        let owned = self.bindings.in_group(number).next().is_some();
        let (id, container) = (other, self.containers.get_mut(&other).ok_or(Errno::EBADFD)?);
        if owned {
            return Err(Errno::EPERM); // devices opened through an iommufd before
        }
        let mut around = Surroundings {
            options: &self.options,
            table: &self.table,
            locked: &self.locked,
            board: cx.board,
            caller: cx.caller,
        };
        container.attach(file, number, kind, &mut around)?;
        if let Some(group) = self.groups.get_mut(file) {
            group.container = Some(Holder::Container(id));
        }
        tracing::debug!(name: "vfio.set_container", group = number, container = id.0);
        Ok(())
    }

    /// The group's container is an iommufd (API-023, API-040).
    fn set_iommufd(&mut self, file: FileId, kind: Kind, context: ContextId, cx: &mut Context<'_>) -> Result<(), Errno> {
        match kind {
            Kind::NoIommu => cx.iommufd.set_noiommu(context)?,
            Kind::Iommu => cx.iommufd.create_compat_ioas(context)?,
        }
        if let Some(group) = self.groups.get_mut(file) {
            group.container = Some(Holder::Iommufd(context));
            cx.iommufd.get_context(context);
        }
        tracing::debug!(name: "vfio.set_iommufd", group_file = file.0);
        Ok(())
    }

    /// API-046. Who leaves an iommufd takes no look at open devices.
    fn unset_container(&mut self, file: FileId, board: &Board, iommufd: &mut Iommufd) -> Result<(), Errno> {
        let group = self.group(file)?;
        if group.container.is_none() {
            return Err(Errno::EINVAL);
        }
        if group.own_container().is_some() && group.has_open_devices() {
            return Err(Errno::EBUSY);
        }
        self.detach_container(file, board, iommufd);
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
            .find(|address| self.devices.matches(*address, &name, cx.board));
        let device = device.ok_or(Errno::ENODEV)?;
        self.devices.check_options(device, &name, cx.board)?;
        let group = self.group(file)?;

        let container = match group.container.ok_or(Errno::EINVAL)? {
            Holder::Iommufd(context) => return self.open_through_iommufd(file, device, context, &name, cx),
            Holder::Container(id) => self.containers.get(&id).ok_or(Errno::EINVAL)?,
        };
        if !container.has_iommu() {
            return Err(Errno::EINVAL);
        }
        if group.kind == Kind::NoIommu && !group.has_open(device) && !cx.caller.capable(Capability::SysRawio) {
            return Err(Errno::EPERM);
        }
        self.check_claim(device, None, cx.board)?;
        let new = cx.files.allocate();
        self.devices.open(new, device, &name, cx)?;
        self.groups.device_opened(file, device);
        tracing::debug!(name: "vfio.get_device_fd", device = %device, file = new.0);
        Ok(new)
    }

    /// A device of a group whose container is an iommufd: the first open binds
    /// it and attaches it to the IOAS of the context's VFIO calls.
    fn open_through_iommufd(
        &mut self,
        file: FileId,
        device: Address,
        context: ContextId,
        name: &str,
        cx: &mut Context<'_>,
    ) -> Result<FileId, Errno> {
        let kind = self.group(file)?.kind;
        let first = !self.devices.is_open(device);
        if first && kind == Kind::NoIommu {
            // Translation must not be expected where there is none.
            if !cx.caller.capable(Capability::SysRawio) || cx.iommufd.compat_ioas(context).is_ok() {
                return Err(Errno::EPERM);
            }
        }
        self.check_claim(device, Some(context), cx.board)?;
        let bind = first && kind == Kind::Iommu;
        if bind {
            let around = Around { options: &self.options, table: &self.table, board: cx.board };
            self.bindings.bind(device, context, false, &around, cx.iommufd)?;
        }
        let new = cx.files.allocate();
        let opened = self.devices.open(new, device, name, cx).and_then(|()| {
            if !bind {
                return Ok(());
            }
            let attached =
                cx.iommufd.compat_ioas(context).and_then(|ioas| self.bindings.attach(device, None, ioas.0, cx.iommufd));
            attached.map(drop).inspect_err(|_| {
                self.devices.release(new, cx.board);
            })
        });
        if let Err(errno) = opened {
            if bind {
                self.bindings.unbind(device, cx.iommufd);
            }
            return Err(errno);
        }
        self.groups.device_opened(file, device);
        tracing::debug!(name: "vfio.get_device_fd", device = %device, file = new.0);
        Ok(new)
    }

    fn detach_container(&mut self, file: FileId, board: &Board, iommufd: &mut Iommufd) {
        let id = match self.groups.get_mut(file).and_then(|group| group.container.take()) {
            None => return,
            Some(Holder::Iommufd(context)) => return iommufd.put_context(context),
            Some(Holder::Container(id)) => id,
        };
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.detach(file, &self.table, &self.locked, board);
        if container.is_gone() {
            self.containers.remove(&id);
        }
        tracing::debug!(name: "vfio.unset_container", group_file = file.0, container = id.0);
    }

    pub(crate) fn file_release(&mut self, file: FileId, board: &mut Board, iommufd: &mut Iommufd) {
        if let Some(container) = self.containers.get_mut(&file) {
            container.close();
            if container.is_gone() {
                self.containers.remove(&file);
            }
        } else if self.groups.get(file).is_some() {
            if self.groups.close(file) {
                self.close_group(file, board, iommufd);
            }
        } else if let Some(device) = self.devices.release(file, board) {
            self.bindings.unbind(device, iommufd);
            if let Some(group) = self.groups.device_closed(device) {
                self.close_group(group, board, iommufd);
            }
        }
        self.cdevs.remove(file);
    }

    /// API-055
    fn close_group(&mut self, file: FileId, board: &Board, iommufd: &mut Iommufd) {
        self.detach_container(file, board, iommufd);
        self.groups.remove(file);
    }

    pub(crate) fn group_function_added(&self, address: Address, board: &Board, iommufd: &mut Iommufd) {
        let Some(number) = self.table.group_of(board, address) else { return };
        let group = self.groups.by_number(number);
        if let Some(container) = group.and_then(|(_, group)| self.containers.get(&group.own_container()?)) {
            container.function_added(address, board);
        }
        if let Some(endpoint) = board.endpoint(address) {
            iommufd.group_member_added(u64::from(number), &endpoint.requester);
        }
    }

    pub(crate) fn group_driver_unbound(&mut self, address: Address, board: &Board, iommufd: &mut Iommufd) {
        let Some(number) = self.table.group_of(board, address) else { return };
        if !self.table.vfio_devices(board, number).is_empty() {
            return;
        }
        if let Some(file) = self.groups.lose(number) {
            self.detach_container(file, board, iommufd);
        }
    }
}
