// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's way into the IOMMU.
//!
//! A [`Requester`] belongs to one function. The host attaches it to an
//! address space and turns bus mastering on and off; the device opens a
//! [`Session`] for each piece of work and does its DMA through that.

use std::sync::{Arc, Mutex, RwLock};

use vm_memory::VolatileSlice;

use crate::{AddressSpace, MemoryFault, Prot, Segment};

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
    /// The requester is attached to no address space.
    Blocked,
    /// Nothing is mapped there.
    NotMapped,
    /// Mapped without the right that the access needs.
    Permission,
    /// The memory behind the mapping is gone.
    Memory,
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

/// A function's port into the IOMMU.
#[derive(Debug, Default)]
pub struct Requester {
    state: RwLock<State>,
    faults: Mutex<Vec<DmaFault>>,
}

#[derive(Debug, Default)]
struct State {
    bus_master: bool,
    space: Option<Arc<AddressSpace>>,
}

impl Requester {
    /// A requester with bus mastering off, attached to nothing.
    #[must_use]
    pub fn new() -> Arc<Requester> {
        Arc::default()
    }

    /// Attaches to `space`, or blocks all DMA with `None`. Fences the old one.
    pub fn attach(&self, space: Option<Arc<AddressSpace>>) {
        self.state.write().unwrap_or_else(|e| e.into_inner()).space = space;
    }

    /// The bus master enable bit. Turning it off is a fence.
    pub fn set_bus_master(&self, on: bool) {
        self.state.write().unwrap_or_else(|e| e.into_inner()).bus_master = on;
    }

    /// Starts a piece of work. Sessions are short (one command, one batch):
    /// whoever unmaps waits for those that are open.
    pub fn session(&self) -> Session<'_> {
        Session { requester: self }
    }

    /// Takes the faults logged since the last call; bounded, oldest kept.
    pub fn take_faults(&self) -> Vec<DmaFault> {
        std::mem::take(&mut *self.faults.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// A piece of DMA work. While it lives, what it translated stays valid.
#[derive(Debug)]
pub struct Session<'a> {
    requester: &'a Requester,
}

impl Session<'_> {
    /// Calls `each` for every run of bytes of `iova .. iova + len`, in order.
    /// Bytes before a fault have been passed on, as on a bus.
    pub fn segments<E: From<DmaFault> + From<MemoryFault>>(
        &mut self,
        iova: u64,
        len: usize,
        access: Access,
        each: &mut dyn FnMut(Segment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let state = self.requester.state.read().unwrap_or_else(|e| e.into_inner());
        let fault = |iova, reason| {
            let fault = DmaFault { iova, access, reason };
            let mut log = self.requester.faults.lock().unwrap_or_else(|e| e.into_inner());
            if log.len() < 64 {
                log.push(fault);
            }
            fault
        };
        if !state.bus_master {
            return Err(fault(iova, FaultReason::BusMasterOff).into());
        }
        let Some(space) = &state.space else {
            return Err(fault(iova, FaultReason::Blocked).into());
        };
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let Some(m) = space.at_or_after(at).filter(|m| m.first <= at) else {
                return Err(fault(at, FaultReason::NotMapped).into());
            };
            let need = match access {
                Access::Read => Prot::READ,
                Access::Write => Prot::WRITE,
            };
            if !m.prot.contains(need) {
                return Err(fault(at, FaultReason::Permission).into());
            }
            let run = left.min(usize::try_from(m.last - at).unwrap_or(usize::MAX).saturating_add(1));
            let offset = m.offset + (at - m.first);
            each(match m.memory.slice(offset, run) {
                Some(slice) => Segment::Direct(slice),
                None => Segment::Remote { memory: &*m.memory, offset, len: run },
            })?;
            left -= run;
            at = at.wrapping_add(run as u64);
        }
        Ok(())
    }

    /// Reads `buf.len()` bytes at `iova`.
    pub fn read(&mut self, iova: u64, buf: &mut [u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        self.copy(iova, buf.len(), Access::Read, &mut |segment| {
            let part = &mut buf[done..done + segment.len()];
            done += part.len();
            segment.read(part)
        })
    }

    /// Writes `buf` at `iova`.
    pub fn write(&mut self, iova: u64, buf: &[u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        self.copy(iova, buf.len(), Access::Write, &mut |segment| {
            let part = &buf[done..done + segment.len()];
            done += part.len();
            segment.write(part)
        })
    }

    /// Copies between `iova` and a slice of the device's own memory.
    pub fn copy_slice(&mut self, iova: u64, own: &VolatileSlice<'_>, access: Access) -> Result<(), DmaFault> {
        let mut done = 0;
        self.copy(iova, own.len(), access, &mut |segment| {
            let part = own.subslice(done, segment.len()).map_err(|_| MemoryFault)?;
            done += part.len();
            match access {
                Access::Read => segment.copy_to(&part),
                Access::Write => segment.copy_from(&part),
            }
        })
    }

    fn copy(
        &mut self,
        iova: u64,
        len: usize,
        access: Access,
        each: &mut dyn FnMut(Segment<'_>) -> Result<(), MemoryFault>,
    ) -> Result<(), DmaFault> {
        enum Stop {
            Fault(DmaFault),
            Memory,
        }
        impl From<DmaFault> for Stop {
            fn from(fault: DmaFault) -> Stop {
                Stop::Fault(fault)
            }
        }
        impl From<MemoryFault> for Stop {
            fn from(_: MemoryFault) -> Stop {
                Stop::Memory
            }
        }
        self.segments::<Stop>(iova, len, access, &mut |segment| Ok(each(segment)?)).map_err(|stop| match stop {
            Stop::Fault(fault) => fault,
            Stop::Memory => DmaFault { iova, access, reason: FaultReason::Memory },
        })
    }
}
