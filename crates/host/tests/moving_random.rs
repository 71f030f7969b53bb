// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two accelerators that submit work to one another and wait for pages, and
//! whatever can happen to them: every state, drains, plans to fail, answers of
//! any kind, tables without a fault queue, refused accesses, errors on the bus,
//! resets, moves to another lab and the program's end, in random order.
//!
//! After each step GET tells the state in which Linux would have the device, by
//! migration-fsm.csv and the rules of draining; each eventfd has counted when
//! its drain was over, once, and never if it was called off; nothing is done by
//! a device that begins nothing. In the end every descriptor was completed
//! once, here or there, but for those that a reset has taken or that were
//! written to a device that was stopped.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod cards;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caller::testing::Counter;
use cards::oracle::{Card, ERROR, Gives, KINDS, planned};
use cards::paging::{BACKING, HOLE, ON, PAGE, PASID, Paging, UNDER_WAY};
use cards::{MEMORY, PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY, mov, portal};
use host::tree::Node;
use models::dsa::spec::Descriptor;
use pci::aer::AerError;
use pci::aer::spec::uncorrectable;
use uapi::Errno;
use uapi::vfio::cdev::BindIommufd;
use uapi::vfio::device::{BIND_IOMMUFD, RESET};
use zerocopy::IntoBytes as _;

/// Descriptors of a game, and those that a device has at a time.
const MOST: u64 = 120;
const DEPTH: usize = 40;
/// Where descriptors lie that are written to the other device.
const INNER: u64 = MEMORY + 0x2_0000;
/// What goes with a move.
const KEPT: usize = 0x2_2000;

/// States that are set, most often those with a drain on the way.
const ASKED: [u32; 12] = [
    ERROR,
    STOP,
    RUNNING,
    RUNNING,
    STOP_COPY,
    RESUMING,
    RUNNING_P2P,
    RUNNING_P2P,
    RUNNING_P2P,
    PRE_COPY,
    PRE_COPY_P2P,
    8,
];

/// Arcs that the lab has fail, where both kinds have them.
const PLANS: [&str; 4] = [
    "RUNNING_P2P>RUNNING:after",
    "RUNNING_P2P>RUNNING:after:2",
    "RUNNING>RUNNING_P2P:middle",
    "RUNNING_P2P>STOP:before:2",
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// What became of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// To be written to the other device by this descriptor.
    Promised(u64),
    /// This device has it.
    Had(usize),
    Done,
    /// A reset has taken it, or nobody was there.
    Lost,
}

struct Game {
    rng: Rng,
    p: Paging,
    keys: [&'static str; 2],
    cards: Vec<Card>,
    fates: BTreeMap<u64, Fate>,
    /// Requests that were read and not answered.
    asked: Vec<(u32, u64)>,
    mapped: BTreeSet<u64>,
    /// Drains that are over or were called off, and what they have counted.
    past: Vec<(Arc<Counter>, u64)>,
    moves: u32,
}

fn lab(keys: &str) -> String {
    format!("queues = 1\nengines = 1\nentries = 64\nmigration = \"{keys}\"")
}

fn address(card: usize) -> pci::Address {
    format!("0000:0{}:00.0", card + 1).parse().unwrap()
}

impl Game {
    fn new(seed: u64) -> Game {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let keys = [0, 1].map(|_| KINDS[rng.below(2) as usize].0);
        let labs = keys.map(lab);
        Game {
            rng,
            p: Paging::several(&[&labs[0], &labs[1]]),
            keys,
            cards: keys.map(Card::new).into(),
            fates: BTreeMap::new(),
            asked: Vec::new(),
            mapped: BTreeSet::new(),
            past: Vec::new(),
            moves: 0,
        }
    }

    fn submit(&mut self, card: usize) {
        let n = self.fates.len() as u64;
        let has = self.fates.values().filter(|fate| **fate == Fate::Had(card)).count();
        if n + 2 > MOST || has >= DEPTH || self.cards[card].is_stopped() {
            return;
        }
        self.fates.insert(n, Fate::Had(card));
        let (source, waits) = (HOLE + n * PAGE, Paging::descriptor(n, HOLE + n * PAGE));
        let descriptor = match self.rng.below(6) {
            0..3 => waits,
            3 => Paging::descriptor(n, MEMORY + 0x8000),
            // It does not wait, and is refused.
            4 => Descriptor { pasid: PASID, ..mov(source, MEMORY + 0x1000 + 8 * n, 8, MEMORY + 32 * n, 0) },
            _ => {
                let inner = Paging::descriptor(n + 1, MEMORY + 0x8000);
                self.p.w.client.memory.store(INNER + 64 * n, inner.as_bytes());
                self.fates.insert(n + 1, Fate::Promised(n));
                let place = portal(1 - card) + 64 * (n % 64);
                Descriptor { pasid: PASID, ..mov(INNER + 64 * n, place, 64, MEMORY + 32 * n, 0) }
            }
        };
        self.p.w.submit(card, &descriptor);
    }

    fn set(&mut self, card: usize, to: u32) -> Result<Gives, Errno> {
        self.settle(card);
        let expected = self.cards[card].set(to);
        let found = self.p.w.set(card, to);
        assert_eq!(found.is_ok(), expected.is_ok(), "SET {to}: {expected:?}, {found:?}");
        assert_eq!(found.as_ref().err(), expected.as_ref().err(), "SET {to}");
        let (Ok(fd), Ok(gives)) = (found, &expected) else { return expected };
        assert_eq!(fd >= 0, *gives != Gives::Nothing, "SET {to}");
        if *gives == Gives::Event {
            self.call_off(card);
            self.cards[card].drain = Some(self.p.w.counter(fd));
        }
        expected
    }

    /// The lab has an arc fail, if it has none yet.
    fn plan(&mut self, card: usize) {
        let plan = PLANS[self.rng.below(4) as usize];
        if self.cards[card].plan.is_none() {
            self.p.w.host.fail_migration(address(card), plan).unwrap();
            self.cards[card].plan = planned(plan);
        }
    }

    /// A drain that is over belongs to the past.
    fn settle(&mut self, card: usize) {
        if let Some(counter) = self.cards[card].drain.take_if(|counter| counter.peek() == 1) {
            self.past.push((counter, 1));
        }
    }

    /// Whatever drains there is called off.
    fn call_off(&mut self, card: usize) {
        if let Some(counter) = self.cards[card].drain.take() {
            self.past.push((counter, 0));
        }
    }

    fn reset(&mut self, card: usize) {
        self.p.w.host.ioctl(self.p.w.cards[card].file, RESET, 0, &self.p.w.client).unwrap();
        self.call_off(card);
        self.cards[card].state = RUNNING;
        self.lose(card);
        self.p.enable(card);
    }

    fn lose(&mut self, card: usize) {
        let had: Vec<u64> = self.fates.iter().filter(|(_, fate)| **fate == Fate::Had(card)).map(|(n, _)| *n).collect();
        for n in had {
            self.fates.insert(n, Fate::Lost);
            if self.fates.get(&(n + 1)) == Some(&Fate::Promised(n)) {
                self.fates.insert(n + 1, Fate::Lost);
            }
        }
    }

    /// Answers a request, INVALID one time in four.
    fn answer(&mut self) {
        self.asked.extend(self.p.faulted());
        if self.asked.is_empty() {
            return;
        }
        let at = self.rng.below(self.asked.len() as u64) as usize;
        let (cookie, page) = self.asked.swap_remove(at);
        let refuse = self.rng.below(4) == 0;
        if !refuse && self.mapped.insert(page) {
            self.p.map(page, BACKING + (page - HOLE), PAGE);
        }
        // A request from before a reset is nobody's.
        let _ = self.p.answer_with(cookie, refuse.into());
    }

    /// Takes completion records. `quiet`: who has begun nothing and drained.
    fn reap(&mut self, quiet: [bool; 2]) {
        let records: Vec<u64> = self.fates.keys().copied().filter(|n| self.p.w.status(MEMORY + 32 * n) != 0).collect();
        for n in records {
            let status = self.p.w.status(MEMORY + 32 * n);
            self.p.w.client.memory.store(MEMORY + 32 * n, &[0; 32]);
            let fate = self.fates.insert(n, Fate::Done).unwrap();
            let Fate::Had(card) = fate else { panic!("descriptor {n} was {fate:?} and is done") };
            assert!(!quiet[card], "descriptor {n} of a device that begins nothing");
            if self.fates.get(&(n + 1)) == Some(&Fate::Promised(n)) {
                let arrives = status == 1 && !self.cards[1 - card].is_stopped();
                self.fates.insert(n + 1, if arrives { Fate::Had(1 - card) } else { Fate::Lost });
            }
        }
    }

    /// What must be so after each step.
    fn check(&mut self) {
        for card in 0..2 {
            assert_eq!(self.p.w.state(card), self.cards[card].state, "card {card}");
            let told = self.p.told_of(card);
            self.settle(card);
            assert_eq!(told & ON != 0, self.cards[card].drains);
            let goes_on = matches!(self.cards[card].state, RUNNING_P2P | PRE_COPY_P2P);
            if !goes_on {
                self.call_off(card);
            }
            assert_eq!(told & UNDER_WAY != 0, self.cards[card].drain.is_some(), "card {card}");
        }
        assert!(self.past.iter().all(|(counter, count)| counter.peek() == *count), "an eventfd of the past");
    }

    /// Which devices begin nothing and have nothing begun.
    fn quiet(&self) -> [bool; 2] {
        [0, 1].map(|card: usize| {
            let Card { state, drain, .. } = &self.cards[card];
            matches!(*state, RUNNING_P2P | PRE_COPY_P2P) && drain.is_none() || self.cards[card].is_stopped()
        })
    }

    /// Both to another lab, in two passes; back to RUNNING if that fails, or
    /// takes too long for the program.
    fn relocate(&mut self) {
        if self.cards.iter().any(Card::is_stopped) {
            return;
        }
        if !self.two_passes() {
            for card in 0..2 {
                if self.set(card, RUNNING).is_err() {
                    self.reset(card);
                }
            }
            return;
        }
        let fds = [0, 1].map(|card| self.p.w.set(card, STOP_COPY).unwrap());
        let states = fds.map(|fd| self.p.w.save(fd));
        let labs = self.keys.map(lab);
        let mut to = Paging::several(&[&labs[0], &labs[1]]);
        let mut memory = vec![0; KEPT];
        self.p.w.client.memory.load(MEMORY, &mut memory);
        to.w.client.memory.store(MEMORY, &memory);
        self.p.w.run_all();
        let mut after = vec![0; KEPT];
        self.p.w.client.memory.load(MEMORY, &mut after);
        assert!(memory == after, "the source has stopped");
        for (card, state) in states.iter().enumerate() {
            to.w.resume(card, state);
        }
        for state in [RUNNING_P2P, RUNNING] {
            (0..2).for_each(|card| assert_eq!(to.w.set(card, state), Ok(-1)));
        }
        for (card, keys) in self.keys.into_iter().enumerate() {
            self.call_off(card);
            self.cards[card] = Card::new(keys);
        }
        (self.p, self.moves) = (to, self.moves + 1);
        self.asked.clear();
        self.mapped.clear();
    }

    /// Whether both have got to STOP by way of RUNNING_P2P.
    fn two_passes(&mut self) -> bool {
        for card in 0..2 {
            if self.set(card, RUNNING_P2P).is_err() {
                return false;
            }
        }
        for _ in 0..self.rng.below(60) {
            if self.cards.iter().all(|card| card.drain.is_none()) {
                break;
            }
            let quiet = self.quiet();
            self.answer();
            self.p.w.run_all();
            self.reap(quiet);
            self.check();
        }
        (0..2).all(|card| self.set(card, STOP).is_ok())
    }

    fn step(&mut self) {
        let (card, quiet) = (self.rng.below(2) as usize, self.quiet());
        match self.rng.below(40) {
            0..14 => self.submit(card),
            14..22 => drop(self.p.w.turn(card)),
            22..25 => self.answer(),
            // What is stopped does not stay so for long.
            25..29 if self.cards[card].is_stopped() => {
                if self.set(card, RUNNING).is_err() && matches!(self.cards[card].state, ERROR | RESUMING) {
                    self.reset(card);
                }
            }
            // The program does not wait for ever.
            25..28 if self.cards[card].drain.is_some() => {
                self.plan(card);
                let _ = self.set(card, RUNNING);
            }
            25..33 => drop({
                let to = ASKED[self.rng.below(ASKED.len() as u64) as usize];
                self.set(card, to)
            }),
            33 | 34 if !self.cards[card].drains || self.rng.below(4) == 0 => {
                let on = !self.cards[card].drains;
                let asked = self.p.ask_of(card, if on { ON } else { 0 });
                let busy = self.cards[card].drain.is_some();
                assert_eq!(asked, if busy { Err(Errno::EBUSY) } else { Ok(()) });
                self.cards[card].drains ^= !busy;
            }
            33 => self.plan(card),
            35 => self.reset(card),
            36 => {
                let error = AerError { uncorrectable: uncorrectable::ECRC, ..AerError::default() };
                self.p.w.host.raise(address(card), &error).unwrap();
                self.p.w.host.elapse();
            }
            // A table without a fault queue, or back: the host answers what is out.
            37 => {
                let table = self.p.hwpts[self.rng.below(2) as usize];
                self.p.attach(card, table);
            }
            _ => self.relocate(),
        }
        self.reap(quiet);
        self.check();
    }

    /// Everything comes to its end, and then the program does. Moves, descriptors done, drains, drains that were called off.
    fn end(mut self) -> [usize; 4] {
        for card in 0..2 {
            while self.cards[card].state != RUNNING {
                if self.set(card, RUNNING).is_err() && self.cards[card].plan.is_none() {
                    self.reset(card);
                }
            }
        }
        self.check();
        // What nobody takes the host refuses, and that comes to the device later.
        for _ in 0..2 * MOST {
            self.p.w.run_all();
            self.reap([false; 2]);
            self.answer();
        }
        let open: Vec<_> = self.fates.iter().filter(|(_, fate)| !matches!(fate, Fate::Done | Fate::Lost)).collect();
        assert!(open.is_empty(), "not completed: {open:?}");

        let to = self.rng.below(8) as u32;
        let _ = self.set(0, to);
        for card in 0..2 {
            self.settle(card);
            self.p.w.host.release(self.p.w.cards[card].file);
            self.call_off(card);
        }
        self.p.w.host.release(self.p.iommufd);
        self.p.w.run_all();
        assert!(self.past.iter().all(|(counter, count)| counter.peek() == *count), "after the program's end");
        self.p.w.cards.clear();
        let iommufd = self.p.w.host.open(Node::Iommufd, &self.p.w.client).unwrap();
        for card in 0..2 {
            let device = self.p.w.host.open(Node::VfioCdev(card), &self.p.w.client).unwrap();
            let bind = BindIommufd { argsz: 16, iommufd: self.p.w.client.fd(iommufd), ..BindIommufd::default() };
            let at = self.p.w.client.put(&bind);
            self.p.w.host.ioctl(device, BIND_IOMMUFD, at, &self.p.w.client).unwrap();
            self.p.w.add(device);
            assert_eq!(self.p.w.state(card as usize), RUNNING, "MIG-075");
        }
        let done = self.fates.values().filter(|fate| **fate == Fate::Done).count();
        [self.moves as usize, done, self.past.len(), self.past.iter().filter(|(_, count)| *count == 0).count()]
    }
}

/// MIG-016, MIG-020, MIG-046, MIG-047, MIG-049, MIG-072, MIG-075, MIG-097,
/// MIG-098, MIG-102, MIG-103
#[test]
fn every_descriptor_ends_once_and_every_state_is_linux_s() {
    let mut all = [0; 4];
    for seed in 1..=24 {
        let counts = std::panic::catch_unwind(|| {
            let mut game = Game::new(seed);
            game.check();
            (0..160).for_each(|_| game.step());
            game.end()
        });
        let counts = counts.unwrap_or_else(|_| panic!("seed {seed}"));
        all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    assert!(all.into_iter().zip([60, 400, 80, 8]).all(|(count, least)| count > least), "{all:?}");
}
