// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests (PCIe 10.4, FAULT-4.1, FAULT-4.2): what a function asks of the
//! IOMMU, and what it is told.

use std::fmt::Debug;
use std::sync::Arc;

/// Page request group indexes have 9 bits.
pub const PAGE_GROUPS: u32 = 512;

/// A page request, as the IOMMU reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// PASID, if the request has one.
    pub pasid: Option<u32>,
    /// Page request group index.
    pub group: u32,
    /// The group is complete.
    pub last: bool,
    /// The answer must tell the PASID.
    pub needs_pasid: bool,
    /// READ 1, WRITE 2, EXEC 4, PRIV 8.
    pub perm: u32,
    /// Address that is asked for.
    pub addr: u64,
    /// What the function wants back with the answer (FAULT-5.7). No program is
    /// shown it.
    pub private_data: Option<u128>,
}

impl PageRequest {
    /// [`perm`](Self::perm): the page is to be read.
    pub const READ: u32 = 1;
    /// [`perm`](Self::perm): the page is to be written.
    pub const WRITE: u32 = 2;
    /// [`perm`](Self::perm): the page is to be executed.
    pub const EXEC: u32 = 4;
    /// [`perm`](Self::perm): by privileged code.
    pub const PRIV: u32 = 8;

    /// Whether it says that a PASID is used no more, and asks for nothing
    /// (FAULT-2.8).
    #[must_use]
    pub fn is_stop_marker(&self) -> bool {
        self.last && self.perm & (PageRequest::READ | PageRequest::WRITE) == 0
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageResponseCode {
    /// The page is there; try again.
    Success,
    /// Not this one.
    Invalid,
    /// No more requests: they are turned off.
    Failure,
}

/// The answer to a group of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// PASID of the group's last request.
    pub pasid: Option<u32>,
    /// Page request group index.
    pub group: u32,
    /// What becomes of it.
    pub code: PageResponseCode,
    /// The private data of the group's last request.
    pub private_data: Option<u128>,
}

impl PageResponse {
    /// The answer to the group that ends with `last`.
    #[must_use]
    pub fn to(last: &PageRequest, code: PageResponseCode) -> PageResponse {
        PageResponse { pasid: last.pasid, group: last.group, code, private_data: last.private_data }
    }
}

/// Where answers to a function's page requests go: to the function.
pub trait PageResponder: Send + Sync + Debug {
    /// Tells the function. Any thread; never waits.
    fn respond(&self, response: PageResponse);

    /// From now on requests go to `queue`, or nowhere. On return none goes to
    /// the queue before.
    fn connect(&self, queue: Option<Arc<dyn PageRequestQueue>>) {
        let _ = queue;
    }
}

/// Where a function's page requests go: to the IOMMU. Any thread; never waits.
pub trait PageRequestQueue: Send + Sync + Debug {
    /// Takes a request in. A full queue drops it, and answers the last one of a
    /// group itself, so that the function tries again (FAULT-4.4).
    fn send(&self, request: PageRequest) -> Option<PageResponse>;

    /// The function was reset: it knows nothing of the requests before.
    fn reset(&self) {}
}
