// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests: from a device to the fault queue of its domain, and the
//! answer back (iommu-faults.md, sections 1 to 3).

mod queue;
mod report;

use std::fmt::Debug;

pub(crate) use queue::FaultQueue;

/// How answers are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultCookies {
    /// A queue gives no cookie twice before 2^32 others: a late answer never
    /// answers another request.
    #[default]
    Monotonic,
    /// As Linux: the lowest that no unanswered group has (FAULT-1.4).
    LowestFree,
}

/// A page request, as the IOMMU reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// Where answers to page requests go.
pub trait PageResponder: Send + Sync + Debug {
    /// Tells the device.
    fn respond(&self, response: PageResponse);
}
