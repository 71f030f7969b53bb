// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Records that fault queues and event queues give and take
//! (iommu-faults.md, 1.2 and 1.3; iommufd-api.md, 11.10).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`PageFault::flags`]: the request has a PASID.
pub const FAULT_PASID_VALID: u32 = 1;
/// [`PageFault::flags`]: the last of its group.
pub const FAULT_LAST_PAGE: u32 = 2;
/// [`PageFault::flags`]: Linux's own, which leaks: the answer tells the PASID.
pub const FAULT_RESPONSE_NEEDS_PASID: u32 = 4;

/// `struct iommu_hwpt_pgfault`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageFault {
    /// [`FAULT_PASID_VALID`], [`FAULT_LAST_PAGE`].
    pub flags: u32,
    /// The device that is attached.
    pub dev_id: u32,
    /// PASID, where valid.
    pub pasid: u32,
    /// Page request group index.
    pub grpid: u32,
    /// READ 1, WRITE 2, EXEC 4, PRIV 8.
    pub perm: u32,
    /// 0.
    pub reserved: u32,
    /// Address.
    pub addr: u64,
    /// 0.
    pub length: u32,
    /// What the answer must tell.
    pub cookie: u32,
}

/// [`PageAnswer::code`]: the page is there.
pub const ANSWER_SUCCESS: u32 = 0;
/// [`PageAnswer::code`]: the request cannot be served.
pub const ANSWER_INVALID: u32 = 1;

/// `struct iommu_hwpt_page_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageAnswer {
    /// Of the group that is answered.
    pub cookie: u32,
    /// [`ANSWER_SUCCESS`], [`ANSWER_INVALID`].
    pub code: u32,
}

/// [`VeventHeader::flags`]: events were lost here.
pub const VEVENT_LOST_EVENTS: u32 = 1;

/// `struct iommufd_vevent_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VeventHeader {
    /// [`VEVENT_LOST_EVENTS`]: nothing follows.
    pub flags: u32,
    /// Counts events, lost ones too.
    pub sequence: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FAULT-1.2, FAULT-1.3
    #[test]
    fn sizes_are_linux_s() {
        assert_eq!((size_of::<PageFault>(), size_of::<PageAnswer>(), size_of::<VeventHeader>()), (40, 8, 8));
        assert_eq!((std::mem::offset_of!(PageFault, addr), std::mem::offset_of!(PageFault, cookie)), (24, 36));
    }
}
