// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Function reset: by VFIO_DEVICE_RESET, at open and close, by the reset bits
//! of configuration space, and by the host (`reset` of sysfs).

use ::device::{Board, ResetKind};
use pci::{Address, Effect, ResetMethod, cap};
use uapi::Errno;

use super::Devices;
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
        if !board.is_locked(self.address) {
            self.started = self.start_slow(board, now);
        }
        if self.started.is_some() {
            return Ok(());
        }
        self.zap(now);
        // Refused only while VFs are enabled; the reset goes on.
        let _ = self.set_power_state(board, 0, now);
        self.reset_function(board, now)?;
        self.user_has_reset(false, board, now);
        Ok(())
    }

    /// A reset that the program asked for in configuration space; whether it
    /// worked is not told (ERR-082).
    pub(super) fn guest_reset(&mut self, board: &mut Board, now: u64) {
        if !board.is_locked(self.address) {
            self.started = self.start_slow(board, now);
        }
        if self.started.is_none() {
            self.zap(now);
            let _ = self.set_power_state(board, 0, now);
            let _ = self.reset_function(board, now);
        }
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
        if result.is_ok() {
            self.migration_reset(now); // MIG-072
        }
        self.restore(board, &saved, now);
        self.sync(board, now);
        tracing::info!(name: "vfio.function_reset", device = %self.address, works = result.is_ok());
        result
    }

    /// The methods of the function in their order; `ENOTTY` if none works
    /// (ERR-068, ERR-069).
    pub(super) fn try_methods(&mut self, board: &mut Board, now: u64) -> Result<(), Errno> {
        let address = self.address;
        try_methods(self, board, address, now)
    }

    /// The registers were reset from outside: what they allowed is shut, then
    /// the model is reset.
    pub(super) fn after_reset(&mut self, board: &Board, kind: ResetKind, now: u64) {
        self.sync(board, now);
        self.follow_messages(board);
        self.reset_model(kind, now);
    }
}

impl Devices {
    /// A reset by the host, which holds the device's lock: `ENOTTY` if no
    /// method works (ERR-073, ERR-075). A program that has the device open
    /// finds its registers as they were and the device as after power on.
    pub(crate) fn host_reset(&mut self, address: Address, board: &mut Board) -> Result<(), Errno> {
        let now = self.now();
        if let Some(device) = self.open.get_mut(&address) {
            let _ = device.set_power_state(board, 0, now);
            return device.reset_function(board, now);
        }
        if board.reset_methods(address).is_empty() {
            return Err(Errno::ENOTTY);
        }
        // What the way out of D3hot loses comes back, too: runtime power management kept it.
        let saved = board.fabric.function(address).ok_or(Errno::ENODEV)?.save();
        prepare_closed(address, board, now);
        let result = try_methods(&mut Nobody(address), board, address, now);
        if let Some(function) = board.fabric.function_mut(address) {
            function.restore(&saved);
        }
        tracing::info!(name: "vfio.function_reset", device = %address, works = result.is_ok());
        result
    }
}

/// Before the reset of a function that nobody has open: D0, and INTx disable
/// alone.
pub(super) fn prepare_closed(address: Address, board: &mut Board, now: u64) {
    let mut nobody = Nobody(address);
    let Some(function) = board.fabric.function(address) else { return };
    if let Some(pm) = function.capability(cap::PM).filter(|_| function.power_state() != 0) {
        let control = function.read(pm + 4, 2) & !3;
        nobody.write(board, pm + 4, 2, control, now);
    }
    nobody.write(board, cap::COMMAND, 2, u32::from(cap::COMMAND_INTX_DISABLE), now);
}

/// Who writes the registers of a function, and follows what that sets off.
pub(super) trait Hand {
    fn write(&mut self, board: &mut Board, at: u16, len: u8, value: u32, now: u64);

    /// The registers were reset by other means than a write.
    fn was_reset(&mut self, board: &mut Board, kind: ResetKind, now: u64);
}

impl Hand for Device {
    fn write(&mut self, board: &mut Board, at: u16, len: u8, value: u32, now: u64) {
        self.hw_write(board, at, len, value, now);
    }

    fn was_reset(&mut self, board: &mut Board, kind: ResetKind, now: u64) {
        self.after_reset(board, kind, now);
    }
}

/// A function that no program has open.
struct Nobody(Address);

impl Hand for Nobody {
    fn write(&mut self, board: &mut Board, at: u16, len: u8, value: u32, now: u64) {
        let Some(function) = board.fabric.function_mut(self.0) else { return };
        let keeps_state = function.spec().no_soft_reset;
        for effect in function.write(at, len, value) {
            match effect {
                Effect::FunctionLevelReset => self.was_reset(board, ResetKind::FunctionLevel, now),
                Effect::Power { from: 3, to: 0 } if !keeps_state => {
                    self.was_reset(board, ResetKind::PowerManagement, now);
                }
                _ => {}
            }
        }
    }

    fn was_reset(&mut self, board: &mut Board, kind: ResetKind, now: u64) {
        if let Some(endpoint) = board.endpoint(self.0) {
            endpoint.reset(kind, now);
            endpoint.interrupts.reset();
        }
    }
}

/// A method that answers `ENOTTY` yields to the next; another error is the end
/// (ERR-068).
fn try_methods(hand: &mut dyn Hand, board: &mut Board, address: Address, now: u64) -> Result<(), Errno> {
    for method in board.reset_methods(address) {
        match run_method(method, hand, board, address, now) {
            Err(Errno::ENOTTY) => {}
            result => {
                tracing::debug!(name: "vfio.reset_method", device = %address, %method, works = result.is_ok());
                return result;
            }
        }
    }
    Err(Errno::ENOTTY)
}

pub(super) fn run_method(
    method: ResetMethod,
    hand: &mut dyn Hand,
    board: &mut Board,
    address: Address,
    now: u64,
) -> Result<(), Errno> {
    let function = board.fabric.function_mut(address).ok_or(Errno::ENODEV)?;
    match method {
        ResetMethod::Flr => {
            let at = function.capability(cap::EXPRESS).ok_or(Errno::ENOTTY)? + 8;
            let control = function.read(at, 2);
            hand.write(board, at, 2, control | 0x8000, now);
        }
        ResetMethod::AfFlr => {
            let at = function.capability(cap::AF).ok_or(Errno::ENOTTY)?;
            hand.write(board, at + 4, 1, 1, now);
        }
        ResetMethod::Pm => {
            let at = function.capability(cap::PM).ok_or(Errno::ENOTTY)? + 4;
            let control = function.read(at, 2) & !3;
            hand.write(board, at, 2, control | 3, now);
            hand.write(board, at, 2, control, now);
        }
        ResetMethod::DeviceSpecific => {
            function.reset();
            hand.was_reset(board, ResetKind::FunctionLevel, now);
        }
        // It has the slot or the bus for itself.
        ResetMethod::Bus => {
            let bridge = board.fabric.parent(address).ok_or(Errno::ENOTTY)?;
            board.fabric.secondary_bus_reset(bridge);
            hand.was_reset(board, ResetKind::Bus, now);
        }
    }
    Ok(())
}
