// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random errors, resets, opens, closes and unbinds, with every recovery
//! extension on and with none: after any sequence no function is left blocked,
//! every count of an eventfd is explained, ownership rules hold, and
//! configuration space is what Linux would have restored.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use caller::{FileId, Reply, Ticket, Wake};
use models::testing::CountedEvent;
use pci::aer::AerError;
use pci::{Answers, cap};
use sim::BASE;
use world::*;

const RESET: u32 = 0x3b6f;
const HOT_RESET: u32 = 0x3b71;
const C: &str = "0000:02:00.0";
const ALL: [&str; 3] = [A, B, C];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A program that has a device open.
struct User {
    file: FileId,
    error: Arc<CountedEvent>,
    /// Indexes 5 and 6.
    more: Vec<Arc<CountedEvent>>,
    /// How often it may have been told of something since it opened.
    most: u64,
    heard: u64,
}

struct Game {
    w: World,
    users: BTreeMap<&'static str, User>,
    /// Calls that wait, and whose they are.
    waiting: BTreeMap<Ticket, &'static str>,
    groups: BTreeMap<&'static str, usize>,
    blocks: bool,
    /// Had an error while they had no driver: nobody has restored them.
    lost: Vec<&'static str>,
    /// Devices that can be used.
    works: Vec<FileId>,
}

impl Game {
    fn new(names: &str, slow: bool) -> Game {
        let ready = if slow { "ready_ms = 300\n" } else { "" };
        let third = "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\n";
        let text = format!("{}{}{ready}{}{third}", extensions(names), function(0), function(1));
        let w = World::new(&text);
        Game {
            w,
            users: BTreeMap::new(),
            waiting: BTreeMap::new(),
            groups: BTreeMap::new(),
            lost: Vec::new(),
            works: Vec::new(),
            blocks: names.contains("block"),
        }
    }

    fn open(&mut self, address: &'static str) {
        if self.users.contains_key(address) {
            return;
        }
        let vfio = self.w.host.board().driver(at(address)).is_some_and(|driver| driver.name() == "vfio-pci");
        if !vfio || self.w.host.board().is_leaving(at(address)) || self.w.host.is_recovering(at(address)) {
            return;
        }
        let file = match self.groups.get(address) {
            None => {
                if self.groups.is_empty() {
                    self.w.container = None;
                }
                self.groups.insert(address, self.w.groups.len());
                self.w.open(address)
            }
            Some(group) => match self.w.open_again(address, *group) {
                Ok(Reply::NewFile(file)) => file,
                Ok(Reply::Parked(ticket)) => return self.w.host.abandon(ticket),
                _ => return,
            },
        };
        let error = self.w.event(file, 3);
        let extended = self.w.recovery_state(file)[0] != 0;
        let more = if extended { vec![self.w.event(file, 5), self.w.event(file, 6)] } else { Vec::new() };
        self.w.store(file, CONFIG, 4, &[6, 0]);
        self.users.insert(address, User { file, error, more, most: 0, heard: 0 });
    }

    fn close(&mut self, address: &'static str) {
        let Some(user) = self.users.remove(address) else { return };
        if self.w.host.board().is_leaving(at(address))
            && let Some(group) = self.groups.remove(address)
        {
            let file = self.w.client.file_id(self.w.groups[group]).unwrap();
            self.w.host.release(file);
        }
        for ticket in self.waiting.iter().filter(|(_, who)| **who == address).map(|(t, _)| *t).collect::<Vec<_>>() {
            self.waiting.remove(&ticket);
            self.w.host.abandon(ticket);
        }
        self.w.host.release(user.file);
    }

    /// A call of a user, which may wait.
    fn call(&mut self, address: &'static str, kind: u64) {
        let Some(file) = self.users.get(address).map(|user| user.file) else { return };
        let reply = match kind {
            0 => self.w.try_load(file, CONFIG, 0),
            1 => self.w.try_load(file, 0, 8),
            2 => self.w.try_store(file, 0, 0x24, 0),
            3 => self.w.host.ioctl(file, RESET, 0, &self.w.client),
            _ => {
                let groups: Vec<i32> =
                    ALL[..2].iter().filter_map(|a| Some(self.w.groups[*self.groups.get(a)?])).collect();
                let mut words = vec![12 + 4 * groups.len() as u32, 0, groups.len() as u32];
                words.extend(groups.iter().map(|fd| *fd as u32));
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                self.w.client.set(BASE, &bytes);
                let reply = self.w.host.ioctl(file, HOT_RESET, BASE, &self.w.client);
                // HOT-023, HOT-025: both functions are vfio-pci's, and their
                // groups were named.
                let bound = |a: &&str| self.w.host.board().driver(at(a)).is_some_and(|d| d.name() == "vfio-pci");
                let owns = address != C && groups.len() == 2 && ALL[..2].iter().all(bound);
                if matches!(reply, Ok(Reply::Value(_))) && address != C {
                    assert!(owns, "a hot reset without owning all");
                }
                reply
            }
        };
        if let Ok(Reply::Parked(ticket)) = reply {
            self.waiting.insert(ticket, address);
        }
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

    fn follow(&mut self) {
        for (ticket, wake) in self.w.host.take_woken() {
            self.waiting.remove(&ticket);
            assert!(matches!(wake, Wake::Retry | Wake::Done(_)));
        }
        for (address, user) in &mut self.users {
            user.heard += user.error.take() + user.more.iter().map(|event| event.take()).sum::<u64>();
            assert!(user.heard <= user.most, "{address} was told {} times of {}", user.heard, user.most);
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let who = ALL[rng.below(3) as usize];
        match rng.below(20) {
            0..=3 => self.open(who),
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
                    self.w.host.store(&format!("/sys/bus/pci/devices/{who}/driver_override"), b"vfio-pci").unwrap();
                    ("/sys/bus/pci/drivers_probe".to_owned(), who)
                };
                if bound && let Some(group) = self.groups.get(who).copied().filter(|_| !self.users.contains_key(who)) {
                    self.groups.remove(who);
                    let file = self.w.client.file_id(self.w.groups[group]).unwrap();
                    self.w.host.release(file);
                }
                if let Ok(Reply::Parked(ticket)) = self.w.host.store(&path, data.as_bytes()) {
                    self.w.host.abandon(ticket);
                }
            }
            _ => {
                let ms = rng.below(3_000);
                self.w.pass(ms);
            }
        }
        self.follow();
    }

    /// Whoever waits for a user gets the device; then everything ends.
    fn quiesce(&mut self) {
        for address in ALL {
            if self.w.host.board().is_leaving(at(address)) {
                self.close(address);
            }
        }
        self.w.pass(400_000);
        self.follow();
        assert!(self.w.host.is_calm(), "recovery has an end");
        assert_eq!((self.waiting.len(), self.w.host.waiting()), (0, 0), "nobody waits");
        self.works.clear();
        for (address, user) in &self.users {
            let state = self.w.recovery_state(user.file)[1];
            assert!(matches!(state, 0 | 3), "{address}: {state}");
            if state == 0 {
                self.works.push(user.file);
            }
        }
        for address in ALL {
            let board = self.w.host.board();
            let function = board.fabric.function(at(address)).unwrap();
            assert_eq!(function.answers(), Answers::Yes);
            let resource = board.fabric.resources(at(address))[0].start as u32;
            let open = self.users.contains_key(address);
            // ERR-038: without the extension nobody restores a device that a
            // program has open, nor one that had its error while it was closed.
            let state = self.users.get(address).map(|user| user.file);
            let works = state.is_some_and(|file| self.works.contains(&file));
            if self.blocks && open && works && !self.lost.contains(&address) {
                assert_eq!(function.read(cap::BAR0, 4) & !0xf, resource, "{address}");
                assert_eq!(function.command() & 2, 2, "{address}: memory as its user has it");
            }
            if !open {
                assert_eq!(function.command() & 4, 0, "{address}: nobody masters the bus");
            }
        }
    }
}

fn play(names: &str, slow: bool, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut game = Game::new(names, slow);
        for _ in 0..3 {
            for _ in 0..25 {
                game.step(&mut rng);
            }
            game.quiesce();
        }
    }
}

#[test]
fn as_linux_does() {
    play("", false, 0..60);
}

#[test]
fn with_everything_on() {
    play("non-fatal passive-reset block user-reset", false, 100..160);
}

#[test]
fn over_slow_devices() {
    play("non-fatal passive-reset block user-reset", true, 200..260);
}
