// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets that take time: the caller waits, and so does whoever else wants the
//! device (ERR-079).
//!
//! A function is asked for a minute after a reset whether it answers
//! (vfio-error-recovery.md section 5); one that does not in that time has not
//! been reset, and the next method is tried. A link gets a second to come up.
//! What [`pci::Fabric::is_slow`] does not say is slow is reset within the call.

use std::collections::VecDeque;

use ::device::{Board, ResetKind};
use caller::{Parking, Ticket, Wait, Wake};
use pci::recovery::{Next, Reset};
use pci::{Address, ResetMethod, SavedConfig, cap};
use uapi::Errno;

use super::Devices;
use super::reset::run_method;
use super::state::Device;

/// A reset of one function that has begun.
#[derive(Debug)]
pub(super) struct Started {
    reset: Reset,
    kind: ResetKind,
    saved: SavedConfig,
    /// What is tried if it fails.
    methods: VecDeque<ResetMethod>,
}

/// One that is under way.
#[derive(Debug)]
struct Slow {
    reset: Reset,
    kind: ResetKind,
    saved: Vec<(Address, SavedConfig)>,
    methods: VecDeque<ResetMethod>,
    /// Who waits, and for what if it works; and whether it is told if not.
    ticket: Ticket,
    value: u64,
    tells: bool,
    /// The bus with all on it.
    link: bool,
    due: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct SlowResets {
    running: Vec<Slow>,
}

impl SlowResets {
    /// When the next one goes on.
    pub(super) fn next(&self) -> Option<u64> {
        self.running.iter().map(|slow| slow.due).min()
    }
}

impl Device {
    /// Begins a function reset that takes time; `None`: it does not, or none
    /// of the slow methods comes first.
    pub(super) fn start_slow(&mut self, board: &mut Board, now: u64) -> Option<Started> {
        let mut methods: VecDeque<ResetMethod> = board.reset_methods(self.address).into();
        let (reset, kind) = slow_method(*methods.front()?, self.address, board)?;
        methods.pop_front();
        // Accesses wait from before anything is taken away.
        self.recovery.begin_reset();
        self.sync(board, now);
        self.zap(now);
        // Refused only while VFs are enabled; the reset goes on.
        let _ = self.set_power_state(board, 0, now);
        let saved = board.fabric.function(self.address)?.save();
        self.hw_write(board, cap::COMMAND, 2, u32::from(cap::COMMAND_INTX_DISABLE), now);
        self.sync(board, now);
        Some(Started { reset, kind, saved, methods })
    }
}

/// The reset behind a method, if that takes time.
fn slow_method(method: ResetMethod, address: Address, board: &Board) -> Option<(Reset, ResetKind)> {
    match method {
        ResetMethod::Flr => board.fabric.is_slow(address).then(|| (Reset::function(address), ResetKind::FunctionLevel)),
        ResetMethod::Bus => {
            let bridge = board.fabric.parent(address).filter(|bridge| board.fabric.is_slow_behind(*bridge))?;
            Some((Reset::bus(bridge), ResetKind::Bus))
        }
        ResetMethod::DeviceSpecific | ResetMethod::AfFlr | ResetMethod::Pm => None,
    }
}

impl Devices {
    /// Whether a reset is under way, which holds the device's lock.
    pub(crate) fn is_resetting(&self, address: Address) -> bool {
        self.slow_resets.running.iter().any(|slow| slow.saved.iter().any(|(at, _)| *at == address))
    }

    /// A call waits for a function reset that it began. `value`: what it gives
    /// if that works; if not, [`Errno::ENOTTY`] if it `tells`.
    pub(super) fn wait_for_reset(
        &mut self,
        address: Address,
        started: Started,
        (value, tells): (u64, bool),
        board: &mut Board,
        parking: &mut Parking,
    ) -> Ticket {
        let Started { reset, kind, saved, methods } = started;
        let saved = vec![(address, saved)];
        self.run(Slow { reset, kind, saved, methods, value, tells, link: false, ..Slow::for_ticket(parking) }, board)
    }

    /// The same for a hot reset of all these, whose registers are saved.
    pub(super) fn wait_for_hot_reset(
        &mut self,
        bridge: Address,
        saved: Vec<(Address, SavedConfig)>,
        board: &mut Board,
        parking: &mut Parking,
    ) -> Ticket {
        let now = self.now();
        for (address, _) in &saved {
            if let Some(device) = self.open.get_mut(address) {
                device.sync(board, now);
            }
        }
        let (reset, kind) = (Reset::bus(bridge), ResetKind::Bus);
        self.run(Slow { reset, kind, saved, link: true, ..Slow::for_ticket(parking) }, board)
    }

    fn run(&mut self, slow: Slow, board: &mut Board) -> Ticket {
        let ticket = slow.ticket;
        self.slow_resets.running.push(slow);
        self.step_resets(board);
        ticket
    }

    /// Goes on with all resets whose time has come.
    pub(super) fn step_resets(&mut self, board: &mut Board) {
        let now = self.now();
        if self.slow_resets.running.iter().all(|slow| slow.due > now) {
            return;
        }
        board.fabric.advance(now);
        for mut slow in std::mem::take(&mut self.slow_resets.running) {
            if slow.due > now || !self.step_reset(&mut slow, board, now) {
                self.slow_resets.running.push(slow);
            }
        }
    }

    /// Goes on with one; whether it is over.
    fn step_reset(&mut self, slow: &mut Slow, board: &mut Board, now: u64) -> bool {
        let scope: Vec<Address> = slow.saved.iter().map(|(address, _)| *address).collect();
        loop {
            let (next, ended) = slow.reset.step(&mut board.fabric, now);
            // The models follow at once; nobody else hears of it.
            for address in board.fabric.claim_resets(&scope) {
                match self.open.get_mut(&address) {
                    Some(device) => device.after_reset(board, slow.kind, now),
                    None => {
                        if let Some(endpoint) = board.endpoint(address) {
                            endpoint.reset(slow.kind, now);
                            endpoint.interrupts.reset();
                        }
                    }
                }
            }
            match (ended, next) {
                (None, Next::At(time)) if time > now => {
                    slow.due = time;
                    return false;
                }
                (None, _) => {}
                (Some(true), _) => return self.end_reset(slow, true, board, now),
                (Some(false), _) if self.next_method(slow, board, now) => {}
                (Some(false), _) => return self.end_reset(slow, false, board, now),
            }
        }
    }

    /// A method that fails with `ENOTTY` yields to the next (ERR-068): whether
    /// there is another slow one. One that takes no time is done here, and
    /// then has worked if the function answers.
    fn next_method(&mut self, slow: &mut Slow, board: &mut Board, now: u64) -> bool {
        let Some(&(address, _)) = slow.saved.first().filter(|_| !slow.link) else { return false };
        while let Some(method) = slow.methods.pop_front() {
            if let Some((reset, kind)) = slow_method(method, address, board) {
                (slow.reset, slow.kind) = (reset, kind);
                return true;
            }
            if let Some(device) = self.open.get_mut(&address) {
                let _ = run_method(method, device, board, address, now);
            }
        }
        false
    }

    fn end_reset(&mut self, slow: &Slow, worked: bool, board: &mut Board, now: u64) -> bool {
        let result = if worked || !slow.tells { Ok(slow.value) } else { Err(Errno::ENOTTY) };
        self.gate.released.push((slow.ticket, Wake::Done(result)));
        for (address, saved) in &slow.saved {
            let Some(device) = self.open.get_mut(address) else {
                if let Some(function) = board.fabric.function_mut(*address) {
                    function.restore(saved);
                }
                self.let_waiters_go(*address);
                continue;
            };
            if worked {
                device.migration_reset(now); // MIG-072
            }
            device.restore(board, saved, now);
            device.end_reset(worked, slow.link, board, now);
            self.let_waiters_go(*address);
        }
        tracing::info!(name: "vfio.slow_reset", functions = slow.saved.len(), worked);
        true
    }

    /// A device was closed: its resets are nobody's any more.
    pub(super) fn drop_resets(&mut self, address: Address) {
        for slow in &mut self.slow_resets.running {
            slow.saved.retain(|(at, _)| *at != address);
        }
        self.slow_resets.running.retain(|slow| !slow.saved.is_empty());
    }
}

impl Slow {
    fn for_ticket(parking: &mut Parking) -> Slow {
        Slow {
            reset: Reset::bus(Address::new(0, 0, 0, 0)),
            kind: ResetKind::Bus,
            saved: Vec::new(),
            methods: VecDeque::new(),
            ticket: parking.park(Wait::Uninterruptible),
            value: 0,
            tells: true,
            link: false,
            due: 0,
        }
    }
}
