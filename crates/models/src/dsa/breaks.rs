// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An accelerator that breaks the rules of page requests on purpose (FAULT-4.1
//! to 4.5): beside each request that it makes as it should, it sends ones that
//! it should not. It asks for nothing that it would wait for: what comes back
//! to these is an unexpected answer.

use device::PageRequests;
use iommu::{Access, DmaFault, PAGE_GROUPS, PageRequest};

bitflags::bitflags! {
    /// Rules that are broken.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Breaks: u8 {
        /// Indexes that are in use, and one of more than nine bits.
        const WRONG_INDEX = 1 << 0;
        /// A request of a group that never gets its last.
        const NO_LAST = 1 << 1;
        /// More requests than the host has allocated.
        const OVER_CAPACITY = 1 << 2;
        /// A stop marker of the PASID, and then a request of it.
        const AFTER_STOP = 1 << 3;
        /// PASIDs that nobody has attached, or somebody else, and none at all.
        const WRONG_PASID = 1 << 4;
    }
}

/// What is sent beside the request for the page that an access did not find.
pub(super) fn misbehave(breaks: Breaks, page_requests: &PageRequests, pasid: Option<u32>, fault: &DmaFault) {
    if breaks.is_empty() {
        return;
    }
    let perm = match fault.access {
        Access::Read => PageRequest::READ,
        Access::Write => PageRequest::WRITE,
    };
    let (addr, needs_pasid) = (fault.iova & !0xfff, pasid.is_some());
    let request = PageRequest { pasid, group: 0, last: true, needs_pasid, perm, addr, private_data: None };
    let send = |request| page_requests.send(request);
    if breaks.contains(Breaks::WRONG_INDEX) {
        send(request);
        send(PageRequest { group: PAGE_GROUPS + 1, ..request });
    }
    if breaks.contains(Breaks::NO_LAST) {
        send(PageRequest { group: PAGE_GROUPS - 1, last: false, ..request });
    }
    if breaks.contains(Breaks::OVER_CAPACITY) {
        (0..PAGE_GROUPS + 8).for_each(|group| send(PageRequest { group, ..request }));
    }
    if breaks.contains(Breaks::AFTER_STOP)
        && let Some(pasid) = pasid
    {
        page_requests.stop(pasid);
        send(PageRequest { group: PAGE_GROUPS - 2, ..request });
    }
    if breaks.contains(Breaks::WRONG_PASID) {
        let others = [pasid.map_or(1, |pasid| pasid ^ 1), 0xf_ffff];
        others.iter().for_each(|other| send(PageRequest { pasid: Some(*other), group: 3, ..request }));
        send(PageRequest { pasid: None, group: 4, ..request });
    }
}
