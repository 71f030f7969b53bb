// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA: a device's reads and writes, translated.

use std::cell::Cell;

use vm_memory::VolatileSlice;

use crate::port::{Hit, State};
use crate::sync::MutexGuard;
use crate::{Access, DmaFault, FaultReason, Memory, MemoryFault, Prot, Requester, Segment};

/// A piece of DMA work. While it lives, what it translated stays valid.
///
/// The thread that has it open must not map, unmap or attach: it would wait
/// for itself.
#[derive(Debug)]
pub struct Session<'a> {
    requester: &'a Requester,
    pasid: Option<u32>,
    state: MutexGuard<'a, State>,
}

/// Where an IOVA leads.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    /// The memory.
    pub memory: &'a dyn Memory,
    /// Offset in it of the byte at the IOVA.
    pub offset: u64,
    /// Last IOVA for which this holds, inclusive.
    pub last: u64,
}

impl<'a> Session<'a> {
    #[inline]
    pub(crate) fn new(requester: &'a Requester, pasid: Option<u32>, state: MutexGuard<'a, State>) -> Session<'a> {
        Session { requester, pasid, state }
    }

    /// Translates one IOVA. A refusal is logged. Where writes are noted, a
    /// translation for one does not go beyond its granule, which is dirty then.
    #[inline(always)] // a call costs twice what a remembered translation does
    pub fn translate(&mut self, iova: u64, access: Access) -> Result<Translation<'_>, DmaFault> {
        self.resolve(iova, access)?;
        // Field by field: a copy of the whole costs more than the translation.
        let hit = self.state.current();
        let (number, offset, mut last) = (hit.memory, hit.offset(iova), hit.last);
        if access == Access::Write {
            let hit = *hit;
            last = self.state.mark_granule(&hit, iova);
        }
        let Some(memory) = self.state.memory(number) else {
            return Err(self.refuse(DmaFault { iova, access, reason: FaultReason::Memory }));
        };
        Ok(Translation { memory, offset, last })
    }

    /// Finds the translation of one IOVA, which is [`hit`](Self::hit) then. A
    /// refusal is logged.
    #[inline(always)]
    pub(crate) fn resolve(&mut self, iova: u64, access: Access) -> Result<(), DmaFault> {
        if self.requester.is_trapped() {
            self.count(iova, access)?;
        }
        let need = match access {
            Access::Read => Prot::READ,
            Access::Write => Prot::WRITE,
        };
        // What is remembered was allowed, and who forbids it makes it forgotten.
        if !self.state.recall(iova) {
            self.look_up(iova, access)?;
        }
        if self.state.current().prot.contains(need) { Ok(()) } else { self.ask_again(iova, access, need) }
    }

    /// The translation of an IOVA, if no access by it is counted, noted or
    /// refused. Nothing is logged.
    #[inline]
    pub(crate) fn find(&mut self, iova: u64, access: Access) -> Option<Hit> {
        let need = match access {
            Access::Read => Prot::READ,
            Access::Write => Prot::WRITE,
        };
        if self.requester.is_trapped() || access == Access::Write && self.state.takes_notes() {
            return None;
        }
        if !self.state.recall(iova) && (!self.requester.is_bus_master() || self.state.look_up(iova, access).is_err()) {
            return None;
        }
        Some(*self.state.current()).filter(|hit| hit.prot.contains(need))
    }

    /// Counts an access for the trap.
    #[cold]
    fn count(&self, iova: u64, access: Access) -> Result<(), DmaFault> {
        match self.requester.spring(access) {
            true => Ok(()),
            false => Err(self.refuse(DmaFault { iova, access, reason: FaultReason::BusMasterOff })),
        }
    }

    /// A stage 1 may have given more rights since, without a word.
    #[cold]
    fn ask_again(&mut self, iova: u64, access: Access, need: Prot) -> Result<(), DmaFault> {
        if self.state.may_allow() {
            self.look_up(iova, access)?;
            if self.state.current().prot.contains(need) {
                return Ok(());
            }
        }
        Err(self.refuse(DmaFault { iova, access, reason: FaultReason::Permission }))
    }

    /// The translation found last.
    #[inline]
    pub(crate) fn hit(&self) -> &Hit {
        self.state.current()
    }

    /// Notes what is written of a translation. What is asked here besides costs
    /// each write, of which marking is some 1.5 ns.
    #[inline]
    pub(crate) fn mark(&mut self, hit: &Hit, iova: u64, len: usize, access: Access) {
        if access == Access::Write {
            self.state.mark(hit, iova, len);
        }
    }

    /// A memory that this session has resolved.
    #[inline]
    pub(crate) fn memory(&self, memory: u32) -> Option<&dyn Memory> {
        self.state.memory(memory)
    }

    /// Bytes of a memory that this session has resolved.
    #[inline]
    pub(crate) fn segment(&self, memory: u32, offset: u64, len: usize) -> Option<Segment<'_>> {
        let memory = self.state.memory(memory)?;
        Some(match memory.slice(offset, len) {
            Some(slice) => Segment::Direct(slice),
            None => Segment::Remote { memory, offset, len },
        })
    }

    /// Logs a refusal.
    #[cold]
    pub(crate) fn refuse(&self, fault: DmaFault) -> DmaFault {
        refused(self.requester, self.pasid, fault)
    }

    fn look_up(&mut self, iova: u64, access: Access) -> Result<(), DmaFault> {
        let found = match self.requester.is_bus_master() {
            true => self.state.look_up(iova, access),
            false => Err(FaultReason::BusMasterOff),
        };
        found.map_err(|reason| refused(self.requester, self.pasid, DmaFault { iova, access, reason }))
    }

    /// Calls `each` for every run of bytes of `iova .. iova + len`, in order;
    /// a run does not go beyond its mapping. Bytes before a fault have been
    /// passed on, as on a bus. After IOVA 2^64-1 comes a fault.
    pub fn segments<E: From<DmaFault> + From<MemoryFault>>(
        &mut self,
        iova: u64,
        len: usize,
        access: Access,
        each: &mut dyn FnMut(Segment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            self.resolve(at, access)?;
            let hit = *self.hit();
            let run = left.min(usize::try_from(hit.last - at).unwrap_or(usize::MAX).saturating_add(1));
            self.mark(&hit, at, run, access);
            let Some(segment) = self.segment(hit.memory, hit.offset(at), run) else {
                return Err(self.refuse(DmaFault { iova: at, access, reason: FaultReason::Memory }).into());
            };
            each(segment)?;
            left -= run;
            at = at.wrapping_add(run as u64);
            if at == 0 && left > 0 {
                let fault = DmaFault { iova: at, access, reason: FaultReason::NotMapped };
                return Err(refused(self.requester, self.pasid, fault).into());
            }
        }
        Ok(())
    }

    /// Copies `len` bytes, at least one, between two places that can be
    /// addressed, each in one mapping; they may overlap. `None`: they are no
    /// such places, and nothing was done.
    #[inline]
    pub fn copy_direct(&mut self, source: u64, destination: u64, len: usize) -> Option<Result<(), DmaFault>> {
        let rest = (len as u64).checked_sub(1)?;
        if let Err(fault) = self.resolve(source, Access::Read) {
            return Some(Err(fault));
        }
        let from = *self.hit();
        if from.last - source < rest {
            return None;
        }
        if let Err(fault) = self.resolve(destination, Access::Write) {
            return Some(Err(fault));
        }
        let to = *self.hit();
        if to.last - destination < rest {
            return None;
        }
        let memory = self.state.memory(from.memory)?;
        let from = memory.slice(from.offset(source), len)?;
        let memory = self.state.memory(to.memory)?;
        memory.slice(to.offset(destination), len).map(|to| from.copy_to_volatile_slice(to))?;
        self.state.mark(&to, destination, len);
        Some(Ok(()))
    }

    /// [`copy_direct`](Self::copy_direct) for many short copies, of each of which
    /// `place` tells source, destination and length of at least one byte, in
    /// order. Stops before the first that is not possible so, or refused (which
    /// is logged). The number of copies made.
    ///
    /// What is the same for all that lie in the same two mappings is done once
    /// for them: translating takes longer than copying 64 bytes.
    pub fn copy_all_direct<T>(&mut self, copies: &[T], place: impl Fn(&T) -> (u64, u64, usize)) -> usize {
        let mut rest = copies;
        while let Some((copy, others)) = rest.split_first() {
            let done = self.copy_alike(rest, &place);
            if done > 0 {
                rest = rest.get(done..).unwrap_or_default();
                continue;
            }
            let (source, destination, len) = place(copy);
            if self.copy_direct(source, destination, len) != Some(Ok(())) {
                break;
            }
            rest = others;
        }
        copies.len() - rest.len()
    }

    /// Makes those of the first copies that lie in the same two mappings, if
    /// these are remembered and nothing is to be counted or noted.
    fn copy_alike<T>(&self, copies: &[T], place: impl Fn(&T) -> (u64, u64, usize)) -> usize {
        let Some((source, destination, _)) = copies.first().map(&place) else { return 0 };
        if self.requester.is_trapped() || self.state.takes_notes() {
            return 0;
        }
        let Some((from, to)) = self.whole(source, Prot::READ).zip(self.whole(destination, Prot::WRITE)) else {
            return 0;
        };
        let mut done = 0;
        for copy in copies {
            let (source, destination, len) = place(copy);
            let (Some(from), Some(to)) = (from.part(source, len), to.part(destination, len)) else { break };
            from.copy_to_volatile_slice(to);
            done += 1;
        }
        done
    }

    /// All of a remembered translation that gives rights, if it can be addressed.
    #[inline]
    fn whole(&self, iova: u64, need: Prot) -> Option<Whole<'_>> {
        let hit = self.state.remembered(iova, need)?;
        let len = usize::try_from(hit.last - hit.first).ok()?.checked_add(1)?;
        let slice = self.state.memory(hit.memory)?.slice(hit.offset(hit.first), len)?;
        Some(Whole { first: hit.first, slice })
    }

    /// `len` bytes that lie in a remembered translation, if they can be
    /// addressed and nobody counts accesses.
    #[inline]
    fn remembered(&self, iova: u64, len: usize, need: Prot) -> Option<VolatileSlice<'_>> {
        let hit = self.state.remembered(iova, need).filter(|_| !self.requester.is_trapped())?;
        if hit.last - iova < (len as u64).checked_sub(1)? {
            return None;
        }
        self.state.memory(hit.memory)?.slice(hit.offset(iova), len)
    }

    /// Reads `buf.len()` bytes at `iova`.
    pub fn read(&mut self, iova: u64, buf: &mut [u8]) -> Result<(), DmaFault> {
        if let Some(slice) = self.remembered(iova, buf.len(), Prot::READ) {
            slice.copy_to(buf);
            return Ok(());
        }
        let mut rest = buf;
        self.copy(iova, rest.len(), Access::Read, &mut |segment| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut_checked(segment.len()).ok_or(MemoryFault)?;
            rest = after;
            segment.read(part)
        })
    }

    /// Writes `buf` at `iova`.
    pub fn write(&mut self, iova: u64, buf: &[u8]) -> Result<(), DmaFault> {
        let mut rest = buf;
        self.copy(iova, rest.len(), Access::Write, &mut |segment| {
            let (part, after) = rest.split_at_checked(segment.len()).ok_or(MemoryFault)?;
            rest = after;
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
        let done = Cell::new(0);
        let result = self.segments::<Stop>(iova, len, access, &mut |segment| {
            let len = segment.len() as u64;
            each(segment)?;
            done.set(done.get() + len);
            Ok(())
        });
        result.map_err(|stop| match stop {
            Stop::Fault(fault) => fault,
            Stop::Memory => {
                let iova = iova.wrapping_add(done.get());
                refused(self.requester, self.pasid, DmaFault { iova, access, reason: FaultReason::Memory })
            }
        })
    }
}

/// All of a translation.
struct Whole<'a> {
    first: u64,
    slice: VolatileSlice<'a>,
}

impl<'a> Whole<'a> {
    /// `len` bytes from `iova` on, if it has them.
    #[inline]
    fn part(&self, iova: u64, len: usize) -> Option<VolatileSlice<'a>> {
        // Before the first it is a place behind the last.
        let at = usize::try_from(iova.wrapping_sub(self.first)).ok()?;
        self.slice.subslice(at, len).ok()
    }
}

#[cold]
fn refused(requester: &Requester, pasid: Option<u32>, fault: DmaFault) -> DmaFault {
    requester.log(pasid, fault);
    fault
}
