// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pretend kernel itself: open files and who serves them.

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{Caller, FileId, FileIds, Parking, Platform, ProcessId, Reply, Ticket, Wait, Wake, WatchId};
use device::{Board, DeviceFile, Endpoint};
use iommufd::Iommufd;
use pci::Address;
use uapi::Errno;
use vfio::{Context, Vfio};

use crate::assemble::{self, Placed, Storage};
use crate::drivers::Drivers;
use crate::errors::Errors;
use crate::lab::{ContainerServer, Lab, LabError};
use crate::tree::{Node, Tree};
use crate::unbind::Removals;
use crate::vdpa_bus::{VdpaBus, VdpaError};
use crate::{peers, sysfs, sysfs_vdpa};

/// Kinds of open file; what a request means depends on it (API-002).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// `/dev/vfio/vfio`.
    VfioContainer,
    /// `/dev/vfio/N`.
    VfioGroup,
    /// A device: one that a group gave out, or an open `/dev/vfio/devices/vfioN`.
    VfioDevice,
    /// `/dev/iommu`.
    Iommufd,
    /// What a call on `/dev/iommu` made: a fault queue, an event queue, a file
    /// of the selftest's.
    IommufdObject,
    /// `/dev/vhost-vdpa-N`.
    VhostVdpa,
    /// The data of a device's migration.
    VfioStream,
    /// `/dev/aer_inject`.
    AerInject,
}

/// A lab that runs: everything a front door calls.
///
/// Calls are serialised by whoever holds it (`&mut self`); devices work beside
/// it on the executor, through their [`Endpoint`]s.
#[derive(Debug)]
pub struct Host {
    pub(crate) lab: Lab,
    pub(crate) placed: Placed,
    pub(crate) board: Board,
    pub(crate) vfio: Vfio,
    pub(crate) iommufd: Iommufd,
    pub(crate) vdpa: VdpaBus,
    pub(crate) drivers: Drivers,
    pub(crate) storage: Box<dyn Storage>,
    platform: Arc<dyn Platform>,
    /// Looked into at each call; few, so a tree finds one sooner than a hash.
    files: BTreeMap<FileId, FileKind>,
    ids: FileIds,
    pub(crate) parking: Parking,
    pub(crate) removals: Removals,
    pub(crate) errors: Errors,
    generation: u64,
}

impl Host {
    /// Builds a lab.
    pub fn new(lab: Lab, platform: Arc<dyn Platform>, storage: Box<dyn Storage>) -> Result<Host, LabError> {
        let (board, placed) = assemble::board(&lab, storage.as_ref())?;
        let options = vfio::Options {
            address_width: lab.iommu.address_width,
            interrupt_remapping: lab.iommu.interrupt_remapping,
            dirty_tracking: lab.iommu.dirty_tracking,
            pasid_bits: lab.iommu.pasid_bits,
            ..lab.vfio.clone()
        };
        let vfio = Vfio::new(Arc::clone(&platform), options);
        let options = iommufd::Options {
            selftest: lab.iommu.selftest,
            fault_cookies: lab.iommu.fault_cookies,
            fault_transport: lab.iommu.fault_transport,
            fault_reset: lab.iommu.fault_reset,
            fault_timeout: lab.iommu.fault_timeout,
            allow_unsafe_interrupts: lab.vfio.allow_unsafe_interrupts,
            iommu: lab.iommu.offers(),
            memory_limit: lab.iommu.memory_limit,
        };
        let iommufd = Iommufd::new(Arc::clone(&platform), options, vfio.accounts().clone());
        let mut vdpa = VdpaBus::new(vdpa::Vdpa::new(Arc::clone(&platform), vfio.accounts().clone()));
        for spec in &lab.vdpa {
            vdpa.add(spec, storage.as_ref()).map_err(|error| match error {
                VdpaError::Lab(error) => error,
                refused => LabError::new(&spec.place, refused.to_string()),
            })?;
        }
        let drivers = Drivers::of(&board);
        let mut host = Host {
            lab,
            placed,
            board,
            vfio,
            iommufd,
            vdpa,
            drivers,
            storage,
            platform,
            files: BTreeMap::new(),
            ids: FileIds::default(),
            parking: Parking::default(),
            removals: Removals::new(),
            errors: Errors::default(),
            generation: 0,
        };
        let functions: Vec<Address> = host.board.fabric.functions().map(|(address, _)| address).collect();
        for address in functions {
            host.form_noiommu_group(address);
            host.vfio.driver_bound(address, &host.board);
        }
        host.take_ids()?;
        host.enable_initial_vfs()?;
        peers::connect(&host.board);
        host.plan_errors()?;
        Ok(host)
    }

    /// Every device model of the lab; the executor gives them their turns.
    /// Look again when [`generation`](Self::generation) changes.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.board.slots.values().filter_map(|slot| slot.endpoint.as_ref())
    }

    /// What is plugged in.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The lab's `/dev`, `/sys` and `/proc`.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let mut tree = sysfs::tree(&self.board, &self.facts());
        if self.vdpa.shown {
            sysfs_vdpa::add(&mut tree, &self.vdpa.vdpa);
        }
        tree
    }

    pub(crate) fn facts(&self) -> sysfs::Facts<'_> {
        sysfs::Facts {
            vfio: &self.vfio,
            options: &self.lab.vfio,
            iommu: self.lab.iommu.offers(),
            drivers: self.drivers.names(),
            errors: &self.errors.service,
            reset_groups: self.lab.reset_groups,
            injector: self.lab.aer.inject,
        }
    }

    /// Counts changes of the tree.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn changed(&mut self) {
        self.generation += 1;
    }

    pub(crate) fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    pub(crate) fn now(&self) -> u64 {
        self.platform.now()
    }

    /// Opens a character device.
    pub fn open(&mut self, node: Node, caller: &dyn Caller) -> Result<FileId, Errno> {
        let file = self.ids.allocate();
        let kind = match node {
            Node::VfioContainer if self.lab.container == ContainerServer::Iommufd => {
                self.iommufd.open(file, true);
                FileKind::Iommufd
            }
            Node::VfioContainer => {
                self.vfio.open_container(file);
                FileKind::VfioContainer
            }
            Node::VfioGroup(group) | Node::VfioNoIommuGroup(group) => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.open_group(file, group, &mut cx)?;
                FileKind::VfioGroup
            }
            Node::VfioCdev(number) => {
                self.vfio.open_cdev(file, number, &self.board)?;
                FileKind::VfioDevice
            }
            Node::Iommufd => {
                self.iommufd.open(file, false);
                FileKind::Iommufd
            }
            Node::VhostVdpa(number) => {
                self.vdpa.vdpa.open(file, number)?;
                FileKind::VhostVdpa
            }
            Node::AerInject => FileKind::AerInject,
        };
        self.files.insert(file, kind);
        Ok(file)
    }

    /// What a call on a file of VFIO works with.
    fn vfio_call<'a>(&'a mut self, caller: &'a dyn Caller) -> (&'a mut Vfio, Context<'a>) {
        let Host { vfio, board, iommufd, ids, parking, .. } = self;
        (vfio, Context { caller, board, iommufd, files: ids, parking })
    }

    /// `ioctl`. Like reads, writes and stores it may have to
    /// [wait](Reply::Parked).
    pub fn ioctl(&mut self, file: FileId, request: u32, arg: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        self.count_call(file);
        let reply = match self.kind(file).ok_or(Errno::EBADF)? {
            FileKind::VfioContainer | FileKind::VfioGroup | FileKind::VfioDevice | FileKind::VfioStream => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.ioctl(file, request, arg, &mut cx)?
            }
            FileKind::Iommufd | FileKind::IommufdObject => {
                let mut call = iommufd::Call { caller, files: &mut self.ids };
                self.iommufd.ioctl(file, request, arg, &mut call)?
            }
            FileKind::VhostVdpa => self.vdpa.vdpa.ioctl(file, request, arg, caller).map(Reply::Value)?,
            FileKind::AerInject => return Err(Errno::ENOTTY),
        };
        self.follow_call();
        if let Reply::NewFile(new) = reply
            && self.kind(new).is_none()
        {
            self.files.insert(new, FileKind::VfioDevice);
        }
        Ok(reply)
    }

    /// `pread` of `len` bytes at `offset` to the caller's memory at `buf`.
    pub fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        self.count_call(file);
        match self.kind(file).ok_or(Errno::EBADF)? {
            FileKind::VfioContainer | FileKind::VfioGroup | FileKind::VfioDevice => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.read(file, offset, buf, len, &mut cx)
            }
            FileKind::VfioStream => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.transfer_stream(file, (offset, buf, len), false, &mut cx)
            }
            FileKind::Iommufd | FileKind::IommufdObject => {
                self.iommufd.read(file, offset, buf, len, caller).map(Reply::Value)
            }
            // VDPA-1.7
            FileKind::VhostVdpa | FileKind::AerInject => Err(Errno::EINVAL),
        }
    }

    /// `pwrite` of `len` bytes at `offset` from the caller's memory at `buf`.
    pub fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
    ) -> Result<Reply, Errno> {
        self.count_call(file);
        match self.kind(file).ok_or(Errno::EBADF)? {
            FileKind::VfioContainer | FileKind::VfioGroup | FileKind::VfioDevice => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.write(file, offset, buf, len, &mut cx)
            }
            FileKind::VfioStream => {
                let (vfio, mut cx) = self.vfio_call(caller);
                vfio.transfer_stream(file, (offset, buf, len), true, &mut cx)
            }
            FileKind::Iommufd | FileKind::IommufdObject => {
                self.iommufd.write(file, offset, buf, len, caller).map(Reply::Value)
            }
            FileKind::VhostVdpa => self.vdpa.vdpa.write(file, &[(buf, len)], caller).map(Reply::Value),
            FileKind::AerInject => self.write_injection(&[(buf, len)], caller).map(Reply::Value),
        }
    }

    /// `write` and `writev` of a message to `/dev/vhost-vdpa-N`, gathered from
    /// `(address, length)`, or of records to `/dev/aer_inject`, one each; the
    /// bytes done.
    pub fn write_message(&mut self, file: FileId, parts: &[(u64, u64)], caller: &dyn Caller) -> Result<u64, Errno> {
        match self.kind(file).ok_or(Errno::EBADF)? {
            FileKind::AerInject => self.write_injection(parts, caller),
            _ => self.vdpa.vdpa.write(file, parts, caller),
        }
    }

    /// Whether `mmap` of a doorbell of `/dev/vhost-vdpa-N` is allowed; `read` if
    /// the mapping could be read.
    pub fn map_doorbell(&self, file: FileId, offset: u64, len: u64, shared: bool, read: bool) -> Result<(), Errno> {
        self.vdpa.vdpa.mmap(file, offset, len, shared, read)
    }

    /// Whether `mmap` of `len` bytes at `offset` is allowed; `exec` if the
    /// mapping would be executable.
    pub fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, exec: bool) -> Result<(), Errno> {
        match self.kind(file).ok_or(Errno::EBADF)? {
            FileKind::VfioContainer | FileKind::VfioGroup | FileKind::VfioDevice => {
                self.vfio.mmap(file, offset, len, shared, &self.board)
            }
            FileKind::VfioStream | FileKind::AerInject => Err(Errno::ENODEV),
            FileKind::Iommufd | FileKind::IommufdObject => self.iommufd.mmap(file, offset, len, shared, exec),
            // It cannot be told that the mapping could not be read.
            FileKind::VhostVdpa => self.map_doorbell(file, offset, len, shared, true),
        }
    }

    /// The last descriptor and mapping of a file are gone.
    pub fn release(&mut self, file: FileId) {
        match self.kind(file) {
            Some(FileKind::VfioContainer | FileKind::VfioGroup | FileKind::VfioDevice | FileKind::VfioStream) => {
                self.vfio.release(file, &mut self.board, &mut self.iommufd);
            }
            Some(FileKind::Iommufd | FileKind::IommufdObject) => self.iommufd.release(file),
            Some(FileKind::VhostVdpa) => {
                let left = self.vdpa.release(file);
                if left {
                    self.changed();
                }
            }
            Some(FileKind::AerInject) | None => {}
        }
        self.files.remove(&file);
        if !self.removals.is_empty() {
            self.advance_removals();
        }
        self.after_close();
        self.let_removed_go();
    }

    /// Takes the calls whose wait is over, in the order in which it ended.
    pub fn take_woken(&mut self) -> Vec<(Ticket, Wake)> {
        self.parking.take_woken()
    }

    /// How a call waits; `None` if it does not.
    #[must_use]
    pub fn wait(&self, ticket: Ticket) -> Option<Wait> {
        self.parking.wait(ticket)
    }

    /// Calls that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.parking.len()
    }

    /// The caller of a call that waits is gone.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.parking.abandon(ticket);
        self.forget_store(ticket);
        self.forget_waiter(ticket);
    }

    /// A signal came to the caller of a call that waits interruptibly. An
    /// unbind goes on waiting (API-272); any other call ends with
    /// [`Errno::ERESTARTSYS`].
    pub fn interrupted(&mut self, ticket: Ticket) {
        if self.parking.wait(ticket) != Some(Wait::Interruptible) {
            return;
        }
        if self.unbind_interrupted(ticket) {
            self.parking.make_uninterruptible(ticket);
        } else {
            self.forget_waiter(ticket);
            self.parking.wake(ticket, Wake::Done(Err(Errno::ERESTARTSYS)));
        }
    }

    /// When [`elapse`](Self::elapse) must be called next, in nanoseconds of
    /// [`Platform::now`].
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        [self.next_request(), self.next_error(), self.iommufd.deadline()].into_iter().flatten().min()
    }

    /// Does what is due by now.
    pub fn elapse(&mut self) {
        self.ask_again();
        self.end_waits();
        self.attend_errors();
        self.iommufd.elapse();
    }

    /// Pages of a program that are locked and pinned for devices (`VmLck`,
    /// `VmPin`).
    #[must_use]
    pub fn figures(&self, process: ProcessId) -> (u64, u64) {
        let accounts = self.vfio.accounts();
        (accounts.pages(process), accounts.pinned(process))
    }

    /// Whether a program has the device open.
    #[must_use]
    pub fn is_open(&self, address: Address) -> bool {
        self.vfio.is_open(address)
    }

    /// The function that a device file is of.
    #[must_use]
    pub fn device_address(&self, file: FileId) -> Option<Address> {
        self.vfio.device_address(file)
    }

    /// Files that are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// A watched event was signalled.
    pub fn event_fired(&mut self, watch: WatchId) {
        self.vfio.event_fired(watch, &mut self.board);
    }

    /// The shared pages of an open device or context.
    #[must_use]
    pub fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        match self.files.get(&file)? {
            FileKind::VfioContainer
            | FileKind::VfioGroup
            | FileKind::IommufdObject
            | FileKind::VfioStream
            | FileKind::AerInject => None,
            FileKind::VfioDevice => self.vfio.device_file(file),
            FileKind::Iommufd => self.iommufd.device_file(file),
            FileKind::VhostVdpa => self.vdpa.vdpa.device_file(file),
        }
    }

    /// What kind of file it is; `None` if it is not open.
    #[must_use]
    pub fn kind(&self, file: FileId) -> Option<FileKind> {
        let object = || self.iommufd.is_object(file).then_some(FileKind::IommufdObject);
        let stream = || self.vfio.is_stream(file).then_some(FileKind::VfioStream);
        self.files.get(&file).copied().or_else(object).or_else(stream)
    }
}
