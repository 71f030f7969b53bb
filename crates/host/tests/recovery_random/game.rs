// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab, who is in it, and what happens to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{FileId, Reply, Ticket, Wake};
use host::lab::Behaviour;
use models::testing::{CountedEvent, TestFile};
use pci::aer::AerError;
use pci::cap;
use uapi::Errno;

use crate::owners::Way;
use crate::world::*;

pub(crate) const C: &str = "0000:02:00.0";
pub(crate) const ALL: [&str; 3] = [A, B, C];

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A program that has a device open.
pub(crate) struct User {
    pub(crate) way: Way,
    pub(crate) file: FileId,
    pub(crate) error: Arc<CountedEvent>,
    /// Indexes 5 and 6.
    pub(crate) more: Vec<Arc<CountedEvent>>,
    /// How often it may have been told of something since it opened.
    pub(crate) most: u64,
    pub(crate) heard: u64,
    /// Registers that a reset loses, as they were after the open.
    pub(crate) registers: Vec<u32>,
    pub(crate) pages: Arc<TestFile>,
}

pub(crate) struct Game {
    pub(crate) w: World,
    pub(crate) users: BTreeMap<&'static str, User>,
    /// Calls that wait, and whose they are.
    pub(crate) waiting: BTreeMap<Ticket, &'static str>,
    pub(crate) groups: BTreeMap<&'static str, usize>,
    pub(crate) iommufds: Vec<i32>,
    pub(crate) blocks: bool,
    /// Had an error while they had no driver, or were opened while they did
    /// not answer: nobody has restored them.
    pub(crate) lost: Vec<&'static str>,
    /// Devices that can be used.
    pub(crate) works: Vec<FileId>,
    /// Did not answer since they were last opened: what Linux writes to them
    /// at close is lost.
    pub(crate) silent: Vec<&'static str>,
    /// What has been done, for whoever looks for the reason of a failure.
    pub(crate) history: Vec<String>,
    /// How often what matters has come about.
    pub(crate) seen: BTreeMap<&'static str, u32>,
}

impl Drop for Game {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.history.join("\n"));
        }
    }
}

impl Game {
    pub(crate) fn new(names: &str, slow: bool, seed: u64) -> Game {
        let ready = if slow { "ready_ms = 300\n" } else { "" };
        let third = "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\n";
        let port = |n: u8, more: &str| format!("[[port]]\naddr = \"00:0{n}.0\"\nbus = {n}\n{more} = true\n");
        let mut ports = String::new();
        if seed % 4 == 1 {
            ports += &port(1, "dpc");
        }
        if seed % 3 == 1 {
            ports += &port(2, "hotplug");
        }
        let text = format!("{}{ports}{}{ready}{}{third}", extensions(names), function(0), function(1));
        let w = World::new(&text);
        w.platform.can_hold();
        Game {
            w,
            users: BTreeMap::new(),
            waiting: BTreeMap::new(),
            groups: BTreeMap::new(),
            iommufds: Vec::new(),
            lost: Vec::new(),
            works: Vec::new(),
            silent: Vec::new(),
            history: Vec::new(),
            seen: BTreeMap::new(),
            blocks: names.contains("block"),
        }
    }

    /// What a reset loses and Linux brings back: control, masks, severities,
    /// BARs.
    pub(crate) fn registers(&self, address: &str) -> Vec<u32> {
        let function = self.w.host.board().fabric.function(at(address)).unwrap();
        let express = function.capability(cap::EXPRESS).unwrap();
        let aer = function.extended_capability(cap::EXT_AER).unwrap();
        let mut registers = vec![function.read(express + 8, 2)];
        registers.extend([aer + 8, aer + 0xc, aer + 0x14, 0x10, 0x14, 0x3c].map(|at| function.read(at, 4)));
        registers
    }

    fn error(&mut self, address: &str, kind: u64) {
        let bound =
            |a: &&&'static str| self.w.host.board().driver(at(a)).is_none_or(|_| self.w.host.board().is_leaving(at(a)));
        let driverless: Vec<_> = ALL.iter().filter(bound).copied().collect();
        self.lost.extend(driverless);
        let error = match kind {
            0 => AerError { correctable: 1, ..AerError::default() },
            1 => AerError { uncorrectable: NONFATAL, ..AerError::default() },
            _ => AerError { uncorrectable: FATAL, ..AerError::default() },
        };
        if self.w.host.raise(at(address), &error).is_err() || kind == 0 {
            return;
        }
        // At most: the error, its failure, a reset behind its back, and the
        // end of its patience.
        let same = |user: &&str| (*user == C) == (address == C);
        for (_, user) in self.users.iter_mut().filter(|(user, _)| same(user)) {
            user.most += 4;
        }
    }

    fn misbehave(&mut self, address: &'static str, how: Behaviour) {
        // Surprise Down of a link that is being reset is not heard of, nor a
        // function that hangs: nobody restores what was lost so.
        if how != Behaviour::Poison {
            self.lost.extend(ALL.into_iter().filter(|other| (*other == C) == (address == C)));
        }
        self.silent.extend(ALL.into_iter().filter(|other| (*other == C) == (address == C)));
        let bound =
            |a: &&&'static str| self.w.host.board().driver(at(a)).is_none_or(|_| self.w.host.board().is_leaving(at(a)));
        let driverless: Vec<_> = ALL.iter().filter(bound).copied().collect();
        self.lost.extend(driverless);
        if self.w.host.misbehave(at(address), how, &AerError::default()).is_err() {
            assert!(self.w.host.board().fabric.function(at(address)).is_none(), "{address} is there");
        }
        // As of an error, and of its link that was down before the host knew.
        for user in self.users.values_mut() {
            user.most += 5;
        }
    }

    pub(crate) fn follow(&mut self) {
        for (ticket, wake) in self.w.woken.drain(..).chain(self.w.host.take_woken()) {
            self.waiting.remove(&ticket);
            assert!(matches!(wake, Wake::Retry | Wake::Done(_)));
        }
        for address in ALL {
            // Linux takes the group of a device that is gone out of its
            // container, which has no IOMMU any more if that was the last.
            if self.w.host.board().fabric.function(at(address)).is_none() {
                self.leave_group(address);
            }
        }
        for (address, user) in &mut self.users {
            assert!(!(user.pages.is_accessible() && user.pages.is_held()), "{address}: held for nothing");
            user.heard += user.error.take() + user.more.iter().map(|event| event.take()).sum::<u64>();
            assert!(user.heard <= user.most, "{address} was told {} times of {}", user.heard, user.most);
        }
    }

    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Notes what is done, and who has his BARs.
    pub(crate) fn tell(&mut self, what: &str) {
        let fabric = &self.w.host.board().fabric;
        let bars = ALL.map(|a| fabric.function(at(a)).map(|f| u8::from(f.peek(cap::BAR0, 4) > 0xf)));
        let calm = if self.w.host.is_calm() { "calm" } else { "recovering" };
        self.history.push(format!("{what}; {bars:?}, {calm}"));
    }

    pub(crate) fn step(&mut self, rng: &mut Rng) {
        let who = ALL[rng.below(3) as usize];
        let what = rng.below(27);
        let time = caller::Platform::now(&*self.w.platform) / MS;
        self.tell(&format!("{time} ms: {what} {who}"));
        match what {
            0..=3 | 24..=26 => {
                // Another program may have it after this one.
                if what > 23 {
                    self.close(who);
                }
                let way = Way::ALL[rng.below(5) as usize];
                self.history.push(format!("{way:?}"));
                self.open(who, way);
            }
            4 => self.close(who),
            5..=6 => self.error(who, 1),
            7..=8 => self.error(who, 2),
            9 => self.error(who, 0),
            10..=13 => {
                let kind = rng.below(5);
                self.call(who, kind);
            }
            14 => {
                let bound = self.w.host.board().driver(at(who)).is_some();
                let (path, data) = if bound {
                    ("/sys/bus/pci/drivers/vfio-pci/unbind".to_owned(), who)
                } else {
                    let path = format!("/sys/bus/pci/devices/{who}/driver_override");
                    if self.w.host.store(&path, b"vfio-pci").is_err() {
                        assert!(self.w.host.board().fabric.function(at(who)).is_none(), "{who} is there");
                        return;
                    }
                    ("/sys/bus/pci/drivers_probe".to_owned(), who)
                };
                if bound && !self.users.contains_key(who) {
                    self.leave_group(who);
                }
                if let Ok(Reply::Parked(ticket)) = self.w.host.store(&path, data.as_bytes()) {
                    self.w.host.abandon(ticket);
                }
            }
            15 => {
                // The host resets, whoever uses it.
                let (path, data) = match rng.below(2) {
                    0 => (format!("/sys/bus/pci/devices/{who}/reset"), "1"),
                    _ => (format!("/sys/bus/pci/devices/{PORT}/reset_subordinate"), "1"),
                };
                match self.w.host.store(&path, data.as_bytes()) {
                    Ok(Reply::Parked(ticket)) if rng.below(2) == 0 => self.w.host.abandon(ticket),
                    Ok(Reply::Parked(ticket)) => drop(self.waiting.insert(ticket, "the host")),
                    Ok(_) | Err(Errno::EAGAIN | Errno::ENOTTY) => {}
                    // It has been pulled out.
                    Err(Errno::EACCES) if self.w.host.board().fabric.function(at(who)).is_none() => {}
                    Err(errno) => panic!("{path}: {errno:?}"),
                }
            }
            16 => {
                let how = match rng.below(16) {
                    0 => Behaviour::Remove,
                    n => [Behaviour::LinkDown, Behaviour::Timeout, Behaviour::Poison][n as usize % 3],
                };
                self.history.push(format!("{how:?}"));
                self.misbehave(who, how);
            }
            // A program is killed: all that it has goes at once.
            17 => ALL.into_iter().for_each(|address| self.close(address)),
            18.. => {
                let ms = rng.below(3_000);
                self.w.pass(ms);
            }
        }
        self.follow();
    }
}
