// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An open `/dev/vhost-vdpa-N`: what it has of its own, and its end.

mod dispatch;
mod iotlb;
mod message;
mod vring;

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{Accounts, Caller, FileId, Mm, Platform, ProcessId};
use device::{DeviceFile, Event, RegionLayout};
use iommu::AddressSpace;
use uapi::Errno;
use uapi::vhost::backend;

use crate::device::VdpaDevice;
use crate::iotlb::Iotlb;
use crate::parent::{Mapping, OnReset};
use crate::watch::Watch;

/// What a call works with besides its own arguments.
pub(crate) struct Cx<'a> {
    pub(crate) caller: &'a dyn Caller,
    pub(crate) platform: &'a Arc<dyn Platform>,
    pub(crate) accounts: &'a Accounts,
    pub(crate) watches: &'a mut u64,
}

/// `ENOTSUPP`: Linux's own, which it lets out here (VDPA-1.4, VDPA-6.10).
pub(crate) const ENOTSUPP: Errno = Errno::from_raw(524);

const PAGE: u64 = 4096;

/// State of an open node.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) file: FileId,
    owner: Option<Owner>,
    /// How vhost's threads would be made; there are none (VDPA-3).
    fork_owner: u8,
    /// Backend features acknowledged.
    pub(crate) backend: u64,
    vrings: Vec<Vring>,
    config_call: Option<Arc<dyn Event>>,
    suspended: bool,
    /// The address space of the batch that is open.
    batch: Option<u32>,
    /// Records, by address space; one exists from the first UPDATE or BATCH_BEGIN on.
    pub(crate) spaces: BTreeMap<u32, Iotlb>,
    /// Largest ring, asked of the parent at each reset.
    max_size: u16,
    /// Doorbell pages.
    pub(crate) pages: Option<Arc<dyn DeviceFile>>,
}

/// Who did SET_OWNER.
#[derive(Clone, Debug)]
struct Owner {
    process: ProcessId,
    mm: Arc<dyn Mm>,
}

/// What the vhost core keeps of a ring. No reset touches it (VDPA-5.2).
#[derive(Debug, Default)]
struct Vring {
    last_avail: u16,
    last_used: u16,
    /// Features as of the last SET_FEATURES: they say how positions are read.
    features: u64,
    busyloop: u32,
    kick: Option<Watch>,
    call: Option<Arc<dyn Event>>,
    error: Option<Arc<dyn Event>>,
}

impl Open {
    fn is_owner(&self, caller: &dyn Caller) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.process == caller.process())
    }

    /// Who owns it.
    pub(crate) fn owner(&self) -> Option<ProcessId> {
        self.owner.as_ref().map(|owner| owner.process)
    }
}

impl VdpaDevice {
    /// `open()`: `EBUSY` while somebody else has it (VDPA-1.2), errno 524 where
    /// the platform's IOMMU is not coherent (VDPA-1.4).
    pub(crate) fn open(&mut self, file: FileId, platform: &Arc<dyn Platform>) -> Result<(), Errno> {
        if self.open.is_some() {
            return Err(Errno::EBUSY);
        }
        // There is no ring array yet, so the map is never cleaned (VDPA-8.3).
        self.driver.reset(false, platform.now());
        if self.driver.spec.mapping == Mapping::Platform {
            if !self.driver.spec.coherent {
                return Err(ENOTSUPP);
            }
            self.driver.tables.set_domain(Some(AddressSpace::new()), &self.driver.endpoint);
        }
        self.driver.tables.begin();
        let queues = self.driver.queues();
        let pages = self.driver.spec.doorbell.then(|| {
            let layout = RegionLayout { base: 0, mmap: [u64::from(queues) * PAGE, 0, 0, 0, 0, 0] };
            platform.device_files().create(&layout).ok()
        });
        self.open = Some(Open {
            file,
            owner: None,
            fork_owner: 1,
            backend: 0,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            config_call: None,
            suspended: false,
            batch: None,
            spaces: BTreeMap::new(),
            max_size: self.driver.max_size(),
            pages: pages.flatten(),
        });
        tracing::debug!(target: "vfuse::vdpa", device = self.name, "opened");
        Ok(())
    }

    /// The last reference has gone (VDPA-1.6).
    pub(crate) fn close(&mut self, platform: &Arc<dyn Platform>, accounts: &Accounts) {
        if self.open.is_none() {
            return;
        }
        self.reset(platform.now());
        if let Some(open) = &mut self.open {
            open.batch = None;
            // Kicks are no longer heard, eventfds are let go of.
            open.vrings.clear();
            open.config_call = None;
        }
        self.driver.endpoint.interrupts.clear();
        self.driver.bind_mm(None);
        let spaces: Vec<u32> = self.open.iter().flat_map(|open| open.spaces.keys().copied()).collect();
        for asid in spaces {
            // VDPA-7.24: a set_map parent is not told of it.
            self.remove_records(asid, 0, u64::MAX, accounts);
            // VDPA-8.13
            if self.driver.spec.reset_map {
                self.driver.tables.reset_map(asid, &self.driver.spec);
            }
        }
        if self.driver.spec.mapping == Mapping::Platform {
            self.driver.tables.set_domain(None, &self.driver.endpoint);
        }
        self.open = None;
        tracing::debug!(target: "vfuse::vdpa", device = self.name, "closed");
    }

    /// The one place from which the device is reset while its node is open
    /// (VDPA-8.1, VDPA-8.2).
    fn reset(&mut self, now: u64) {
        let clean = self.would_clean();
        if let Some(open) = &mut self.open {
            open.suspended = false;
        }
        self.driver.reset(clean, now);
        let max_size = self.driver.max_size();
        if let Some(open) = &mut self.open {
            open.max_size = max_size;
        }
        tracing::debug!(target: "vfuse::vdpa", device = self.name, clean, "reset");
    }

    /// Whether a reset now would carry CLEAN_MAP.
    pub(crate) fn would_clean(&self) -> bool {
        match self.driver.spec.on_reset {
            OnReset::Negotiated | OnReset::MustAck => {
                self.open.as_ref().is_some_and(|open| open.backend & backend::IOTLB_PERSIST == 0)
            }
            OnReset::Clean => self.open.is_some(),
            OnReset::Keep => false,
        }
    }
}
