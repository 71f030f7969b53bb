// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What recovery does to one open device: Linux's notice on the ERR index
//! (ERR-002), and the extensions that were proposed and never merged (ERR-084
//! to ERR-086).
//!
//! With `block`, the device is out of the program's reach from
//! `error_detected` to `resume`: the registers are saved, calls wait, mapped
//! BARs give ones. It is given back with the registers restored if its link
//! was reset, and only once it answers; if it does not in time, it has failed:
//! loads give ones until a reset works or the device is closed.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::device::{Board, Event};
use caller::{Caller, WatchId};
use pci::recovery::{Channel, Handlers, Vote};
use pci::{Answers, SavedConfig, cap};
use uapi::Errno;
use uapi::vfio::recovery::{AccessState, ErrorRecovery, IRQ_COUNT, IRQ_NON_FATAL, IRQ_PASSIVE_RESET, RecoveryFlags};

use super::state::Device;
use crate::{RecoveryPolicy, args};

/// Whether the program reaches the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Access {
    #[default]
    Open,
    /// Not before recovery is over, or `until`.
    Blocked {
        until: u64,
    },
    /// A reset is under way that takes time.
    Resetting,
    /// Its user is to reset the link, until then.
    AwaitsReset {
        until: u64,
    },
    Failed,
}

/// The part that an open device takes in recovery.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    pub(super) policy: RecoveryPolicy,
    /// eventfd of index 5.
    pub(super) non_fatal: Option<Arc<dyn Event>>,
    /// eventfd of index 6.
    pub(super) passive_reset: Option<Arc<dyn Event>>,
    pub(super) access: Access,
    /// What it was before a reset that takes time, and will be again.
    before_reset: Access,
    /// Registers when the error was detected, if they could be read.
    saved: Option<SavedConfig>,
    /// The function was reset by others than its user, who has not been told.
    was_reset: bool,
    /// Recovery is over, but the device does not answer yet.
    resumed: bool,
    /// The user has reset the link.
    pub(super) link_reset: bool,
    /// ioeventfds signalled meanwhile.
    stores: BTreeSet<WatchId>,
}

impl Recovery {
    pub(super) fn new(policy: RecoveryPolicy) -> Recovery {
        Recovery { policy, ..Recovery::default() }
    }

    /// A reset begins that takes time.
    pub(super) fn begin_reset(&mut self) {
        if self.access != Access::Resetting {
            self.before_reset = std::mem::replace(&mut self.access, Access::Resetting);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.access == Access::Open
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(self.access, Access::Blocked { .. } | Access::Resetting)
    }

    /// Stores reach nobody, and BARs give ones.
    pub(super) fn is_inert(&self) -> bool {
        matches!(self.access, Access::AwaitsReset { .. } | Access::Failed)
    }

    /// Whether a reset is under way that takes time.
    pub(super) fn is_resetting(&self) -> bool {
        self.access == Access::Resetting
    }

    /// Whether an error is dealt with, whatever is done besides.
    pub(super) fn is_affected(&self) -> bool {
        if self.is_resetting() { self.before_reset != Access::Open } else { !self.is_open() }
    }

    /// When a blocked access is let go at the latest.
    pub(super) fn deadline(&self) -> Option<u64> {
        if let Access::Blocked { until } = self.access { Some(until) } else { None }
    }

    /// Keeps an ioeventfd's store for later; whether it did.
    pub(super) fn keep_store(&mut self, id: WatchId) -> bool {
        let blocked = self.is_blocked();
        if blocked {
            self.stores.insert(id);
        }
        blocked
    }

    /// How many interrupt indexes there are.
    pub(super) fn irq_indexes(&self) -> u32 {
        let more = RecoveryFlags::NON_FATAL | RecoveryFlags::PASSIVE_RESET;
        if self.policy.flags.intersects(more) { IRQ_COUNT } else { uapi::vfio::device::irq_index::COUNT }
    }

    /// Whether one of the extensions' indexes is there.
    pub(super) fn has_irq(&self, index: u32) -> bool {
        match index {
            IRQ_NON_FATAL => self.policy.has(RecoveryFlags::NON_FATAL),
            IRQ_PASSIVE_RESET => self.policy.has(RecoveryFlags::PASSIVE_RESET),
            _ => false,
        }
    }

    /// Which callbacks vfio-pci has for the device (ERR-001): the extensions
    /// add two.
    pub(super) fn handlers(&self) -> Handlers {
        let more = RecoveryFlags::PASSIVE_RESET | RecoveryFlags::BLOCK;
        let more = self.policy.flags.intersects(more);
        Handlers { error_detected: true, slot_reset: more, resume: more, ..Handlers::default() }
    }

    /// The vote on an error (ERR-002).
    pub(super) fn vote(&self) -> Vote {
        if self.policy.has(RecoveryFlags::DISCONNECT) { Vote::Disconnect } else { Vote::CanRecover }
    }
}

impl Device {
    /// `error_detected`.
    pub(super) fn error_detected(&mut self, channel: Channel, board: &Board, now: u64) -> Vote {
        if self.recovery.policy.has(RecoveryFlags::BLOCK) {
            match channel {
                Channel::PermFailure => self.fail(board, now),
                Channel::Normal | Channel::Frozen => self.block(board, now),
            }
        }
        self.recovery.vote()
    }

    /// Tells the user of an error: on index 5 if it is not fatal and has an
    /// eventfd, else on ERR (ERR-085, ERR-092, ERR-093). The index told.
    pub(super) fn tell_error(&self, channel: Channel) -> Option<u32> {
        match &self.recovery.non_fatal {
            Some(event) if channel == Channel::Normal => {
                event.signal();
                Some(IRQ_NON_FATAL)
            }
            _ => self.signal_error().then_some(uapi::vfio::device::irq_index::ERR),
        }
    }

    fn block(&mut self, board: &Board, now: u64) {
        if !self.recovery.is_open() {
            return;
        }
        self.recovery.saved =
            self.answers(board).then(|| board.fabric.function(self.address).map(|f| f.save())).flatten();
        self.recovery.access = Access::Blocked { until: now.saturating_add(self.recovery.policy.wait) };
        self.recovery.resumed = false;
        self.sync(board, now);
        tracing::info!(name: "vfio.blocked", device = %self.address);
    }

    fn fail(&mut self, board: &Board, now: u64) {
        self.recovery.access = Access::Failed;
        self.recovery.stores.clear();
        self.sync(board, now);
        tracing::warn!(name: "vfio.recovery_failed", device = %self.address);
    }

    /// The link was reset under the user, by the hardware or the host.
    pub(super) fn reset_behind_its_back(&mut self) {
        self.recovery.was_reset = true;
    }

    /// `slot_reset`: the registers come back, the user is told (ERR-086).
    pub(super) fn slot_reset(&mut self, board: &mut Board, now: u64) -> Vote {
        self.after_link_reset(board, now);
        if self.answers(board) { Vote::Recovered } else { Vote::Disconnect }
    }

    /// `resume`. A frozen scope is reset without `slot_reset` (ERR-036), so the
    /// user may have to be told here (ERR-093).
    pub(super) fn resume_recovery(&mut self, board: &mut Board, now: u64) {
        self.recovery.resumed = true;
        self.try_release(board, now);
    }

    /// Gives a device back whose recovery is over, if it answers.
    pub(super) fn try_release(&mut self, board: &mut Board, now: u64) {
        if !self.recovery.resumed || !self.answers(board) {
            return;
        }
        self.after_link_reset(board, now);
        self.recovery.resumed = false;
        if matches!(self.recovery.access, Access::Blocked { .. }) {
            self.release_access(board, now);
        }
    }

    /// A reset is over that took time.
    pub(super) fn end_reset(&mut self, worked: bool, link: bool, board: &mut Board, now: u64) {
        if self.recovery.access != Access::Resetting {
            return;
        }
        self.recovery.access = self.recovery.before_reset;
        if self.recovery.is_open() {
            return self.release_access(board, now);
        }
        self.sync(board, now);
        if worked {
            self.user_has_reset(link, board, now);
        }
    }

    /// Accesses reach the device again.
    fn release_access(&mut self, board: &Board, now: u64) {
        self.recovery.access = Access::Open;
        self.recovery.saved = None;
        self.sync(board, now);
        for id in std::mem::take(&mut self.recovery.stores) {
            self.ioeventfd_fired(id, now);
        }
        tracing::info!(name: "vfio.released", device = %self.address);
    }

    /// Restores what a reset has lost and tells the user of it, once.
    fn after_link_reset(&mut self, board: &mut Board, now: u64) {
        if !self.recovery.was_reset || !self.answers(board) {
            return;
        }
        self.recovery.was_reset = false;
        if self.recovery.policy.has(RecoveryFlags::BLOCK) {
            self.restore_lost(board, now);
        }
        if self.recovery.policy.has(RecoveryFlags::PASSIVE_RESET) {
            let told = match &self.recovery.passive_reset {
                Some(event) => {
                    event.signal();
                    true
                }
                None => self.signal_error(),
            };
            tracing::info!(name: "vfio.passive_reset", device = %self.address, told);
        }
    }

    fn restore_lost(&mut self, board: &mut Board, now: u64) {
        let saved = match self.recovery.saved.clone() {
            Some(saved) => saved,
            // The link was down when the error was detected: the registers
            // of open, with decoding as the program has it.
            None => {
                let mut saved = self.saved_at_open().clone();
                let decoding = cap::COMMAND_MEMORY | cap::COMMAND_IO;
                let command = saved.get(cap::COMMAND).unwrap_or(0) as u16 & !(decoding | cap::COMMAND_MASTER);
                saved.set_command(command | self.config.decoding() & decoding);
                saved
            }
        };
        self.restore(board, &saved, now);
        self.follow_messages(board);
    }

    /// The wait is over: the device counts as failed, and its user is told.
    pub(super) fn give_up(&mut self, board: &Board, now: u64) {
        self.fail(board, now);
        self.signal_error();
    }

    /// The user resets the link itself, until then (ERR-084).
    pub(super) fn await_reset(&mut self, until: u64, board: &Board, now: u64) {
        self.recovery.access = Access::AwaitsReset { until };
        self.recovery.link_reset = false;
        self.sync(board, now);
    }

    /// The user has not: the host does it.
    pub(super) fn host_resets_instead(&mut self, board: &Board, now: u64) {
        if !matches!(self.recovery.access, Access::AwaitsReset { .. }) {
            return;
        }
        let policy = self.recovery.policy;
        self.recovery.access = match policy.has(RecoveryFlags::BLOCK) {
            true => Access::Blocked { until: now.saturating_add(policy.wait) },
            false => Access::Open,
        };
        self.sync(board, now);
    }

    /// The user has reset the device by a call of its own; `link`: with all
    /// that is on its bus. What had failed may be well again.
    pub(super) fn user_has_reset(&mut self, link: bool, board: &mut Board, now: u64) {
        let well = match self.recovery.access {
            Access::AwaitsReset { .. } => link,
            Access::Failed => true,
            Access::Open | Access::Blocked { .. } | Access::Resetting => false,
        };
        if well && self.answers(board) {
            self.recovery.link_reset = matches!(self.recovery.access, Access::AwaitsReset { .. });
            // What the user's reset has brought back was lost before it.
            if self.recovery.was_reset && self.recovery.access == Access::Failed {
                self.restore_lost(board, now);
            }
            self.recovery.was_reset = false;
            self.release_access(board, now);
        }
    }

    pub(super) fn answers(&self, board: &Board) -> bool {
        board.fabric.function(self.address).is_some_and(|f| f.answers() == Answers::Yes)
    }

    /// GET of the extensions' feature.
    pub(super) fn get_error_recovery(&self, caller: &dyn Caller, data: u64) -> Result<u64, Errno> {
        let policy = self.recovery.policy;
        let state = match self.recovery.access {
            Access::Open => AccessState::Open,
            Access::Blocked { .. } | Access::Resetting => AccessState::Blocked,
            Access::AwaitsReset { .. } => AccessState::AwaitsReset,
            Access::Failed => AccessState::Failed,
        };
        let (wait_ms, reset_ms) = policy.times();
        let answer = ErrorRecovery { flags: policy.flags.bits(), state: state as u32, wait_ms, reset_ms };
        args::write_prefix(caller, data, &answer, size_of::<ErrorRecovery>())?;
        Ok(0)
    }

    /// SET: `EINVAL` for what is not there, `EBUSY` while an error is dealt
    /// with. Eventfds of indexes that go are dropped.
    pub(super) fn set_error_recovery(&mut self, caller: &dyn Caller, data: u64) -> Result<u64, Errno> {
        let asked: ErrorRecovery = args::read_plain(caller, data)?;
        let flags = RecoveryFlags::from_bits(asked.flags).ok_or(Errno::EINVAL)?;
        if asked.state != 0 {
            return Err(Errno::EINVAL);
        }
        if !self.recovery.is_open() {
            return Err(Errno::EBUSY);
        }
        self.recovery.policy.set_times(asked.wait_ms, asked.reset_ms)?;
        self.recovery.policy.flags = flags;
        if !flags.contains(RecoveryFlags::NON_FATAL) {
            self.recovery.non_fatal = None;
        }
        if !flags.contains(RecoveryFlags::PASSIVE_RESET) {
            self.recovery.passive_reset = None;
        }
        tracing::info!(name: "vfio.error_recovery", device = %self.address, ?flags);
        Ok(0)
    }
}
