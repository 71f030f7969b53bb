// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Power states, and the low power that a program may ask for (API-199 to
//! API-205, API-248, API-249).

use std::sync::Arc;

use ::device::{Board, Event};
use pci::{SavedConfig, cap};
use uapi::Errno;

use super::state::Device;

/// D3hot.
const D3: u8 = 3;

/// Whether a program has let the device be powered down.
#[derive(Debug, Default)]
pub(super) struct LowPower {
    engaged: bool,
    /// Signalled when the device wakes; then low power is left.
    wakeup: Option<Arc<dyn Event>>,
    /// The device is powered down.
    suspended: Option<Suspended>,
}

#[derive(Debug)]
struct Suspended {
    saved: SavedConfig,
    /// The host masked INTx meanwhile (API-202).
    masked_intx: bool,
}

impl LowPower {
    pub(super) fn engaged(&self) -> bool {
        self.engaged
    }
}

impl Device {
    /// Changes the power state as Linux's PCI core would: `EBUSY` for a
    /// function whose VFs are enabled, `EINVAL` for a way up that is not to
    /// D0, `EIO` for a state that the function lacks.
    pub(super) fn set_power_state(&mut self, board: &mut Board, to: u8, now: u64) -> Result<(), Errno> {
        let function = board.fabric.function(self.address).ok_or(Errno::ENODEV)?;
        let from = function.power_state();
        let vfs = function.extended_capability(cap::EXT_SRIOV).is_some_and(|at| function.read(at + 8, 2) & 1 != 0);
        if vfs && to != 0 {
            return Err(Errno::EBUSY);
        }
        if to == from {
            return Ok(());
        }
        let pm = function.capability(cap::PM).ok_or(Errno::EIO)?;
        if to != 0 && from > to {
            return Err(Errno::EINVAL);
        }
        let support = function.read(pm + 2, 2);
        if to == 1 && support & 0x200 == 0 || to == 2 && support & 0x400 == 0 {
            return Err(Errno::EIO);
        }
        let loses_state = function.read(pm + 4, 2) & 8 == 0;
        if to == D3 && loses_state {
            self.before_d3 = Some(function.save());
        }
        if to == D3 {
            self.zap(now);
        }
        self.write_power_state(board, pm, to, now);
        if to == 0
            && from == D3
            && loses_state
            && let Some(saved) = self.before_d3.take()
        {
            self.restore(board, &saved, now);
        }
        self.sync(board, now);
        tracing::debug!(name: "vfio.power_state", device = %self.address, from, to);
        Ok(())
    }

    fn write_power_state(&mut self, board: &mut Board, pm: u16, to: u8, now: u64) {
        let control = self.hw_read(board, pm + 4, 2) & !3;
        self.hw_write(board, pm + 4, 2, control | u32::from(to), now);
    }

    /// Writes a saved state back.
    pub(super) fn restore(&mut self, board: &mut Board, saved: &SavedConfig, now: u64) {
        if let Some(function) = board.fabric.function_mut(self.address) {
            let effects = function.restore(saved);
            self.effects(board, &effects, now);
        }
    }

    /// LOW_POWER_ENTRY; `EINVAL` if it was entered already (API-199).
    pub(super) fn enter_low_power(&mut self, wakeup: Option<Arc<dyn Event>>, now: u64) -> Result<(), Errno> {
        self.zap(now);
        if self.low_power.engaged {
            return Err(Errno::EINVAL);
        }
        self.low_power.engaged = true;
        self.low_power.wakeup = wakeup;
        Ok(())
    }

    /// LOW_POWER_EXIT, or the last close; nothing if it was not entered
    /// (API-201). The wake-up that this is itself is not told.
    pub(super) fn exit_low_power(&mut self, board: &mut Board, now: u64) {
        self.low_power.engaged = false;
        self.low_power.wakeup = None;
        self.wake(board, now);
        self.sync(board, now);
    }

    /// Before each access through a file: the device is awake for its time. A
    /// wake-up eventfd is signalled and ends low power (API-200).
    #[inline]
    pub(super) fn wake(&mut self, board: &mut Board, now: u64) {
        if self.low_power.suspended.is_some() {
            self.resume(board, now);
        }
    }

    /// After each access through a file: a device in low power powers down.
    #[inline]
    pub(super) fn idle(&mut self, board: &mut Board, now: u64) {
        if self.low_power.engaged && self.low_power.suspended.is_none() && self.may_suspend() {
            self.suspend(board, now);
        }
    }

    fn suspend(&mut self, board: &mut Board, now: u64) {
        // A D3hot of the program's own is left first, so that its state is kept.
        let _ = self.set_power_state(board, 0, now);
        let masked_intx = self.endpoint.interrupts.mask_intx();
        let Some(function) = board.fabric.function(self.address) else { return };
        let saved = function.save();
        if let Some(pm) = function.capability(cap::PM) {
            self.write_power_state(board, pm, D3, now);
        }
        self.low_power.suspended = Some(Suspended { saved, masked_intx });
        tracing::debug!(name: "vfio.suspend", device = %self.address);
    }

    fn resume(&mut self, board: &mut Board, now: u64) {
        let Some(Suspended { saved, masked_intx }) = self.low_power.suspended.take() else { return };
        if let Some(pm) = board.fabric.function(self.address).and_then(|f| f.capability(cap::PM)) {
            self.write_power_state(board, pm, 0, now);
            self.restore(board, &saved, now);
        }
        if let Some(wakeup) = self.low_power.wakeup.take() {
            wakeup.signal();
            self.low_power.engaged = false;
        }
        if masked_intx {
            self.endpoint.interrupts.unmask_intx();
        }
        self.sync(board, now);
        tracing::debug!(name: "vfio.resume", device = %self.address);
    }
}
