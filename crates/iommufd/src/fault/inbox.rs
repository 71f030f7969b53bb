// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOMMU's queue of page requests: devices put in at any time, from any
//! thread; the subsystem takes out before it does anything else.
//!
//! A device must not wait for the subsystem, and a program that polls must not
//! wait for the subsystem to be called. So the one who puts the last request of
//! a group in rings the [`Bell`] of the fault queue that it will go to: `poll`
//! shows it, and the `read` that follows takes it out. Only where there is no
//! such queue, or answers have a deadline, the subsystem is woken.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use caller::Readiness;
use iommu::{PAGE_GROUPS, PageRequest, PageRequestQueue, PageResponse, PageResponseCode};

use crate::context::ContextId;
use crate::ids::ObjectId;

/// What devices have sent and nobody has looked at.
pub(crate) struct Inbox {
    entries: Mutex<VecDeque<Entry>>,
    /// Their number, which is looked at first.
    count: AtomicUsize,
    /// Some were lost for want of room.
    overflowed: AtomicBool,
    /// Wake the subsystem for each: there are deadlines.
    eager: bool,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Debug for Inbox {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Something that a device has sent.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) port: Arc<Port>,
    pub(crate) what: What,
    /// Who was told of it.
    bell: Option<Arc<Bell>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Request(PageRequest),
    /// The device was reset, and knows nothing of what it sent before.
    Reset,
}

impl Inbox {
    pub(crate) fn new(eager: bool, wake: Arc<dyn Fn() + Send + Sync>) -> Arc<Inbox> {
        Arc::new(Inbox {
            entries: Mutex::default(),
            count: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
            eager,
            wake,
        })
    }

    /// Takes everything that is there.
    pub(crate) fn take(&self) -> VecDeque<Entry> {
        if self.count.load(Ordering::Acquire) == 0 {
            return VecDeque::new();
        }
        let mut entries = lock(&self.entries);
        self.count.store(0, Ordering::Release);
        std::mem::take(&mut *entries)
    }

    /// Whether requests were lost since this was asked last.
    pub(crate) fn take_overflow(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }

    fn push(&self, entry: Entry) {
        let mut entries = lock(&self.entries);
        entries.push_back(entry);
        self.count.store(entries.len(), Ordering::Release);
    }
}

impl Entry {
    /// It is where it belongs. Gives back the bell that was rung for it.
    pub(crate) fn done(self) -> Option<Arc<Bell>> {
        if matches!(self.what, What::Request(_)) {
            self.port.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        self.bell.inspect(|bell| {
            bell.pending.fetch_sub(1, Ordering::SeqCst);
        })
    }
}

/// A bound device's way into the inbox.
#[derive(Debug)]
pub(crate) struct Port {
    inbox: Arc<Inbox>,
    pub(crate) context: ContextId,
    pub(crate) device: ObjectId,
    /// Requests that may be in the inbox.
    limit: usize,
    /// The PASID of requests that go as those without one.
    own_pasid: Option<u32>,
    waiting: AtomicUsize,
    /// What it has sent last was a reset.
    quiet: AtomicBool,
    routes: Mutex<Routes>,
}

/// Who is told of requests.
#[derive(Debug, Default)]
struct Routes {
    /// By PASID, 0 for requests without one.
    bells: BTreeMap<u32, Arc<Bell>>,
    /// Of the PASIDs that are not attached (FAULT-2.2).
    others: Option<Arc<Bell>>,
}

impl Port {
    pub(crate) fn new(
        inbox: &Arc<Inbox>,
        context: ContextId,
        device: ObjectId,
        limit: u32,
        own_pasid: Option<u32>,
    ) -> Arc<Port> {
        Arc::new(Port {
            inbox: Arc::clone(inbox),
            context,
            device,
            limit: limit as usize,
            own_pasid,
            waiting: AtomicUsize::new(0),
            quiet: AtomicBool::new(true),
            routes: Mutex::default(),
        })
    }

    /// Whose bell requests of a PASID ring, and whether those of PASIDs that
    /// are not attached ring that of PASID 0.
    pub(crate) fn set_route(&self, pasid: u32, bell: Option<Arc<Bell>>, nested: bool) {
        let mut routes = lock(&self.routes);
        if pasid == 0 {
            routes.others = bell.clone().filter(|_| nested);
        }
        match bell {
            Some(bell) => drop(routes.bells.insert(pasid, bell)),
            None => drop(routes.bells.remove(&pasid)),
        }
    }

    fn bell(&self, pasid: Option<u32>) -> Option<Arc<Bell>> {
        let pasid = pasid.filter(|pasid| self.own_pasid != Some(*pasid));
        let routes = lock(&self.routes);
        let others = routes.others.as_ref().filter(|_| pasid.is_some());
        routes.bells.get(&pasid.unwrap_or(0)).or(others).cloned()
    }
}

/// As the port's device sees it. The entry needs the port it came through.
#[derive(Debug)]
pub(crate) struct Connection(pub(crate) Arc<Port>);

impl PageRequestQueue for Connection {
    fn send(&self, request: PageRequest) -> Option<PageResponse> {
        let port = &self.0;
        if request.group >= PAGE_GROUPS {
            tracing::info!(target: "vfuse::iommufd", device = port.device.0, group = request.group, "page request: index of more than nine bits");
        }
        let request = PageRequest { group: request.group % PAGE_GROUPS, ..request };
        if port.waiting.load(Ordering::Acquire) >= port.limit {
            port.inbox.overflowed.store(true, Ordering::Release);
            (port.inbox.wake)();
            let answered = request.last && !request.is_stop_marker();
            return answered.then(|| PageResponse::to(&request, PageResponseCode::Success));
        }
        port.waiting.fetch_add(1, Ordering::AcqRel);
        port.quiet.store(false, Ordering::Release);
        let bell = if request.last && !request.is_stop_marker() { port.bell(request.pasid) } else { None };
        if let Some(bell) = &bell {
            bell.pending.fetch_add(1, Ordering::SeqCst);
        }
        let wakes = request.last && (bell.is_none() || port.inbox.eager);
        port.inbox.push(Entry { port: Arc::clone(port), what: What::Request(request), bell: bell.clone() });
        if let Some(bell) = &bell {
            bell.ring();
        }
        if wakes {
            (port.inbox.wake)();
        }
        None
    }

    fn reset(&self) {
        // Nothing to forget since the last one: no more of them than requests.
        if !self.0.quiet.swap(true, Ordering::AcqRel) {
            self.0.inbox.push(Entry { port: Arc::clone(&self.0), what: What::Reset, bell: None });
        }
    }
}

/// What `poll` shows of a fault queue.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// Groups for the queue that are in the inbox.
    pending: AtomicUsize,
    readiness: OnceLock<Arc<dyn Readiness>>,
}

impl Bell {
    pub(crate) fn set_readiness(&self, readiness: Arc<dyn Readiness>) {
        let _ = self.readiness.set(readiness);
    }

    fn ring(&self) {
        if let Some(readiness) = self.readiness.get() {
            readiness.set_readable(true);
        }
    }

    /// Whether the queue itself has something to read.
    pub(crate) fn show(&self, readable: bool) {
        let Some(readiness) = self.readiness.get() else { return };
        readiness.set_readable(readable);
        // Who rings counts first: one that was silenced just now is seen here.
        if !readable && self.pending.load(Ordering::SeqCst) > 0 {
            readiness.set_readable(true);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
