// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's own node, `/dev/vfio/devices/vfioN` (vfio-api.md, section 4).
//!
//! It can be opened any number of times, and nothing can be done with an open
//! file but bind it to a context of `/dev/iommu`. One file at a time is bound;
//! that is the device's user until it is closed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::device::{Board, DeviceFile, Driver};
use caller::{Caller, FileId, Reply};
use iommufd::ContextId;
use pci::Address;
use uapi::Errno;
use uapi::vfio::cdev::{AttachIommufdPt, BIND_TOKEN, BindIommufd, DetachIommufdPt, PT_PASID};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT, FEATURE};
use uapi::vfio::recovery::BIND_CLAIM_RESET;
use zerocopy::{FromZeros, IntoBytes};

use crate::args;
use crate::binding::Around;
use crate::device::Request;
use crate::ownership::Kind;
use crate::{Context, Vfio};

/// The nodes, and who has them open.
#[derive(Debug, Default)]
pub(crate) struct Cdevs {
    /// N of `vfioN`.
    numbers: BTreeMap<Address, u32>,
    files: BTreeMap<FileId, Cdev>,
}

/// An open file of a node.
#[derive(Debug)]
pub(crate) struct Cdev {
    pub(crate) address: Address,
    /// What it shows of the device once it is bound. Its own, for the
    /// descriptor that a program has cannot be changed then.
    pub(crate) file: Arc<dyn DeviceFile>,
}

impl Cdevs {
    /// The lowest free number becomes the device's, as Linux gives them
    /// (API-102).
    fn add(&mut self, address: Address) {
        let free = |number: &u32| !self.numbers.values().any(|taken| taken == number);
        if !self.numbers.contains_key(&address)
            && let Some(number) = (0..).find(free)
        {
            self.numbers.insert(address, number);
        }
    }

    /// The open file.
    pub(crate) fn get(&self, file: FileId) -> Option<&Cdev> {
        self.files.get(&file)
    }

    /// Whether somebody has the node open, bound or not.
    pub(crate) fn is_open(&self, address: Address) -> bool {
        self.files.values().any(|cdev| cdev.address == address)
    }

    pub(crate) fn remove(&mut self, file: FileId) {
        self.files.remove(&file);
    }
}

impl Vfio {
    /// vfio-pci was bound to a function: it gets a node (not without IOMMU,
    /// API-121).
    pub fn driver_bound(&mut self, address: Address, board: &Board) {
        let group = self.table.group_of(board, address);
        if board.driver(address) == Some(&Driver::VfioPci) && group.is_some_and(|g| self.table.kind(g) == Kind::Iommu) {
            self.cdevs.add(address);
        }
    }

    /// N of the function's node `vfioN`.
    #[must_use]
    pub fn cdev_number(&self, address: Address) -> Option<u32> {
        self.cdevs.numbers.get(&address).copied()
    }

    pub(crate) fn cdev_driver_unbound(&mut self, address: Address) {
        self.cdevs.numbers.remove(&address);
    }

    /// `open("/dev/vfio/devices/vfioN")`: `ENODEV` if there is none, or its
    /// driver is being unbound (API-273), `ENOMEM`.
    pub fn open_cdev(&mut self, file: FileId, number: u32, board: &Board) -> Result<(), Errno> {
        let found = self.cdevs.numbers.iter().find(|(_, n)| **n == number);
        let address = found.map(|(address, _)| *address).filter(|address| !board.is_leaving(*address));
        let address = address.ok_or(Errno::ENODEV)?;
        let device_file = self.devices.make_file(address, board)?;
        self.cdevs.files.insert(file, Cdev { address, file: device_file });
        Ok(())
    }

    /// `ioctl` on a node's file, in the order of API-122. `None`: as on any
    /// file of a device.
    pub(crate) fn cdev_ioctl(
        &mut self,
        file: FileId,
        (request, feature): (u32, Option<&(u32, Request)>),
        arg: u64,
        cx: &mut Context<'_>,
    ) -> Option<Result<Reply, Errno>> {
        let address = self.cdevs.get(file)?.address;
        let done = |()| Reply::Value(0);
        match request {
            BIND_IOMMUFD => Some(self.bind_iommufd(file, address, arg, cx).map(done)),
            _ if !self.devices.is_device(file) => Some(Err(Errno::EINVAL)), // API-103
            ATTACH_IOMMUFD_PT | DETACH_IOMMUFD_PT => {
                self.devices.wake(address, cx.board);
                let result = match request {
                    ATTACH_IOMMUFD_PT => self.attach_pt(address, arg, cx),
                    _ => self.detach_pt(address, arg, cx),
                };
                self.devices.idle(address, cx.board);
                Some(result.map(done))
            }
            FEATURE => self.context_feature(address, feature?, cx).map(|result| result.map(Reply::Value)),
            _ => None,
        }
    }

    /// API-105 to API-108; with a claim (extension) `ENODEV` and `EBUSY` before
    /// the device is bound.
    fn bind_iommufd(&mut self, file: FileId, address: Address, arg: u64, cx: &mut Context<'_>) -> Result<(), Errno> {
        let bind = read_bind(cx.caller, arg)?;
        let group = self.table.group_of(cx.board, address);
        if group.is_some_and(|group| self.groups.by_number(group).is_some()) {
            return Err(Errno::EBUSY); // API-037
        }
        if self.devices.is_device(file) {
            return Err(Errno::EINVAL);
        }
        let mut token = [0; 16];
        let given = bind.flags & BIND_TOKEN != 0;
        if given {
            cx.caller.read(bind.token_uuid_ptr, &mut token)?;
        }
        self.devices.check_token(address, given.then_some(token), cx.board)?;
        let context = context_of(bind.iommufd, cx)?;
        if self.devices.is_open(address) {
            return Err(Errno::EINVAL); // API-104
        }
        let claims = bind.flags & BIND_CLAIM_RESET != 0;
        if claims {
            self.may_claim(address, context, cx.board)?;
        }
        self.check_claim(address, Some(context), cx.board)?;
        let around = Around { options: &self.options, table: &self.table, board: cx.board };
        let id = self.bindings.bind(address, context, true, &around, cx.iommufd)?;
        let cdev = self.cdevs.get(file).map(|cdev| Arc::clone(&cdev.file));
        let opened = self.devices.open_device(file, address, cdev, cx.board).and_then(|()| {
            // It is in place before the program hears of it.
            let at = arg.checked_add(std::mem::offset_of!(BindIommufd, out_devid) as u64).ok_or(Errno::EFAULT)?;
            cx.caller.write(at, &id.0.to_ne_bytes()).inspect_err(|_| {
                self.devices.release(file, cx.board);
            })
        });
        if let Err(errno) = opened {
            self.bindings.unbind(address, cx.iommufd);
            return Err(errno);
        }
        if claims {
            self.bindings.claim_reset(address);
        }
        tracing::info!(name: "vfio.bind_iommufd", device = %address, file = file.0, devid = id.0, claims);
        Ok(())
    }

    /// API-112 to API-117
    fn attach_pt(&mut self, address: Address, arg: u64, cx: &mut Context<'_>) -> Result<(), Errno> {
        let mut attach: AttachIommufdPt = args::read(cx.caller, arg, AttachIommufdPt::MINSZ)?;
        let pasid = pasid_of(cx.caller, arg, attach.argsz, attach.flags, AttachIommufdPt::MINSZ)?;
        // Its translations are blocked meanwhile (ERR-076).
        let has_ats = |f: &pci::Function| f.extended_capability(pci::cap::EXT_ATS).is_some();
        if self.devices.is_resetting(address) && cx.board.fabric.function(address).is_some_and(has_ats) {
            return Err(Errno::EBUSY);
        }
        attach.pt_id = self.bindings.attach(address, pasid, attach.pt_id, cx.iommufd)?;
        args::write_prefix(cx.caller, arg, &attach, AttachIommufdPt::MINSZ).inspect_err(|_| {
            // Also for a PASID: Linux drops what has none.
            self.bindings.detach(address, None, cx.iommufd);
        })?;
        tracing::debug!(name: "vfio.attach_pt", device = %address, pasid, hwpt = attach.pt_id);
        Ok(())
    }

    /// API-118
    fn detach_pt(&mut self, address: Address, arg: u64, cx: &mut Context<'_>) -> Result<(), Errno> {
        let detach: DetachIommufdPt = args::read(cx.caller, arg, DetachIommufdPt::MINSZ)?;
        let pasid = pasid_of(cx.caller, arg, detach.argsz, detach.flags, DetachIommufdPt::MINSZ)?;
        self.bindings.detach(address, pasid, cx.iommufd);
        tracing::debug!(name: "vfio.detach_pt", device = %address, pasid);
        Ok(())
    }
}

/// The argument of BIND_IOMMUFD, checked as far as that goes without the file:
/// `EFAULT`, `EINVAL`, `E2BIG` (API-105).
pub(crate) fn read_bind(caller: &dyn Caller, arg: u64) -> Result<BindIommufd, Errno> {
    let argsz: u32 = args::read_plain(caller, arg)?;
    if (argsz as usize) < BindIommufd::MINSZ {
        return Err(Errno::EINVAL);
    }
    args::check_tail(caller, arg, size_of::<BindIommufd>(), argsz)?;
    let mut bind = BindIommufd::new_zeroed();
    let known = (argsz as usize).min(size_of::<BindIommufd>());
    caller.read(arg, &mut bind.as_mut_bytes()[..known])?;
    if bind.iommufd < 0 || bind.flags & !(BIND_TOKEN | BIND_CLAIM_RESET) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(bind)
}

/// The context behind a descriptor: `EBADF`, `EBADFD`.
fn context_of(fd: i32, cx: &Context<'_>) -> Result<ContextId, Errno> {
    let file = cx.caller.file(fd)?;
    file.and_then(|file| cx.iommufd.context(file)).ok_or(Errno::EBADFD)
}

/// The PASID behind the first `at` bytes of an argument, if the flags ask for
/// one: `EINVAL`, `EFAULT`.
fn pasid_of(caller: &dyn Caller, arg: u64, argsz: u32, flags: u32, at: usize) -> Result<Option<u32>, Errno> {
    if flags & !PT_PASID != 0 {
        return Err(Errno::EINVAL);
    }
    if flags == 0 {
        return Ok(None);
    }
    if (argsz as usize) < at + 4 {
        return Err(Errno::EINVAL);
    }
    let address = arg.checked_add(at as u64).ok_or(Errno::EFAULT)?;
    args::read_plain(caller, address).map(Some)
}
