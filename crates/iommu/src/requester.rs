// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's way into the IOMMU.
//!
//! A [`Requester`] belongs to one function. The host attaches it to a
//! [`Domain`] and turns bus mastering on and off; the device opens a
//! [`Session`] for each piece of work and does its DMA through that.
//!
//! Requests without a PASID go by the function's RID; each PASID has an
//! attachment of its own.

use std::sync::Arc;

use crate::port::Port;
use crate::sync::{AtomicBool, Mutex, OnceLock, Ordering, lock};
use crate::{Direct, DirtyLog, Domain, Session};

/// Direction of a device access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// Why the IOMMU refused an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// Bus mastering is off: the request never left the function.
    BusMasterOff,
    /// The requester is attached to no domain.
    Blocked,
    /// Nothing is mapped there.
    NotMapped,
    /// Mapped without the right that the access needs.
    Permission,
    /// The memory behind the mapping is gone.
    Memory,
    /// The program's own table has nothing there.
    Stage1NotPresent,
    /// The program's own table gives not the right that the access needs.
    Stage1Permission,
    /// The program's own table is not one, or the address is none of its.
    Stage1Invalid,
    /// The program's own table lies where it cannot be read.
    Stage1Unreachable,
}

impl FaultReason {
    /// Whether the program can make the access succeed, by a mapping or in its
    /// own table: what a page request is about.
    #[must_use]
    pub fn is_recoverable(self) -> bool {
        matches!(
            self,
            FaultReason::NotMapped
                | FaultReason::Permission
                | FaultReason::Stage1NotPresent
                | FaultReason::Stage1Permission
        )
    }
}

/// A refused access, as the device sees it: a master abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("DMA {access:?} at IOVA {iova:#x}: {reason:?}")]
pub struct DmaFault {
    /// First IOVA that was refused.
    pub iova: u64,
    /// Direction.
    pub access: Access,
    /// Reason.
    pub reason: FaultReason,
}

/// Who is told of refused accesses: the IOMMU's fault log.
pub trait FaultLog: Send + Sync + std::fmt::Debug {
    /// An access of a PASID, or without one, was refused. Any thread; must not
    /// wait.
    fn refused(&self, pasid: Option<u32>, fault: &DmaFault);
}

/// Faults that a requester remembers.
const FAULTS: usize = 64;
/// PASIDs have 20 bits (PCIe 6.20).
const PASIDS: u32 = 1 << 20;
const PASID_CHUNK: u32 = 1 << 10;

type Chunk<T> = Box<[OnceLock<T>]>;

/// A function's port into the IOMMU.
#[derive(Debug, Default)]
pub struct Requester {
    bus_master: AtomicBool,
    rid: Arc<Port>,
    /// Ports of PASIDs that were ever attached, in two steps of 10 bits.
    pasids: OnceLock<Chunk<Chunk<Arc<Port>>>>,
    /// The port of the other PASIDs.
    nowhere: Arc<Port>,
    faults: Mutex<Vec<DmaFault>>,
    fault_log: Mutex<Option<Arc<dyn FaultLog>>>,
    /// What it writes is noted here, too.
    log: Mutex<Option<Arc<DirtyLog>>>,
    /// Devices that it reaches without the IOMMU.
    direct: Mutex<Option<Arc<[Direct]>>>,
    /// Whether `trap` is set; sessions look at this only.
    trapped: AtomicBool,
    trap: Mutex<Option<Trap>>,
}

/// An access that something is planned for.
struct Trap {
    access: Access,
    /// Accesses of that kind until it goes off.
    left: u64,
    /// The function masters the bus no more then.
    stops: bool,
    /// `None` once it has gone off.
    goes_off: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Trap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trap").field("access", &self.access).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Requester {
    /// A requester with bus mastering off, attached to nothing.
    #[must_use]
    pub fn new() -> Arc<Requester> {
        Arc::default()
    }

    /// Attaches to `domain`, or blocks all DMA with `None`. Fences the old one;
    /// in between, each session has one or the other.
    pub fn attach(&self, domain: Option<Domain>) {
        self.rid.attach(domain);
    }

    /// Attaches a PASID to `domain`, or blocks its DMA with `None`. Fences the
    /// old one. Returns whether `pasid` is one (less than 2^20).
    pub fn attach_pasid(&self, pasid: u32, domain: Option<Domain>) -> bool {
        if pasid >= PASIDS {
            return false;
        }
        if let Some(port) = self.pasid(pasid) {
            port.attach(domain);
        } else if domain.is_some() {
            let chunks = self.pasids.get_or_init(empty);
            let Some(chunk) = chunks.get((pasid / PASID_CHUNK) as usize) else { return false };
            let Some(port) = chunk.get_or_init(empty).get((pasid % PASID_CHUNK) as usize) else { return false };
            let log = lock(&self.log);
            let port = port.get_or_init(Arc::default);
            port.set_own_log(log.as_ref());
            drop(log);
            let direct = lock(&self.direct);
            port.set_direct(direct.as_ref());
            drop(direct);
            port.attach(domain);
        }
        true
    }

    /// Notes what the device writes in `log`, too, by the address that it gives
    /// (a device's own tracker of dirty pages); `None`: no longer. On return no
    /// session uses another log.
    pub fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        let mut own = lock(&self.log);
        for port in self.ports() {
            port.set_own_log(log.as_ref());
        }
        *own = log;
    }

    /// Devices whose bus addresses its requests reach without the IOMMU, as long
    /// as it masters the bus. On return no session goes by what was before.
    pub fn set_direct(&self, windows: Vec<Direct>) {
        let direct = (!windows.is_empty()).then(|| Arc::from(windows));
        let mut own = lock(&self.direct);
        for port in self.ports() {
            port.set_direct(direct.as_ref());
        }
        self.nowhere.set_direct(direct.as_ref());
        *own = direct;
    }

    /// The bus master enable bit. Turning it off is a fence.
    pub fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::Release);
        if !on {
            for port in self.ports() {
                port.fence(&[]);
            }
            self.clear_sprung_trap();
        }
    }

    /// Starts a piece of work. Sessions are short (one command, one batch):
    /// whoever unmaps waits for those that are open.
    #[inline]
    pub fn session(&self) -> Session<'_> {
        Session::new(self, None, self.rid.open())
    }

    /// Starts a piece of work with a PASID. Blocked if it was never attached.
    pub fn session_pasid(&self, pasid: u32) -> Session<'_> {
        Session::new(self, Some(pasid), self.pasid(pasid).unwrap_or(&self.nowhere).open())
    }

    /// Calls `goes_off` at the `count`-th translated access of a kind from now
    /// on, in the middle of the device's work. With `stops` that access and all
    /// later ones are refused as with bus mastering off, until bus mastering is
    /// turned off. Runs of bytes within one mapping count as one access. A
    /// second trap replaces the first.
    pub fn set_trap(&self, access: Access, count: u64, stops: bool, goes_off: Box<dyn FnOnce() + Send>) {
        *lock(&self.trap) = Some(Trap { access, left: count, stops, goes_off: Some(goes_off) });
        self.trapped.store(true, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_trapped(&self) -> bool {
        self.trapped.load(Ordering::Relaxed)
    }

    /// Counts an access; whether it may go on.
    #[cold]
    pub(crate) fn spring(&self, access: Access) -> bool {
        let mut trap = lock(&self.trap);
        let Some(set) = &mut *trap else { return true };
        if set.goes_off.is_none() {
            return !set.stops;
        }
        if set.access != access {
            return true;
        }
        set.left = set.left.saturating_sub(1);
        if set.left > 0 {
            return true;
        }
        let (stops, goes_off) = (set.stops, set.goes_off.take());
        if !stops {
            *trap = None;
            self.trapped.store(false, Ordering::Release);
        }
        drop(trap);
        if let Some(goes_off) = goes_off {
            goes_off();
        }
        !stops
    }

    /// A trap that has gone off ends with what it stopped.
    fn clear_sprung_trap(&self) {
        let mut trap = lock(&self.trap);
        if trap.as_ref().is_some_and(|set| set.goes_off.is_none()) {
            *trap = None;
            self.trapped.store(false, Ordering::Release);
        }
    }

    /// Takes the faults logged since the last call; bounded, oldest kept.
    pub fn take_faults(&self) -> Vec<DmaFault> {
        std::mem::take(&mut *lock(&self.faults))
    }

    /// Whether the bus master enable bit is set.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Who is told of refused accesses from now on.
    pub fn set_fault_log(&self, log: Arc<dyn FaultLog>) {
        *lock(&self.fault_log) = Some(log);
    }

    pub(crate) fn log(&self, pasid: Option<u32>, fault: DmaFault) {
        let log = lock(&self.fault_log).clone();
        if let Some(log) = log {
            log.refused(pasid, &fault);
        }
        let mut faults = lock(&self.faults);
        if faults.len() < FAULTS {
            faults.push(fault);
        }
    }

    fn pasid(&self, pasid: u32) -> Option<&Arc<Port>> {
        let chunk = self.pasids.get()?.get((pasid / PASID_CHUNK) as usize)?;
        chunk.get()?.get((pasid % PASID_CHUNK) as usize)?.get()
    }

    fn ports(&self) -> impl Iterator<Item = &Arc<Port>> {
        let chunks = self.pasids.get().into_iter().flat_map(|chunks| chunks.iter());
        let pasids = chunks.filter_map(OnceLock::get).flat_map(|chunk| chunk.iter()).filter_map(OnceLock::get);
        std::iter::once(&self.rid).chain(pasids)
    }
}

fn empty<T>() -> Chunk<T> {
    (0..PASID_CHUNK).map(|_| OnceLock::new()).collect()
}

impl Drop for Requester {
    fn drop(&mut self) {
        for port in self.ports() {
            port.attach(None);
            port.set_own_log(None);
        }
    }
}
