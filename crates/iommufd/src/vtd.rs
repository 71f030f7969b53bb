// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's IOMMU, as Linux's Intel VT-d driver has it.
//!
//! Second-stage tables hold pages of 4 KiB, 2 MiB and 1 GiB and note writes by
//! 4 KiB; first-stage tables are the program's own, nested in front of one.
//! There are no vIOMMUs, as with VT-d in Linux 7.2.

use std::any::Any;
use std::sync::Arc;

use ::device::mediated::Pasids;
use iommu::{DirtyLog, Domain, Requester, VtdStage1};
use uapi::Errno;
use uapi::iommufd::HwptFlags;
use uapi::iommufd_hw::{
    HW_INFO_VTD, HWPT_VTD_S1, HwInfoVtd, HwptVtdS1, INVALIDATE_VTD_S1, InvalidateVtdS1, NONE, VtdS1Flags,
};
use zerocopy::IntoBytes;

use crate::driver::{Driver, Entries, Iommu, Nested, Paging, Target, UserData};

/// 4 KiB, 2 MiB and 1 GiB.
const PAGE_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
const PAGE_SHIFT: u32 = 12;
/// IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17, which Linux always reports: no
/// read-only mappings in a nesting parent.
const ERRATA: u32 = 1;

/// What the lab's IOMMU offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabIommu {
    /// Bits of an I/O virtual address: it translates `0..=2^address_width - 1`.
    pub address_width: u8,
    /// Tables tell which pages devices have written.
    pub dirty_tracking: bool,
    /// Bits of a PASID, at most 20; 0: none.
    pub pasid_bits: u8,
}

impl Default for LabIommu {
    fn default() -> LabIommu {
        LabIommu { address_width: 48, dirty_tracking: true, pasid_bits: 20 }
    }
}

impl LabIommu {
    /// Its capability and extended capability registers: scalable mode with both
    /// stages, nesting and page requests; no supervisor requests, no extended
    /// access bits, first-stage tables of four levels.
    #[must_use]
    pub fn registers(&self) -> (u64, u64) {
        let mut cap = 0x00d2_008c_4040_0462 | u64::from(self.address_width.saturating_sub(1) & 0x3f) << 16;
        if self.address_width > 48 {
            // SAGAW: second-stage tables of five levels, too.
            cap |= 1 << 11;
        }
        // FL1GP: first-stage pages of 1 GiB.
        cap |= 1 << 56;
        // Coherent walks, queued invalidation, device TLBs, interrupt remapping,
        // pass-through, snoop control.
        let mut ecap: u64 = 0xf0_20df;
        // NEST, PRS, SMTS, SLTS, FLTS, SMPWC.
        ecap |= 1 << 26 | 1 << 29 | 1 << 43 | 1 << 46 | 1 << 47 | 1 << 48;
        if self.dirty_tracking {
            // SLADS
            ecap |= 1 << 45;
        }
        if let Some(pss) = self.pasid_bits.checked_sub(1) {
            // PASID, PSS
            ecap |= 1 << 40 | u64::from(pss & 0x1f) << 35;
        }
        (cap, ecap)
    }
}

/// The lab's IOMMU in front of a group.
#[derive(Debug)]
pub(crate) struct Vtd {
    is: LabIommu,
    members: Vec<Arc<Requester>>,
    /// Of a part of a function: the function's PASIDs.
    pasids: Option<Pasids>,
}

impl Vtd {
    /// In front of the functions with these requesters.
    pub(crate) fn new(is: LabIommu, members: Vec<Arc<Requester>>, pasids: Option<Pasids>) -> Vtd {
        Vtd { is, members, pasids }
    }
}

impl Driver for Vtd {
    fn iommu(&self) -> Iommu {
        Iommu::Lab
    }

    fn hw_info(&self, kind: u32) -> Result<(u32, Vec<u8>), Errno> {
        if kind != NONE && kind != HW_INFO_VTD {
            return Err(Errno::EOPNOTSUPP);
        }
        let (cap_reg, ecap_reg) = self.is.registers();
        let info = HwInfoVtd { flags: ERRATA, reserved: 0, cap_reg, ecap_reg };
        Ok((HW_INFO_VTD, info.as_bytes().to_vec()))
    }

    fn alloc_paging(&self, flags: HwptFlags, data: Option<&UserData<'_>>) -> Result<Paging, Errno> {
        let dirty = flags.contains(HwptFlags::DIRTY_TRACKING);
        if data.is_some() || (dirty && !self.is.dirty_tracking) {
            return Err(Errno::EOPNOTSUPP);
        }
        let last = 1u64.checked_shl(self.is.address_width.into()).map_or(u64::MAX, |end| end - 1);
        Ok(Paging {
            page_sizes: PAGE_SIZES,
            aperture: (0, last),
            log: dirty.then(|| DirtyLog::new(PAGE_SHIFT)),
            enforces_coherency: true,
            force_writeable: flags.contains(HwptFlags::NEST_PARENT),
        })
    }

    fn alloc_nested(&self, parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno> {
        if !HwptFlags::PASID.contains(flags) || data.kind != HWPT_VTD_S1 {
            return Err(Errno::EOPNOTSUPP);
        }
        let config: HwptVtdS1 = data.read(HWPT_VTD_S1, size_of::<HwptVtdS1>())?;
        // What the hardware does not have shows when it is attached.
        let table = VtdStage1::new(config.pgtbl_addr, config.addr_width, false);
        let stage1 = table.map(iommu::Nested::new);
        Ok(Box::new(FirstStage { config, domain: Domain { stage1, ..parent.clone() } }))
    }

    fn attach(&mut self, pasid: u32, target: Option<&Target<'_>>) -> Result<(), Errno> {
        if target.is_some_and(|target| target.dirty) && !self.is.dirty_tracking {
            return Err(Errno::EINVAL);
        }
        if let Some(table) = target.and_then(|target| target.nested) {
            (table as &dyn Any).downcast_ref::<FirstStage>().ok_or(Errno::EINVAL)?.check()?;
        }
        // One PASID of a function has one domain, whoever attached it.
        let pasids = self.pasids.as_ref().filter(|_| pasid != 0);
        if target.is_some() && pasids.is_some_and(|pasids| !pasids.claim(pasid)) {
            return Err(Errno::EBUSY);
        }
        // A function that was unplugged leaves nobody else with its requester.
        self.members.retain(|member| Arc::strong_count(member) > 1);
        for member in &self.members {
            set(member, pasid, target.map(|target| target.domain.clone()));
        }
        if let Some(pasids) = pasids.filter(|_| target.is_none()) {
            pasids.release(pasid);
        }
        Ok(())
    }

    fn add_member(&mut self, requester: &Arc<Requester>, attached: &[(u32, Domain)]) {
        if self.members.iter().any(|member| Arc::ptr_eq(member, requester)) {
            return;
        }
        self.members.push(Arc::clone(requester));
        for (pasid, domain) in attached {
            set(requester, *pasid, Some(domain.clone()));
        }
    }
}

fn set(requester: &Requester, pasid: u32, domain: Option<Domain>) {
    match pasid {
        0 => requester.attach(domain),
        _ => drop(requester.attach_pasid(pasid, domain)),
    }
}

/// A program's first-stage table.
#[derive(Debug)]
struct FirstStage {
    config: HwptVtdS1,
    domain: Domain,
}

impl FirstStage {
    /// What is looked at when it is attached: `EINVAL`.
    fn check(&self) -> Result<(), Errno> {
        // Tables have four levels: 5-level paging is not in the capabilities.
        if self.config.addr_width != 48 {
            return Err(Errno::EINVAL);
        }
        let flags = VtdS1Flags::from_bits_retain(self.config.flags);
        // Neither supervisor requests nor extended access bits.
        if flags.intersects(VtdS1Flags::SRE | VtdS1Flags::EAFE) { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

impl Nested for FirstStage {
    fn domain(&self) -> Domain {
        self.domain.clone()
    }

    fn invalidate(&mut self, entries: &mut Entries<'_>) -> Result<(), Errno> {
        const LEAF: u32 = 1;
        let Some(table) = self.domain.stage1.clone() else { return Ok(()) };
        entries.each(INVALIDATE_VTD_S1, size_of::<InvalidateVtdS1>(), &mut |entry: &InvalidateVtdS1| {
            if entry.flags & !LEAF != 0 || entry.reserved != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            let all = entry.npages == u64::MAX;
            if !entry.addr.is_multiple_of(1 << PAGE_SHIFT) || (all && entry.addr != 0) {
                return Err(Errno::EINVAL);
            }
            // Whatever wraps is everything that comes after.
            let bytes = entry.npages.checked_mul(1 << PAGE_SHIFT);
            let end = bytes.and_then(|bytes| entry.addr.checked_add(bytes)).filter(|_| !all);
            match end {
                Some(end) if end == entry.addr => {}
                Some(end) => table.invalidate(entry.addr, end - 1),
                None => table.invalidate(entry.addr, u64::MAX),
            }
            Ok(())
        })
    }
}
