// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests: from a device to the fault queue of its domain, and the
//! answer back (iommu-faults.md, sections 1 to 3).

use std::fmt::Debug;

use caller::Caller;
use uapi::Errno;

use crate::Iommufd;
use crate::context::ContextId;
use crate::ids::ObjectId;

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

impl Iommufd {
    /// A device has sent a page request. If nobody takes such requests it is
    /// answered at once: `EINVAL`.
    pub fn report(&mut self, context: ContextId, device: ObjectId, request: PageRequest) -> Result<(), Errno> {
        let _ = (context, device, request);
        Err(Errno::EINVAL)
    }

    /// `read` on the file of a fault queue or event queue, at position
    /// `offset`: copies to the caller's buffer at `buf`; the bytes done.
    pub fn read(
        &mut self,
        file: caller::FileId,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
    ) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, caller);
        Err(Errno::EINVAL)
    }

    /// `write` on the file of a fault queue: answers; the bytes taken.
    pub fn write(
        &mut self,
        file: caller::FileId,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
    ) -> Result<u64, Errno> {
        let _ = (file, offset, buf, len, caller);
        Err(Errno::EINVAL)
    }

    /// Whether `mmap(len, prot, shared, offset)` of a context's file is allowed
    /// (IOMMUFD-2.12): `EINVAL`, `EPERM`, `ENXIO`.
    pub fn mmap(&self, file: caller::FileId, offset: u64, len: u64, shared: bool, exec: bool) -> Result<(), Errno> {
        let _ = (file, offset, len, shared, exec);
        Err(Errno::ENXIO)
    }

    /// What a front door makes a context's descriptor from, where it has pages
    /// to map (a vIOMMU's): a file as devices have it, of which
    /// [`mmap`](Self::mmap) allows parts.
    #[must_use]
    pub fn device_file(&self, file: caller::FileId) -> Option<std::sync::Arc<dyn ::device::DeviceFile>> {
        let _ = file;
        None
    }
}
