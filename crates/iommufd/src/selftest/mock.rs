// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mock IOMMU (iommufd-selftest.md, section 4): what it says and refuses.
//! It keeps no rule of iommufd's.

use std::any::Any;

use iommu::{DirtyLog, Domain};
use uapi::Errno;
use uapi::iommufd::HwptFlags;
use uapi::iommufd_hw::NONE;
use uapi::iommufd_test as abi;
use zerocopy::IntoBytes;

use crate::driver::{Driver, Entries, Iommu, Nested, NewRegion, Paging, Target, UserData, ViommuDriver};
use crate::ids::ObjectId;
use crate::selftest::viommu::MockViommu;

/// Bytes of `iommu_hwpt_selftest` that a program must know.
const HWPT_DATA_MIN: usize = 4;
/// Bytes of `iommu_viommu_selftest` that a program must know.
const VIOMMU_DATA_MIN: usize = 8;
/// Bytes of a mock vIOMMU's pages.
pub(crate) const REGION: u64 = 8192;

/// The mock IOMMU in front of one device.
#[derive(Debug)]
pub(crate) struct Mock {
    dirty_tracking: bool,
    /// Its cache, which a vIOMMU's invalidations clear.
    pub(crate) cache: [u32; abi::CACHE_WORDS],
    /// The vIOMMU of the nested domain that it is attached to, and its number there.
    pub(crate) viommu: Option<(ObjectId, u64)>,
    /// The next attachment of one PASID fails (SELF-4.8).
    fail_next: bool,
}

impl Mock {
    pub(crate) fn new(dirty_tracking: bool) -> Mock {
        let cache = [abi::DEVICE_CACHE_DEFAULT; abi::CACHE_WORDS];
        Mock { dirty_tracking, cache, viommu: None, fail_next: false }
    }
}

impl Driver for Mock {
    fn iommu(&self) -> Iommu {
        Iommu::Mock
    }

    fn hw_info(&self, kind: u32) -> Result<(u32, Vec<u8>), Errno> {
        if kind != NONE && kind != abi::HW_INFO {
            return Err(Errno::EOPNOTSUPP);
        }
        let info = abi::HwInfo { flags: 0, test_reg: abi::HW_INFO_REGISTER };
        Ok((abi::HW_INFO, info.as_bytes().to_vec()))
    }

    fn alloc_paging(&self, flags: HwptFlags, data: Option<&UserData<'_>>) -> Result<Paging, Errno> {
        let dirty = flags.contains(HwptFlags::DIRTY_TRACKING);
        if dirty && !self.dirty_tracking {
            return Err(Errno::EOPNOTSUPP);
        }
        let table = match data {
            Some(data) if data.kind != abi::HWPT_DATA => return Err(Errno::EOPNOTSUPP),
            Some(data) => data.read::<abi::HwptData>(abi::HWPT_DATA, HWPT_DATA_MIN)?.pagetable_type,
            None => abi::TABLE_DEFAULT,
        };
        let (page_sizes, aperture, granule) = match table {
            abi::TABLE_DEFAULT => (SIZES, (abi::APERTURE_START, abi::APERTURE_LAST), abi::PAGE_SIZE),
            abi::TABLE_HUGE => (abi::HUGE_PAGE_SIZE | crate::PAGE, (0, WIDE), abi::HUGE_PAGE_SIZE),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let log = dirty.then(|| DirtyLog::new(granule.trailing_zeros()));
        Ok(Paging { page_sizes, aperture, log, enforces_coherency: false, force_writeable: false })
    }

    fn alloc_nested(&self, parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno> {
        MockNested::alloc(parent, flags, data)
    }

    fn check_viommu(&self, kind: u32) -> Result<(), Errno> {
        if kind == abi::TYPE { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn alloc_viommu(
        &self,
        data: Option<&UserData<'_>>,
        region: &mut dyn FnMut(u64) -> Result<NewRegion, Errno>,
    ) -> Result<Box<dyn ViommuDriver>, Errno> {
        if let Some(data) = data {
            let mut loopback: abi::ViommuData = data.read(abi::TYPE, VIOMMU_DATA_MIN)?;
            let new = region(REGION)?;
            let pages = new.window.slice();
            let zeros = vec![0u8; pages.len()];
            pages.copy_from(&zeros);
            let _ = vm_memory::Bytes::write_obj(&pages, loopback.in_data, 0);
            loopback.out_data = loopback.in_data;
            loopback.out_mmap_offset = new.offset;
            loopback.out_mmap_length = REGION;
            data.write(abi::TYPE, VIOMMU_DATA_MIN, &loopback)?;
        }
        Ok(Box::new(MockViommu::default()))
    }

    fn attach(&mut self, pasid: u32, target: Option<&Target<'_>>) -> Result<(), Errno> {
        if pasid == 0 {
            if target.is_some_and(|target| target.dirty) && !self.dirty_tracking {
                return Err(Errno::EINVAL);
            }
            self.viommu = match target.and_then(|target| target.viommu) {
                Some((viommu, number)) => Some((viommu, number.ok_or(Errno::ENOENT)?)),
                None => None,
            };
        } else if pasid == abi::PASID_RESERVED {
            let fails = target.is_some() && self.fail_next;
            self.fail_next = target.is_some() && !fails;
            if fails {
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }
}

/// Every power of two: contiguous entries make larger pages.
const SIZES: u64 = (1 << 51) - abi::PAGE_SIZE;
/// Last IOVA of a table of 56 bits.
const WIDE: u64 = (1 << 56) - 1;

/// A nested domain: a cache that invalidations clear.
#[derive(Debug)]
pub(crate) struct MockNested {
    domain: Domain,
    pub(crate) iotlb: [u32; abi::CACHE_WORDS],
}

impl MockNested {
    pub(crate) fn alloc(parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno> {
        if !HwptFlags::PASID.contains(flags) || data.kind != abi::HWPT_DATA {
            return Err(Errno::EOPNOTSUPP);
        }
        let config: abi::HwptData = data.read(abi::HWPT_DATA, HWPT_DATA_MIN)?;
        Ok(Box::new(MockNested { domain: parent.clone(), iotlb: [config.iotlb; abi::CACHE_WORDS] }))
    }

    /// The nested domain as the mock's own.
    pub(crate) fn of(table: &dyn Nested) -> Option<&MockNested> {
        (table as &dyn Any).downcast_ref()
    }
}

impl Nested for MockNested {
    fn domain(&self) -> Domain {
        self.domain.clone()
    }

    fn invalidate(&mut self, entries: &mut Entries<'_>) -> Result<(), Errno> {
        let iotlb = &mut self.iotlb;
        let whole = size_of::<abi::InvalidateHwpt>();
        entries.each(abi::TYPE, whole, &mut |entry: &abi::InvalidateHwpt| clear(iotlb, entry.flags, entry.iotlb_id))
    }
}

/// Clears a word of a cache, or all. `EOPNOTSUPP` for flags, `EINVAL` for a word
/// that there is not, also with all.
pub(crate) fn clear(cache: &mut [u32; abi::CACHE_WORDS], flags: u32, word: u32) -> Result<(), Errno> {
    if flags & !abi::INVALIDATE_ALL != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let slot = cache.get_mut(word as usize).ok_or(Errno::EINVAL)?;
    if flags == 0 {
        *slot = 0;
    } else {
        *cache = [0; abi::CACHE_WORDS];
    }
    Ok(())
}
