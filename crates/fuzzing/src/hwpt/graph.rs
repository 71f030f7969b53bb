// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which objects there are, what they hold on to, and what calls may do with
//! them: iommufd-api.md, sections 2, 8, 9 and 11, as plainly as possible.

use std::collections::{BTreeMap, BTreeSet};

use uapi::Errno;
use uapi::iommufd_test as test;

type Result<T> = std::result::Result<T, Errno>;

const NEST_PARENT: u32 = 1;
const DIRTY: u32 = 2;
const FAULT: u32 = 4;
const PASID: u32 = 8;

/// Bytes that are mapped in an IOAS: 64 granules of the mock's log.
pub(super) const LENGTH: u64 = 64 * test::PAGE_SIZE;

#[derive(Clone, Debug)]
pub(super) enum Object {
    Ioas {
        mapped: bool,
    },
    Paging {
        ioas: u32,
        automatic: bool,
        flags: u32,
        fault: Option<u32>,
        on: bool,
        dirty: u64,
    },
    Nested {
        behind: u32,
        viommu: Option<u32>,
        flags: u32,
        fault: Option<u32>,
    },
    Mock {
        device: u32,
    },
    /// `event`: the vIOMMU and number with which it was attached.
    Device {
        flags: u32,
        attached: BTreeMap<u32, u32>,
        event: Option<(u32, u64)>,
    },
    Fault {
        open: bool,
    },
    Viommu {
        hwpt: u32,
    },
    Vdevice {
        viommu: u32,
        device: u32,
        number: u64,
    },
    Veventq {
        viommu: u32,
        open: bool,
    },
    /// `after`: the queue with the index before; `access`: what has its memory
    /// pinned, an object as well.
    HwQueue {
        viommu: u32,
        index: u32,
        after: Option<u32>,
        access: u32,
    },
    Access,
}

impl Object {
    pub(super) fn is_ioas(&self) -> bool {
        matches!(self, Object::Ioas { .. })
    }

    pub(super) fn is_paging(&self) -> bool {
        matches!(self, Object::Paging { .. })
    }

    pub(super) fn is_nested(&self) -> bool {
        matches!(self, Object::Nested { .. })
    }

    pub(super) fn is_mock(&self) -> bool {
        matches!(self, Object::Mock { .. })
    }

    pub(super) fn is_device(&self) -> bool {
        matches!(self, Object::Device { .. })
    }

    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Object::Fault { .. })
    }

    pub(super) fn is_viommu(&self) -> bool {
        matches!(self, Object::Viommu { .. })
    }

    /// IOMMUFD-2.5
    fn holds(&self) -> Vec<u32> {
        match self {
            Object::Ioas { .. } | Object::Mock { .. } | Object::Fault { .. } | Object::Access => vec![],
            Object::Paging { ioas, fault, .. } => [*ioas].into_iter().chain(*fault).collect(),
            Object::Nested { behind, viommu, fault, .. } => {
                [viommu.unwrap_or(*behind)].into_iter().chain(*fault).collect()
            }
            Object::Device { attached, .. } => attached.values().copied().collect(),
            Object::Viommu { hwpt } => vec![*hwpt],
            Object::Vdevice { viommu, .. } | Object::Veventq { viommu, .. } => vec![*viommu],
            Object::HwQueue { viommu, after, access, .. } => [*viommu, *access].into_iter().chain(*after).collect(),
        }
    }

    fn pasid_compatible(&self) -> bool {
        matches!(self, Object::Paging { flags, .. } | Object::Nested { flags, .. } if flags & PASID != 0)
    }
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    objects: BTreeMap<u32, Object>,
    /// Ids that are never given again (IOMMUFD-2.8).
    buried: BTreeSet<u32>,
}

impl Graph {
    fn next(&self) -> u32 {
        (1..).find(|id| !self.objects.contains_key(id) && !self.buried.contains(id)).unwrap_or(0)
    }

    pub(super) fn add(&mut self, object: Object) -> u32 {
        let id = self.next();
        self.objects.insert(id, object);
        id
    }

    /// One of those that are so, or one that there is not.
    pub(super) fn pick(&self, n: u8, is: impl Fn(&Object) -> bool) -> u32 {
        let ids: Vec<u32> = self.objects.iter().filter(|(_, object)| is(object)).map(|(id, _)| *id).collect();
        ids.get(usize::from(n) % (ids.len() + 1)).copied().unwrap_or(9999)
    }

    pub(super) fn has(&self, id: u32, is: impl Fn(&Object) -> bool) -> bool {
        self.objects.get(&id).is_some_and(is)
    }

    fn expect(&self, id: u32, is: impl Fn(&Object) -> bool) -> Result<&Object> {
        self.objects.get(&id).filter(|object| is(object)).ok_or(Errno::ENOENT)
    }

    fn users(&self, id: u32) -> usize {
        let held = self.objects.values().flat_map(Object::holds).filter(|held| *held == id).count();
        let open =
            matches!(self.objects.get(&id), Some(Object::Fault { open: true } | Object::Veventq { open: true, .. }));
        held + usize::from(open)
    }

    pub(super) fn closed(&mut self, id: u32) {
        if let Some(Object::Fault { open } | Object::Veventq { open, .. }) = self.objects.get_mut(&id) {
            *open = false;
        }
    }

    /// IOMMUFD-2.4
    pub(super) fn destroy(&mut self, id: u32) -> Result<()> {
        let object = self.objects.get(&id).ok_or(Errno::ENOENT)?;
        if object.is_device() || self.users(id) > 0 {
            return Err(Errno::EBUSY);
        }
        match self.objects.remove(&id) {
            Some(Object::Mock { device }) => self.unbind(device),
            Some(Object::HwQueue { access, .. }) => drop(self.objects.remove(&access)),
            _ => {}
        }
        Ok(())
    }

    /// IOMMUFD-2.8, IOMMUFD-2.9
    fn unbind(&mut self, id: u32) {
        let Some(Object::Device { attached, .. }) = self.objects.remove(&id) else { return };
        attached.into_values().for_each(|hwpt| self.left(hwpt));
        let own = |(_, object): &(&u32, &Object)| matches!(object, Object::Vdevice { device, .. } if *device == id);
        if let Some(vdevice) = self.objects.iter().find(own).map(|(id, _)| *id) {
            self.objects.remove(&vdevice);
            self.buried.insert(vdevice);
        }
    }

    fn left(&mut self, hwpt: u32) {
        let automatic = self.has(hwpt, |object| matches!(object, Object::Paging { automatic: true, .. }));
        if automatic && self.users(hwpt) == 0 {
            self.objects.remove(&hwpt);
        }
    }

    pub(super) fn mock(&mut self, pt: u32, flags: u32) -> Result<(u32, u32, u32)> {
        if flags & !5 != 0 {
            return Err(Errno::EINVAL);
        }
        let mock = self.next();
        self.objects.insert(mock, Object::Mock { device: 0 });
        let device = self.add(Object::Device { flags, attached: BTreeMap::new(), event: None });
        if let Some(Object::Mock { device: of }) = self.objects.get_mut(&mock) {
            *of = device;
        }
        let hwpt = self.change(mock, 0, pt, false);
        hwpt.map(|hwpt| (mock, hwpt, device)).inspect_err(|_| {
            self.objects.remove(&mock);
            self.objects.remove(&device);
        })
    }

    pub(super) fn map(&mut self, ioas: u32) -> Result<()> {
        match self.objects.get_mut(&ioas) {
            Some(Object::Ioas { mapped: true }) => Err(Errno::EEXIST),
            Some(Object::Ioas { mapped }) => {
                *mapped = true;
                Ok(())
            }
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn unmap(&mut self, id: u32) -> Result<()> {
        let locked = self.has_queues(id);
        match self.objects.get_mut(&id) {
            // IOMMUFD-5.21
            Some(Object::Ioas { mapped: true }) if locked => return Err(Errno::EBUSY),
            Some(Object::Ioas { mapped: mapped @ true }) => *mapped = false,
            _ => return Err(Errno::ENOENT),
        }
        // What is unmapped is not dirty.
        for object in self.objects.values_mut() {
            if let Object::Paging { ioas, dirty, .. } = object
                && *ioas == id
            {
                *dirty = 0;
            }
        }
        Ok(())
    }

    /// IOMMUFD-8.1 to 8.7
    pub(super) fn hwpt(&mut self, device: u32, pt: u32, flags: u32, data: (u32, u32), fault: u32) -> Result<u32> {
        if (data.0 == 0) != (data.1 == 0) {
            return Err(Errno::EINVAL);
        }
        let Object::Device { flags: able, .. } = self.expect(device, Object::is_device)? else {
            return Err(Errno::ENOENT);
        };
        let no_dirty = able & test::DEVICE_NO_DIRTY != 0;
        let made = match self.objects.get(&pt) {
            Some(Object::Ioas { .. }) => {
                let both = FAULT | NEST_PARENT;
                if flags > 15 || (flags & DIRTY != 0 && no_dirty) || flags & both == both {
                    return Err(Errno::EOPNOTSUPP);
                }
                if data.0 != 0 && data.0 != test::HWPT_DATA {
                    return Err(Errno::EOPNOTSUPP);
                }
                Object::Paging { ioas: pt, automatic: false, flags, fault: None, on: false, dirty: 0 }
            }
            Some(Object::Paging { automatic, flags: parent, .. }) => {
                let (automatic, parent) = (*automatic, *parent);
                if flags & !(FAULT | PASID) != 0 || data.1 == 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                if automatic || parent & NEST_PARENT == 0 {
                    return Err(Errno::EINVAL);
                }
                Object::Nested { behind: pt, viommu: None, flags, fault: None }
            }
            Some(Object::Viommu { hwpt }) => {
                if flags & !(FAULT | PASID) != 0 || data.1 == 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                Object::Nested { behind: *hwpt, viommu: Some(pt), flags, fault: None }
            }
            _ => return Err(Errno::EINVAL),
        };
        if made.is_nested() && data.0 != test::HWPT_DATA {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut made = made;
        if flags & FAULT != 0 {
            self.expect(fault, Object::is_fault)?;
            if let Object::Paging { fault: of, .. } | Object::Nested { fault: of, .. } = &mut made {
                *of = Some(fault);
            }
        }
        Ok(self.add(made))
    }

    fn device_of(&self, mock: u32) -> Result<u32> {
        match self.expect(mock, Object::is_mock)? {
            Object::Mock { device } => Ok(*device),
            _ => Err(Errno::ENOENT),
        }
    }

    fn attached(&self, device: u32) -> BTreeMap<u32, u32> {
        match self.objects.get(&device) {
            Some(Object::Device { attached, .. }) => attached.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// Attaches or replaces (IOMMUFD-8.10 to 8.17).
    pub(super) fn change(&mut self, mock: u32, pasid: u32, pt: u32, replace: bool) -> Result<u32> {
        let device = self.device_of(mock)?;
        let automatic = match self.objects.get(&pt).ok_or(Errno::ENOENT)? {
            Object::Paging { .. } | Object::Nested { .. } => false,
            Object::Ioas { .. } => true,
            _ => return Err(Errno::EINVAL),
        };
        let old = self.attached(device).get(&pasid).copied();
        match (replace, old) {
            (true, None) => return Err(Errno::EINVAL),
            (false, Some(_)) => return Err(Errno::EBUSY),
            _ => {}
        }
        let fresh = Object::Paging { ioas: pt, automatic: true, flags: 0, fault: None, on: false, dirty: 0 };
        let own = |object: &Object| matches!(object, Object::Paging { ioas, automatic: true, .. } if automatic && *ioas == pt);
        let found = if automatic { self.objects.iter().find(|(_, o)| own(o)).map(|(id, _)| *id) } else { Some(pt) };
        if let Some(hwpt) = found
            && old == Some(hwpt)
        {
            return Ok(hwpt);
        }
        let event = match found {
            Some(hwpt) => self.check(device, pasid, &self.objects[&hwpt])?,
            None => self.check(device, pasid, &fresh)?,
        };
        let hwpt = found.unwrap_or_else(|| self.add(fresh));
        if let Some(Object::Device { attached, event: of, .. }) = self.objects.get_mut(&device) {
            attached.insert(pasid, hwpt);
            if pasid == 0 {
                *of = event;
            }
        }
        if let Some(old) = old {
            self.left(old);
        }
        Ok(hwpt)
    }

    /// Whether a device can be attached, and with which number of which vIOMMU.
    fn check(&self, device: u32, pasid: u32, to: &Object) -> Result<Option<(u32, u64)>> {
        let Some(Object::Device { flags, attached, .. }) = self.objects.get(&device) else { return Err(Errno::ENOENT) };
        if pasid != 0 {
            let rid = attached.get(&0).and_then(|hwpt| self.objects.get(hwpt));
            if !to.pasid_compatible() || rid.is_some_and(|rid| !rid.pasid_compatible()) {
                return Err(Errno::EINVAL);
            }
            return Ok(None);
        }
        if !to.pasid_compatible() && attached.keys().any(|pasid| *pasid != 0) {
            return Err(Errno::EINVAL);
        }
        match to {
            Object::Paging { flags: of, .. } if of & DIRTY != 0 && flags & test::DEVICE_NO_DIRTY != 0 => {
                Err(Errno::EINVAL)
            }
            Object::Nested { viommu: Some(on), .. } => {
                let number = self.objects.values().find_map(|object| match object {
                    Object::Vdevice { viommu, device: of, number } if viommu == on && *of == device => Some(*number),
                    _ => None,
                });
                // IOMMUFD-11.8
                Ok(Some((*on, number.ok_or(Errno::ENOENT)?)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn detach(&mut self, mock: u32, pasid: u32) -> Result<()> {
        let device = self.device_of(mock)?;
        if let Some(Object::Device { attached, .. }) = self.objects.get_mut(&device)
            && let Some(hwpt) = attached.remove(&pasid)
        {
            self.left(hwpt);
        }
        Ok(())
    }

    /// IOMMUFD-9.1
    pub(super) fn track(&mut self, hwpt: u32, how: u32) -> Result<()> {
        if how > 1 {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.objects.get_mut(&hwpt) {
            Some(Object::Paging { flags, .. }) if *flags & DIRTY == 0 => Err(Errno::EOPNOTSUPP),
            Some(Object::Paging { on, dirty, .. }) => {
                *on = how == 1;
                if *on {
                    *dirty = 0;
                }
                Ok(())
            }
            _ => Err(Errno::ENOENT),
        }
    }

    fn is_mapped(&self, hwpt: u32) -> bool {
        let Some(Object::Paging { ioas, .. }) = self.objects.get(&hwpt) else { return false };
        self.has(*ioas, |object| matches!(object, Object::Ioas { mapped: true }))
    }

    pub(super) fn dirty(&mut self, hwpt: u32, bits: u64) -> Result<u64> {
        let mapped = self.is_mapped(hwpt);
        match self.objects.get_mut(&hwpt) {
            Some(Object::Paging { on: true, dirty, .. }) => {
                *dirty |= if mapped { bits } else { 0 };
                Ok(u64::from(bits.count_ones()))
            }
            Some(Object::Paging { .. }) => Err(Errno::EINVAL),
            _ => Err(Errno::ENOENT),
        }
    }

    /// IOMMUFD-9.2 to 9.7; the bitmap. A range that leaves what is mapped is
    /// reported up to there.
    pub(super) fn bitmap(&mut self, hwpt: u32, how: u32, first: u64, count: u64) -> Result<u64> {
        if how > 1 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mapped = self.is_mapped(hwpt);
        let ioas = if let Some(Object::Paging { ioas, .. }) = self.objects.get(&hwpt) { *ioas } else { 0 };
        let granules = if self.has_queues(ioas) { 4096 / test::PAGE_SIZE } else { 1 };
        match self.objects.get_mut(&hwpt) {
            Some(Object::Paging { .. }) if !(first | count).is_multiple_of(granules) => Err(Errno::EINVAL),
            Some(Object::Paging { flags, .. }) if *flags & DIRTY == 0 => Err(Errno::EOPNOTSUPP),
            Some(Object::Paging { .. }) if !mapped => Ok(0),
            Some(Object::Paging { dirty, .. }) => {
                let asked = (u64::MAX >> (64 - count)) << first;
                let found = (*dirty & asked) >> first;
                if how == 0 {
                    *dirty &= !asked;
                }
                Ok(found)
            }
            _ => Err(Errno::ENOENT),
        }
    }

    /// IOMMUFD-11.6
    pub(super) fn viommu(&mut self, device: u32, hwpt: u32, kind: u32) -> Result<u32> {
        if kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.expect(device, Object::is_device)?;
        if kind != test::TYPE {
            return Err(Errno::EOPNOTSUPP);
        }
        match self.expect(hwpt, Object::is_paging)? {
            Object::Paging { flags, .. } if flags & NEST_PARENT != 0 => Ok(self.add(Object::Viommu { hwpt })),
            _ => Err(Errno::EINVAL),
        }
    }

    /// IOMMUFD-11.7
    pub(super) fn vdevice(&mut self, viommu: u32, device: u32, number: u64) -> Result<u32> {
        self.expect(viommu, Object::is_viommu)?;
        self.expect(device, Object::is_device)?;
        let same = |object: &Object| match object {
            Object::Vdevice { viommu: on, device: of, number: as_ } => {
                *of == device || (*on == viommu && *as_ == number)
            }
            _ => false,
        };
        if self.objects.values().any(same) {
            return Err(Errno::EEXIST);
        }
        Ok(self.add(Object::Vdevice { viommu, device, number }))
    }

    /// IOMMUFD-11.9
    pub(super) fn veventq(&mut self, viommu: u32, kind: u32, depth: u32) -> Result<u32> {
        if kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if depth == 0 {
            return Err(Errno::EINVAL);
        }
        self.expect(viommu, Object::is_viommu)?;
        if self.event_queue(viommu) {
            return Err(Errno::EEXIST);
        }
        Ok(self.add(Object::Veventq { viommu, open: true }))
    }

    /// Whether hardware queues have an IOAS's memory pinned: whole pages.
    fn has_queues(&self, ioas: u32) -> bool {
        self.objects.values().any(|object| match object {
            Object::HwQueue { viommu, .. } => self.ioas_of(*viommu) == Some(ioas),
            _ => false,
        })
    }

    /// The IOAS behind a vIOMMU.
    fn ioas_of(&self, viommu: u32) -> Option<u32> {
        let Some(Object::Viommu { hwpt }) = self.objects.get(&viommu) else { return None };
        let Some(Object::Paging { ioas, .. }) = self.objects.get(hwpt) else { return None };
        Some(*ioas)
    }

    /// IOMMUFD-11.12; the range is counted from what may be mapped.
    pub(super) fn hw_queue(&mut self, viommu: u32, kind: u32, index: u32, range: (u64, u64)) -> Result<u32> {
        if kind == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if range.1 == 0 {
            return Err(Errno::EINVAL);
        }
        self.expect(viommu, Object::is_viommu)?;
        if kind != test::TYPE {
            return Err(Errno::EOPNOTSUPP);
        }
        let mapped = |id| self.has(id, |object| matches!(object, Object::Ioas { mapped: true }));
        if !self.ioas_of(viommu).is_some_and(mapped) || range.0 + range.1 > LENGTH {
            return Err(Errno::ENOENT);
        }
        let find = |index: u32| {
            self.objects.iter().find_map(|(id, object)| match object {
                Object::HwQueue { viommu: on, index: of, .. } if (*on, *of) == (viommu, index) => Some(*id),
                _ => None,
            })
        };
        if index >= test::HW_QUEUES as u32 {
            return Err(Errno::EINVAL);
        }
        if find(index).is_some() {
            return Err(Errno::EEXIST);
        }
        let after = index.checked_sub(1).map(|before| find(before).ok_or(Errno::EIO)).transpose()?;
        let queue = self.add(Object::HwQueue { viommu, index, after, access: 0 });
        let made = self.add(Object::Access);
        if let Some(Object::HwQueue { access, .. }) = self.objects.get_mut(&queue) {
            *access = made;
        }
        Ok(queue)
    }

    fn event_queue(&self, on: u32) -> bool {
        self.objects.values().any(|object| matches!(object, Object::Veventq { viommu, .. } if *viommu == on))
    }

    /// IOMMUFD-11.11; a device with number 0 is none for the mock.
    pub(super) fn event(&self, device: u32) -> Result<()> {
        match self.expect(device, Object::is_device)? {
            Object::Device { event: Some((viommu, number)), .. } if *number != 0 => {
                if self.event_queue(*viommu) {
                    Ok(())
                } else {
                    Err(Errno::EOPNOTSUPP)
                }
            }
            _ => Err(Errno::ENOENT),
        }
    }

    /// Mock, PASID and HWPT; 0 for none.
    pub(super) fn attachments(&self) -> Vec<(u32, u32, u32)> {
        let mut all = Vec::new();
        for (mock, object) in &self.objects {
            if let Object::Mock { device } = object {
                let attached = self.attached(*device);
                all.extend((0..4).map(|pasid| (*mock, pasid, attached.get(&pasid).copied().unwrap_or(0))));
            }
        }
        all
    }

    /// Pages that are pinned: of IOASes with mappings and HWPTs.
    pub(super) fn pinned(&self) -> u64 {
        let used = |id: u32| self.objects.values().any(|o| matches!(o, Object::Paging { ioas, .. } if *ioas == id));
        let mapped = |(id, object): &(&u32, &Object)| matches!(object, Object::Ioas { mapped: true }) && used(**id);
        self.objects.iter().filter(mapped).count() as u64 * LENGTH / 4096
    }
}
