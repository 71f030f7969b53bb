// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random errors (also links that fail and devices that hang), resets of every
//! kind, opens, closes, unbinds and deaths, with every recovery extension on and
//! with none, over quick and slow devices: after any sequence no function is
//! left blocked, no access waits, every count of an eventfd is explained,
//! ownership rules hold, and configuration space is what Linux would have
//! restored.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use std::any::Any;

use caller::{FileId, Reply, Ticket, Wake};
use host::lab::Behaviour;
use models::testing::{CountedEvent, TestFile};
use pci::aer::AerError;
use pci::{Answers, cap};
use sim::BASE;
use uapi::Errno;
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
    /// Registers that a reset loses, as they were after the open.
    registers: Vec<u32>,
    pages: Arc<TestFile>,
}

struct Game {
    w: World,
    users: BTreeMap<&'static str, User>,
    /// Calls that wait, and whose they are.
    waiting: BTreeMap<Ticket, &'static str>,
    groups: BTreeMap<&'static str, usize>,
    blocks: bool,
    /// Had an error while they had no driver, or were opened while they did
    /// not answer: nobody has restored them.
    lost: Vec<&'static str>,
    /// Devices that can be used.
    works: Vec<FileId>,
    /// Did not answer since they were last opened: what Linux writes to them
    /// at close is lost.
    silent: Vec<&'static str>,
    /// What has been done, for whoever looks for the reason of a failure.
    history: Vec<String>,
}

impl Drop for Game {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.history.join("\n"));
        }
    }
}

impl Game {
    fn new(names: &str, slow: bool) -> Game {
        let ready = if slow { "ready_ms = 300\n" } else { "" };
        let third = "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\n";
        let text = format!("{}{}{ready}{}{third}", extensions(names), function(0), function(1));
        let w = World::new(&text);
        w.platform.can_hold();
        Game {
            w,
            users: BTreeMap::new(),
            waiting: BTreeMap::new(),
            groups: BTreeMap::new(),
            lost: Vec::new(),
            works: Vec::new(),
            silent: Vec::new(),
            history: Vec::new(),
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
        // EIO with the extension, for its state is not known.
        if self.blocks && self.w.host.board().fabric.function(at(address)).unwrap().answers() != Answers::Yes {
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
        let flags = self.w.recovery_state(file)[0];
        let more = [5, 6].into_iter().filter(|index| flags >> (index - 5) & 1 != 0);
        let more = more.map(|index| self.w.event(file, index)).collect();
        self.w.store(file, CONFIG, 4, &[6, 0]);
        if self.w.host.board().fabric.function(at(address)).is_some_and(|f| f.answers() == Answers::Yes) {
            self.silent.retain(|other| *other != address);
        } else {
            self.lost.push(address);
        }
        let registers = self.registers(address);
        let pages: Arc<dyn Any + Send + Sync> = self.w.host.device_file(file).unwrap();
        let pages = pages.downcast().unwrap();
        self.users.insert(address, User { file, error, more, most: 0, heard: 0, registers, pages });
    }

    /// What a reset loses and Linux brings back: control, masks, severities,
    /// BARs.
    fn registers(&self, address: &str) -> Vec<u32> {
        let function = self.w.host.board().fabric.function(at(address)).unwrap();
        let express = function.capability(cap::EXPRESS).unwrap();
        let aer = function.extended_capability(cap::EXT_AER).unwrap();
        let mut registers = vec![function.read(express + 8, 2)];
        registers.extend([aer + 8, aer + 0xc, aer + 0x14, 0x10, 0x14, 0x3c].map(|at| function.read(at, 4)));
        registers
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
        self.w.host.misbehave(at(address), how, &AerError::default()).unwrap();
        // As of an error, and of its link that was down before the host knew.
        for user in self.users.values_mut() {
            user.most += 5;
        }
    }

    fn follow(&mut self) {
        for (ticket, wake) in self.w.woken.drain(..).chain(self.w.host.take_woken()) {
            self.waiting.remove(&ticket);
            assert!(matches!(wake, Wake::Retry | Wake::Done(_)));
        }
        for (address, user) in &mut self.users {
            assert!(!(user.pages.is_accessible() && user.pages.is_held()), "{address}: held for nothing");
            user.heard += user.error.take() + user.more.iter().map(|event| event.take()).sum::<u64>();
            assert!(user.heard <= user.most, "{address} was told {} times of {}", user.heard, user.most);
        }
    }

    /// Notes what is done, and who has his BARs.
    fn tell(&mut self, what: &str) {
        let bars = ALL.map(|a| u8::from(self.w.host.board().fabric.function(at(a)).unwrap().peek(cap::BAR0, 4) > 0xf));
        let calm = if self.w.host.is_calm() { "calm" } else { "recovering" };
        self.history.push(format!("{what}; {bars:?}, {calm}"));
    }

    fn step(&mut self, rng: &mut Rng) {
        let who = ALL[rng.below(3) as usize];
        let what = rng.below(24);
        let time = caller::Platform::now(&*self.w.platform) / MS;
        self.tell(&format!("{time} ms: {what} {who}"));
        match what {
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
                    Err(errno) => panic!("{path}: {errno:?}"),
                }
            }
            16 => {
                let how = [Behaviour::LinkDown, Behaviour::Timeout, Behaviour::Poison][rng.below(3) as usize];
                self.history.push(format!("{how:?}"));
                self.misbehave(who, how);
            }
            // A program is killed: all that it has goes at once.
            17 => ALL.into_iter().for_each(|address| self.close(address)),
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
                let user = &self.users[address];
                assert_eq!(self.registers(address), user.registers, "{address}");
                assert!(user.pages.is_accessible());
            }
            if !open && !self.silent.contains(&address) {
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
fn devices_that_are_given_up() {
    play("non-fatal block disconnect", false, 300..340);
    play("passive-reset block", true, 340..380);
}

#[test]
fn over_slow_devices_as_linux_does() {
    play("", true, 400..440);
}

#[test]
fn over_slow_devices() {
    play("non-fatal passive-reset block user-reset", true, 200..260);
}
