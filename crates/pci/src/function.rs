// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One function's physical configuration space.
//!
//! The registers are bytes; a [`Layout`] says which bits a write sets or
//! clears. The few registers that act (power state, resets, VPD) are looked at
//! after each write; what else changed is told to the caller as [`Effect`]s.

use std::sync::Arc;

use crate::layout::Layout;
use crate::link::Answers;
use crate::{FunctionSpec, SpecError, cap, dpc};

/// What a write to configuration space set off outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Bus master enable changed.
    BusMaster(bool),
    /// Memory space enable changed.
    Memory(bool),
    /// I/O space enable changed.
    Io(bool),
    /// Interrupt disable changed.
    IntxDisable(bool),
    /// The power state changed.
    Power {
        /// State left (0 is D0, 3 is D3hot).
        from: u8,
        /// State entered.
        to: u8,
    },
    /// Initiate Function Level Reset was written; the registers have been
    /// reset, the model has not.
    FunctionLevelReset,
    /// MSI enable changed.
    Msi(bool),
    /// MSI-X enable or function mask changed.
    Msix {
        /// MSI-X enable.
        enable: bool,
        /// Function mask.
        mask: bool,
    },
    /// SR-IOV VF enable changed.
    VfEnable(bool),
    /// SR-IOV VF memory space enable changed.
    VfMemory(bool),
    /// Secondary bus reset of a bridge was asserted or released.
    SecondaryBusReset(bool),
    /// Address translation services enable changed.
    Ats(bool),
    /// Page request enable changed.
    PageRequests(bool),
    /// The page request interface was reset.
    PageRequestReset,
    /// PASID enable changed.
    Pasid(bool),
    /// Software has triggered containment of a port.
    ContainmentTrigger,
    /// Software has cleared the trigger status of a port's containment.
    ContainmentEnd,
}

/// Configuration space of a function, as the hardware has it.
#[derive(Clone, Debug)]
pub struct Function {
    spec: Arc<FunctionSpec>,
    layout: Arc<Layout>,
    bytes: Vec<u8>,
    answers: Answers,
}

/// The enables that others act upon.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Enables {
    command: u16,
    msi: bool,
    msix: (bool, bool),
    sriov: u16,
    bridge_reset: bool,
    ats: bool,
    pri: bool,
    pasid: bool,
}

impl Function {
    /// The state after power on. A description that [`FunctionSpec::check`]
    /// refuses makes an odd device, never a panic.
    #[must_use]
    pub fn new(spec: FunctionSpec) -> Function {
        let layout = Layout::new(&spec);
        let mut bytes = layout.power_on.clone();
        bytes.resize(layout.size, 0);
        Function { spec: Arc::new(spec), layout: Arc::new(layout), bytes, answers: Answers::Yes }
    }

    /// The state after power on of a function that could be built.
    pub fn checked(spec: FunctionSpec) -> Result<Function, SpecError> {
        spec.check()?;
        let function = Function::new(spec);
        function.layout.check()?;
        Ok(function)
    }

    /// What the model said.
    #[must_use]
    pub fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    /// Bytes of configuration space: 256 or 4096.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.bytes.len() as u16
    }

    /// Reads 1, 2 or 4 aligned bytes; ones beyond the end, and if the function
    /// does not answer. One that is to be asked again reads 0001 as vendor.
    #[must_use]
    pub fn read(&self, offset: u16, len: u8) -> u32 {
        if self.answers == Answers::Yes {
            return self.peek(offset, len);
        }
        let ones = u32::MAX >> (32 - 8 * u32::from(len.clamp(1, 4)));
        match (self.answers, offset) {
            (Answers::Retry, 0) => 0xffff_0001 & ones,
            (Answers::Retry, 1) => 0xffff_ff00 & ones,
            _ => ones,
        }
    }

    /// Reads the registers whether the function answers or not: what the
    /// hardware itself goes by.
    #[must_use]
    pub fn peek(&self, offset: u16, len: u8) -> u32 {
        (0..u16::from(len.min(4))).rev().fold(0, |value, i| {
            let at = usize::from(offset.saturating_add(i));
            value << 8 | u32::from(self.bytes.get(at).copied().unwrap_or(0xff))
        })
    }

    /// Writes 1, 2 or 4 aligned bytes, as the hardware takes them. Writes
    /// beyond the end are dropped, and all if the function does not answer.
    pub fn write(&mut self, offset: u16, len: u8, value: u32) -> Vec<Effect> {
        if self.answers != Answers::Yes {
            return Vec::new();
        }
        let before = self.enables();
        let power = self.power_state();
        let first = usize::from(offset);
        let end = (first + usize::from(len.min(4))).min(self.bytes.len());
        // SR-IOV 1.1, 3.3.7: NumVFs and page size stand while VFs are enabled.
        let vfs_on = before.sriov & 1 != 0;
        for (i, at) in (first..end).enumerate() {
            let byte = (value >> (8 * i)) as u8;
            let (mut writable, clear) = self.layout.masks(at);
            if vfs_on && self.is_frozen_by_vfs(at) {
                writable = 0;
            }
            let old = self.bytes[at];
            self.bytes[at] = old & !writable & !(byte & clear) | byte & writable;
        }
        let mut effects = Vec::new();
        self.power_effects(power, &mut effects);
        self.action_bits(first, end, value, &mut effects);
        self.diff(before, &mut effects);
        effects
    }

    /// Stores 1, 2 or 4 bytes from the hardware's side: any bit takes its
    /// value. For status, error logs, link state; what software sets goes
    /// through [`write`](Function::write).
    pub fn set(&mut self, offset: u16, len: u8, value: u32) {
        for i in 0..u16::from(len.min(4)) {
            if let Some(byte) = self.bytes.get_mut(usize::from(offset.saturating_add(i))) {
                *byte = (value >> (8 * i)) as u8;
            }
        }
    }

    /// Whether it answers configuration requests.
    #[must_use]
    pub fn answers(&self) -> Answers {
        self.answers
    }

    pub(crate) fn set_answers(&mut self, answers: Answers) {
        self.answers = answers;
    }

    /// Offset of a capability.
    #[must_use]
    pub fn capability(&self, id: u8) -> Option<u16> {
        self.layout.capability(id)
    }

    /// Offset of an extended capability.
    #[must_use]
    pub fn extended_capability(&self, id: u16) -> Option<u16> {
        self.layout.extended_capability(id)
    }

    /// Standard capabilities in chain order: id, offset, length in bytes.
    pub fn capabilities(&self) -> impl Iterator<Item = (u8, u16, u16)> + '_ {
        self.layout.capabilities.iter().copied()
    }

    /// Extended capabilities in chain order: id, offset, length in bytes.
    pub fn extended_capabilities(&self) -> impl Iterator<Item = (u16, u16, u16)> + '_ {
        self.layout.extended.iter().copied()
    }

    /// Registers as after a reset of the function; what the host configured
    /// is lost (who resets saves and restores it, [`Function::save`]). Error
    /// status and the other sticky bits stay.
    pub fn reset(&mut self) {
        let layout = Arc::clone(&self.layout);
        let kinds = layout.writable.iter().zip(&layout.clear).zip(&layout.sticky).zip(&layout.power_on);
        for (byte, (((writable, clear), sticky), power_on)) in self.bytes.iter_mut().zip(kinds) {
            // What hardware set once (multifunction bit, link state, next ARI
            // function) is in no mask, and stays as well.
            let lost = (writable | clear) & !sticky;
            *byte = *byte & !lost | power_on & lost;
        }
        self.reset_answers();
    }

    /// Power state: 0 is D0, 3 is D3hot.
    #[must_use]
    pub fn power_state(&self) -> u8 {
        self.capability(cap::PM).map_or(0, |at| self.peek(at + 4, 1) as u8 & 3)
    }

    /// Sets or clears Interrupt Status: the state of the pin before Interrupt
    /// Disable.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = self.peek(cap::STATUS, 2) as u16 & !cap::STATUS_INTERRUPT;
        let bit = if pending && self.spec.interrupt_pin != 0 { cap::STATUS_INTERRUPT } else { 0 };
        self.set(cap::STATUS, 2, u32::from(status | bit));
    }

    /// Command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.peek(cap::COMMAND, 2) as u16
    }

    /// All bytes, for a dump.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which bits of the byte at `offset` take what is written, and which a
    /// written 1 clears.
    #[must_use]
    pub fn write_masks(&self, offset: u16) -> (u8, u8) {
        self.layout.masks(usize::from(offset))
    }

    fn enables(&self) -> Enables {
        let standard = |id, offset: u16| self.capability(id).map_or(0, |at| self.peek(at + offset, 2) as u16);
        let extended = |id, offset: u16| self.extended_capability(id).map_or(0, |at| self.peek(at + offset, 2) as u16);
        let msix = standard(cap::MSIX, 2);
        let bridge = self.spec.port_type.is_bridge();
        Enables {
            command: self.command(),
            msi: standard(cap::MSI, 2) & 1 != 0,
            msix: (msix & 0x8000 != 0, msix & 0x4000 != 0),
            sriov: extended(cap::EXT_SRIOV, 8),
            bridge_reset: bridge && self.peek(cap::BRIDGE_CONTROL, 2) as u16 & cap::BRIDGE_CONTROL_RESET != 0,
            ats: extended(cap::EXT_ATS, 6) & 0x8000 != 0,
            pri: extended(cap::EXT_PRI, 4) & 1 != 0,
            pasid: extended(cap::EXT_PASID, 6) & 1 != 0,
        }
    }

    /// What changed since `before`, in register order.
    fn diff(&self, before: Enables, effects: &mut Vec<Effect>) {
        let now = self.enables();
        if now == before {
            return;
        }
        let mut told = |old: bool, new: bool, effect: fn(bool) -> Effect| {
            if old != new {
                effects.push(effect(new));
            }
        };
        let bit = |e: Enables, mask: u16| e.command & mask != 0;
        told(bit(before, cap::COMMAND_IO), bit(now, cap::COMMAND_IO), Effect::Io);
        told(bit(before, cap::COMMAND_MEMORY), bit(now, cap::COMMAND_MEMORY), Effect::Memory);
        told(bit(before, cap::COMMAND_MASTER), bit(now, cap::COMMAND_MASTER), Effect::BusMaster);
        told(bit(before, cap::COMMAND_INTX_DISABLE), bit(now, cap::COMMAND_INTX_DISABLE), Effect::IntxDisable);
        told(before.bridge_reset, now.bridge_reset, Effect::SecondaryBusReset);
        told(before.msi, now.msi, Effect::Msi);
        told(before.sriov & 1 != 0, now.sriov & 1 != 0, Effect::VfEnable);
        told(before.sriov & 8 != 0, now.sriov & 8 != 0, Effect::VfMemory);
        told(before.ats, now.ats, Effect::Ats);
        told(before.pri, now.pri, Effect::PageRequests);
        told(before.pasid, now.pasid, Effect::Pasid);
        if now.msix != before.msix {
            effects.push(Effect::Msix { enable: now.msix.0, mask: now.msix.1 });
        }
    }

    /// Power states other than D0 and D3hot are not there: the write is
    /// dropped. Leaving D3hot without No_Soft_Reset resets the registers.
    fn power_effects(&mut self, from: u8, effects: &mut Vec<Effect>) {
        let Some(at) = self.capability(cap::PM) else { return };
        let to = self.power_state();
        if to == from {
            return;
        }
        if to == 1 || to == 2 {
            let rest = self.peek(at + 4, 1) & !3;
            self.set(at + 4, 1, rest | u32::from(from));
            return;
        }
        if to == 0 && !self.spec.no_soft_reset {
            self.reset();
        }
        effects.push(Effect::Power { from, to });
    }

    /// Bits that start something and read 0.
    fn action_bits(&mut self, first: usize, end: usize, value: u32, effects: &mut Vec<Effect>) {
        let written = |at: u16| {
            let at = usize::from(at);
            (first..end).contains(&at).then(|| (value >> (8 * (at - first))) as u8)
        };
        if let Some(at) = self.capability(cap::EXPRESS) {
            let control = at + 9;
            if written(control).is_some_and(|byte| byte & 0x80 != 0) && self.write_masks(control).0 & 0x80 != 0 {
                self.reset();
                effects.push(Effect::FunctionLevelReset);
            }
            // Retrain link.
            let link = self.peek(at + 0x10, 1);
            self.set(at + 0x10, 1, link & !0x20);
        }
        if let Some(at) = self.capability(cap::AF)
            && written(at + 4).is_some_and(|byte| byte & 1 != 0)
        {
            self.reset();
            effects.push(Effect::FunctionLevelReset);
        }
        if let Some(at) = self.extended_capability(cap::EXT_PRI)
            && written(at + 4).is_some_and(|byte| byte & 2 != 0)
        {
            let control = self.peek(at + 4, 1);
            self.set(at + 4, 1, control & !2);
            // Reset has a meaning only while the interface is off (ATS 1.1, 4.4.1).
            if control & 1 == 0 {
                effects.push(Effect::PageRequestReset);
            }
        }
        if let Some(at) = self.extended_capability(cap::EXT_DPC) {
            if written(at + dpc::CONTROL).is_some_and(|byte| u32::from(byte) & dpc::CONTROL_TRIGGER != 0) {
                let control = self.peek(at + dpc::CONTROL, 1);
                self.set(at + dpc::CONTROL, 1, control & !dpc::CONTROL_TRIGGER);
                effects.push(Effect::ContainmentTrigger);
            }
            if written(at + dpc::STATUS).is_some_and(|byte| u32::from(byte) & dpc::STATUS_TRIGGER != 0) {
                effects.push(Effect::ContainmentEnd);
            }
        }
        if let Some(at) = self.capability(cap::VPD)
            && written(at + 3).is_some()
        {
            self.vpd_access(at);
        }
    }

    /// The high byte of the address starts a transfer: F clear reads and sets
    /// F when done, F set writes and clears it. Writes leave the data as it is.
    fn vpd_access(&mut self, at: u16) {
        let address = self.peek(at + 2, 2);
        let place = (address & 0x7ffc) as usize;
        if address & 0x8000 == 0 {
            let bytes = (0..4).map(|i| self.spec.vpd.get(place + i).copied().unwrap_or(0));
            let data = bytes.rev().fold(0, |value, byte| value << 8 | u32::from(byte));
            self.set(at + 4, 4, data);
        }
        self.set(at + 2, 2, address ^ 0x8000);
    }

    fn is_frozen_by_vfs(&self, at: usize) -> bool {
        self.extended_capability(cap::EXT_SRIOV).is_some_and(|sriov| {
            let offset = at.wrapping_sub(usize::from(sriov));
            (0x10..0x12).contains(&offset) || (0x20..0x24).contains(&offset)
        })
    }

    /// The hardware's bits of the page request status register (FAULT-4.3).
    pub fn set_page_request_status(&mut self, status: u16) {
        if let Some(at) = self.extended_capability(cap::EXT_PRI) {
            self.set(at + 6, 2, status.into());
        }
    }

    /// Registers that hardware fills and a reset empties.
    fn reset_answers(&mut self) {
        self.set_interrupt_status(false);
        if let Some(at) = self.capability(cap::MSI) {
            self.set(at + 20, 4, 0);
        }
        if let Some(at) = self.extended_capability(cap::EXT_PRI) {
            let status = self.peek(at + 6, 2);
            self.set(at + 6, 2, status & 0x8000 | 0x0100);
        }
    }
}
