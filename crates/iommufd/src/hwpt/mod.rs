// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HWPTs: what devices are attached to (iommufd-api.md, section 8).
//!
//! A paging HWPT is an IOAS as one IOMMU sees it; a nested one is a program's
//! own table in front of a paging one.

mod alloc;
mod dirty;
mod invalidate;

use iommu::Domain;
use uapi::Errno;

use crate::context::Context;
use crate::driver::{Iommu, Nested};
use crate::ids::{Kind, ObjectId};
use crate::ioas::DomainProperties;

/// A HWPT.
#[derive(Debug)]
pub(crate) struct Hwpt {
    pub(crate) form: Form,
    /// Whose devices can be attached.
    pub(crate) iommu: Iommu,
    /// May be used with PASIDs (IOMMUFD-8.9).
    pub(crate) pasid_compatible: bool,
    /// Where page requests go.
    pub(crate) fault: Option<ObjectId>,
    /// Counts HWPTs: their order of creation.
    pub(crate) order: u64,
}

/// What kind of HWPT it is.
#[derive(Debug)]
pub(crate) enum Form {
    /// Of an IOAS.
    Paging(PagingHwpt),
    /// Of a program's table.
    Nested {
        /// The paging HWPT behind it.
        parent: ObjectId,
        /// The vIOMMU that it was made on.
        viommu: Option<ObjectId>,
        /// The table.
        table: Box<dyn Nested>,
    },
}

/// An IOAS as one IOMMU sees it.
#[derive(Debug)]
pub(crate) struct PagingHwpt {
    pub(crate) ioas: ObjectId,
    /// Made by attaching a device to the IOAS (IOMMUFD-2.9).
    pub(crate) automatic: bool,
    pub(crate) nest_parent: bool,
    pub(crate) domain: Domain,
    /// What the IOAS must know.
    pub(crate) properties: DomainProperties,
}

impl Hwpt {
    /// The paging HWPT that it is; `None` if it is nested.
    pub(crate) fn paging(&self) -> Option<&PagingHwpt> {
        match &self.form {
            Form::Paging(paging) => Some(paging),
            Form::Nested { .. } => None,
        }
    }

    /// What requesters are attached to.
    pub(crate) fn domain(&self) -> Domain {
        match &self.form {
            Form::Paging(paging) => paging.domain.clone(),
            Form::Nested { table, .. } => table.domain(),
        }
    }
}

impl Context {
    /// The id as a HWPT of either kind.
    pub(crate) fn hwpt(&self, id: ObjectId) -> Result<&Hwpt, Errno> {
        self.hwpts.get(&id).ok_or(Errno::ENOENT)
    }

    /// The paging HWPT with an id: `ENOENT`.
    pub(crate) fn paging(&self, id: u32) -> Result<(ObjectId, &PagingHwpt), Errno> {
        let id = self.ids.expect(id, Kind::HwptPaging)?;
        Ok((id, self.hwpt(id)?.paging().ok_or(Errno::ENOENT)?))
    }

    /// The IOAS behind a HWPT.
    pub(crate) fn ioas_of(&self, hwpt: ObjectId) -> Option<ObjectId> {
        match &self.hwpts.get(&hwpt)?.form {
            Form::Paging(paging) => Some(paging.ioas),
            Form::Nested { parent, .. } => Some(self.hwpts.get(parent)?.paging()?.ioas),
        }
    }

    /// Takes a HWPT apart that nobody uses.
    pub(crate) fn destroy_hwpt(&mut self, id: ObjectId) {
        let Some(hwpt) = self.hwpts.remove(&id) else { return };
        match hwpt.form {
            Form::Paging(paging) => {
                if let Some(ioas) = self.ioases.get_mut(&paging.ioas) {
                    ioas.remove_domain(id, &mut self.backing);
                }
                self.ids.put(paging.ioas);
            }
            Form::Nested { parent, viommu, .. } => self.ids.put(viommu.unwrap_or(parent)),
        }
        if let Some(fault) = hwpt.fault {
            self.ids.put(fault);
        }
        self.ids.remove(id);
    }

    /// A HWPT goes with its last user (IOMMUFD-2.9).
    pub(crate) fn set_automatic(&mut self, id: ObjectId) {
        if let Some(Form::Paging(paging)) = self.hwpts.get_mut(&id).map(|hwpt| &mut hwpt.form) {
            paging.automatic = true;
        }
    }

    /// A user of a HWPT is gone; an automatic one goes with its last
    /// (IOMMUFD-2.9).
    pub(crate) fn put_hwpt(&mut self, id: ObjectId) {
        self.ids.put(id);
        let automatic = self.hwpts.get(&id).and_then(Hwpt::paging).is_some_and(|paging| paging.automatic);
        if automatic && self.ids.users(id) == 0 {
            self.destroy_hwpt(id);
        }
    }
}
