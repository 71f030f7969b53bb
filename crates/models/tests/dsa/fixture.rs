// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An accelerator on a bench, with a driver.

use std::sync::Arc;

use device::Window as _;
use device::migration::Activity;
use models::dsa::spec::{self, Completion, Descriptor, command, flag, opcode, wqcfg};
use models::dsa::{Accelerator, Config};
use models::testing::{Access, Bench, TestMemory};
use vm_memory::Bytes as _;
use zerocopy::{FromBytes as _, IntoBytes as _};

pub(crate) const MEMORY: usize = 8 << 20;
/// Where the driver has its completion records.
pub(crate) const RECORD: u64 = 0x1000;
/// Where it has lists of batches.
pub(crate) const LIST: u64 = 0x2000;
/// Where data may be.
pub(crate) const DATA: u64 = 0x10_0000;
/// The second piece of it.
pub(crate) const OTHER: u64 = 0x40_0000;

pub(crate) const BOTH: [Access; 2] = [Access::Mapped, Access::Trapped];
/// Mode of a dedicated queue of priority 1.
pub(crate) const DEDICATED: u32 = wqcfg::DEDICATED | 1 << 4;
/// Mode of a shared queue of priority 1.
pub(crate) const SHARED: u32 = wqcfg::PASID_ENABLE | 1 << 4;

pub(crate) struct Fixture {
    pub(crate) bench: Bench,
    pub(crate) memory: Arc<TestMemory>,
    access: Access,
    config: Config,
    /// The place of the portal to use next.
    place: u64,
}

/// An accelerator that nobody has touched.
pub(crate) fn fresh(access: Access, config: Config) -> Fixture {
    fresh_on(access, config, TestMemory::new(MEMORY, false))
}

pub(crate) fn fresh_on(access: Access, config: Config, memory: Arc<TestMemory>) -> Fixture {
    let bench = Bench::new(Box::new(Accelerator::new(config)), access, memory.clone());
    Fixture { bench, memory, access, config, place: 0 }
}

/// An accelerator of which dedicated queue 0 with 16 entries is enabled.
pub(crate) fn ready(access: Access) -> Fixture {
    let mut fixture = fresh(access, Config::default());
    fixture.configure(0, 16, DEDICATED);
    fixture.enable(0);
    fixture
}

impl Fixture {
    pub(crate) fn load(&self, offset: u64) -> u32 {
        self.bench.load_bar(spec::REGISTER_BAR, offset)
    }

    pub(crate) fn load_long(&self, offset: u64) -> u64 {
        u64::from(self.load(offset)) | u64::from(self.load(offset + 4)) << 32
    }

    pub(crate) fn store(&self, offset: u64, value: u32) {
        self.bench.store_bar(spec::REGISTER_BAR, offset, value);
    }

    /// Offset of a word of a queue's configuration.
    pub(crate) fn wqcfg(&self, queue: u64, word: usize) -> u64 {
        let bytes = 32 << (self.load_long(spec::WQCAP) >> 24 & 0xf);
        (self.load_long(spec::OFFSETS) >> 16 & 0xffff) * 0x100 + queue * bytes + 4 * word as u64
    }

    /// Gives a command and waits for its end; its error.
    pub(crate) fn command(&mut self, number: u32, operand: u32) -> u32 {
        self.store(spec::CMD, number << 20 | operand);
        for _ in 0..10_000 {
            self.bench.turn();
            let status = self.load(spec::CMDSTS);
            if status & command::ACTIVE == 0 {
                return status & 0xff;
            }
        }
        panic!("command {number} has no end");
    }

    /// Puts a queue and the first engine into group 0, and allows vectors.
    pub(crate) fn configure(&mut self, queue: u64, size: u32, mode: u32) {
        self.store(self.wqcfg(queue, wqcfg::SIZE), size);
        self.store(self.wqcfg(queue, wqcfg::THRESHOLD), size.min(2));
        self.store(self.wqcfg(queue, wqcfg::MODE), mode);
        self.store(self.wqcfg(queue, wqcfg::LIMITS), 31 | 10 << 5);
        let queues = self.load(spec::GRPCFG) | 1 << queue;
        self.store(spec::GRPCFG, queues);
        self.store(spec::GRPCFG + spec::GROUP_ENGINES, 1);
        self.bench.run();
    }

    /// Enables the device, if it is not, and a queue.
    pub(crate) fn enable(&mut self, queue: u32) {
        if self.load(spec::GENSTS) & 3 == 0 {
            assert_eq!(self.command(command::ENABLE_DEVICE, 0), 0);
        }
        assert_eq!(self.command(command::ENABLE_QUEUE, queue), 0);
    }

    /// Stores a descriptor to a portal, as one store of 64 bytes would.
    pub(crate) fn store_at(&self, offset: u64, descriptor: &Descriptor) {
        let bytes = descriptor.as_bytes();
        match self.bench.file.as_ref().filter(|_| self.access == Access::Mapped) {
            Some(file) => {
                let slice = file.bar(spec::PORTAL_BAR).unwrap().slice();
                slice.write_slice(&bytes[8..], offset as usize + 8).unwrap();
                slice.write_slice(&bytes[..8], offset as usize).unwrap();
            }
            None => {
                for (at, part) in (offset..).step_by(8).zip(bytes.chunks(8)) {
                    self.bench.endpoint.write(spec::PORTAL_BAR, at, part, self.bench.now);
                }
            }
        }
    }

    /// Submits to a portal of a queue, each time in the next place.
    pub(crate) fn submit(&mut self, queue: u64, portal: u64, descriptor: &Descriptor) {
        self.store_at(queue * 0x4000 + portal * 0x1000 + self.place % 64 * 64, descriptor);
        self.place += 1;
    }

    /// What became of the last submission, which was in place `place`.
    pub(crate) fn answer(&self, queue: u64, place: u64) -> u32 {
        self.bench.load_bar(spec::PORTAL_BAR, queue * 0x4000 + place * 64 + 8)
    }

    pub(crate) fn record(&self, iova: u64) -> Completion {
        let mut bytes = [0; 32];
        self.memory.get(iova, &mut bytes);
        Completion::read_from_bytes(&bytes).unwrap()
    }

    /// A descriptor done in queue 0; its completion record.
    #[track_caller]
    pub(crate) fn execute(&mut self, descriptor: Descriptor) -> Completion {
        self.memory.set(RECORD, &[0; 32]);
        let flags = flag::RECORD | flag::REQUEST_RECORD;
        let descriptor = Descriptor { operation: descriptor.operation | flags, completion: RECORD, ..descriptor };
        self.submit(0, 0, &descriptor);
        self.bench.run();
        let record = self.record(RECORD);
        assert_ne!(record.status, 0, "{descriptor:?} has no end");
        record
    }

    /// A batch of these descriptors done in queue 0; its completion record.
    #[track_caller]
    pub(crate) fn execute_batch(&mut self, list: &[Descriptor]) -> Completion {
        self.memory.set(LIST, list.as_bytes());
        let size = list.len() as u32;
        self.execute(Descriptor { source: LIST, size, ..Descriptor::new(opcode::BATCH, 0) })
    }

    /// The accelerator stops, and goes on as another one on the same memory;
    /// the one that it was.
    pub(crate) fn take_over(&mut self) -> Bench {
        let now = self.bench.now;
        self.bench.endpoint.set_activity(Activity::Stopped, now);
        let state = self.bench.endpoint.save(now);
        let target = Bench::new(Box::new(Accelerator::new(self.config)), self.access, self.memory.clone());
        assert_eq!(target.endpoint.identity(), self.bench.endpoint.identity());
        target.endpoint.set_activity(Activity::Stopped, now);
        target.endpoint.load(&state, now).unwrap();
        assert_eq!(target.endpoint.save(now), state, "it is the same");
        target.endpoint.set_activity(Activity::Running, now);
        std::mem::replace(&mut self.bench, target)
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.get(at, &mut bytes);
        bytes
    }

    /// The software error's first 64 bits.
    pub(crate) fn error(&self) -> u64 {
        self.load_long(spec::SWERROR)
    }
}

/// A move of `size` bytes.
pub(crate) fn moving(source: u64, destination: u64, size: u32) -> Descriptor {
    Descriptor { source, destination, size, ..Descriptor::new(opcode::MOVE, 0) }
}

/// Bytes that are not the same anywhere near.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
