// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A context: the objects of one open `/dev/iommu`.

use std::collections::BTreeMap;

use caller::Accounts;
use uapi::Errno;

use crate::Iommufd;
use crate::access::Access;
use crate::backing::{Backing, Budget};
use crate::ids::{Ids, Kind, ObjectId};
use crate::ioas::Ioas;

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
    pub(crate) fn new(vfio: bool, accounts: Accounts, budget: Budget) -> Context {
        Context {
            ids: Ids::new(budget.clone()),
            ioases: BTreeMap::new(),
            accesses: BTreeMap::new(),
            backing: Backing::new(accounts, budget),
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
            _ => self.ids.remove(id),
        }
    }
}

impl Iommufd {
    /// One more reference to a context (IOMMUFD-2.6).
    pub(crate) fn get_context(&mut self, id: ContextId) {
        if let Some(context) = self.contexts.get_mut(&id) {
            context.references += 1;
        }
    }

    /// One reference fewer; with the last, all objects go (IOMMUFD-2.7).
    pub(crate) fn put_context(&mut self, id: ContextId) {
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
    pub(crate) fn destroy(&mut self, context: ContextId, id: u32) -> Result<(), Errno> {
        let context = self.context_mut(context)?;
        let id = ObjectId(id);
        let kind = context.ids.kind(id).ok_or(Errno::ENOENT)?;
        if context.ids.users(id) > 0 {
            return Err(Errno::EBUSY);
        }
        context.end(id, kind);
        Ok(())
    }
}
