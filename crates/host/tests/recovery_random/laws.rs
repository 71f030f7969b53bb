// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What holds once everything has come to rest.

use caller::Reply;
use pci::{Answers, cap};

use crate::game::{ALL, Game};
use crate::world::*;

impl Game {
    /// Whoever waits for a user gets the device; then everything ends.
    pub(crate) fn quiesce(&mut self) {
        for address in ALL {
            if self.w.host.board().is_leaving(at(address)) {
                self.close(address);
            }
        }
        self.w.pass(400_000);
        self.follow();
        self.tell("calm");
        // What still does not answer has failed for good, until its bus is reset.
        for port in [PORT, "0000:00:02.0"] {
            let below = format!("/sys/bus/pci/devices/{port}/reset_subordinate");
            if let Ok(Reply::Parked(ticket)) = self.w.host.store(&below, b"1") {
                self.w.host.abandon(ticket);
            }
            self.tell("reset");
            self.w.pass(100_000);
            self.tell("after the reset");
        }
        self.follow();
        assert!(self.w.host.is_calm(), "recovery has an end");
        assert_eq!((self.waiting.len(), self.w.host.waiting()), (0, 0), "nobody waits");
        self.works.clear();
        for (address, user) in &self.users {
            let state = self.w.recovery_state(user.file)[1];
            assert!(matches!(state, 0 | 3), "{address}: {state}");
            assert!(!user.pages.is_held(), "{address}: its pages are kept from its user");
            if state == 0 {
                self.works.push(user.file);
            }
        }
        let mut gone = Vec::new();
        for address in ALL {
            let board = self.w.host.board();
            let Some(function) = board.fabric.function(at(address)) else {
                // Pulled out of its slot, and nothing of it is left.
                assert!(!self.users.contains_key(address), "{address} has gone under its user");
                assert!(self.w.host.tree().get(&format!("/sys/bus/pci/devices/{address}")).is_none());
                gone.push("a device gone from its slot");
                continue;
            };
            if board.fabric.is_removed(at(address)) {
                // Nobody noticed, or it stands behind a port without slot.
                assert_eq!(function.answers(), Answers::No, "{address}");
                gone.push("a device gone from a port without slot");
                continue;
            }
            assert_eq!(function.answers(), Answers::Yes, "{address}");
            let resource = board.fabric.resources(at(address))[0].start as u32;
            let open = self.users.contains_key(address);
            // ERR-038: without the extension nobody restores a device that a
            // program has open, nor one that had its error while it was closed.
            let state = self.users.get(address).map(|user| user.file);
            let works = state.is_some_and(|file| self.works.contains(&file));
            if self.blocks && open && works && !self.lost.contains(&address) {
                assert_eq!(function.read(cap::BAR0, 4) & !0xf, resource, "{address}");
                assert_eq!(function.command() & 2, 2, "{address}: memory as its user has it");
                let user = &self.users[address];
                assert_eq!(self.registers(address), user.registers, "{address}");
                assert!(user.pages.is_accessible());
            }
            if !open && !self.silent.contains(&address) {
                assert_eq!(function.command() & 4, 0, "{address}: nobody masters the bus");
            }
        }
        gone.into_iter().for_each(|what| self.saw(what));
    }
}
