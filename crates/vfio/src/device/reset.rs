// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Function reset: by VFIO_DEVICE_RESET, at open and close, and by the reset
//! bits of configuration space.

use ::device::{Board, ResetKind};
use pci::{ResetMethod, cap};
use uapi::Errno;

use super::state::Device;

impl Device {
    /// VFIO_DEVICE_RESET: `EINVAL` if no method was proven at open, `EAGAIN`
    /// while somebody holds the device's lock, `ENOTTY` if none works now
    /// (API-179). The shadow and the interrupts stay as they
    /// are (API-181, API-182).
    pub(super) fn reset(&mut self, board: &mut Board, now: u64) -> Result<(), Errno> {
        if !self.reset_works {
            return Err(Errno::EINVAL);
        }
        self.zap(now);
        // Refused only while VFs are enabled; the reset goes on.
        let _ = self.set_power_state(board, 0, now);
        self.reset_function(board, now)
    }

    /// A reset that the program asked for in configuration space; whether it
    /// worked is not told (ERR-082).
    pub(super) fn guest_reset(&mut self, board: &mut Board, now: u64) {
        self.zap(now);
        let _ = self.set_power_state(board, 0, now);
        let _ = self.reset_function(board, now);
    }

    /// Saves, resets by the first method that works, restores (ERR-075).
    pub(super) fn reset_function(&mut self, board: &mut Board, now: u64) -> Result<(), Errno> {
        if board.is_locked(self.address) {
            self.sync(board, now);
            return Err(Errno::EAGAIN);
        }
        let saved = board.fabric.function(self.address).ok_or(Errno::ENODEV)?.save();
        self.zap(now);
        self.hw_write(board, cap::COMMAND, 2, u32::from(cap::COMMAND_INTX_DISABLE), now);
        let result = self.try_methods(board, now);
        self.restore(board, &saved, now);
        self.sync(board, now);
        tracing::info!(name: "vfio.function_reset", device = %self.address, works = result.is_ok());
        result
    }

    /// The methods of the function in Linux's order; `ENOTTY` if there is none
    /// (ERR-068, ERR-069).
    pub(super) fn try_methods(&mut self, board: &mut Board, now: u64) -> Result<(), Errno> {
        let method = *board.fabric.reset_methods(self.address).first().ok_or(Errno::ENOTTY)?;
        let function = board.fabric.function_mut(self.address).ok_or(Errno::ENODEV)?;
        match method {
            ResetMethod::Flr => {
                let at = function.capability(cap::EXPRESS).ok_or(Errno::ENOTTY)? + 8;
                let control = function.read(at, 2);
                self.hw_write(board, at, 2, control | 0x8000, now);
            }
            ResetMethod::AfFlr => {
                let at = function.capability(cap::AF).ok_or(Errno::ENOTTY)?;
                self.hw_write(board, at + 4, 1, 1, now);
            }
            ResetMethod::Pm => {
                let at = function.capability(cap::PM).ok_or(Errno::ENOTTY)? + 4;
                let control = function.read(at, 2) & !3;
                self.hw_write(board, at, 2, control | 3, now);
                self.hw_write(board, at, 2, control, now);
            }
            ResetMethod::DeviceSpecific => {
                function.reset();
                self.after_reset(board, ResetKind::FunctionLevel, now);
            }
            // It has the slot or the bus for itself.
            ResetMethod::Bus => {
                function.reset();
                self.after_reset(board, ResetKind::Bus, now);
            }
        }
        tracing::debug!(name: "vfio.reset_method", device = %self.address, %method);
        Ok(())
    }

    /// The registers were reset from outside: what they allowed is shut, then
    /// the model is reset.
    pub(super) fn after_reset(&mut self, board: &Board, kind: ResetKind, now: u64) {
        self.sync(board, now);
        self.follow_messages(board);
        self.reset_model(kind, now);
    }
}
