// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mock's vIOMMU (SELF-4.5 to 4.7).

use std::any::Any;

use iommu::Domain;
use uapi::Errno;
use uapi::iommufd::HwptFlags;
use uapi::iommufd_test as abi;

use crate::driver::{Driver, Entries, FindDevice, Nested, UserData, ViommuDriver};
use crate::ids::ObjectId;
use crate::selftest::mock::{Mock, MockNested, clear};

/// A vIOMMU of the mock's.
#[derive(Debug, Default)]
pub(crate) struct MockViommu {
    queues: [Option<ObjectId>; abi::HW_QUEUES],
}

impl ViommuDriver for MockViommu {
    fn alloc_nested(&self, parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno> {
        MockNested::alloc(parent, flags, data)
    }

    fn invalidate(&mut self, entries: &mut Entries<'_>, find: FindDevice<'_>) -> Result<(), Errno> {
        entries.each_of_all(abi::TYPE, &mut |entry: &abi::InvalidateViommu| {
            // Flags and word are looked at before the device is.
            clear(&mut [0; abi::CACHE_WORDS], entry.flags, entry.cache_id)?;
            let mut result = Ok(());
            let found = find(entry.vdev_id.into(), &mut |driver: &mut dyn Driver| {
                if let Some(mock) = (driver as &mut dyn Any).downcast_mut::<Mock>() {
                    result = clear(&mut mock.cache, entry.flags, entry.cache_id);
                }
            });
            if found { result } else { Err(Errno::EINVAL) }
        })
    }

    fn check_hw_queue(&self, kind: u32) -> Result<(), Errno> {
        if kind == abi::TYPE { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn add_hw_queue(&mut self, index: u32, id: ObjectId) -> Result<Option<ObjectId>, Errno> {
        let index = index as usize;
        if self.queues.get(index).ok_or(Errno::EINVAL)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let before = index.checked_sub(1).and_then(|before| self.queues.get(before));
        if before == Some(&None) {
            return Err(Errno::EIO);
        }
        let before = before.copied().flatten();
        self.queues[index] = Some(id);
        Ok(before)
    }

    fn remove_hw_queue(&mut self, id: ObjectId) {
        for queue in self.queues.iter_mut().filter(|queue| **queue == Some(id)) {
            *queue = None;
        }
    }
}
