// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VFIO's container calls on a context, which work on one IOAS of it
//! (iommufd-api.md, section 12).

mod info;
mod map;

use caller::{Caller, Capability, Reply};
use uapi::Errno;
use uapi::vfio::container::{API_VERSION, CHECK_EXTENSION, GET_API_VERSION, SET_IOMMU, extension};
use uapi::vfio::type1::{GET_INFO, MAP_DMA, UNMAP_DMA};

use crate::Iommufd;
use crate::context::{Context, ContextId};
use crate::ids::ObjectId;

impl Iommufd {
    /// The IOAS of a context's VFIO calls: `ENODEV` (IOMMUFD-12.2).
    pub fn compat_ioas(&self, context: ContextId) -> Result<ObjectId, Errno> {
        self.contexts.get(&context).ok_or(Errno::ENODEV)?.compat_ioas()
    }

    /// Sees to it that there is one, as when a group enters its container:
    /// `EINVAL` if the context is a no-IOMMU group's, `ENOMEM`.
    pub fn create_compat_ioas(&mut self, context: ContextId) -> Result<(), Errno> {
        let context = self.contexts.get_mut(&context).ok_or(Errno::EINVAL)?;
        if context.noiommu {
            return Err(Errno::EINVAL);
        }
        if context.compat_ioas.is_none() {
            context.compat_ioas = Some(context.add_ioas()?);
        }
        Ok(())
    }

    /// A no-IOMMU group enters its container: `EINVAL` if there is an IOAS.
    pub fn set_noiommu(&mut self, context: ContextId) -> Result<(), Errno> {
        let context = self.contexts.get_mut(&context).ok_or(Errno::EINVAL)?;
        if context.compat_ioas.is_some() {
            return Err(Errno::EINVAL);
        }
        context.noiommu = true;
        Ok(())
    }
}

impl Context {
    /// What is no request of iommufd's own: `ENOTTY` if it is none of VFIO's
    /// either (IOMMUFD-12.8).
    pub(crate) fn compat_ioctl(&mut self, request: u32, arg: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        match request {
            GET_API_VERSION => Ok(Reply::Value(API_VERSION)),
            SET_IOMMU => self.compat_set_iommu(arg, caller).map(|()| Reply::Value(0)),
            CHECK_EXTENSION => self.compat_check_extension(arg).map(Reply::Value),
            GET_INFO => self.compat_get_info(arg, caller).map(|()| Reply::Value(0)),
            MAP_DMA => self.compat_map_dma(arg, caller).map(|()| Reply::Value(0)),
            UNMAP_DMA => self.compat_unmap_dma(arg, caller).map(|()| Reply::Value(0)),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// IOMMUFD-12.1
    fn compat_check_extension(&self, number: u64) -> Result<u64, Errno> {
        match number {
            extension::TYPE1 | extension::TYPE1_V2 | extension::UNMAP_ALL => Ok(u64::from(!self.noiommu)),
            extension::NOIOMMU => Ok(1),
            extension::DMA_CC => {
                let ioas = self.ioases.get(&self.compat_ioas()?).ok_or(Errno::ENODEV)?;
                Ok(u64::from(ioas.is_coherent()))
            }
            _ => Ok(0),
        }
    }

    /// IOMMUFD-12.3
    fn compat_set_iommu(&mut self, number: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if number == extension::NOIOMMU && self.noiommu {
            return if caller.capable(Capability::SysRawio) { Ok(()) } else { Err(Errno::EPERM) };
        }
        if !matches!(number, extension::TYPE1 | extension::TYPE1_V2) || self.noiommu {
            return Err(Errno::EINVAL);
        }
        let (ioas, backing) = self.ioas_and_backing(self.compat_ioas()?.0)?;
        if number == extension::TYPE1 {
            // Unmaps in the middle of a mapping need small pages.
            ioas.disable_huge_pages(backing)?;
        }
        Ok(())
    }
}
