// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of iommufd: everything behind `/dev/iommu`.
//!
//! [`Iommufd`] is the whole subsystem. A program's open file is a context
//! (`context`) of objects with ids (`ids`); `envelope` is how structures are
//! passed, `dispatch` says which request means what.
#![forbid(unsafe_code)]

mod access;
mod backing;
mod bitmap;
mod buffers;
mod calls;
mod compat;
mod context;
mod device;
mod dispatch;
mod driver;
mod envelope;
mod fault;
mod file;
mod hwpt;
mod ids;
mod ioas;
mod selftest;
mod viommu;
mod vtd;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use caller::{Accounts, Caller, FileId, FileIds, Platform, Reply};
use uapi::Errno;

use backing::Budget;
pub use backing::DmaBuf;
pub use bitmap::DirtyBitmap;
use context::Context;
pub use context::ContextId;
pub use device::{Binding, DeviceProperties};
use fault::Inbox;
pub use fault::{FaultCookies, FaultReset, FaultTransport};
pub use ids::{Kind, ObjectId};
pub use iommu::{PageRequest, PageResponder, PageResponse, PageResponseCode};
pub use vtd::LabIommu;

/// What the lab's IOMMU can do, and what Linux takes as options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Offers `IOMMU_TEST_CMD` and the mock IOMMU behind it.
    pub selftest: bool,
    /// How the answers to page requests are told apart.
    pub fault_cookies: FaultCookies,
    /// What they can carry.
    pub fault_transport: FaultTransport,
    /// What a reset of the function does to its page requests.
    pub fault_reset: FaultReset,
    /// Nanoseconds after which a page request that nobody answers is answered
    /// INVALID; never, as in Linux, with `None`.
    pub fault_timeout: Option<u64>,
    /// `iommufd.allow_unsafe_interrupts`.
    pub allow_unsafe_interrupts: bool,
    /// The lab's IOMMU.
    pub iommu: LabIommu,
    /// Bytes of memory that the objects and mappings of all contexts together
    /// may take, about; beyond it is `ENOMEM`.
    pub memory_limit: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            selftest: false,
            fault_cookies: FaultCookies::default(),
            fault_transport: FaultTransport::default(),
            fault_reset: FaultReset::default(),
            fault_timeout: None,
            allow_unsafe_interrupts: false,
            iommu: LabIommu::default(),
            memory_limit: 4 << 30,
        }
    }
}

/// What a call may use besides its own arguments.
pub struct Call<'a> {
    /// Who calls.
    pub caller: &'a dyn Caller,
    /// Where ids of new files come from.
    pub files: &'a mut FileIds,
}

/// What an open file of the subsystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// `/dev/iommu`, or `/dev/vfio/vfio` where iommufd serves it.
    Context(ContextId),
    /// A fault queue's or event queue's, or one that the selftest made. Keeps the context.
    Object(ContextId, ObjectId),
}

/// The iommufd subsystem.
#[derive(Debug)]
pub struct Iommufd {
    options: Options,
    platform: Arc<dyn Platform>,
    contexts: BTreeMap<ContextId, Context>,
    files: BTreeMap<FileId, Open>,
    /// Buffers of devices that are open as files.
    dma_bufs: BTreeMap<FileId, Arc<DmaBuf>>,
    /// One of them was taken away since this was looked at.
    buffers_lost: Arc<AtomicBool>,
    last_context: u64,
    /// Mock devices that the selftest has made.
    mocks_made: u64,
    accounts: Accounts,
    budget: Budget,
    /// Page requests on their way here.
    inbox: Arc<Inbox>,
}

/// Pages are 4 KiB.
const PAGE: u64 = 4096;

impl Iommufd {
    /// The subsystem as after loading its module. Locked memory is counted in
    /// `accounts`, which it shares with VFIO.
    #[must_use]
    pub fn new(platform: Arc<dyn Platform>, options: Options, accounts: Accounts) -> Iommufd {
        let inbox = Inbox::new(options.fault_timeout.is_some(), platform.waker());
        Iommufd {
            platform,
            inbox,
            contexts: BTreeMap::new(),
            files: BTreeMap::new(),
            dma_bufs: BTreeMap::new(),
            buffers_lost: Arc::default(),
            last_context: 0,
            mocks_made: 0,
            accounts,
            budget: Budget::new(options.memory_limit),
            options,
        }
    }

    /// `open("/dev/iommu")`; `vfio` if it was `/dev/vfio/vfio` (IOMMUFD-1.1).
    pub fn open(&mut self, file: FileId, vfio: bool) {
        self.last_context += 1;
        let id = ContextId(self.last_context);
        let mut context = Context::new(file, vfio, self.accounts.clone(), self.budget.clone());
        if self.options.selftest {
            context.pages = viommu::pages(self.platform.device_files(), selftest::REGION);
        }
        self.contexts.insert(id, context);
        self.files.insert(file, Open::Context(id));
    }

    /// The context behind a descriptor of `/dev/iommu`.
    #[must_use]
    pub fn context(&self, file: FileId) -> Option<ContextId> {
        match self.files.get(&file)? {
            Open::Context(id) => Some(*id),
            Open::Object(..) => None,
        }
    }

    /// Whether the file was made by a call on `/dev/iommu`, or is a buffer of a
    /// device.
    #[must_use]
    pub fn is_object(&self, file: FileId) -> bool {
        matches!(self.files.get(&file), Some(Open::Object(..))) || self.dma_bufs.contains_key(&file)
    }

    /// `ioctl`; `ENOTTY` on files that are no `/dev/iommu`.
    pub fn ioctl(&mut self, file: FileId, request: u32, arg: u64, call: &mut Call<'_>) -> Result<Reply, Errno> {
        self.collect();
        self.follow_buffers();
        let context = self.context(file).ok_or(Errno::ENOTTY)?;
        self.dispatch(context, request, arg, call)
    }

    /// The last descriptor and mapping of a file are gone.
    pub fn release(&mut self, file: FileId) {
        self.collect();
        self.dma_bufs.remove(&file);
        match self.files.remove(&file) {
            Some(Open::Context(id)) => self.put_context(id),
            Some(Open::Object(context, object)) => self.release_object(context, object),
            None => {}
        }
    }
}
