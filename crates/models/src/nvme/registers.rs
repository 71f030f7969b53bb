// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stores to registers, whether trapped or made through a mapping.
//!
//! The controller holds the value of each register; the mapped pages show a
//! copy. [`Controller::scan`] finds the words that differ, which the program
//! must have stored, and hands them to the same code as trapped stores.

use std::sync::atomic::{AtomicU32, Ordering};

use device::Io;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::Controller;
use super::config::{MSIX_PBA, MSIX_TABLE, VECTORS};
use super::logs::Culprit;
use super::spec::{self, Aqa, AsyncEvent, Cc, Csts, Register, Status, doorbell};

/// The mapped pages of BAR 0, if a program has them.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a>(Option<VolatileSlice<'a>>);

impl<'a> Pages<'a> {
    pub(super) fn of(io: &Io<'a>) -> Pages<'a> {
        let [window, ..] = io.windows;
        Pages(window.map(|window| window.slice()))
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        self.0.as_ref()?.get_atomic_ref::<AtomicU32>(usize::try_from(offset).ok()?).ok()
    }

    /// What the program sees at `offset`.
    fn load(&self, offset: u64) -> Option<u32> {
        self.word(offset).map(|word| u32::from_le(word.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), Ordering::Release);
        }
    }

    /// Shows `value` unless the program has stored something since `seen` was
    /// there; that will be found by the next scan.
    fn replace(&self, offset: u64, seen: u32, value: u32) {
        if seen != value
            && let Some(word) = self.word(offset)
        {
            let _ = word.compare_exchange(seen.to_le(), value.to_le(), Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Doorbells in their page. Those of queues that cannot exist are there too.
pub(super) const DOORBELLS: usize = 1024;

/// Registers that a driver sets before it enables the controller.
const SETTINGS: [Register; 5] =
    [Register::Aqa, Register::AsqLow, Register::AsqHigh, Register::AcqLow, Register::AcqHigh];
/// Registers that only the controller changes.
const READ_ONLY: [Register; 5] = [Register::CapLow, Register::CapHigh, Register::Vs, Register::Csts, Register::Nssr];

impl Controller {
    /// Takes what the program has stored to mapped registers since last time.
    pub(super) fn scan(&mut self, io: &mut Io<'_>) {
        let pages = Pages::of(io);
        // CC first: a driver stores it last, so what it goes with is there.
        let Some(cc) = pages.load(Register::Cc.raw().into()) else { return };
        for register in SETTINGS {
            let offset = register.raw().into();
            if let Some(value) = pages.load(offset).filter(|value| *value != self.register(register)) {
                self.store_register(io, register, value);
                pages.replace(offset, value, self.register(register));
            }
        }
        for register in READ_ONLY {
            let offset = register.raw().into();
            if let Some(seen) = pages.load(offset) {
                pages.replace(offset, seen, self.register(register));
            }
        }
        self.scan_mask(io, pages);
        if cc != self.cc.0 {
            self.store_register(io, Register::Cc, cc);
            pages.replace(Register::Cc.raw().into(), cc, self.cc.0);
        }
        self.scan_doorbells(pages);
    }

    /// The same at the beginning of a turn. While the controller runs, only
    /// what matters then is looked at; the rest is due now and then.
    pub(super) fn scan_quickly(&mut self, io: &mut Io<'_>) {
        let pages = Pages::of(io);
        let cc = pages.load(Register::Cc.raw().into());
        if self.probe == 0 || !self.csts.contains(Csts::RDY) || cc != Some(self.cc.0) {
            return self.scan(io);
        }
        self.scan_mask(io, pages);
        self.scan_doorbells(pages);
    }

    fn scan_mask(&mut self, io: &mut Io<'_>, pages: Pages<'_>) {
        let set = Register::Intms.raw().into();
        if let Some(value) = pages.load(set).filter(|value| *value != self.mask) {
            self.store_register(io, Register::Intms, value);
            pages.replace(set, value, self.mask);
        }
        let clear = Register::Intmc.raw().into();
        if let Some(value) = pages.load(clear).filter(|value| *value != 0) {
            pages.replace(clear, value, 0);
            self.store_register(io, Register::Intmc, value);
        }
    }

    /// The same for every doorbell, because the pages are about to go.
    pub(super) fn scan_everything(&mut self, io: &mut Io<'_>) {
        self.scan(io);
        if self.csts.contains(Csts::RDY) {
            let pages = Pages::of(io);
            (0..DOORBELLS).for_each(|index| self.scan_doorbell(pages, index));
        }
    }

    fn scan_doorbells(&mut self, pages: Pages<'_>) {
        if !self.csts.contains(Csts::RDY) {
            return;
        }
        self.scan_doorbell(pages, 0);
        for i in 0..self.io_queues.len() {
            let Some(id) = self.io_queues.get(i).copied() else { break };
            self.scan_doorbell(pages, 2 * usize::from(id));
        }
        // Heads matter while there is something to post or the pin is asserted.
        if self.pin || self.waiting != 0 || self.touched != 0 {
            for i in 0..self.cq_doorbells.len() {
                let Some(index) = self.cq_doorbells.get(i).copied() else { break };
                self.scan_doorbell(pages, index);
            }
        }
        // One of all, in rotation: a store to a doorbell of no queue is found too.
        self.probe = (self.probe + 1) % DOORBELLS;
        self.scan_doorbell(pages, self.probe);
    }

    fn scan_doorbell(&mut self, pages: Pages<'_>, index: usize) {
        let offset = doorbell::BASE + 4 * index as u64;
        let Some(value) = pages.load(offset) else { return };
        if self.doorbells.get(index) != Some(&value) {
            self.ring(index, value);
            pages.replace(offset, value, self.doorbells.get(index).copied().unwrap_or(0));
        }
    }

    /// A register's value.
    fn register(&self, register: Register) -> u32 {
        match register {
            Register::CapLow => self.cap.0 as u32,
            Register::CapHigh => (self.cap.0 >> 32) as u32,
            Register::Vs => spec::VERSION,
            Register::Intms | Register::Intmc => self.mask,
            Register::Cc => self.cc.0,
            Register::Csts => self.csts.bits(),
            Register::Nssr => 0, // CAP.NSSRS says that there is none.
            Register::Aqa => self.aqa.0,
            Register::AsqLow => self.asq as u32,
            Register::AsqHigh => (self.asq >> 32) as u32,
            Register::AcqLow => self.acq as u32,
            Register::AcqHigh => (self.acq >> 32) as u32,
        }
    }

    fn store_register(&mut self, io: &mut Io<'_>, register: Register, value: u32) {
        const PAGE: u64 = !0xfff;
        let low = |old: u64| (old & !0xffff_ffff | u64::from(value)) & PAGE;
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            Register::Cc => self.configure(io, Cc(value & Cc::MASK)),
            Register::Aqa => self.aqa = Aqa(value & Aqa::MASK),
            Register::AsqLow => self.asq = low(self.asq),
            Register::AsqHigh => self.asq = high(self.asq),
            Register::AcqLow => self.acq = low(self.acq),
            Register::AcqHigh => self.acq = high(self.acq),
            Register::Intms => self.set_mask(io, self.mask | value),
            Register::Intmc => self.set_mask(io, self.mask & !value),
            Register::CapLow | Register::CapHigh | Register::Vs | Register::Csts | Register::Nssr => {}
        }
    }

    pub(super) fn set_mask(&mut self, io: &mut Io<'_>, mask: u32) {
        let old = std::mem::replace(&mut self.mask, mask);
        Pages::of(io).replace(Register::Intms.raw().into(), old, mask);
        self.pin_changed = true;
    }

    /// A store to the doorbell of this index.
    fn ring(&mut self, index: usize, value: u32) {
        if !self.csts.contains(Csts::RDY) {
            return;
        }
        let (id, is_head) = (index / 2, index % 2 == 1);
        let taken = if is_head {
            self.cqs.get_mut(id).and_then(Option::as_mut).map(|queue| queue.ring(value))
        } else {
            self.sqs.get_mut(id).and_then(Option::as_mut).map(|queue| queue.ring(value))
        };
        match taken {
            Some(Ok(())) if is_head => {
                self.touched |= 1 << id;
                self.pin_changed = true;
            }
            Some(Ok(())) => self.waiting |= 1 << id,
            Some(Err(_)) => self.bad_doorbell(index, value, AsyncEvent::INVALID_DOORBELL_VALUE),
            None => return self.bad_doorbell(index, value, AsyncEvent::INVALID_DOORBELL_REGISTER),
        }
        if let Some(seen) = self.doorbells.get_mut(index) {
            *seen = value;
        }
    }

    fn bad_doorbell(&mut self, index: usize, value: u32, event: AsyncEvent) {
        tracing::event!(
            name: "bad_doorbell",
            target: "vfuse::nvme",
            tracing::Level::WARN,
            serial = %self.config.serial,
            qid = index / 2,
            completion_queue = index % 2 == 1,
            value,
        );
        self.logs.error(Culprit::NONE, Status::INVALID_FIELD);
        self.raise(event);
    }

    /// A queue begins: its doorbell is zero.
    pub(super) fn clear_doorbell(&mut self, io: &Io<'_>, offset: u64) {
        let index = ((offset - doorbell::BASE) / 4) as usize;
        if let Some(seen) = self.doorbells.get_mut(index) {
            *seen = 0;
        }
        Pages::of(io).store(offset, 0);
    }

    /// All queues are gone.
    pub(super) fn clear_doorbells(&mut self, io: &Io<'_>) {
        self.doorbells.fill(0);
        let pages = Pages::of(io);
        for index in 0..DOORBELLS {
            pages.store(doorbell::BASE + 4 * index as u64, 0);
        }
    }

    pub(super) fn publish_status(&self, io: &Io<'_>) {
        Pages::of(io).store(Register::Csts.raw().into(), self.csts.bits());
    }

    /// Stores every register to pages that have just appeared.
    pub(super) fn publish_registers(&self, io: &Io<'_>) {
        let pages = Pages::of(io);
        for register in Register::ALL {
            let value = if *register == Register::Intmc { 0 } else { self.register(*register) };
            pages.store(register.raw().into(), value);
        }
        for (index, value) in self.doorbells.iter().enumerate() {
            pages.store(doorbell::BASE + 4 * index as u64, *value);
        }
        for word in (0..u64::from(VECTORS) * 16).step_by(4) {
            let offset = u64::from(MSIX_TABLE) + word;
            pages.store(offset, self.load_word(offset));
        }
    }

    /// What a trapped load of an aligned word gives.
    fn load_word(&self, offset: u64) -> u32 {
        if let Some(register) = u32::try_from(offset).ok().and_then(Register::from_raw) {
            return self.register(register);
        }
        if let Some(index) = doorbell_index(offset) {
            return self.doorbells.get(index).copied().unwrap_or(0);
        }
        let table = u64::from(MSIX_TABLE)..u64::from(MSIX_TABLE) + u64::from(VECTORS) * 16;
        // Vectors are masked after a reset. The host programs the table of a
        // passed-through device itself, so nothing else is kept here.
        u32::from(table.contains(&offset) && offset % 16 == 12)
    }

    /// A trapped store of an aligned word.
    fn store_word(&mut self, io: &mut Io<'_>, offset: u64, value: u32) {
        if let Some(register) = u32::try_from(offset).ok().and_then(Register::from_raw) {
            self.store_register(io, register, value);
            if register != Register::Intmc {
                Pages::of(io).store(offset, self.register(register));
            }
        } else if let Some(index) = doorbell_index(offset) {
            self.ring(index, value);
            Pages::of(io).store(offset, self.doorbells.get(index).copied().unwrap_or(0));
        }
    }

    /// A trapped load.
    pub(super) fn load_bytes(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(i as u64);
            *byte = (self.load_word(at & !3) >> (8 * (at & 3))) as u8;
        }
    }

    /// A trapped store. One of fewer than four bytes, which the specification
    /// leaves open, keeps the rest of the word where the word can be kept.
    pub(super) fn store_bytes(&mut self, io: &mut Io<'_>, offset: u64, data: &[u8]) {
        let (word, shift) = (offset & !3, 8 * (offset & 3) as u32);
        let bytes = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match data.len() {
            8 => {
                self.store_word(io, word, bytes as u32);
                self.store_word(io, word + 4, (bytes >> 32) as u32);
            }
            4 => self.store_word(io, word, bytes as u32),
            1 | 2 => {
                let own = ((1u64 << (8 * data.len())) - 1) << shift;
                let settings = [Register::Cc].into_iter().chain(SETTINGS).any(|r| u64::from(r.raw()) == word);
                let old = if settings { self.load_word(word) } else { 0 };
                self.store_word(io, word, old & !(own as u32) | (bytes << shift) as u32);
            }
            _ => {}
        }
    }
}

fn doorbell_index(offset: u64) -> Option<usize> {
    let index = offset.checked_sub(doorbell::BASE)? / 4;
    usize::try_from(index).ok().filter(|index| *index < DOORBELLS)
}

const _: () = assert!(MSIX_TABLE as u64 == doorbell::BASE + 4 * DOORBELLS as u64 && MSIX_PBA > MSIX_TABLE);
