// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pretend kernel's drivers, as recovery calls them.

use std::collections::{BTreeMap, BTreeSet};

use device::{Board, Driver, ResetKind};
use pci::recovery::{Call, Channel, Handlers, Kernel, Report, Uevent, UserReset, Vote};
use pci::{Address, Answers, Fabric, SavedConfig};
use uapi::vfio::recovery::IRQ_NON_FATAL;
use vfio::Vfio;

use super::ErrorPolicy;
use super::takers::Takers;

/// Everything that recovery calls.
pub(super) struct Drivers<'a> {
    /// Its fabric is elsewhere while recovery has it.
    pub(super) board: &'a mut Board,
    pub(super) vfio: &'a mut Vfio,
    pub(super) policies: &'a BTreeMap<Address, ErrorPolicy>,
    pub(super) saved: &'a BTreeMap<Address, SavedConfig>,
    pub(super) removed: &'a mut BTreeSet<Address>,
    pub(super) takers: &'a mut Takers,
    /// Whose registers may have changed.
    pub(super) touched: &'a mut BTreeSet<Address>,
    pub(super) now: u64,
}

impl Drivers<'_> {
    fn policy(&self, address: Address) -> ErrorPolicy {
        match self.board.driver(address) {
            None => ErrorPolicy::NONE,
            Some(Driver::VfioPci) => ErrorPolicy::VFIO,
            Some(Driver::Pcieport) => ErrorPolicy::PORT,
            Some(Driver::Kernel(_)) => self.policies.get(&address).copied().unwrap_or_default(),
        }
    }

    /// Tells a function's user of an error: its taker, if it has one for such,
    /// else one of its own eventfds. Whether anybody was told.
    fn tell(&mut self, address: Address, channel: Channel) -> bool {
        let by = if self.takers.takes(address, channel) {
            "taker"
        } else {
            by_index(self.vfio.tell_error(address, channel))
        };
        let kind = match channel {
            Channel::Normal => "non-fatal",
            Channel::Frozen => "fatal",
            Channel::PermFailure => "failed",
        };
        notice(address, kind, by);
        by != "nobody"
    }

    /// Lets VFIO work with a whole board.
    fn with_board<R>(&mut self, fabric: &mut Fabric, work: impl FnOnce(&mut Vfio, &mut Board) -> R) -> R {
        std::mem::swap(&mut self.board.fabric, fabric);
        let result = work(self.vfio, self.board);
        std::mem::swap(&mut self.board.fabric, fabric);
        result
    }
}

/// By which eventfd a user was told.
pub(super) fn by_index(index: Option<u32>) -> &'static str {
    match index {
        Some(IRQ_NON_FATAL) => "non-fatal",
        Some(_) => "err",
        None => "nobody",
    }
}

/// A user was told of an error, or would have been.
pub(super) fn notice(address: Address, kind: &str, by: &str) {
    tracing::info!(name: "aer.notice", target: "vfuse::aer", device = %address, kind, by);
}

impl Kernel for Drivers<'_> {
    fn handlers(&self, address: Address) -> Handlers {
        match self.board.driver(address) {
            Some(Driver::VfioPci) => self.vfio.error_handlers(address),
            _ => self.policy(address).handlers(),
        }
    }

    fn call(&mut self, fabric: &mut Fabric, address: Address, call: Call) -> Vote {
        self.touched.insert(address);
        let mut vote = self.policy(address).vote(call);
        let mut told = false;
        match (self.board.driver(address), call) {
            (Some(Driver::VfioPci), _) => {
                let bound = self.saved.get(&address);
                vote = self.with_board(fabric, |vfio, board| vfio.error_call(address, call, bound, board));
                // ERR-002: whatever the state, ERR-003: also if nobody listens.
                if let Call::ErrorDetected(channel) = call {
                    told = self.tell(address, channel);
                }
            }
            (Some(Driver::Pcieport | Driver::Kernel(_)), Call::SlotReset) => {
                if let (Some(function), Some(saved)) = (fabric.function_mut(address), self.saved.get(&address)) {
                    function.restore(saved);
                }
            }
            _ => {}
        }
        tracing::info!(name: "aer.call", target: "vfuse::aer", device = %address, ?call, %vote, told);
        vote
    }

    fn follow(&mut self, fabric: &mut Fabric) {
        let reset = fabric.take_resets();
        let changed = fabric.take_changed();
        if reset.is_empty() && changed.is_empty() {
            return;
        }
        let now = self.now;
        self.touched.extend(reset.iter().chain(&changed));
        self.with_board(fabric, |vfio, board| {
            for address in &reset {
                tracing::info!(name: "aer.reset", target: "vfuse::aer", device = %address);
                if vfio.function_was_reset(*address, ResetKind::Bus, board) {
                    continue;
                }
                if let Some(endpoint) = board.endpoint(*address) {
                    endpoint.reset(ResetKind::Bus, now);
                    endpoint.interrupts.reset();
                }
            }
            for address in &changed {
                vfio.reach_changed(*address, board);
            }
        });
    }

    fn hold(&mut self, fabric: &mut Fabric, address: Address, on: bool) {
        self.with_board(fabric, |vfio, board| vfio.hold(address, on, board));
    }

    fn is_locked(&self, address: Address) -> bool {
        self.board.is_locked(address) || self.vfio.is_resetting(address)
    }

    fn lock(&mut self, address: Address, on: bool) {
        if let Some(slot) = self.board.slots.get_mut(&address) {
            slot.link_reset = on;
        }
    }

    fn user_resets(&mut self, fabric: &mut Fabric, scope: &[Address]) -> UserReset {
        self.with_board(fabric, |vfio, board| vfio.user_resets(scope, board))
    }

    fn uevent(&mut self, address: Address, event: Uevent) {
        let [kind, online] = event.variables();
        tracing::info!(name: "aer.uevent", target: "vfuse::aer", device = %address, kind, online);
    }

    fn report(&mut self, report: &Report) {
        match report {
            Report::Received { root, severity, source, multiple, found } => tracing::warn!(
                name: "aer.message", target: "vfuse::aer", %root, %severity,
                source = %Address::from_devfn(root.segment, (source >> 8) as u8, *source as u8), multiple, found
            ),
            Report::Error { address, severity, status, mask, first, header } => tracing::warn!(
                name: "aer.error", target: "vfuse::aer", device = %address, %severity,
                status = %format_args!("{status:#010x}"), mask = %format_args!("{mask:#010x}"), first, ?header
            ),
            Report::Contained { port, status, source } => tracing::warn!(
                name: "aer.contained", target: "vfuse::aer", %port, status = %format_args!("{status:#06x}"),
                source = %format_args!("{source:#06x}")
            ),
            Report::Recovery { source, bridge, outcome } => tracing::warn!(
                name: "aer.recovery", target: "vfuse::aer", device = %source, %bridge,
                recovered = outcome.recovered, reset = outcome.reset, vote = %outcome.vote
            ),
        }
    }

    fn removed(&mut self, fabric: &mut Fabric, functions: &[Address]) {
        // The last first, as the slot's driver takes them.
        for address in functions.iter().rev() {
            if fabric.function(*address).is_some_and(|f| f.answers() != Answers::Yes) {
                self.removed.insert(*address);
            }
        }
    }
}
