// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls on descriptors other than `ioctl`: which file they are about.

use std::sync::Arc;

use caller::{Caller, FileId};
use uapi::Errno;

use crate::context::ContextId;
use crate::ids::{Kind, ObjectId};
use crate::{Iommufd, Open, PAGE};

impl Iommufd {
    /// `read` on the file of a fault queue or event queue, at position
    /// `offset`: copies to the caller's buffer at `buf`; the bytes done.
    /// `EINVAL` on files without such a call.
    pub fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        self.collect();
        let Some(Open::Object(context, id)) = self.files.get(&file).copied() else { return Err(Errno::EINVAL) };
        let context = self.context_mut(context)?;
        match context.ids.kind(id) {
            Some(Kind::Fault) => context.faults.get_mut(&id).ok_or(Errno::EINVAL)?.read(offset, buf, len, caller),
            Some(Kind::Veventq) => context.veventqs.get_mut(&id).ok_or(Errno::EINVAL)?.read(offset, buf, len, caller),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `write` on the file of a fault queue: answers; the bytes taken.
    /// `EINVAL` on files without such a call.
    pub fn write(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        self.collect();
        let Some(Open::Object(context, id)) = self.files.get(&file).copied() else { return Err(Errno::EINVAL) };
        match self.context_mut(context)?.ids.kind(id) {
            Some(Kind::Fault) => self.answer_faults((context, id), (offset, buf, len), caller),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether `mmap(len, prot, shared, offset)` of a context's file is allowed
    /// (IOMMUFD-2.12): `EINVAL`, `EPERM`, `ENXIO`; `ENODEV` on other files.
    pub fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, exec: bool) -> Result<(), Errno> {
        let Some(Open::Context(context)) = self.files.get(&file) else { return Err(Errno::ENODEV) };
        if !len.is_multiple_of(PAGE) || !shared {
            return Err(Errno::EINVAL);
        }
        if exec {
            return Err(Errno::EPERM);
        }
        let context = self.contexts.get(context).ok_or(Errno::ENXIO)?;
        let regions = context.viommus.values().filter_map(|viommu| viommu.region.as_ref());
        let mut found = regions.filter(|region| region.offset == offset && region.len() == len);
        found.next().map(|_| ()).ok_or(Errno::ENXIO)
    }

    /// What a front door makes a context's descriptor from, where it has pages
    /// to map (a vIOMMU's): a file as devices have it, of which
    /// [`mmap`](Self::mmap) allows parts.
    #[must_use]
    pub fn device_file(&self, file: FileId) -> Option<Arc<dyn ::device::DeviceFile>> {
        match self.files.get(&file)? {
            Open::Context(context) => self.contexts.get(context)?.pages.clone(),
            Open::Object(..) => None,
        }
    }

    /// The file of an object is gone: an access goes with it, a queue can be
    /// destroyed from now on.
    pub(crate) fn release_object(&mut self, context: ContextId, object: ObjectId) {
        if let Ok(at) = self.context_mut(context) {
            match at.ids.kind(object) {
                Some(Kind::Access) => at.destroy_access(object),
                _ => at.ids.put(object),
            }
        }
        self.put_context(context);
    }
}
