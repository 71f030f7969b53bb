// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking drivers away from functions, which waits for their users.
//!
//! An open device's user is asked to give it back by the REQ eventfd, at once
//! and every ten seconds, and whoever unbinds waits until it does (API-272).
//! The wait holds the device's lock: other stores that want it wait too, and
//! resets, which only try for it, get `EAGAIN`. What was begun goes on when
//! the task that began it is gone.
//!
//! Removing VFs is unbinding them one after the other; all disappear together
//! when the last is free, where Linux removes each at its turn.

use std::collections::BTreeMap;

use caller::{Ticket, Wait, Wake};
use device::Driver;
use pci::Address;
use uapi::Errno;

use crate::host::Host;

/// Nanoseconds between two requests to the user (`HZ * 10`).
const ASK_EVERY: u64 = 10_000_000_000;

/// What is being taken away, by the device whose lock that holds.
pub(crate) type Removals = BTreeMap<Address, Removal>;

/// A removal that waits.
#[derive(Debug)]
pub(crate) struct Removal {
    /// The VFs go first.
    vfs: bool,
    /// Then the driver of the function itself.
    driver: bool,
    /// Whose user is waited for.
    current: Address,
    /// When that user is asked again; `None`: somebody else asks.
    ask_at: Option<u64>,
    asked: u32,
    /// Stores that end with this, and the bytes that they take.
    waiters: Vec<(Ticket, u64)>,
    /// Stores that then are made again.
    queue: Vec<Ticket>,
}

/// How a store went: done, or waiting.
pub(crate) type Stored = Result<Option<Ticket>, Errno>;

impl Host {
    /// Unbinds a function: its VFs go first if vfio-pci has it, then its user
    /// is waited for. `len`: bytes of the store.
    pub(crate) fn unbind(&mut self, address: Address, len: u64) -> Stored {
        if let Some(removal) = self.removals.values_mut().find(|r| r.current == address) {
            // Linux waits for the lock, then finds nothing left to do.
            let ticket = self.parking.park(Wait::Uninterruptible);
            removal.waiters.push((ticket, len));
            return Ok(Some(ticket));
        }
        if let Some(ticket) = self.wait_for_lock(address) {
            return Ok(Some(ticket));
        }
        let vfs = self.board.driver(address) == Some(&Driver::VfioPci);
        Ok(self.remove(address, vfs, true, len))
    }

    /// Removes the VFs of a function.
    pub(crate) fn remove_vfs(&mut self, pf: Address, len: u64) -> Option<Ticket> {
        self.remove(pf, true, false, len)
    }

    /// Somebody who waits holds the device's lock: the present call waits too,
    /// and is then made again.
    pub(crate) fn wait_for_lock(&mut self, address: Address) -> Option<Ticket> {
        if let Some(ticket) = self.vfio.wait_for_lock(address, &mut self.parking) {
            return Some(ticket);
        }
        if let Some(ticket) = self.wait_for_link_reset(address) {
            return Some(ticket);
        }
        if !self.board.is_locked(address) {
            return None;
        }
        let (_, holder) = self.removals.iter_mut().find(|(at, r)| **at == address || r.current == address)?;
        let ticket = self.parking.park(Wait::Uninterruptible);
        holder.queue.push(ticket);
        Some(ticket)
    }

    /// A store that waits is gone.
    pub(crate) fn forget_store(&mut self, ticket: Ticket) {
        for removal in self.removals.values_mut() {
            removal.waiters.retain(|(waiter, _)| *waiter != ticket);
            removal.queue.retain(|waiter| *waiter != ticket);
        }
    }

    fn remove(&mut self, address: Address, vfs: bool, driver: bool, len: u64) -> Option<Ticket> {
        let mut removal =
            Removal { vfs, driver, current: address, ask_at: None, asked: 0, waiters: Vec::new(), queue: Vec::new() };
        self.set_locked(address, true);
        if self.advance(address, &mut removal) {
            self.set_locked(address, false);
            return None;
        }
        let ticket = self.parking.park(Wait::Interruptible);
        removal.waiters.push((ticket, len));
        self.removals.insert(address, removal);
        Some(ticket)
    }

    /// Goes as far as users let it; whether it is done.
    fn advance(&mut self, address: Address, removal: &mut Removal) -> bool {
        if removal.vfs {
            for vf in self.board.fabric.virtual_functions(address).to_vec() {
                if !self.take_driver(vf, removal) {
                    return false;
                }
            }
            self.remove_free_vfs(address);
            removal.vfs = false;
        }
        !removal.driver || self.take_driver(address, removal)
    }

    /// Takes the driver of one function if nobody has it open, else sees to it
    /// that its user is asked.
    fn take_driver(&mut self, address: Address, removal: &mut Removal) -> bool {
        if self.board.driver(address).is_none() {
            return true;
        }
        let waiting = removal.current == address && removal.ask_at.is_some();
        // Another removal waits for this very one.
        let others = !waiting && self.board.is_leaving(address);
        // A reset under way has the lock; nobody is asked then.
        if self.vfio.is_resetting(address) && !self.is_open(address) {
            removal.current = address;
            if let Some(slot) = self.board.slots.get_mut(&address) {
                (slot.locked, slot.leaving) = (true, true);
            }
            return false;
        }
        if self.is_open(address) || others {
            if !waiting {
                removal.current = address;
                removal.asked = 0;
                removal.ask_at = None;
                if !others {
                    self.set_locked(address, true);
                    if let Some(slot) = self.board.slots.get_mut(&address) {
                        slot.leaving = true;
                    }
                    self.changed();
                    self.ask(removal);
                }
            }
            return false;
        }
        if let Some(slot) = self.board.slots.get_mut(&address) {
            slot.driver = None;
            slot.leaving = false;
        }
        removal.ask_at = None;
        self.set_locked(address, false);
        self.vfio.driver_unbound(address, &self.board, &mut self.iommufd);
        if let Some(group) = self.vfio.remove_noiommu_group(address) {
            self.board.fabric.dissolve_group(group);
        }
        self.changed();
        true
    }

    fn ask(&mut self, removal: &mut Removal) {
        let heard = self.vfio.request_release(removal.current);
        if !heard && removal.asked == 0 {
            tracing::warn!(target: "vfuse::sysfs", device = %removal.current, "its user cannot be asked to release it; waits until it does");
        }
        removal.asked += 1;
        removal.ask_at = Some(self.now().saturating_add(ASK_EVERY));
    }

    fn set_locked(&mut self, address: Address, on: bool) {
        if let Some(slot) = self.board.slots.get_mut(&address) {
            slot.locked = on;
        }
    }

    /// Functions without users go; their store is done.
    fn remove_free_vfs(&mut self, pf: Address) {
        let present = self.board.fabric.virtual_functions(pf).to_vec();
        if present.is_empty() {
            return;
        }
        for vf in present {
            if let Some(endpoint) = self.board.slots.remove(&vf).and_then(|slot| slot.endpoint) {
                endpoint.requester.attach(None);
            }
        }
        self.board.fabric.disable_vfs(pf);
        self.changed();
    }

    /// A device was closed: whatever waited for that goes on.
    pub(crate) fn advance_removals(&mut self) {
        loop {
            let mut finished = 0;
            for address in self.removals.keys().copied().collect::<Vec<_>>() {
                let Some(mut removal) = self.removals.remove(&address) else { continue };
                if !self.advance(address, &mut removal) {
                    self.removals.insert(address, removal);
                    continue;
                }
                finished += 1;
                self.set_locked(address, false);
                for (ticket, len) in removal.waiters {
                    self.parking.wake(ticket, Wake::Done(Ok(len)));
                }
                for ticket in removal.queue {
                    self.parking.wake(ticket, Wake::Retry);
                }
            }
            // One may have waited for another.
            if finished == 0 {
                return;
            }
        }
    }

    /// Asks those users again whose time has come.
    pub(crate) fn ask_again(&mut self) {
        let now = self.now();
        for address in self.removals.keys().copied().collect::<Vec<_>>() {
            let Some(mut removal) = self.removals.remove(&address) else { continue };
            if removal.ask_at.is_some_and(|at| at <= now) {
                self.ask(&mut removal);
            }
            self.removals.insert(address, removal);
        }
    }

    /// When [`ask_again`](Self::ask_again) is due.
    pub(crate) fn next_request(&self) -> Option<u64> {
        self.removals.values().filter_map(|removal| removal.ask_at).min()
    }

    /// A signal came to the task that waits: the user is asked at once, and
    /// the wait goes on without an ear for signals. Whether it was such a wait.
    pub(crate) fn unbind_interrupted(&mut self, ticket: Ticket) -> bool {
        let found = self.removals.iter().find(|(_, r)| r.waiters.iter().any(|(t, _)| *t == ticket));
        let Some(address) = found.map(|(address, _)| *address) else { return false };
        if let Some(mut removal) = self.removals.remove(&address) {
            if removal.ask_at.is_some() {
                self.ask(&mut removal);
            }
            self.removals.insert(address, removal);
        }
        true
    }
}
