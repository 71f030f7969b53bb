// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recovery as it concerns several devices and their users: who waits, for
//! whom a wait has been too long, who may reset a link in the host's place,
//! and what of a device that is given back in the middle (extensions).

use std::collections::BTreeMap;

use ::device::Board;
use caller::{Caller, Parking, Ticket, Wait, Wake};
use pci::recovery::{Call, Handlers, UserReset, Vote};
use pci::{Address, Answers, SavedConfig};
use uapi::Errno;
use uapi::vfio::device::feature::{LOW_POWER_ENTRY, LOW_POWER_ENTRY_WITH_WAKEUP, LOW_POWER_EXIT};
use uapi::vfio::device::{FEATURE, Feature, FeatureFlags, PCI_HOT_RESET, RESET, SET_IRQS};
use uapi::vfio::recovery::RecoveryFlags;

use super::Devices;
use super::recovery::Access;
use crate::args;

/// A device that its user gave back while an error was dealt with: nobody gets
/// it before its state is known.
#[derive(Debug)]
pub(super) struct Unsettled {
    /// Its registers as its user had found them.
    saved: SavedConfig,
    /// Recovery is over, and the device did not answer.
    failed: bool,
}

/// What waits for recovery.
#[derive(Debug, Default)]
pub(super) struct Gate {
    waiting: BTreeMap<Ticket, Address>,
    pub(super) released: Vec<(Ticket, Wake)>,
    unsettled: BTreeMap<Address, Unsettled>,
}

impl Gate {
    pub(super) fn park(&mut self, address: Address, parking: &mut Parking) -> Ticket {
        let ticket = parking.park(Wait::Interruptible);
        self.waiting.insert(ticket, address);
        ticket
    }

    fn open(&mut self, address: Address) {
        let released = &mut self.released;
        self.waiting.retain(|ticket, at| {
            let goes = *at == address;
            if goes {
                released.push((*ticket, Wake::Retry));
            }
            !goes
        });
    }

    pub(super) fn keep(&mut self, address: Address, saved: SavedConfig) {
        self.unsettled.insert(address, Unsettled { saved, failed: false });
    }
}

/// Whether a request touches the device, and so waits while it is blocked
/// (ERR-084).
pub(super) fn touches(request: u32, arg: u64, caller: &dyn Caller) -> bool {
    match request {
        SET_IRQS | RESET | PCI_HOT_RESET => true,
        FEATURE => {
            let low_power = [LOW_POWER_ENTRY, LOW_POWER_ENTRY_WITH_WAKEUP, LOW_POWER_EXIT];
            let head: Result<Feature, _> = args::read_plain(caller, arg);
            head.is_ok_and(|head| low_power.contains(&(head.flags & FeatureFlags::INDEX.bits())))
        }
        _ => false,
    }
}

impl Devices {
    /// What vfio-pci has for a function's recovery (ERR-001).
    pub(crate) fn error_handlers(&self, address: Address) -> Handlers {
        match self.open.get(&address) {
            Some(device) => device.recovery.handlers(),
            None => Handlers { error_detected: true, ..Handlers::default() },
        }
    }

    /// A callback of recovery.
    pub(crate) fn error_call(
        &mut self,
        address: Address,
        call: Call,
        bound: Option<&SavedConfig>,
        board: &mut Board,
    ) -> Vote {
        let now = self.now();
        let Some(device) = self.open.get_mut(&address) else {
            return self.error_call_closed(address, call, bound, board);
        };
        let vote = match call {
            Call::ErrorDetected(channel) => device.error_detected(channel, board, now),
            Call::SlotReset => device.slot_reset(board, now),
            Call::Resume => {
                device.resume_recovery(board, now);
                Vote::None
            }
            Call::MmioEnabled | Call::CorErrorDetected => Vote::None,
        };
        self.let_waiters_go(address);
        vote
    }

    /// The same for a device that nobody has open: where the lab has access
    /// blocked, nobody gets it either before its registers are right.
    fn error_call_closed(&mut self, address: Address, call: Call, bound: Option<&SavedConfig>, board: &Board) -> Vote {
        if !matches!(call, Call::ErrorDetected(_)) {
            return Vote::None;
        }
        if let Some(function) = board.fabric.function(address)
            && self.options.recovery.has(RecoveryFlags::BLOCK)
            && !self.gate.unsettled.contains_key(&address)
        {
            // A link that is down has lost them already.
            match (function.answers(), bound) {
                (Answers::Yes, _) => self.gate.keep(address, function.save()),
                (_, Some(bound)) => self.gate.keep(address, bound.clone()),
                (_, None) => {}
            }
        }
        let flags = self.options.recovery.flags;
        if flags.contains(RecoveryFlags::DISCONNECT) { Vote::Disconnect } else { Vote::CanRecover }
    }

    /// Calls on a device that is no longer blocked are made again.
    pub(super) fn let_waiters_go(&mut self, address: Address) {
        if self.open.get(&address).is_none_or(|device| !device.recovery.is_blocked()) {
            self.gate.open(address);
        }
    }

    /// A call waits for the end of a reset that is under way, and is then made
    /// again.
    pub(crate) fn wait_for_lock(&mut self, address: Address, parking: &mut Parking) -> Option<Ticket> {
        self.is_resetting(address).then(|| self.gate.park(address, parking))
    }

    /// Takes the calls whose wait is over.
    pub(crate) fn take_released(&mut self) -> Vec<(Ticket, Wake)> {
        std::mem::take(&mut self.gate.released)
    }

    /// A call that waits is gone.
    pub(crate) fn forget_waiter(&mut self, ticket: Ticket) {
        self.gate.waiting.remove(&ticket);
    }

    /// When the next wait is over at the latest.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let waits = self.open.values().filter_map(|device| device.recovery.deadline());
        let streams = self.slow.iter().map(|(time, _)| *time);
        waits.chain(self.slow_resets.next()).chain(streams).min()
    }

    /// Goes on with resets that take time; gives up devices whose users have waited long enough.
    pub(crate) fn elapse(&mut self, board: &mut Board) {
        let now = self.now();
        self.step_resets(board);
        let streams = self.slow.extract_if(.., |(time, _)| *time <= now);
        self.gate.released.extend(streams.map(|(_, ticket)| (ticket, Wake::Retry)));
        let late = |device: &super::Device| device.recovery.deadline().is_some_and(|until| until <= now);
        let late: Vec<Address> = self.open.iter().filter(|(_, device)| late(device)).map(|(a, _)| *a).collect();
        for address in late {
            if let Some(device) = self.open.get_mut(&address) {
                device.give_up(board, now);
            }
            self.gate.open(address);
        }
    }

    /// Whether a function's user would reset the link itself.
    pub(crate) fn would_reset(&self, address: Address) -> bool {
        self.open.get(&address).is_some_and(|device| device.recovery.policy.has(RecoveryFlags::USER_RESET))
    }

    /// How far the user of all these is with the reset of their link. `whole`:
    /// one user has them all, and can reset them.
    pub(crate) fn user_resets(&mut self, scope: &[Address], whole: bool, board: &Board) -> UserReset {
        let now = self.now();
        if scope.iter().any(|address| self.is_resetting(*address)) {
            // The user is at it.
            return self.slow_resets.next().map_or(UserReset::No, |due| UserReset::Until(due.max(now + 1)));
        }
        let asked = scope.iter().filter_map(|address| self.open.get(address));
        let until = asked
            .filter_map(|device| match device.recovery.access {
                Access::AwaitsReset { until } => Some(until),
                _ => None,
            })
            .max();
        let done = !scope.is_empty()
            && scope.iter().all(|address| self.open.get(address).is_some_and(|d| d.recovery.link_reset));
        if done {
            for address in scope {
                if let Some(device) = self.open.get_mut(address) {
                    device.recovery.link_reset = false;
                }
            }
            return UserReset::Done;
        }
        if !whole || until.is_some_and(|until| until <= now) {
            for address in scope {
                if let Some(device) = self.open.get_mut(address) {
                    device.recovery.link_reset = false;
                    device.host_resets_instead(board, now);
                }
            }
            return UserReset::No;
        }
        if let Some(until) = until {
            return UserReset::Until(until);
        }
        let mut last = now;
        for address in scope {
            if let Some(device) = self.open.get_mut(address) {
                let until = now.saturating_add(device.recovery.policy.user_reset);
                device.await_reset(until, board, now);
                last = last.max(until);
            }
            self.let_waiters_go(*address);
        }
        UserReset::Until(last)
    }

    /// Whether a function was given back in the middle of a recovery, and
    /// nobody knows yet what state it is in.
    pub(crate) fn is_unsettled(&self, address: Address) -> bool {
        self.gate.unsettled.get(&address).is_some_and(|unsettled| !unsettled.failed)
    }

    /// Functions that were given back in the middle of a recovery.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = Address> {
        self.gate.unsettled.keys().copied()
    }

    /// Puts one of them right whose recovery is over: registers as its user
    /// had found them, and a reset. Later, if it does not answer.
    pub(crate) fn settle(&mut self, address: Address, board: &mut Board) {
        let _ = self.make_known(address, board);
    }

    /// Makes the state of a function known before somebody gets it: `EAGAIN`
    /// while it is recovered, `EIO` if it does not answer.
    pub(crate) fn ensure_known(&mut self, address: Address, board: &mut Board) -> Result<(), Errno> {
        match self.gate.unsettled.get(&address) {
            None => Ok(()),
            Some(unsettled) if !unsettled.failed => Err(Errno::EAGAIN),
            Some(_) => self.make_known(address, board),
        }
    }

    fn make_known(&mut self, address: Address, board: &mut Board) -> Result<(), Errno> {
        let Some(unsettled) = self.gate.unsettled.get_mut(&address) else { return Ok(()) };
        let Some(function) = board.fabric.function_mut(address) else {
            self.gate.unsettled.remove(&address);
            return Err(Errno::ENODEV);
        };
        if function.answers() != Answers::Yes {
            unsettled.failed = true;
            return Err(Errno::EIO);
        }
        function.restore(&unsettled.saved);
        self.gate.unsettled.remove(&address);
        // Without a method of its own, what its user left in it is what a
        // sibling's reset will find.
        let reset = match self.start_closed(address, board) {
            Some(started) => {
                self.run_settling(address, started, board);
                true
            }
            None => self.host_reset(address, board).is_ok(),
        };
        tracing::info!(name: "vfio.settled", device = %address, reset);
        Ok(())
    }
}
