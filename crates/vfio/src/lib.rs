// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of the VFIO subsystem: containers, groups, devices.
//!
//! [`Vfio`] is the whole subsystem. It is driven by calls with the id of an
//! open file; what it knows of the caller comes through [`caller::Caller`].
//!
//! Inside: `container` (`/dev/vfio/vfio`) holds groups and a backend, `type1`
//! is the backend, `cdev` (`/dev/vfio/devices/vfioN`) is a device's own node,
//! `binding` knows which devices belong to contexts of `/dev/iommu`, `group` (`/dev/vfio/N`) is an open group, `ownership` knows
//! which drivers stand in a group's way, `device` is what a program does with
//! an open device, `args` how structures are passed.
//!
//! Not here: the PowerPC backend and emulated (mdev) groups.
#![forbid(unsafe_code)]

mod args;
mod binding;
mod cdev;
mod claim;
mod container;
mod device;
mod files;
mod group;
mod ownership;
mod policy;
mod type1;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use ::device::{Board, DeviceFile, Driver, ResetKind};
use caller::{Accounts, Caller, FileId, FileIds, Parking, Platform, Reply, Ticket, Wake, WatchId};
use iommufd::{ContextId, Iommufd};
use pci::recovery::{Call, Channel, Handlers, UserReset, Vote};
use pci::{Address, SavedConfig};
use uapi::Errno;
use uapi::vfio::device::FEATURE;

use binding::Bindings;
use cdev::Cdevs;
use container::Container;
pub use device::MigrationReport;
use device::{Devices, Request};
use group::Groups;
use ownership::GroupTable;
pub use policy::{RecoveryNames, RecoveryPolicy};

/// What Linux takes as module options, and what the lab's IOMMU can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `vfio_iommu_type1.dma_entry_limit`.
    pub dma_entry_limit: u32,
    /// `vfio_iommu_type1.allow_unsafe_interrupts`.
    pub allow_unsafe_interrupts: bool,
    /// `vfio.enable_unsafe_noiommu_mode`.
    pub enable_unsafe_noiommu_mode: bool,
    /// `vfio_pci.enable_sriov`.
    pub enable_sriov: bool,
    /// `vfio_pci.disable_idle_d3`.
    pub disable_idle_d3: bool,
    /// Extension: mappings are not held against `RLIMIT_MEMLOCK`. Nothing is
    /// really pinned here, and no unprivileged user can raise the limit.
    pub unlimited_memlock: bool,
    /// Bits of an I/O virtual address: the IOMMU's aperture is
    /// `0..=2^address_width - 1` (API-066).
    pub address_width: u8,
    /// Whether the IOMMU remaps interrupts (API-044).
    pub interrupt_remapping: bool,
    /// Whether the IOMMU enforces cache coherency (DMA_CC).
    pub cache_coherency: bool,
    /// Whether the IOMMU can tell which pages devices have written.
    pub dirty_tracking: bool,
    /// Bits of a PASID that the IOMMU takes, at most 20; 0: none.
    pub pasid_bits: u8,
    /// Extensions of error recovery that devices have from the start.
    pub recovery: RecoveryPolicy,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dma_entry_limit: 65535,
            allow_unsafe_interrupts: false,
            enable_unsafe_noiommu_mode: false,
            enable_sriov: false,
            disable_idle_d3: false,
            unlimited_memlock: false,
            address_width: 48,
            interrupt_remapping: true,
            cache_coherency: true,
            dirty_tracking: true,
            pasid_bits: 20,
            recovery: RecoveryPolicy::default(),
        }
    }
}

/// The VFIO subsystem.
#[derive(Debug)]
pub struct Vfio {
    options: Options,
    table: GroupTable,
    containers: BTreeMap<FileId, Container>,
    groups: Groups,
    devices: Devices,
    cdevs: Cdevs,
    bindings: Bindings,
    locked: Accounts,
}

/// What a call may use besides its own arguments.
pub struct Context<'a> {
    /// Who calls.
    pub caller: &'a dyn Caller,
    /// What is plugged in.
    pub board: &'a mut Board,
    /// `/dev/iommu`.
    pub iommufd: &'a mut Iommufd,
    /// Where ids of new files come from.
    pub files: &'a mut FileIds,
    /// Where calls wait.
    pub parking: &'a mut Parking,
}

impl Vfio {
    /// The subsystem as after loading its modules.
    #[must_use]
    pub fn new(platform: Arc<dyn Platform>, options: Options) -> Vfio {
        Vfio {
            table: GroupTable::default(),
            containers: BTreeMap::new(),
            groups: Groups::default(),
            devices: Devices::new(platform, &options),
            cdevs: Cdevs::default(),
            bindings: Bindings::default(),
            locked: Accounts::new(options.unlimited_memlock),
            options,
        }
    }

    /// Where locked memory is counted, for whoever counts it, too.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.locked
    }

    /// `open("/dev/vfio/vfio")`.
    pub fn open_container(&mut self, file: FileId) {
        self.containers.insert(file, Container::default());
    }

    /// `open("/dev/vfio/N")`, or `/dev/vfio/noiommu-N` if group N is one of
    /// those. `ENODEV`, `EPERM`, `EBUSY` (API-036).
    pub fn open_group(&mut self, file: FileId, group: u32, cx: &mut Context<'_>) -> Result<(), Errno> {
        self.group_open(file, group, cx)
    }

    /// `ioctl` on a container, group or device file.
    pub fn ioctl(&mut self, file: FileId, request: u32, arg: u64, cx: &mut Context<'_>) -> Result<Reply, Errno> {
        let result = self.dispatch(file, request, arg, cx);
        cx.iommufd.follow_buffers();
        if result.is_err()
            && let Some(ticket) = self.devices.wait_if_busy(cx.parking)
        {
            return Ok(Reply::Parked(ticket));
        }
        result
    }

    fn dispatch(&mut self, file: FileId, request: u32, arg: u64, cx: &mut Context<'_>) -> Result<Reply, Errno> {
        // The same number means different things on different files (API-002).
        if self.containers.contains_key(&file) {
            self.container_ioctl(file, request, arg, cx)
        } else if self.groups.get(file).is_some() {
            self.group_ioctl(file, request, arg, cx)
        } else if self.devices.is_stream(file) {
            self.devices.stream_ioctl(file, request, arg, cx.caller).map(|()| Reply::Value(0))
        } else {
            let feature = (request == FEATURE).then(|| Request::parse(arg, cx.caller));
            let known = feature.as_ref().and_then(|feature| feature.as_ref().ok());
            if let Some(done) = self.cdev_ioctl(file, (request, known), arg, cx) {
                return done;
            }
            let facts =
                Facts { groups: &self.groups, table: &self.table, cdevs: &self.cdevs, bindings: &self.bindings };
            self.devices.ioctl(file, (request, feature), arg, cx, &facts)
        }
    }

    /// `pread`: copies to the caller's buffer at `buf`; the bytes done, or it
    /// waits.
    pub fn read(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        if self.devices.is_device(file) {
            self.devices.read(file, offset, buf, len, cx)
        } else {
            Err(Errno::EINVAL) // API-018
        }
    }

    /// `pwrite`: copies from the caller's buffer at `buf`; the bytes done, or
    /// it waits.
    pub fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        if !self.devices.is_device(file) {
            return Err(Errno::EINVAL);
        }
        let result = self.devices.write(file, offset, buf, len, cx);
        cx.iommufd.follow_buffers();
        result
    }

    /// Whether the file is a stream of a device's migration.
    #[must_use]
    pub fn is_stream(&self, file: FileId) -> bool {
        self.devices.is_stream(file)
    }

    /// `read` or `write` of a stream, which may have to wait.
    pub fn transfer_stream(
        &mut self,
        file: FileId,
        range: (u64, u64, u64),
        write: bool,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        self.devices.transfer_stream(file, range, write, cx)
    }

    /// Whether `mmap(len, shared, offset)` of a file is allowed; `ENODEV` if it
    /// is none of a device.
    pub fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, board: &Board) -> Result<(), Errno> {
        if self.devices.is_device(file) || self.cdevs.get(file).is_some() {
            self.devices.mmap(file, offset, len, shared, board)
        } else {
            Err(Errno::ENODEV)
        }
    }

    /// The last descriptor and mapping of a file are gone.
    pub fn release(&mut self, file: FileId, board: &mut Board, iommufd: &mut Iommufd) {
        if self.devices.is_stream(file) {
            return self.devices.release_stream(file);
        }
        self.file_release(file, board, iommufd);
        iommufd.follow_buffers();
    }

    /// A watched event was signalled.
    pub fn event_fired(&mut self, watch: WatchId, board: &mut Board) {
        self.devices.event_fired(watch, board);
    }

    /// The shared pages of an open device; what a front door makes its
    /// descriptor from.
    #[must_use]
    pub fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        self.cdevs.get(file).map(|cdev| Arc::clone(&cdev.file)).or_else(|| self.devices.device_file(file))
    }

    /// The device that a file is of, for what Linux tells in
    /// `/proc/PID/fdinfo` (API-124).
    #[must_use]
    pub fn device_address(&self, file: FileId) -> Option<Address> {
        self.cdevs.get(file).map(|cdev| cdev.address).or_else(|| self.devices.address(file))
    }

    /// Whether a program has the device open, or its node.
    #[must_use]
    pub fn is_open(&self, address: Address) -> bool {
        self.devices.is_open(address) || self.cdevs.is_open(address)
    }

    /// What an open device's migration is doing; `None` if it does not migrate.
    #[must_use]
    pub fn migration(&self, address: Address) -> Option<MigrationReport> {
        self.devices.migration(address)
    }

    /// Asks the device's user to give it back, by the REQ eventfd; whether it
    /// can be asked (API-272).
    pub fn request_release(&self, address: Address) -> bool {
        self.devices.signal_request(address)
    }

    /// Makes functions without IOMMU, bound to vfio-pci in no-IOMMU mode, a
    /// group of their own (GRP-057). The number is one that no group of the
    /// fabric has.
    pub fn add_noiommu_group(&mut self, group: u32, members: Vec<Address>) {
        self.table.add_noiommu(group, members);
    }

    /// vfio-pci was unbound from a function without IOMMU: the number of the
    /// group that it had.
    pub fn remove_noiommu_group(&mut self, address: Address) -> Option<u32> {
        self.table.remove_noiommu(address)
    }

    /// Whether a group is one without IOMMU.
    #[must_use]
    pub fn is_noiommu(&self, group: u32) -> bool {
        self.table.kind(group) == ownership::Kind::NoIommu
    }

    /// Whether a driver may be bound to a function: `EBUSY` if it would do DMA
    /// of its own in a group that VFIO owns (GRP-029).
    pub fn check_bind(&self, address: Address, driver: &Driver, board: &Board) -> Result<(), Errno> {
        let group = self.table.group_of(board, address);
        let contained = |(_, group): (FileId, &group::Group)| group.own_container().is_some();
        let owned = group.is_some_and(|n| {
            self.groups.by_number(n).is_some_and(contained) || self.bindings.in_group(n).next().is_some()
        });
        if owned && ownership::owns_dma(driver) || self.claim_forbids(address, driver, board) {
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    /// A function was plugged in. If its group is in a container or bound to an
    /// iommufd, its DMA goes through the mappings of that from now on.
    pub fn function_added(&self, address: Address, board: &Board, iommufd: &mut Iommufd) {
        self.group_function_added(address, board, iommufd);
    }

    /// vfio-pci was unbound from a function, which no program has open. If it
    /// was the group's last, the group's node is gone: an open file of it
    /// leaves its container and answers `ENODEV` from now on.
    pub fn driver_unbound(&mut self, address: Address, board: &Board, iommufd: &mut Iommufd) {
        self.devices.unbound(address);
        self.cdev_driver_unbound(address);
        self.group_driver_unbound(address, board, iommufd);
    }

    /// The hardware has reset a function behind VFIO's back. Whether a program
    /// has it open: else nothing was done.
    pub fn function_was_reset(&mut self, address: Address, kind: ResetKind, board: &Board) -> bool {
        self.devices.was_reset(address, kind, board)
    }

    /// Whether a function answers has changed.
    pub fn reach_changed(&mut self, address: Address, board: &mut Board) {
        self.devices.reach_changed(address, board);
    }

    /// Keeps an open device awake during recovery, or no longer (ERR-017).
    pub fn hold(&mut self, address: Address, on: bool, board: &mut Board) {
        self.devices.hold(address, on, board);
    }

    /// A reset of one function by the host, as sysfs `reset` does it, under the
    /// device's lock: configuration saved, the first of its methods that
    /// works, configuration restored (ERR-073, ERR-075). `ENOTTY` if there is
    /// none.
    pub fn host_reset(&mut self, address: Address, board: &mut Board) -> Result<(), Errno> {
        self.devices.host_reset(address, board)
    }

    /// The same, which the caller waits for if it takes time: `value` is what
    /// it gives then.
    pub fn host_reset_waiting(
        &mut self,
        address: Address,
        value: u64,
        board: &mut Board,
        parking: &mut Parking,
    ) -> Result<Option<Ticket>, Errno> {
        self.devices.host_reset_waiting(address, value, board, parking)
    }

    /// A reset of all functions behind a bridge by the host, as sysfs
    /// `reset_subordinate` does it (GRP-042). It may have to be waited for.
    pub fn host_reset_all(
        &mut self,
        bridge: Address,
        value: u64,
        board: &mut Board,
        parking: &mut Parking,
    ) -> Option<Ticket> {
        self.devices.host_reset_all_waiting(bridge, value, board, parking)
    }

    /// A call waits for a function's device lock while a reset under way holds
    /// it.
    pub fn wait_for_lock(&mut self, address: Address, parking: &mut Parking) -> Option<Ticket> {
        self.devices.wait_for_lock(address, parking)
    }

    /// What vfio-pci handles of recovery for a function.
    #[must_use]
    pub fn error_handlers(&self, address: Address) -> Handlers {
        self.devices.error_handlers(address)
    }

    /// Recovery calls vfio-pci for a function. `bound`: its registers when it
    /// was bound, for those of a closed one that can no longer be read.
    pub fn error_call(&mut self, address: Address, call: Call, bound: Option<&SavedConfig>, board: &mut Board) -> Vote {
        self.devices.error_call(address, call, bound, board)
    }

    /// Tells a device's user that its channel is in this state, and the
    /// interrupt index by which.
    pub fn tell_error(&self, address: Address, channel: Channel) -> Option<u32> {
        self.devices.tell_error(address, channel)
    }

    /// How far a user is that resets the link of these functions in the host's
    /// place (extension): all must be one user's, who must be able to.
    pub fn user_resets(&mut self, scope: &[Address], board: &Board) -> UserReset {
        let whole = self.is_one_users(scope, board);
        self.devices.user_resets(scope, whole, board)
    }

    /// Whether one user has all of these open, asked to reset them itself, and
    /// can by a hot reset.
    fn is_one_users(&self, scope: &[Address], board: &Board) -> bool {
        let Some(first) = scope.first() else { return false };
        let Some(owner) = self.owner(*first) else { return false };
        scope.iter().all(|address| {
            self.devices.would_reset(*address)
                && self.owner(*address) == Some(owner)
                && !board.is_leaving(*address)
                && board.driver(*address) == Some(&Driver::VfioPci)
        }) && board.fabric.hot_reset_scope(*first).is_ok_and(|reach| reach == scope)
    }

    /// Through what a device is used.
    fn owner(&self, address: Address) -> Option<group::Holder> {
        match self.bindings.get(address) {
            Some(bound) => Some(group::Holder::Iommufd(bound.context)),
            None => self.groups.holder_of(address),
        }
    }

    /// Calls that waited for a device, and how that ended.
    pub fn take_released(&mut self) -> Vec<(Ticket, Wake)> {
        self.devices.take_released()
    }

    /// A call that waited is gone.
    pub fn forget_waiter(&mut self, ticket: Ticket) {
        self.devices.forget_waiter(ticket);
    }

    /// When [`elapse`](Self::elapse) is due.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.devices.deadline()
    }

    /// Users have waited for their devices long enough; resets go on that take
    /// time.
    pub fn elapse(&mut self, board: &mut Board) {
        self.devices.elapse(board);
    }

    /// Whether a reset of the function is under way, which holds its device
    /// lock.
    #[must_use]
    pub fn is_resetting(&self, address: Address) -> bool {
        self.devices.is_resetting(address)
    }

    /// Whether a function was given back in the middle of a recovery that is
    /// still under way.
    #[must_use]
    pub fn is_unsettled(&self, address: Address) -> bool {
        self.devices.is_unsettled(address)
    }

    /// Functions that were given back in the middle of a recovery: as a rule
    /// there are none.
    pub fn unsettled(&self) -> impl Iterator<Item = Address> {
        self.devices.unsettled()
    }

    /// The recovery is over in whose middle a function was given back: it is
    /// put right.
    pub fn settle(&mut self, address: Address, board: &mut Board) {
        self.devices.settle(address, board);
    }

    /// Before a driver gets a function: `EAGAIN` while it is recovered, `EIO`
    /// if it was given back in the middle and does not answer.
    pub fn ensure_known(&mut self, address: Address, board: &mut Board) -> Result<(), Errno> {
        self.devices.ensure_known(address, board)
    }

    /// An uncorrectable error of a device: its user's ERR eventfd is signalled.
    /// Whether there is one.
    pub fn signal_error(&self, address: Address) -> bool {
        self.devices.signal_error(address)
    }
}

/// What a device's hot reset asks about groups and contexts.
struct Facts<'a> {
    groups: &'a Groups,
    table: &'a GroupTable,
    cdevs: &'a Cdevs,
    bindings: &'a Bindings,
}

impl device::GroupFacts for Facts<'_> {
    fn group_of(&self, board: &Board, address: Address) -> Option<u32> {
        self.table.group_of(board, address)
    }

    fn group_of_file(&self, file: FileId) -> Option<u32> {
        self.groups.get(file).map(|group| group.number)
    }

    fn context_of_cdev(&self, file: FileId) -> Option<ContextId> {
        let address = self.cdevs.get(file)?.address;
        self.bindings.get(address).map(|bound| bound.context)
    }

    fn claims(&self, board: &Board, address: Address, context: ContextId) -> bool {
        claim::claimer(self.bindings, board, address) == Some(context)
    }

    fn dev_id(&self, board: &Board, address: Address, context: ContextId) -> Option<u32> {
        if let Some(bound) = self.bindings.get(address).filter(|bound| bound.context == context) {
            return Some(bound.id.0);
        }
        if self.claims(board, address, context) {
            return Some(0);
        }
        let group = self.table.group_of(board, address)?;
        self.bindings.in_group(group).any(|bound| bound.context == context).then_some(0)
    }
}
