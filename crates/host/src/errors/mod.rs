// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of a running lab: who injects them, when planned ones happen, and
//! how the pretend kernel recovers (vfio-error-recovery.md).
//!
//! The rules are [`pci::recovery`]'s; `kernel` is what they need of drivers,
//! `plan` the errors that the lab file asks for, `policy` how a driver behaves,
//! `takers` who is told of errors in place of the program.
//! [`Host::deadline`] and [`Host::elapse`] drive the waits.

mod inject;
mod kernel;
mod plan;
mod policy;
mod takers;

use std::collections::{BTreeMap, BTreeSet};

use caller::{Ticket, Wait, Wake};
use pci::aer::{AerError, InjectError, Injection, RaiseError};
use pci::recovery::{Counters, ErrorService, Next, RootCounters};
use pci::{Address, Fabric, SavedConfig};
use uapi::Errno;

use crate::host::Host;
use crate::lab::Behaviour;
use crate::sysfs;
use crate::tree::Entry;
use kernel::Drivers;
use plan::Plan;
pub use policy::ErrorPolicy;
use takers::Takers;
pub use takers::{NotTaken, TakerId};

/// Steps in one go; what is left is done soon after, so that drivers whose
/// recovery brings the next error on cannot hold the lab up.
const STEPS: usize = 4096;

/// The error side of a host.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    pub(crate) service: ErrorService,
    /// How kernel drivers of these functions behave; the others are good ones.
    policies: BTreeMap<Address, ErrorPolicy>,
    /// What each function's driver saved when it was bound.
    saved: BTreeMap<Address, SavedConfig>,
    plan: Plan,
    takers: Takers,
    /// When the next step is due.
    next: Option<u64>,
    /// Functions whose device was pulled out, and that have not gone yet.
    leaving: BTreeSet<Address>,
    /// Functions of which sysfs shows something that has changed.
    touched: BTreeSet<Address>,
    /// Calls that wait for a function's recovery, or for its device lock.
    queue: Vec<(Address, Ticket)>,
}

/// An injection that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Where.
    pub address: Address,
}

/// Why an injection was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInjected {
    /// The text does not say where, and nothing else does.
    #[error("{}:{}: no PCI_ID here, and none given otherwise", .0.0, .0.1)]
    NoTarget((usize, usize)),
    /// Refused as Linux does.
    #[error("{error} ({})", errno(*.error))]
    Refused {
        /// Why.
        #[source]
        error: InjectError,
    },
}

/// What a write to `/dev/aer_inject` gives (ERR-061, ERR-062).
#[must_use]
pub(crate) fn errno(error: InjectError) -> Errno {
    match error {
        InjectError::NoDevice(_) | InjectError::NoRoot(_) | InjectError::NoService(_) => Errno::ENODEV,
        InjectError::NoCapability(_) | InjectError::NoRootCapability(_) => Errno::EPROTONOSUPPORT,
        InjectError::CorrectableMasked(..) | InjectError::UncorrectableMasked(..) => Errno::EINVAL,
    }
}

impl Host {
    /// Injects errors as the `aer-inject` tool does: one after the other, each
    /// handled before the next; `target` goes before what the text says. The
    /// first that is refused ends it.
    pub fn inject(&mut self, injections: &[Injection], target: Option<Address>) -> Result<Vec<Injected>, NotInjected> {
        let mut done = Vec::with_capacity(injections.len());
        for injection in injections {
            let address = target.or(injection.target).ok_or(NotInjected::NoTarget(injection.place))?;
            self.inject_one(address, injection).map_err(|error| NotInjected::Refused { error })?;
            done.push(Injected { address });
        }
        Ok(done)
    }

    /// Injects at one function what is then handled at once.
    fn inject_one(&mut self, address: Address, injection: &Injection) -> Result<(), InjectError> {
        let board = &mut self.board;
        let (slots, native) = (&board.slots, board.fabric.has_native_errors());
        let served = |port: Address| {
            native && slots.get(&port).is_some_and(|slot| slot.driver == Some(device::Driver::Pcieport))
        };
        let result = board.fabric.inject(address, injection, served);
        tracing::info!(
            name: "aer.injected", target: "vfuse::aer", device = %address,
            correctable = %format_args!("{:#x}", injection.correctable),
            uncorrectable = %format_args!("{:#x}", injection.uncorrectable), taken = result.is_ok()
        );
        self.errors.touched.insert(address);
        self.attend_errors();
        result
    }

    /// A function detects errors, as hardware would.
    pub fn raise(&mut self, address: Address, error: &AerError) -> Result<(), RaiseError> {
        let raised = self.board.fabric.raise(address, error)?;
        tracing::info!(
            name: "aer.raised", target: "vfuse::aer", device = %address,
            correctable = %format_args!("{:#x}", error.correctable),
            uncorrectable = %format_args!("{:#x}", error.uncorrectable),
            messages = raised.sent.len(), contained = raised.contained
        );
        self.errors.touched.insert(address);
        self.attend_errors();
        Ok(())
    }

    /// A device misbehaves. `error` is what is reported besides what the
    /// behaviour itself makes somebody report.
    pub fn misbehave(&mut self, address: Address, behaviour: Behaviour, error: &AerError) -> Result<(), RaiseError> {
        if self.board.fabric.function(address).is_none() {
            return Err(RaiseError::NoFunction(address));
        }
        tracing::info!(name: "aer.behaviour", target: "vfuse::aer", device = %address, ?behaviour);
        plan::misbehave(&mut self.board.fabric, address, behaviour, error)?;
        self.reach_changed(address);
        self.attend_errors();
        Ok(())
    }

    /// Errors of a device so far (ERR-057).
    #[must_use]
    pub fn error_counters(&self, address: Address) -> Counters {
        self.errors.service.counters(address)
    }

    /// Messages that a root port had, by severity.
    #[must_use]
    pub fn root_error_counters(&self, root: Address) -> RootCounters {
        self.errors.service.root_counters(root)
    }

    /// Whether a recovery concerns the function now.
    #[must_use]
    pub fn is_recovering(&self, address: Address) -> bool {
        self.errors.service.recovery_of(&self.board.fabric, address).is_some()
    }

    /// Whether no error is being dealt with.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.errors.service.is_idle()
    }

    pub(crate) fn plan_errors(&mut self) -> Result<(), crate::LabError> {
        for (address, n) in &self.placed {
            if let Some(device) = self.lab.devices.get(*n) {
                self.errors.policies.insert(*address, device.on_error);
            }
        }
        let all: Vec<Address> = self.board.fabric.functions().map(|(address, _)| address).collect();
        for address in all {
            self.save_for_driver(address);
        }
        self.errors.plan = Plan::new(&self.lab, &self.board, self.platform())?;
        Ok(())
    }

    /// A driver was bound: it saves the configuration that `slot_reset` will
    /// restore.
    pub(crate) fn save_for_driver(&mut self, address: Address) {
        if let Some(function) = self.board.fabric.function(address) {
            self.errors.saved.insert(address, function.save());
        }
    }

    /// When [`attend_errors`](Self::attend_errors) is due.
    pub(crate) fn next_error(&self) -> Option<u64> {
        [self.errors.next, self.errors.plan.next(), self.vfio.deadline()].into_iter().flatten().min()
    }

    /// Planned errors whose time has come, and recovery as far as it goes now.
    pub(crate) fn attend_errors(&mut self) {
        let now = self.now();
        for planned in self.errors.plan.due(now, &self.board) {
            let result = plan::misbehave(&mut self.board.fabric, planned.device, planned.behaviour, &planned.error);
            tracing::info!(
                name: "aer.planned", target: "vfuse::aer", device = %planned.device,
                behaviour = ?planned.behaviour, ?result
            );
            self.reach_changed(planned.device);
        }
        let next = self.step_errors(now);
        self.errors.next = match next {
            Next::Now => Some(now),
            Next::At(time) => Some(time),
            Next::Idle => None,
        };
        self.after_recovery();
        self.let_removed_go();
    }

    /// Functions that were given back in the middle of a recovery are put
    /// right once it is over; calls that waited are made again.
    fn after_recovery(&mut self) {
        let Host { vfio, board, errors, parking, .. } = self;
        // By what was given back, which is next to nothing: asking each function
        // of the lab whether it is recovered made an error cost what the lab is
        // large.
        let over = |address: &Address| {
            errors.service.recovery_of(&board.fabric, *address).is_none() && !vfio.is_resetting(*address)
        };
        let settled: Vec<Address> = vfio.unsettled().filter(over).collect();
        for address in settled {
            vfio.settle(address, board);
        }
        for (ticket, wake) in vfio.take_released() {
            parking.wake(ticket, wake);
        }
        let free = |address: &Address| !vfio.is_unsettled(*address) && !board.is_link_reset(*address);
        let ready = errors.queue.extract_if(.., |(address, _)| free(address));
        for (_, ticket) in ready {
            parking.wake(ticket, Wake::Retry);
        }
    }

    /// A file was closed: what waited for its device goes on.
    pub(crate) fn after_close(&mut self) {
        if self.errors.service.is_idle() {
            self.after_recovery();
        } else {
            self.attend_errors();
        }
    }

    /// A program has acted: a recovery that waited for that goes on.
    pub(crate) fn follow_call(&mut self) {
        if !self.errors.service.is_idle() {
            self.attend_errors();
        }
    }

    /// Users have waited for their devices long enough.
    pub(crate) fn end_waits(&mut self) {
        if self.vfio.deadline().is_some_and(|at| at <= self.now()) {
            self.vfio.elapse(&mut self.board);
            if !self.removals.is_empty() {
                self.advance_removals();
            }
            self.after_recovery();
        }
    }

    /// A function that was given back in the middle of a recovery gets no
    /// driver before that is over: the present call waits, and is then made
    /// again (extension).
    pub(crate) fn wait_for_recovery(&mut self, address: Address) -> Option<Ticket> {
        self.vfio.is_unsettled(address).then(|| self.queue_up(address))
    }

    /// Recovery resets the link of a function, and so has its device lock: the
    /// present call waits, and is then made again.
    pub(crate) fn wait_for_link_reset(&mut self, address: Address) -> Option<Ticket> {
        self.board.is_link_reset(address).then(|| self.queue_up(address))
    }

    fn queue_up(&mut self, address: Address) -> Ticket {
        let ticket = self.parking.park(Wait::Uninterruptible);
        self.errors.queue.push((address, ticket));
        ticket
    }

    /// A call that waited is gone.
    pub(crate) fn forget_waiter(&mut self, ticket: Ticket) {
        self.vfio.forget_waiter(ticket);
        self.errors.queue.retain(|(_, waiter)| *waiter != ticket);
    }

    fn step_errors(&mut self, now: u64) -> Next {
        let Errors { service, policies, saved, leaving, takers, touched, .. } = &mut self.errors;
        // Recovery has the fabric; the board gets it back while VFIO works.
        let mut fabric = std::mem::take(&mut self.board.fabric);
        let mut drivers = Drivers {
            board: &mut self.board,
            vfio: &mut self.vfio,
            policies,
            saved,
            removed: leaving,
            takers,
            touched,
            now,
        };
        let mut next = service.run(&mut fabric, &mut drivers, now, STEPS);
        if let Some(settles) = fabric.next_change().filter(|_| next == Next::Idle) {
            next = Next::At(settles);
        }
        touched.extend(service.take_counted());
        self.board.fabric = fabric;
        next
    }

    /// Whether [`take_changed_files`](Self::take_changed_files) would give any.
    #[must_use]
    pub fn has_changed_files(&self) -> bool {
        !self.errors.touched.is_empty()
    }

    /// Takes the files of the tree that errors may have changed since the last
    /// call, though [`generation`](Self::generation) is the same: those of the
    /// functions concerned. To make the tree anew at each step of a recovery
    /// would cost what the lab is large.
    pub fn take_changed_files(&mut self) -> Vec<(String, Entry)> {
        let touched = std::mem::take(&mut self.errors.touched);
        let tree = sysfs::functions(&self.board, &self.facts(), &touched);
        tree.entries.into_iter().filter(|(_, entry)| matches!(entry, Entry::File { .. })).collect()
    }

    /// A program made a call on a device.
    pub(crate) fn count_call(&mut self, file: caller::FileId) {
        if self.errors.plan.counts_calls()
            && let Some(address) = self.vfio.device_address(file)
            && self.errors.plan.called(address)
        {
            self.attend_errors();
        }
    }

    fn reach_changed(&mut self, address: Address) {
        let fabric: &Fabric = &self.board.fabric;
        let above: Vec<Address> = fabric.parent(address).map(|port| fabric.below(port)).unwrap_or_default();
        let mut reached: Vec<Address> = above.into_iter().chain([address]).collect();
        let parts: Vec<Address> = reached.iter().flat_map(|function| self.board.parts(*function)).collect();
        reached.extend(parts);
        for function in reached {
            self.vfio.reach_changed(function, &mut self.board);
        }
    }

    /// Functions that were pulled out leave as soon as no program has them
    /// open any more; who has is asked to let go.
    pub(crate) fn let_removed_go(&mut self) {
        let parts: Vec<Address> = self.errors.leaving.iter().flat_map(|function| self.board.parts(*function)).collect();
        self.errors.leaving.extend(parts);
        // Parts stand in the last segment: from the back they come before the
        // functions that they are of.
        for address in self.errors.leaving.clone().into_iter().rev() {
            if self.board.fabric.function(address).is_none() {
                self.errors.leaving.remove(&address);
                continue;
            }
            if self.board.parts(address).next().is_some() {
                continue;
            }
            if self.board.driver(address).is_some() && !self.board.is_leaving(address) {
                // Nobody waits for this removal but the slot's own thread.
                if let Ok(Some(ticket)) = self.unbind(address, 0) {
                    self.abandon(ticket);
                }
            }
            if self.board.driver(address).is_none() && !self.is_open(address) {
                self.errors.leaving.remove(&address);
                self.errors.service.forget(address);
                self.errors.saved.remove(&address);
                if let Some(endpoint) = self.board.slots.remove(&address).and_then(|slot| slot.endpoint) {
                    endpoint.requester.attach(None);
                }
                self.board.fabric.unplug(address);
                tracing::info!(name: "hotplug.removed", target: "vfuse::aer", device = %address);
                self.changed();
            }
        }
    }
}
