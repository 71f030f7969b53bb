// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A context: the objects of one open `/dev/iommu`.

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{Accounts, Caller, FileId};
use uapi::Errno;

use crate::Iommufd;
use crate::access::Access;
use crate::backing::{Backing, Budget};
use crate::device::{Device, Group};
use crate::fault::FaultQueue;
use crate::hwpt::Hwpt;
use crate::ids::{Ids, Kind, ObjectId};
use crate::ioas::Ioas;
use crate::selftest::MockDevice;
use crate::viommu::{HwQueue, Vdevice, Veventq, Viommu};

/// A context. Never reused in a lab's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub(crate) u64);

/// The objects of one open file.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) ids: Ids,
    pub(crate) ioases: BTreeMap<ObjectId, Ioas>,
    pub(crate) accesses: BTreeMap<ObjectId, Access>,
    pub(crate) backing: Backing,
    pub(crate) devices: BTreeMap<ObjectId, Device>,
    /// The groups of bound devices, by number.
    pub(crate) groups: BTreeMap<u64, Group>,
    pub(crate) hwpts: BTreeMap<ObjectId, Hwpt>,
    /// HWPTs ever made.
    pub(crate) hwpts_made: u64,
    /// Attachments ever made.
    pub(crate) handles: u64,
    pub(crate) faults: BTreeMap<ObjectId, FaultQueue>,
    pub(crate) viommus: BTreeMap<ObjectId, Viommu>,
    pub(crate) vdevices: BTreeMap<ObjectId, Vdevice>,
    pub(crate) veventqs: BTreeMap<ObjectId, Veventq>,
    pub(crate) hw_queues: BTreeMap<ObjectId, HwQueue>,
    pub(crate) mocks: BTreeMap<ObjectId, MockDevice>,
    /// Its own file, and pages of that which can be mapped.
    pub(crate) file: FileId,
    pub(crate) pages: Option<Arc<dyn ::device::DeviceFile>>,
    /// Accounting by process instead of by user.
    pub(crate) process_accounting: bool,
    /// The IOAS that the VFIO calls work on.
    pub(crate) compat_ioas: Option<ObjectId>,
    /// A no-IOMMU group uses the context as its container.
    pub(crate) noiommu: bool,
    /// The file, queues' files and bound devices.
    references: u32,
}

impl Context {
    /// No object. `vfio` if opened as `/dev/vfio/vfio` (IOMMUFD-1.1).
    pub(crate) fn new(file: FileId, vfio: bool, accounts: Accounts, budget: Budget) -> Context {
        Context {
            ids: Ids::new(budget.clone()),
            ioases: BTreeMap::new(),
            accesses: BTreeMap::new(),
            backing: Backing::new(accounts, budget),
            devices: BTreeMap::new(),
            groups: BTreeMap::new(),
            hwpts: BTreeMap::new(),
            hwpts_made: 0,
            handles: 0,
            faults: BTreeMap::new(),
            viommus: BTreeMap::new(),
            vdevices: BTreeMap::new(),
            veventqs: BTreeMap::new(),
            hw_queues: BTreeMap::new(),
            mocks: BTreeMap::new(),
            file,
            pages: None,
            process_accounting: vfio,
            compat_ioas: None,
            noiommu: false,
            references: 1,
        }
    }

    /// An IOAS, and what is behind its mappings: `ENOENT`.
    pub(crate) fn ioas_and_backing(&mut self, id: u32) -> Result<(&mut Ioas, &mut Backing), Errno> {
        let id = self.ids.expect(id, Kind::Ioas)?;
        let ioas = self.ioases.get_mut(&id).ok_or(Errno::ENOENT)?;
        Ok((ioas, &mut self.backing))
    }

    /// Ends an object that nobody uses.
    fn end(&mut self, id: ObjectId, kind: Kind) {
        match kind {
            Kind::Ioas => self.destroy_ioas(id),
            Kind::HwptPaging | Kind::HwptNested => self.destroy_hwpt(id),
            Kind::Fault => self.destroy_fault(id),
            Kind::Viommu => self.destroy_viommu(id),
            Kind::Vdevice => self.destroy_vdevice(id),
            Kind::Veventq => self.destroy_veventq(id),
            Kind::HwQueue => self.destroy_hw_queue(id),
            Kind::Selftest => self.destroy_mock(id),
            // Who bound or made them holds on to them.
            Kind::Device | Kind::Access => self.ids.remove(id),
        }
    }
}

impl Iommufd {
    /// One more reference to a context (IOMMUFD-2.6).
    pub fn get_context(&mut self, id: ContextId) {
        if let Some(context) = self.contexts.get_mut(&id) {
            context.references += 1;
        }
    }

    /// One reference fewer; with the last, all objects go (IOMMUFD-2.7).
    pub fn put_context(&mut self, id: ContextId) {
        let Some(context) = self.contexts.get_mut(&id) else { return };
        context.references = context.references.saturating_sub(1);
        if context.references > 0 {
            return;
        }
        // Leaves first: what they hold on to can go after them.
        loop {
            let leaves = context.ids.iter().filter(|(_, _, users)| *users == 0);
            let leaves: Vec<_> = leaves.map(|(object, kind, _)| (object, kind)).collect();
            if leaves.is_empty() {
                break;
            }
            for (object, kind) in leaves {
                context.end(object, kind);
            }
        }
        debug_assert_eq!(context.ids.iter().count(), 0, "objects that hold each other");
        self.contexts.remove(&id);
    }

    pub(crate) fn context_mut(&mut self, id: ContextId) -> Result<&mut Context, Errno> {
        self.contexts.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// `IOMMU_DESTROY` (IOMMUFD-2.4): `ENOENT`, `EBUSY`.
    pub(crate) fn destroy(&mut self, context: ContextId, id: u32, caller: &dyn Caller) -> Result<(), Errno> {
        let context = self.context_mut(context)?;
        let id = ObjectId(id);
        let kind = context.ids.kind(id).ok_or(Errno::ENOENT)?;
        if context.ids.users(id) > 0 || context.has_mapped_pages(id, caller) {
            return Err(Errno::EBUSY);
        }
        context.end(id, kind);
        Ok(())
    }
}
