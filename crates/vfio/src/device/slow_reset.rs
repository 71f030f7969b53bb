// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets that take time: the caller waits, and so does whoever else wants the
//! device (ERR-079).
//!
//! A function is asked for a minute after a reset whether it answers
//! (vfio-error-recovery.md section 5); one that does not in that time has not
//! been reset, and the next method is tried. A link gets a second to come up.
//! What [`pci::Fabric::is_slow`] does not say is slow is reset within the call.
//!
//! The resets of open and close are of that kind, too. An open waits for its
//! own, and is then made again; for that of a close nobody waits but who wants
//! the device next, since a close is told of when it is over. A device that is
//! never to come back does so from the reset of an open or a close: what a lab
//! means is a device that breaks in use.

use std::collections::{BTreeMap, VecDeque};

use ::device::{Board, ResetKind};
use caller::{Parking, Ticket, Wait, Wake};
use pci::recovery::{Next, Reset};
use pci::{Address, ResetMethod, SavedConfig, cap};
use uapi::Errno;

use super::Devices;
use super::reset::{prepare_closed, run_method};
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
    ticket: Option<Ticket>,
    value: u64,
    tells: bool,
    then: Then,
    holds: Holds,
    /// The bus with all on it.
    link: bool,
    /// The bridge above, whose lock it has, too.
    bridge: Option<Address>,
    due: u64,
}

/// What a reset was for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    /// Itself.
    #[default]
    Nothing,
    /// The call that opens the device is made again.
    Open,
    /// The close of a device of the set (HOT-043).
    Close,
    /// The reset of all of the set (HOT-044).
    CloseSet,
}

/// What a reset holds until it ends, besides the locks of its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Holds {
    /// Nothing: it is the host's.
    #[default]
    Nothing,
    /// The memory lock of its device: a user's reset of one function.
    Memory,
    /// The lock of the set: an open, a close or a hot reset (HOT-036).
    Set,
}

impl Slow {
    fn takes_in(&self, address: Address) -> bool {
        self.saved.iter().any(|(at, _)| *at == address)
    }
}

/// A device that was reset for an open is that for so long, if the open does
/// not come.
const OPENS_WITHIN: u64 = 1_000_000_000;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct SlowResets {
    running: Vec<Slow>,
    /// Devices that were reset to be opened: whether that worked, and when.
    opened: BTreeMap<Address, (bool, u64)>,
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

impl Device {
    /// Begins the function reset of a close that takes time.
    pub(super) fn start_close(&self, board: &Board) -> Option<Started> {
        let mut methods: VecDeque<ResetMethod> = board.reset_methods(self.address).into();
        let method = methods.pop_front().filter(|method| !is_for_good(*method, self.address, board))?;
        let (reset, kind) = slow_method(method, self.address, board)?;
        Some(Started { reset, kind, saved: self.saved_at_open().clone(), methods })
    }
}

/// Whether the device does not come back from this.
fn is_for_good(method: ResetMethod, address: Address, board: &Board) -> bool {
    let ready = |address| board.fabric.timing(address).ready == u64::MAX;
    match (method, board.fabric.parent(address)) {
        (ResetMethod::Bus, Some(bridge)) => is_for_good_behind(bridge, board),
        _ => ready(address),
    }
}

fn is_for_good_behind(bridge: Address, board: &Board) -> bool {
    board.fabric.timing(bridge).link == u64::MAX
        || board.fabric.below(bridge).into_iter().any(|address| board.fabric.timing(address).ready == u64::MAX)
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
        self.slow_resets.running.iter().any(|slow| slow.bridge == Some(address) || slow.takes_in(address))
    }

    /// Which of these is held as `holds` says by a reset under way.
    pub(super) fn held<'a>(&self, scope: impl IntoIterator<Item = &'a Address>, holds: Holds) -> Option<Address> {
        let running = || self.slow_resets.running.iter().filter(|slow| slow.holds == holds);
        scope.into_iter().copied().find(|address| running().any(|slow| slow.takes_in(*address)))
    }

    /// A call waits for a function reset that it began. `value`: what it gives
    /// if that works; if not, [`Errno::ENOTTY`] if it `tells`.
    pub(super) fn wait_for_reset(
        &mut self,
        address: Address,
        started: Started,
        (value, tells, holds): (u64, bool, Holds),
        board: &mut Board,
        parking: &mut Parking,
    ) -> Ticket {
        let Started { reset, kind, saved, methods } = started;
        let saved = vec![(address, saved)];
        self.run_for(Slow { reset, kind, saved, methods, value, tells, holds, ..Slow::default() }, board, parking)
    }

    /// Begins a function reset that takes time, of a device that nobody has open.
    pub(super) fn start_closed(&mut self, address: Address, board: &mut Board) -> Option<Started> {
        let now = self.now();
        let mut methods: VecDeque<ResetMethod> = board.reset_methods(address).into();
        let (reset, kind) = slow_method(methods.pop_front()?, address, board)?;
        let saved = board.fabric.function(address)?.save();
        prepare_closed(address, board, now);
        Some(Started { reset, kind, saved, methods })
    }

    /// Whether a device that is to be opened was reset for that, and if so
    /// whether that worked.
    pub(super) fn take_opened(&mut self, address: Address) -> Option<bool> {
        let now = self.now();
        let (worked, at) = self.slow_resets.opened.remove(&address)?;
        (now.saturating_sub(at) <= OPENS_WITHIN).then_some(worked)
    }

    /// Begins the reset of an open, if it takes time; whether it does.
    pub(super) fn start_open(&mut self, address: Address, board: &mut Board) -> bool {
        let first = board.reset_methods(address).first().copied();
        if board.is_locked(address) || first.is_none_or(|method| is_for_good(method, address, board)) {
            return false;
        }
        let Some(started) = self.start_closed(address, board) else { return false };
        self.run_alone(address, started, Then::Open, board);
        true
    }

    /// Goes on with the reset of a close.
    pub(super) fn finish_close(&mut self, address: Address, started: Started, board: &mut Board) {
        self.run_alone(address, started, Then::Close, board);
    }

    /// Puts a device right that nobody has open.
    pub(super) fn run_settling(&mut self, address: Address, started: Started, board: &mut Board) {
        self.run_alone(address, started, Then::Nothing, board);
    }

    fn run_alone(&mut self, address: Address, started: Started, then: Then, board: &mut Board) {
        let Started { reset, kind, saved, methods } = started;
        let holds = if then == Then::Nothing { Holds::Nothing } else { Holds::Set };
        self.run(Slow { reset, kind, saved: vec![(address, saved)], methods, then, holds, ..Slow::default() }, board);
    }

    /// The reset of a set after its last close, if it takes time; whether it
    /// does.
    pub(super) fn start_set(&mut self, scope: &[Address], board: &mut Board) -> bool {
        let bridge = scope.first().and_then(|first| board.fabric.parent(*first));
        let slow = |bridge: &Address| board.fabric.is_slow_behind(*bridge) && !is_for_good_behind(*bridge, board);
        let Some(bridge) = bridge.filter(slow) else { return false };
        let now = self.now();
        let saved = self.prepare_all(scope, board, now);
        let (reset, bridge, then, holds) = (Reset::bus(bridge), Some(bridge), Then::CloseSet, Holds::Set);
        self.run(Slow { reset, saved, link: true, bridge, then, holds, ..Slow::default() }, board);
        true
    }

    /// A reset by the host of one function, which its caller waits for if it
    /// takes time.
    pub(crate) fn host_reset_waiting(
        &mut self,
        address: Address,
        value: u64,
        board: &mut Board,
        parking: &mut Parking,
    ) -> Result<Option<Ticket>, Errno> {
        let now = self.now();
        let started = match self.open.get_mut(&address) {
            Some(device) => device.start_slow(board, now),
            None => self.start_closed(address, board),
        };
        match started {
            Some(started) => {
                let ticket = self.wait_for_reset(address, started, (value, true, Holds::Nothing), board, parking);
                if let Some(slow) = self.slow_resets.running.iter_mut().find(|slow| slow.ticket == Some(ticket)) {
                    slow.bridge = board.fabric.parent(address);
                }
                Ok(Some(ticket))
            }
            None => self.host_reset(address, board).map(|()| None),
        }
    }

    /// The same of all behind a bridge.
    pub(crate) fn host_reset_all_waiting(
        &mut self,
        bridge: Address,
        value: u64,
        board: &mut Board,
        parking: &mut Parking,
    ) -> Option<Ticket> {
        let scope = board.fabric.below(bridge);
        if !board.fabric.is_slow_behind(bridge) {
            self.host_reset_all(&scope, board);
            return None;
        }
        let saved = self.block_all(&scope, board);
        Some(self.wait_for_hot_reset(bridge, saved, (value, Holds::Nothing), board, parking))
    }

    /// Accesses wait from before anything is taken away; registers saved.
    pub(super) fn block_all(&mut self, scope: &[Address], board: &mut Board) -> Vec<(Address, SavedConfig)> {
        let now = self.now();
        for address in scope {
            if let Some(device) = self.open.get_mut(address) {
                device.recovery.begin_reset();
                device.sync(board, now);
            }
        }
        self.prepare_all(scope, board, now)
    }

    /// The same for a hot reset of all these, whose registers are saved.
    pub(super) fn wait_for_hot_reset(
        &mut self,
        bridge: Address,
        saved: Vec<(Address, SavedConfig)>,
        (value, holds): (u64, Holds),
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
        let bridge = Some(bridge);
        self.run_for(Slow { reset, kind, saved, value, link: true, bridge, holds, ..Slow::default() }, board, parking)
    }

    fn run(&mut self, slow: Slow, board: &mut Board) {
        self.slow_resets.running.push(slow);
        self.step_resets(board);
    }

    fn run_for(&mut self, slow: Slow, board: &mut Board, parking: &mut Parking) -> Ticket {
        let ticket = parking.park(Wait::Uninterruptible);
        self.run(Slow { ticket: Some(ticket), ..slow }, board);
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
        if let Some(ticket) = slow.ticket {
            self.gate.released.push((ticket, Wake::Done(result)));
        }
        for (address, saved) in &slow.saved {
            let Some(device) = self.open.get_mut(address) else {
                if let Some(function) = board.fabric.function_mut(*address) {
                    function.restore(saved);
                }
                continue;
            };
            if worked {
                device.migration_reset(now); // MIG-072
            }
            device.restore(board, saved, now);
            device.end_reset(worked, slow.link, board, now);
        }
        tracing::info!(name: "vfio.slow_reset", functions = slow.saved.len(), worked);
        let set: Vec<Address> = slow.saved.iter().map(|(address, _)| *address).collect();
        match (slow.then, set.first()) {
            (Then::Open, Some(address)) => drop(self.slow_resets.opened.insert(*address, (worked, now))),
            (Then::Close, Some(address)) => self.reset_after_close(*address, worked, board),
            (Then::CloseSet, _) if worked => self.needs_reset.retain(|device| !set.contains(device)),
            _ => {}
        }
        for address in set.into_iter().chain(slow.bridge) {
            self.let_waiters_go(address);
        }
        true
    }

    /// A device was closed while it was reset: that goes on, and the registers
    /// of open come back with its end. Who waits for it waits on.
    pub(super) fn adopt_reset(&mut self, address: Address, at_open: &SavedConfig) {
        for slow in &mut self.slow_resets.running {
            for (_, saved) in slow.saved.iter_mut().filter(|(at, _)| *at == address) {
                saved.clone_from(at_open);
                if !slow.link {
                    (slow.then, slow.holds) = (Then::Close, Holds::Set);
                }
            }
        }
    }
}

impl Default for Slow {
    fn default() -> Slow {
        Slow {
            reset: Reset::bus(Address::new(0, 0, 0, 0)),
            kind: ResetKind::Bus,
            saved: Vec::new(),
            methods: VecDeque::new(),
            ticket: None,
            value: 0,
            tells: true,
            then: Then::Nothing,
            holds: Holds::Nothing,
            link: false,
            bridge: None,
            due: 0,
        }
    }
}
