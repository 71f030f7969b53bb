// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stores to registers, whether trapped or made through a mapping.
//!
//! `words` is what a program may read; the mapped page shows a copy. A word
//! that differs there was stored by the program.

use device::Io;

use super::Accelerator;
use super::config::Config;
use super::pages::Pages;
use super::queue::Answer;
use super::spec::{
    CMD, CMDCAP, CMDSTS, ENGCAP, GENCAP, GENCFG, GENCFG_MASK, GENCTRL, GENSTS, GROUP_BYTES, GROUP_ENGINES, GROUP_FLAGS,
    GRPCAP, GRPCFG, INTCAUSE, MSIX_PERM, MSIX_TABLE, OFFSETS, OPCAP, Refusal, ResetType, SWERROR, State, VERSION,
    VERSION_1, WQCAP, WQCFG, cause, command, gencap, genctrl, opcode, permission, swerror, wqcap, wqcfg,
};
use super::spec::{Descriptor, WRITE_FAULT};

/// Bytes of registers; behind them BAR 0 reads as zero.
pub(super) const BYTES: u64 = MSIX_TABLE as u64 + 16 * (super::config::MAX_QUEUES as u64 + 1);

/// A software error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SoftwareError {
    pub(super) code: u8,
    pub(super) queue: Option<usize>,
    pub(super) descriptor: Option<Descriptor>,
    /// Its index in a batch.
    pub(super) batch: Option<u32>,
    pub(super) flags: u32,
    pub(super) address: u64,
}

impl From<Refusal> for SoftwareError {
    fn from(refusal: Refusal) -> SoftwareError {
        SoftwareError { code: refusal as u8, ..SoftwareError::default() }
    }
}

/// Operations of the device, a bit each.
pub(super) fn operations() -> u64 {
    opcode::ALL.iter().fold(0, |bits, operation| bits | 1 << operation)
}

/// What can be set of a word of a queue's configuration.
pub(super) fn queue_mask(word: usize) -> u32 {
    let operations = [operations() as u32, (operations() >> 32) as u32];
    match wqcfg::MASKS.get(word) {
        Some(mask) => *mask,
        None => operations.get(word - wqcfg::OPERATIONS).copied().unwrap_or(0),
    }
}

impl Config {
    /// Bytes of a queue's configuration.
    pub(super) fn queue_bytes(&self) -> u64 {
        if self.operations { 64 } else { 32 }
    }

    pub(super) fn queue_word(&self, queue: usize, word: usize) -> u64 {
        WQCFG + queue as u64 * self.queue_bytes() + 4 * word as u64
    }

    /// What can be set of a word of a group's configuration.
    pub(super) fn group_mask(&self, offset: u64) -> u32 {
        let below = |bits: u8| (1_u64 << bits.min(63)) - 1;
        match offset % GROUP_BYTES {
            0 => below(self.queues) as u32,
            GROUP_ENGINES => below(self.engines) as u32,
            GROUP_FLAGS => 0xff0_ffbf,
            at if at == GROUP_FLAGS + 4 => 0x33,
            _ => 0,
        }
    }
}

impl Accelerator {
    /// A register of 32 bits.
    pub(super) fn word(&self, offset: u64) -> u32 {
        self.words.get((offset / 4) as usize).copied().unwrap_or(0)
    }

    pub(super) fn long(&self, offset: u64) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }

    fn set_long(&mut self, io: &Io<'_>, offset: u64, value: u64) {
        self.set(io, offset, value as u32);
        self.set(io, offset + 4, (value >> 32) as u32);
    }

    /// Changes a register and shows it.
    pub(super) fn set(&mut self, io: &Io<'_>, offset: u64, value: u32) {
        if let Some(word) = self.words.get_mut((offset / 4) as usize) {
            *word = value;
        }
        Pages::of(io, super::spec::REGISTER_BAR).store(offset, value);
    }

    /// A word of a queue's configuration.
    pub(super) fn wqcfg(&self, queue: usize, word: usize) -> u32 {
        self.word(self.config.queue_word(queue, word))
    }

    /// Operations that a queue takes, a bit each.
    pub(super) fn queue_operations(&self, queue: usize) -> u64 {
        if !self.config.operations {
            return operations();
        }
        self.long(self.config.queue_word(queue, wqcfg::OPERATIONS))
    }

    /// Words of a group, 64 bits each: queues (of which there are fewer than
    /// 64) and engines.
    pub(super) fn group(&self, group: u8) -> (u64, u64) {
        let at = GRPCFG + u64::from(group) * GROUP_BYTES;
        (self.long(at), self.long(at + GROUP_ENGINES))
    }

    /// Shows occupancy and state of a queue.
    pub(super) fn show_queue(&mut self, io: &Io<'_>, queue: usize) {
        let Some(state) = self.queues.get(queue) else { return };
        let value = state.occupancy() as u32 | if state.enabled { wqcfg::ENABLED } else { 0 };
        let offset = self.config.queue_word(queue, wqcfg::STATE);
        if self.word(offset) != value {
            self.set(io, offset, value);
        }
    }

    /// Every register as after a reset.
    pub(super) fn reset_registers(&mut self, kind: ResetType) {
        let config = self.config;
        self.words.fill(0);
        let mut set = |offset: u64, value: u64| {
            for (word, half) in [(offset / 4, value as u32), (offset / 4 + 1, (value >> 32) as u32)] {
                if let Some(word) = self.words.get_mut(word as usize) {
                    *word = half;
                }
            }
        };
        set(VERSION, VERSION_1.into());
        let general = gencap::BLOCK_ON_FAULT
            | gencap::OVERLAPPING_COPY
            | gencap::CACHE_CONTROL_MEMORY
            | gencap::CACHE_CONTROL_CACHE
            | gencap::COMMAND_CAPABILITIES
            | gencap::DESTINATION_READBACK
            | gencap::CONFIGURABLE;
        let limits =
            u64::from(config.max_transfer) << gencap::MAX_TRANSFER | u64::from(config.max_batch) << gencap::MAX_BATCH;
        set(GENCAP, general | limits);
        let (bytes, mode) = if config.operations { (1_u64 << wqcap::CONFIG_BYTES, wqcap::OPERATIONS) } else { (0, 0) };
        let offered = wqcap::SHARED | wqcap::DEDICATED | wqcap::ATS | wqcap::PRIORITY | wqcap::OCCUPANCY;
        let queues = u64::from(config.queues) << wqcap::QUEUES;
        set(WQCAP, u64::from(config.entries) | queues | bytes | mode | offered);
        set(GRPCAP, config.engines.into());
        set(ENGCAP, config.engines.into());
        set(OPCAP, operations());
        set(OFFSETS, (GRPCFG / 0x100) | ((WQCFG / 0x100) << 16) | ((MSIX_PERM / 0x100) << 32));
        set(GENSTS, (kind as u64) << 2);
        set(CMDCAP, self.config.commands().into());
        for queue in 0..usize::from(config.queues) {
            if config.operations {
                set(config.queue_word(queue, wqcfg::OPERATIONS), operations());
            }
        }
        // The host programs the vectors of a passed-through device itself;
        // here they stay masked.
        for vector in 0..u64::from(config.vectors()) {
            set(u64::from(MSIX_TABLE) + 16 * vector + 12, 1);
        }
    }

    /// Stores every register to a page that has just appeared.
    pub(super) fn publish_registers(&self, io: &Io<'_>) {
        let pages = Pages::of(io, super::spec::REGISTER_BAR);
        for (offset, word) in (0..).step_by(4).zip(&self.words) {
            pages.store(offset, *word);
        }
    }

    /// Takes what the program has stored to the mapped page since last time.
    /// `quickly`: only what matters while the device works.
    pub(super) fn scan_registers(&mut self, io: &Io<'_>, quickly: bool) {
        let pages = Pages::of(io, super::spec::REGISTER_BAR);
        // The command first: it is stored after what it is about.
        let Some(command) = pages.load(CMD) else { return };
        if !quickly || command != 0 || self.state() != State::Enabled {
            let config = &self.config;
            let groups = GRPCFG..GRPCFG + u64::from(config.engines) * GROUP_BYTES;
            let queues = WQCFG..WQCFG + u64::from(config.queues) * config.queue_bytes();
            let permissions = MSIX_PERM..MSIX_PERM + 8 * u64::from(config.vectors());
            let single = [GENCFG..GENCFG + 4, GENCTRL..GENCTRL + 4];
            for range in single.into_iter().chain([groups, queues, permissions]) {
                range.step_by(4).for_each(|offset| self.scan_word(io, pages, offset));
            }
        }
        self.scan_word(io, pages, INTCAUSE);
        self.scan_word(io, pages, SWERROR);
        if command != 0 {
            pages.replace(CMD, command, 0);
            self.store_word(io, CMD, command);
        }
    }

    fn scan_word(&mut self, io: &Io<'_>, pages: Pages<'_>, offset: u64) {
        if let Some(value) = pages.load(offset).filter(|value| *value != self.word(offset)) {
            self.store_word(io, offset, value);
            pages.replace(offset, value, self.word(offset));
        }
    }

    /// A store of an aligned word.
    fn store_word(&mut self, io: &Io<'_>, offset: u64, value: u32) {
        let groups = GRPCFG + u64::from(self.config.engines) * GROUP_BYTES;
        let queues = WQCFG + u64::from(self.config.queues) * self.config.queue_bytes();
        let permissions = MSIX_PERM + 8 * u64::from(self.config.vectors());
        match offset {
            GENCFG => self.set(io, offset, value & GENCFG_MASK),
            GENCTRL => self.set(io, offset, value & genctrl::MASK),
            INTCAUSE => self.set(io, offset, self.word(offset) & !value),
            CMD => self.command(io, value),
            SWERROR => {
                let acknowledged = u64::from(value) & (swerror::VALID | swerror::OVERFLOW);
                if acknowledged & swerror::VALID != 0 {
                    (0..4).for_each(|n| self.set_long(io, SWERROR + 8 * n, 0));
                } else {
                    self.set_long(io, SWERROR, self.long(SWERROR) & !acknowledged);
                }
            }
            GRPCFG.. if offset < groups => self.store_group(io, offset, value),
            MSIX_PERM.. if offset < permissions => self.store_permission(io, offset, value),
            WQCFG.. if offset < queues => self.store_wqcfg(io, offset, value),
            _ => {}
        }
    }

    fn store_permission(&mut self, io: &Io<'_>, offset: u64, value: u32) {
        if offset.is_multiple_of(8) && self.state() == State::Disabled {
            self.set(io, offset, value & permission::MASK);
        }
    }

    fn store_group(&mut self, io: &Io<'_>, offset: u64, value: u32) {
        if self.state() != State::Disabled {
            return;
        }
        self.set(io, offset, value & self.config.group_mask(offset));
    }

    fn store_wqcfg(&mut self, io: &Io<'_>, offset: u64, value: u32) {
        let bytes = self.config.queue_bytes();
        let queue = ((offset - WQCFG) / bytes) as usize;
        let word = ((offset - WQCFG) % bytes / 4) as usize;
        if self.queues.get(queue).is_none_or(|queue| queue.enabled) {
            return;
        }
        if word == wqcfg::SIZE && self.state() != State::Disabled {
            return;
        }
        if word != wqcfg::STATE {
            self.set(io, offset, value & queue_mask(word));
        }
    }

    /// A trapped load.
    pub(super) fn load_registers(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = (self.word(at & !3) >> (8 * (at & 3))) as u8;
        }
    }

    /// A trapped store. One of fewer than four bytes keeps the rest of a word
    /// that can be kept.
    pub(super) fn store_registers(&mut self, io: &Io<'_>, offset: u64, data: &[u8]) {
        if data.len() < 4 {
            let (word, shift) = (offset & !3, 8 * (offset & 3) as u32);
            let bytes = data.iter().rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
            let own = ((1_u64 << (8 * data.len())) - 1) as u32;
            let keeps = !matches!(word, INTCAUSE | CMD | SWERROR);
            let old = if keeps { self.word(word) & !(own << shift) } else { 0 };
            return self.store_word(io, word, old | bytes << shift);
        }
        for (at, bytes) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = bytes.iter().rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
            self.store_word(io, at, value);
        }
    }

    /// An error that no completion record tells of.
    pub(super) fn software_error(&mut self, io: &Io<'_>, error: &SoftwareError) {
        tracing::debug!(target: "vfuse::dsa", ?error, "software error");
        let first = self.long(SWERROR);
        if first & swerror::VALID != 0 {
            self.set_long(io, SWERROR, first | swerror::OVERFLOW);
        } else {
            let mut value = swerror::VALID | u64::from(error.code & !WRITE_FAULT) << 8;
            if error.code & WRITE_FAULT != 0 {
                value |= swerror::WRITE;
            }
            if let Some(queue) = error.queue {
                value |= swerror::QUEUE | (queue as u64) << 16;
            }
            if let Some(descriptor) = &error.descriptor {
                value |= swerror::DESCRIPTOR
                    | u64::from(descriptor.opcode()) << 32
                    | u64::from(descriptor.pasid & 0xf_ffff) << 40;
            }
            if error.batch.is_some() {
                value |= swerror::BATCH;
            }
            let batch = u64::from(error.batch.unwrap_or(0)) & 0xffff;
            self.set_long(io, SWERROR + 8, batch | u64::from(error.flags) << 32);
            self.set_long(io, SWERROR + 16, error.address);
            self.set_long(io, SWERROR, value);
        }
        if self.word(GENCTRL) & genctrl::ERROR_INTERRUPT != 0 {
            self.interrupt_cause(io, cause::ERROR);
        }
    }

    /// Signals vector 0 and says why.
    pub(super) fn interrupt_cause(&mut self, io: &Io<'_>, cause: u32) {
        self.set(io, INTCAUSE, self.word(INTCAUSE) | cause);
        self.message(io, 0);
    }

    /// Signals a vector.
    pub(super) fn message(&mut self, io: &Io<'_>, vector: u16) {
        self.signalled |= 1 << vector.min(31);
        io.interrupts.message(vector);
    }

    /// State of the device.
    pub(super) fn state(&self) -> State {
        match self.word(GENSTS) & 3 {
            0 => State::Disabled,
            1 => State::Enabled,
            _ => State::Draining,
        }
    }

    pub(super) fn set_state(&mut self, io: &Io<'_>, state: State) {
        self.set(io, GENSTS, self.word(GENSTS) & !3 | state as u32);
    }

    /// What a load from a portal gives.
    pub(super) fn answer(&self, queue: usize) -> Answer {
        self.queues.get(queue).map_or(Answer::Accepted, |queue| queue.answer)
    }

    /// Shows what a command has come to, or that it is under way.
    pub(super) fn show_command(&mut self, io: &Io<'_>, status: u32) {
        self.set(io, CMDSTS, status);
    }
}

impl Config {
    /// Commands of the device, a bit each.
    pub(super) fn commands(&self) -> u32 {
        let last = if self.handles { command::RELEASE_HANDLE } else { command::ABORT_PASID };
        (2 << last) - 2
    }
}
