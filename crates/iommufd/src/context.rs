// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A context: the objects of one open `/dev/iommu`.

use uapi::Errno;

use crate::Iommufd;
use crate::ids::{Ids, ObjectId};

/// A context. Never reused in a lab's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub(crate) u64);

/// The objects of one open file.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) ids: Ids,
    /// Accounting by process instead of by user.
    pub(crate) process_accounting: bool,
    /// The file, queues' files and bound devices.
    references: u32,
}

impl Context {
    /// No object. `vfio` if opened as `/dev/vfio/vfio` (IOMMUFD-1.1).
    pub(crate) fn new(vfio: bool) -> Context {
        Context { ids: Ids::default(), process_accounting: vfio, references: 1 }
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
        if context.references == 0 {
            self.contexts.remove(&id);
        }
    }

    pub(crate) fn context_mut(&mut self, id: ContextId) -> Result<&mut Context, Errno> {
        self.contexts.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// `IOMMU_DESTROY` (IOMMUFD-2.4): `ENOENT`, `EBUSY`.
    pub(crate) fn destroy(&mut self, context: ContextId, id: u32) -> Result<(), Errno> {
        let context = self.context_mut(context)?;
        let id = ObjectId(id);
        context.ids.kind(id).ok_or(Errno::ENOENT)?;
        if context.ids.users(id) > 0 {
            return Err(Errno::EBUSY);
        }
        context.ids.remove(id);
        Ok(())
    }
}
