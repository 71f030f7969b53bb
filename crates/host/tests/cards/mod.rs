// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accelerators that migrate, and a program that drives them.
#![allow(clippy::unwrap_used, dead_code)] // helpers of tests fail by panicking; no test uses all

pub(crate) mod oracle;
pub(crate) mod paging;

use std::sync::Arc;

use caller::testing::{Client, Counter, TestPlatform};
use caller::{Caller as _, FileId, Platform as _, Reply};
use device::{Endpoint, Turn};
use host::tree::Node;
use host::{Host, Lab};
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use pci::cap;
use sim::SimStorage;
use uapi::Errno;
use uapi::vfio::device::{FEATURE, GET_REGION_INFO};
use uapi::vfio::migration::MigState;
use zerocopy::{FromBytes as _, IntoBytes};

/// The program's memory, at the same IOVA.
pub(crate) const MEMORY: u64 = 0x4000_0000;
pub(crate) const LEN: u64 = 16 << 20;

pub(crate) const STOP: u32 = 1;
pub(crate) const RUNNING: u32 = 2;
pub(crate) const STOP_COPY: u32 = 3;
pub(crate) const RESUMING: u32 = 4;
pub(crate) const RUNNING_P2P: u32 = 5;
pub(crate) const PRE_COPY: u32 = 6;
pub(crate) const PRE_COPY_P2P: u32 = 7;

pub(crate) const GET: u32 = 1 << 16;
pub(crate) const SET: u32 = 1 << 17;

/// An open accelerator.
pub(crate) struct Card {
    pub(crate) file: FileId,
    /// Where its regions lie in the file.
    pub(crate) regions: [u64; 8],
    pub(crate) endpoint: Arc<Endpoint>,
}

pub(crate) struct World {
    pub(crate) host: Host,
    pub(crate) platform: Arc<TestPlatform>,
    pub(crate) client: Client,
    pub(crate) cards: Vec<Card>,
}

impl World {
    pub(crate) fn new(text: &str) -> World {
        let platform = Arc::<TestPlatform>::default();
        let lab = Lab::parse("test", text).unwrap();
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).unwrap();
        let client = Client::new(1);
        client.memory.map(MEMORY, LEN, true);
        World { host, platform, client, cards: Vec::new() }
    }

    /// Takes in an open device: the next of the lab's.
    pub(crate) fn add(&mut self, file: FileId) {
        let mut regions = [0; 8];
        for index in [0, 2, 7] {
            let at = self.client.put(&[32_u32, 0, index, 0, 0, 0, 0, 0]);
            self.host.ioctl(file, GET_REGION_INFO, at, &self.client).unwrap();
            regions[index as usize] = self.client.get(at + 24);
        }
        let endpoint = Arc::clone(self.host.endpoints().nth(self.cards.len()).unwrap());
        self.cards.push(Card { file, regions, endpoint });
    }

    /// All devices of the lab in one type1 container with the memory.
    pub(crate) fn in_container(text: &str, addresses: &[&str]) -> World {
        let mut w = World::new(text);
        let container = w.host.open(Node::VfioContainer, &w.client).unwrap();
        let fd = w.client.fd(container);
        for address in addresses {
            let number = w.host.functions().into_iter().find(|f| f.address == *address).and_then(|f| f.group).unwrap();
            let group = w.host.open(Node::VfioGroup(number), &w.client).unwrap();
            let at = w.client.put(&fd);
            w.host.ioctl(group, 0x3b68, at, &w.client).unwrap();
            if w.cards.is_empty() {
                w.host.ioctl(container, 0x3b66, 3, &w.client).unwrap();
                w.map_dma(container, MEMORY, MEMORY, LEN);
            }
            let name = w.client.put_str(address);
            let Reply::NewFile(device) = w.host.ioctl(group, 0x3b6a, name, &w.client).unwrap() else { panic!() };
            w.add(device);
            let last = w.cards.len() - 1;
            w.enable(last, wqcfg::DEDICATED);
            // Each device finds each portal BAR at an IOVA of its own.
            let made = Arc::clone(w.platform.made.lock().unwrap().last().unwrap());
            let (at, len) = (portal(last), made.layout.mmap[2]);
            w.client.memory.map_bar(at, len, &made, 2, 0);
            w.map_dma(container, at, at, len);
        }
        w
    }

    fn map_dma(&mut self, container: FileId, vaddr: u64, iova: u64, size: u64) {
        let map = uapi::vfio::type1::DmaMap { argsz: 32, flags: 3, vaddr, iova, size };
        let at = self.client.put(&map);
        self.host.ioctl(container, uapi::vfio::type1::MAP_DMA, at, &self.client).unwrap();
    }

    /// Memory, bus mastering, and a work queue of this mode, all enabled.
    pub(crate) fn enable(&mut self, card: usize, mode: u32) {
        self.store(card, 7, u64::from(cap::COMMAND), &[6, 0]);
        let words = [(wqcfg::SIZE, 64), (wqcfg::THRESHOLD, 64), (wqcfg::MODE, mode | 1 << 4)];
        for (word, value) in words.into_iter().chain([(wqcfg::LIMITS, 31 | 10 << 5)]) {
            self.register(card, spec::WQCFG + 4 * word as u64, value);
        }
        self.register(card, spec::GRPCFG, 1);
        self.register(card, spec::GRPCFG + spec::GROUP_ENGINES, 1);
        self.register(card, spec::CMD, command::ENABLE_DEVICE << 20);
        self.register(card, spec::CMD, command::ENABLE_QUEUE << 20);
    }

    pub(crate) fn store(&mut self, card: usize, region: usize, offset: u64, bytes: &[u8]) {
        let at = self.client.put_bytes(bytes);
        let Card { file, regions, .. } = &self.cards[card];
        let done = self.host.write(*file, regions[region] + offset, at, bytes.len() as u64, &self.client);
        assert_eq!(done, Ok(Reply::Value(bytes.len() as u64)));
    }

    pub(crate) fn register(&mut self, card: usize, offset: u64, value: u32) {
        self.store(card, 0, offset, &value.to_le_bytes());
        self.run(card);
    }

    pub(crate) fn load(&mut self, card: usize, region: usize, offset: u64) -> u32 {
        let at = self.client.room(4);
        let Card { file, regions, .. } = &self.cards[card];
        self.host.read(*file, regions[region] + offset, at, 4, &self.client).unwrap();
        self.client.get(at)
    }

    pub(crate) fn turn(&self, card: usize) -> Option<Turn> {
        self.cards[card].endpoint.turn(self.platform.now())
    }

    pub(crate) fn run(&self, card: usize) {
        while self.turn(card) == Some(Turn::Busy) {}
    }

    /// Until nobody has anything to do.
    pub(crate) fn run_all(&self) {
        (0..4).for_each(|_| (0..self.cards.len()).for_each(|card| self.run(card)));
    }

    /// Stores a descriptor to the portal by `write`, with no turn.
    pub(crate) fn submit(&mut self, card: usize, descriptor: &Descriptor) {
        for (at, part) in (0..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.store(card, 2, at, part);
        }
    }

    /// The status of a completion record.
    pub(crate) fn status(&self, record: u64) -> u8 {
        self.client.get(record)
    }

    /// DEVICE_FEATURE with so much data; what is there afterwards.
    pub(crate) fn feature(&mut self, card: usize, flags: u32, data: &[u8]) -> (Result<(), Errno>, Vec<u8>) {
        let head = [8 + data.len() as u32, flags];
        let arg = self.client.put_bytes(&[head.as_bytes(), data].concat());
        let result = self.host.ioctl(self.cards[card].file, FEATURE, arg, &self.client).map(|_| ());
        (result, self.client.get_bytes(arg + 8, data.len()))
    }

    /// The state that GET tells.
    pub(crate) fn state(&mut self, card: usize) -> u32 {
        let (result, after) = self.feature(card, GET | 2, &[0; 8]);
        result.unwrap();
        MigState::read_from_bytes(&after).unwrap().device_state
    }

    /// SET; the descriptor that came.
    pub(crate) fn set(&mut self, card: usize, state: u32) -> Result<i32, Errno> {
        let asked = MigState { device_state: state, data_fd: 99 };
        let (result, after) = self.feature(card, SET | 2, asked.as_bytes());
        let fd = MigState::read_from_bytes(&after).unwrap().data_fd;
        match result {
            Ok(()) => Ok(fd),
            Err(errno) => {
                assert_eq!(fd, -1, "MIG-015");
                Err(errno)
            }
        }
    }

    /// The counter of an eventfd that SET gave.
    pub(crate) fn counter(&self, fd: i32) -> Arc<Counter> {
        self.client.counter(fd).unwrap()
    }

    /// All that a saving stream gives.
    pub(crate) fn save(&mut self, fd: i32) -> Vec<u8> {
        let file = self.client.file(fd).unwrap().unwrap();
        let (at, mut all) = (self.client.room(65536), Vec::new());
        loop {
            match self.host.read(file, 0, at, 65536, &self.client).unwrap() {
                Reply::Value(0) => return all,
                Reply::Value(len) => all.extend(self.client.get_bytes(at, len as usize)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes a state over and gets the device to STOP.
    pub(crate) fn resume(&mut self, card: usize, state: &[u8]) {
        let fd = self.set(card, RESUMING).unwrap();
        let file = self.client.file(fd).unwrap().unwrap();
        for part in state.chunks(65536) {
            let at = self.client.put_bytes(part);
            let done = self.host.write(file, 0, at, part.len() as u64, &self.client).unwrap();
            assert_eq!(done, Reply::Value(part.len() as u64));
        }
        self.set(card, STOP).unwrap();
    }
}

/// Where devices find a device's portals.
pub(crate) fn portal(card: usize) -> u64 {
    0x7000_0000 + card as u64 * 0x100_0000
}

/// A move with a completion record.
pub(crate) fn mov(source: u64, destination: u64, size: u32, completion: u64, flags: u32) -> Descriptor {
    let flags = flags | flag::RECORD | flag::REQUEST_RECORD;
    Descriptor { source, destination, size, completion, ..Descriptor::new(opcode::MOVE, flags) }
}
