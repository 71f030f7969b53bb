// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes to configuration space: the bits first, then what a register sets
//! off.

use ::device::Board;
use pci::{Function, cap};

use super::super::state::Device;
use super::{COMMAND, Config, Rule};

/// Bits of a piece: virtual, writable.
fn bits(config: &Config, pos: usize, len: usize) -> (u32, u32) {
    let cells = config.map.cells.iter().skip(pos).take(len).enumerate();
    cells.fold((0, 0), |(virt, write), (i, cell)| {
        (virt | u32::from(cell.virt) << (8 * i), write | u32::from(cell.write) << (8 * i))
    })
}

impl Device {
    /// Writes a piece. What the hardware refuses is not told (API-249,
    /// ERR-082).
    pub(in super::super) fn config_write(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, now: u64) {
        let start = self.config.map.cells.get(pos).map_or(pos, |cell| usize::from(cell.start));
        let offset = pos - start;
        match self.config.rule(pos) {
            Rule::ReadOnly => {}
            Rule::Raw | Rule::Vendor => self.hw_write(board, pos as u16, len as u8, value, now),
            Rule::Bits => self.write_bits(board, pos, len, value, now),
            Rule::Header => self.write_header(board, pos, len, value, now),
            Rule::Power => {
                self.write_bits(board, pos, len, value, now);
                if offset == 4 {
                    // Refusals are not told (API-249).
                    let _ = self.set_power_state(board, value as u8 & 3, now);
                }
            }
            Rule::Vpd => self.write_vpd(board, pos, len, value, start, now),
            Rule::Express => self.write_express(board, pos, len, value, start, now),
            Rule::AdvancedFeatures => {
                self.write_bits(board, pos, len, value, now);
                let control = self.config.shadow(start + 4, 1);
                if control & 1 != 0 {
                    self.config.set_shadow(start + 4, 1, control & !1);
                    let capabilities = self.hw_read(board, start as u16 + 3, 1);
                    // Transactions pending and function reset (API-257).
                    if capabilities & 3 == 3 {
                        self.guest_reset(board, now);
                    }
                }
            }
            Rule::Msi => self.write_msi(board, pos, len, value, start, now),
        }
    }

    /// Writable bits to the shadow or to the hardware; bits that may not be
    /// written go back to the hardware as they are read (API-239, API-256).
    fn write_bits(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, now: u64) {
        let (virt, write) = bits(&self.config, pos, len);
        let shadow = write & virt;
        if shadow != 0 {
            let kept = self.config.shadow(pos, len) & !shadow;
            self.config.set_shadow(pos, len, kept | value & shadow);
        }
        let hardware = write & !virt;
        if hardware != 0 {
            let kept = self.hw_read(board, pos as u16, len as u8) & !hardware;
            self.hw_write(board, pos as u16, len as u8, kept | value & hardware, now);
        }
    }

    fn write_header(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, now: u64) {
        if pos == COMMAND {
            self.before_command(board, value, now);
        }
        self.write_bits(board, pos, len, value, now);
        if pos == COMMAND {
            let mirrored = u32::from(cap::COMMAND_MEMORY | cap::COMMAND_IO);
            let kept = self.config.command() & !mirrored;
            self.config.set_shadow(COMMAND, 2, kept | value & mirrored);
            self.sync(board, now);
        }
        if (COMMAND..COMMAND + 2).contains(&pos) {
            let disabled = self.config.intx_disabled();
            if disabled != self.intx_disabled {
                self.intx_disabled = disabled;
                self.endpoint.interrupts.set_intx_disabled(disabled);
                self.follow_intx_disable(board, disabled, now);
            }
        }
        if (0x10..0x28).contains(&pos) || (0x30..0x34).contains(&pos) {
            self.config.fix_bars();
        }
    }

    /// Clearing memory enable takes the mapped BARs away first; setting what
    /// is set already may show that a reset went by unseen (API-236, API-238).
    fn before_command(&mut self, board: &mut Board, value: u32, now: u64) {
        let new = value as u16;
        if new & cap::COMMAND_MEMORY == 0 {
            self.zap(now);
        }
        let Some(function) = board.fabric.function(self.address) else { return };
        let (shown, physical) = (self.config.command() as u16, function.command());
        let lost = |bit: u16| new & shown & !physical & bit != 0;
        let decoding = if self.config.no_command_memory { false } else { lost(cap::COMMAND_MEMORY) };
        if decoding || lost(cap::COMMAND_IO) || self.config.bars_lost(function) {
            tracing::info!(name: "vfio.bar_restore", device = %self.address);
            for (at, bar) in self.config.physical_bars() {
                self.hw_write(board, at, 4, bar, now);
            }
        }
    }

    /// Outside INTx mode the hardware's bit follows the program's.
    fn follow_intx_disable(&mut self, board: &mut Board, disabled: bool, now: u64) {
        if self.intx_maskable && self.endpoint.interrupts.mode() != ::device::Mode::Intx {
            self.set_intx_disable(board, disabled, now);
        }
    }

    /// The high byte of the address starts an access to the host's VPD; the
    /// flag flips only if that works (API-251).
    fn write_vpd(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, start: usize, now: u64) {
        self.write_bits(board, pos, len, value, now);
        let flag = start + 3;
        if !(pos..pos + len).contains(&flag) {
            return;
        }
        let address = self.config.shadow(start + 2, 2);
        let (at, write) = (start as u16, address & 0x8000 != 0);
        // The host walks the data to know its end.
        let known = board.fabric.function(self.address).map_or(0, |f| f.spec().vpd.len() as u32);
        if address & 0x7fff >= known {
            return;
        }
        if write {
            let data = self.config.shadow(start + 4, 4);
            self.hw_write(board, at + 4, 4, data, now);
        }
        self.hw_write(board, at + 2, 2, address, now);
        if self.hw_read(board, at + 2, 2) & 0x8000 == address & 0x8000 {
            return;
        }
        if !write {
            let data = self.hw_read(board, at + 4, 4);
            self.config.set_shadow(start + 4, 4, data);
        }
        self.config.set_shadow(start + 2, 2, address ^ 0x8000);
    }

    /// Function reset and read request size (API-255).
    fn write_express(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, start: usize, now: u64) {
        let control = start + 8;
        let request_size = |control: u32| control & 0x7000;
        let before = request_size(self.config.shadow(control, 2));
        self.write_bits(board, pos, len, value, now);
        let written = self.config.shadow(control, 2);
        if written & 0x8000 != 0 {
            self.config.set_shadow(control, 2, written & !0x8000);
            if self.hw_read(board, start as u16 + 4, 4) & 1 << 28 != 0 {
                self.guest_reset(board, now);
            }
        }
        if request_size(written) != before {
            let physical = self.hw_read(board, control as u16, 2);
            let payload = physical >> 5 & 7;
            // Encodings above 4096 bytes are reserved; Linux refuses them.
            let size = (request_size(written) >> 12).max(payload);
            if size <= 5 {
                self.hw_write(board, control as u16, 2, physical & !0x7000 | size << 12, now);
            }
        }
    }

    /// The enable bit sticks only while MSI is on through SET_IRQS, the number
    /// of messages is what that allocated at most (API-252).
    fn write_msi(&mut self, board: &mut Board, pos: usize, len: usize, value: u32, start: usize, now: u64) {
        self.write_bits(board, pos, len, value, now);
        self.follow_msi_mask(board);
        let control = start + 2;
        if pos > control || pos + len < control {
            return;
        }
        let mut flags = self.config.shadow(control, 2);
        if self.endpoint.interrupts.mode() != ::device::Mode::Msi {
            flags &= !1;
        }
        let granted = u32::from(self.msi_granted);
        if flags >> 4 & 7 > granted {
            flags = flags & !0x70 | granted << 4;
        }
        self.config.set_shadow(control, 2, flags);
        self.hw_write(board, control as u16, 2, flags, now);
    }

    /// Reads the hardware.
    pub(in super::super) fn hw_read(&self, board: &Board, pos: u16, len: u8) -> u32 {
        board.fabric.function(self.address).map_or(u32::MAX >> (32 - 8 * u32::from(len)), |f| f.read(pos, len))
    }

    /// Sets or clears the hardware's INTx disable.
    pub(in super::super) fn set_intx_disable(&mut self, board: &mut Board, disable: bool, now: u64) {
        let command = self.hw_read(board, cap::COMMAND, 2) as u16;
        let bit = cap::COMMAND_INTX_DISABLE;
        let wanted = if disable { command | bit } else { command & !bit };
        if wanted != command {
            self.hw_write(board, cap::COMMAND, 2, u32::from(wanted), now);
        }
    }

    /// The pending bits of MSI as they are now.
    fn show_msi_pending(&self, function: &mut Function) {
        let Some(at) = function.capability(cap::MSI) else { return };
        let control = function.read(at + 2, 2);
        if control & 0x100 != 0 {
            let register = at + if control & 0x80 != 0 { 20 } else { 16 };
            let interrupts = &self.endpoint.interrupts;
            let is_pending = |vector: &u16| interrupts.mode() == ::device::Mode::Msi && interrupts.pending(*vector);
            let bits = (0..32).filter(is_pending).fold(0, |bits, vector| bits | 1 << vector);
            function.set(register, 4, bits);
        }
    }

    /// Reads a piece as the program sees it.
    #[inline]
    pub(in super::super) fn config_read(&self, function: &mut Function, pos: usize, len: usize) -> u32 {
        if pos / 4 == COMMAND / 4 {
            function.set_interrupt_status(self.endpoint.interrupts.pin());
        }
        if self.config.rule(pos) == Rule::Msi {
            self.show_msi_pending(function);
        }
        self.config.read(function, pos, len)
    }
}
