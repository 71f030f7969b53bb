// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vIOMMUs: a part of an IOMMU for a guest, with its devices, events and
//! hardware queues (IOMMUFD-11.6 to 11.12). The lab's IOMMU has none; the
//! selftest's does.

mod hw_queue;
mod vdevice;
mod veventq;

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::ViommuAlloc;
use uapi::iommufd_hw::NONE;

pub(crate) use hw_queue::HwQueue;
pub(crate) use vdevice::Vdevice;
pub(crate) use veventq::Veventq;

use crate::context::Context;
use crate::dispatch::Request;
use crate::driver::{Driver, Entries, Iommu, NewRegion, UserData, ViommuDriver};
use crate::ids::{Kind, ObjectId};
use crate::{Call, Iommufd};

/// A vIOMMU.
#[derive(Debug)]
pub(crate) struct Viommu {
    pub(crate) iommu: Iommu,
    /// The nesting parent.
    pub(crate) hwpt: ObjectId,
    pub(crate) driver: Box<dyn ViommuDriver>,
    /// vDEVICE and device, by the number that the guest knows.
    pub(crate) vdevices: BTreeMap<u64, (ObjectId, ObjectId)>,
    /// Pages that the program can map.
    pub(crate) region: Option<NewRegion>,
}

impl Viommu {
    /// The number that a device has for the guest.
    pub(crate) fn number_of(&self, device: ObjectId) -> Option<u64> {
        self.vdevices.iter().find(|(_, (_, of))| *of == device).map(|(number, _)| *number)
    }
}

impl NewRegion {
    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.window.slice().len() as u64
    }
}

impl Iommufd {
    /// `IOMMU_VIOMMU_ALLOC` (IOMMUFD-11.6).
    pub(crate) fn viommu_alloc(
        &mut self,
        request: &Request,
        cmd: &mut ViommuAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags != 0 || cmd.kind == NONE {
            return Err(Errno::EOPNOTSUPP);
        }
        let context = self.context_mut(request.context)?;
        let device = context.ids.expect(cmd.dev_id, Kind::Device)?;
        let driver = context.driver(device)?;
        driver.check_viommu(cmd.kind)?;
        let (hwpt, paging) = context.paging(cmd.hwpt_id)?;
        if !paging.nest_parent {
            return Err(Errno::EINVAL);
        }
        let data = UserData { kind: cmd.kind, address: cmd.data_uptr, len: cmd.data_len, caller: call.caller };
        let mut region = None;
        let made = driver.alloc_viommu((data.len != 0).then_some(&data), &mut |len| {
            let new = context.new_region(len)?;
            region = Some(new.clone());
            Ok(new)
        })?;
        let iommu = driver.iommu();
        let id = context.ids.add(Kind::Viommu)?;
        cmd.out_viommu_id = id.0;
        if let Err(error) = request.argument.respond(call.caller, cmd) {
            context.ids.remove(id);
            return Err(error);
        }
        context.ids.get(hwpt);
        context.viommus.insert(id, Viommu { iommu, hwpt, driver: made, vdevices: BTreeMap::new(), region });
        Ok(())
    }
}

impl Context {
    /// Pages that the program can map, of a length: `ENOMEM` if all that the
    /// context's file has are taken.
    fn new_region(&self, len: u64) -> Result<NewRegion, Errno> {
        let pages = self.pages.as_ref().ok_or(Errno::ENOMEM)?;
        let taken =
            |offset| self.viommus.values().filter_map(|viommu| viommu.region.as_ref()).any(|r| r.offset == offset);
        (0..)
            .map_while(|bar| Some((bar, pages.window(bar)?)))
            .map(|(bar, window)| NewRegion { offset: REGIONS + ((bar as u64) << 40), window })
            .find(|region| region.len() == len && !taken(region.offset))
            .ok_or(Errno::ENOMEM)
    }

    /// Whether a program has pages of an object mapped (IOMMUFD-2.12).
    pub(crate) fn has_mapped_pages(&self, id: ObjectId, caller: &dyn Caller) -> bool {
        let region = self.viommus.get(&id).and_then(|viommu| viommu.region.as_ref());
        region.is_some_and(|region| caller.is_mapped(self.file, region.offset, region.len()))
    }

    /// `HWPT_INVALIDATE` of a vIOMMU.
    pub(crate) fn invalidate_viommu(&mut self, id: ObjectId, entries: &mut Entries<'_>) -> Result<(), Errno> {
        let Context { viommus, devices, groups, .. } = self;
        let Viommu { driver, vdevices, .. } = viommus.get_mut(&id).ok_or(Errno::ENOENT)?;
        driver.invalidate(entries, &mut |number, then: &mut dyn FnMut(&mut dyn Driver)| {
            let device = vdevices.get(&number).and_then(|(_, device)| devices.get(device));
            let group = device.and_then(|device| groups.get_mut(&device.group));
            group.map(|group| then(&mut *group.driver)).is_some()
        })
    }

    /// Takes a vIOMMU apart that nobody uses.
    pub(crate) fn destroy_viommu(&mut self, id: ObjectId) {
        if let Some(viommu) = self.viommus.remove(&id) {
            self.ids.put(viommu.hwpt);
        }
        self.ids.remove(id);
    }
}

/// Where pages begin in a context's file; offset 0 is none of a region.
pub(crate) const REGIONS: u64 = 1 << 40;

/// The pages of a context's file, where there may be a vIOMMU that has some.
pub(crate) fn pages(files: &dyn ::device::DeviceFiles, len: u64) -> Option<Arc<dyn ::device::DeviceFile>> {
    files.create(&::device::RegionLayout { base: REGIONS, mmap: [len; 6] }).ok()
}
