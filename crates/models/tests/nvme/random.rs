// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that do anything at all: nothing panics, and each command that was
//! submitted completes once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use device::{ResetKind, Turn};
use models::nvme::LbaSize;
use models::nvme::spec::{AdminOpcode, Cc, Command, Register};
use models::testing::nvme::{Driver, Machine};
use models::testing::{Access, Bench, TestMemory};
use proptest::prelude::*;
use zerocopy::FromBytes;

use crate::fixture::{check, fixture_on};

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Mapped), Just(Access::Trapped)]
}

/// Any 64 bytes, but more often than by chance something that gets far.
fn any_command() -> impl Strategy<Value = Command> {
    let word = prop_oneof![Just(0_u32), 0_u32..64, any::<u32>()];
    let pointer = prop_oneof![
        Just(0_u64),
        (0_u64..256).prop_map(|page| page << 12),
        (0_u64..1 << 20).prop_map(|at| at & !7),
        any::<u64>(),
    ];
    let opcode = prop_oneof![0_u8..0x10, any::<u8>()];
    let flags = prop_oneof![9 => Just(0_u8), 1 => any::<u8>()];
    (opcode, flags, 0_u32..3, any::<[u8; 64]>(), (pointer.clone(), pointer), prop::collection::vec(word, 6)).prop_map(
        |(opcode, flags, nsid, noise, (prp1, prp2), words)| {
            let mut command = Command::read_from_bytes(&noise).unwrap_or_default();
            (command.opcode, command.flags) = (opcode, flags);
            command.nsid.set(nsid);
            command.prp1.set(prp1);
            command.prp2.set(prp2);
            command.cdw10.set(words[0]);
            command.cdw11.set(words[1]);
            command.cdw12.set(words[2]);
            command.cdw13.set(words[3]);
            command.cdw14.set(words[4]);
            command.cdw15.set(words[5]);
            command
        },
    )
}

/// A bench whose queues lie apart from the memory that commands point into, so
/// that a command cannot overwrite a queue.
#[derive(Debug)]
struct Apart {
    bench: Bench,
    queues: Arc<TestMemory>,
}

const QUEUES: u64 = 1 << 40;

impl Machine for Apart {
    fn load(&mut self, offset: u64) -> u32 {
        self.bench.load_bar(0, offset)
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.bench.store_bar(0, offset, value);
    }

    fn get(&self, iova: u64, to: &mut [u8]) {
        self.queues.get(iova - QUEUES, to);
    }

    fn set(&self, iova: u64, from: &[u8]) {
        self.queues.set(iova - QUEUES, from);
    }

    fn memory(&self) -> Range<u64> {
        QUEUES..QUEUES + self.queues.size() as u64
    }

    fn step(&mut self) -> bool {
        self.bench.turn() == Turn::Busy
    }
}

fn apart(access: Access, remote: bool) -> Driver<Apart> {
    let bench = fixture_on(access, LbaSize::B512, TestMemory::new(1 << 20, remote)).driver.machine;
    let queues = TestMemory::new(64 << 10, remote);
    let mapping = iommu::Mapping {
        first: QUEUES,
        last: QUEUES + queues.size() as u64 - 1,
        prot: iommu::Prot::READ | iommu::Prot::WRITE,
        memory: queues.clone(),
        offset: 0,
        tag: 0,
    };
    bench.space.map(mapping).unwrap();
    let mut driver = Driver::new(Apart { bench, queues });
    driver.enable(32).unwrap();
    driver.create_queue_pair(1, 16, Some(1)).unwrap();
    driver
}

/// Whether a command would delete the queue that is watched.
fn deletes_queue(command: &Command) -> bool {
    matches!(command.opcode, 0x00 | 0x04) && command.cdw10.get() as u16 == 1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn each_command_completes_once(
        access in access(),
        remote in any::<bool>(),
        steps in prop::collection::vec((0_u16..2, prop::collection::vec(any_command(), 0..20), 0_usize..4), 1..12),
    ) {
        let mut driver = apart(access, remote);
        // By queue and command id: its opcode and how often it completed.
        let mut submitted: BTreeMap<(u16, u16), (u8, u32)> = BTreeMap::new();
        let settle = |driver: &mut Driver<Apart>, submitted: &mut BTreeMap<(u16, u16), (u8, u32)>| {
            for queue in 0..2 {
                for completion in driver.reap(queue) {
                    let key = (completion.sq_id.get(), completion.cid.get());
                    let Some((_, times)) = submitted.get_mut(&key) else { panic!("{key:?} was never submitted") };
                    *times += 1;
                    check(&completion);
                }
            }
        };
        for (queue, commands, turns) in steps {
            for command in commands {
                if queue == 0 && deletes_queue(&command) {
                    continue;
                }
                if let Ok(cid) = driver.put(queue, command) {
                    submitted.insert((queue, cid), (command.opcode, 0));
                }
            }
            driver.ring(queue);
            for _ in 0..turns {
                driver.machine.step();
            }
            settle(&mut driver, &mut submitted);
        }
        for _ in 0..4 {
            driver.machine.bench.run();
            settle(&mut driver, &mut submitted);
        }
        let mut outstanding = 0;
        for ((queue, cid), (opcode, times)) in submitted {
            if queue == 0 && opcode == AdminOpcode::AsyncEventRequest.raw() && times == 0 {
                outstanding += 1;
            } else {
                prop_assert_eq!(times, 1, "queue {}, command {:#x}, opcode {:#x}", queue, cid, opcode);
            }
        }
        prop_assert!(outstanding <= 4);
        prop_assert_eq!(driver.register(Register::Csts), 1);
    }
}

/// Something that a hostile program or its host may do.
#[derive(Clone, Debug)]
enum Act {
    Store(u64, u32),
    Trapped(u64, usize, u64),
    Load(u64, usize),
    Put(u16, Box<Command>),
    Noise(u64, [u8; 64]),
    Turn,
    Time(u64),
    Reset(ResetKind),
    BusMaster(bool),
    Memory(bool),
    Unmap,
    Enable,
}

fn act() -> impl Strategy<Value = Act> {
    let offset = prop_oneof![
        3 => (0_u64..14).prop_map(|word| word * 4),
        3 => (0_u64..8).prop_map(|word| 0x1000 + word * 4),
        1 => (0_u64..0x1000).prop_map(|word| word * 4),
    ];
    let value = prop_oneof![Just(0_u32), 0_u32..40, Just(Cc::ENABLED.0), Just(0x001f_001f), any::<u32>()];
    let kind = prop_oneof![
        Just(ResetKind::PowerOn),
        Just(ResetKind::FunctionLevel),
        Just(ResetKind::PowerManagement),
        Just(ResetKind::Bus),
    ];
    let access = (0_u64..0x4000, 0_u32..4).prop_map(|(at, log)| (at & !((1 << log) - 1), 1_usize << log));
    prop_oneof![
        6 => (offset, value).prop_map(|(offset, value)| Act::Store(offset, value)),
        2 => (access.clone(), any::<u64>()).prop_map(|((at, len), value)| Act::Trapped(at, len, value)),
        1 => access.prop_map(|(at, len)| Act::Load(at, len)),
        6 => (0_u16..3, any_command()).prop_map(|(queue, command)| Act::Put(queue, Box::new(command))),
        2 => (0_u64..(1 << 20) - 64, any::<[u8; 64]>()).prop_map(|(at, noise)| Act::Noise(at, noise)),
        4 => Just(Act::Turn),
        1 => any::<u64>().prop_map(Act::Time),
        1 => kind.prop_map(Act::Reset),
        1 => any::<bool>().prop_map(Act::BusMaster),
        1 => any::<bool>().prop_map(Act::Memory),
        1 => Just(Act::Unmap),
        4 => Just(Act::Enable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Queues and data share the memory, so anything can overwrite anything.
    #[test]
    fn nothing_that_a_program_does_stops_the_controller_for_good(
        access in access(),
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut fixture = fixture_on(access, LbaSize::B512, TestMemory::new(1 << 20, false));
        let driver = &mut fixture.driver;
        driver.patience = 10;
        let endpoint = driver.machine.endpoint.clone();
        let last = (1 << 20) - 1;
        for act in acts {
            match act {
                Act::Store(offset, value) => driver.machine.store(offset, value),
                Act::Trapped(offset, len, value) => {
                    endpoint.write(0, offset, &value.to_le_bytes()[..len], driver.machine.now);
                }
                Act::Load(offset, len) => endpoint.read(0, offset, &mut [0; 8][..len], driver.machine.now),
                Act::Put(queue, command) => {
                    let _ = driver.submit(queue, *command);
                }
                Act::Noise(at, noise) => driver.machine.memory.set(at, &noise),
                Act::Turn => {
                    driver.machine.turn();
                }
                Act::Time(time) => driver.machine.now = time,
                Act::Reset(kind) => endpoint.reset(kind, driver.machine.now),
                Act::BusMaster(on) => endpoint.requester.set_bus_master(on),
                Act::Memory(on) => endpoint.set_memory(on, driver.machine.now),
                Act::Unmap => driver.machine.space.unmap(0, last, &mut |_| {}),
                Act::Enable => {
                    if driver.enable(32).is_ok() {
                        let _ = driver.create_queue_pair(1, 16, Some(1));
                    }
                }
            }
        }
        // After all that, a reset and a good driver.
        endpoint.requester.set_bus_master(true);
        endpoint.set_memory(true, 0);
        driver.machine.space.unmap(0, last, &mut |_| {});
        let memory = driver.machine.memory.clone();
        let prot = iommu::Prot::READ | iommu::Prot::WRITE;
        driver.machine.space.map(iommu::Mapping { first: 0, last, prot, memory, offset: 0, tag: 0 }).unwrap();
        endpoint.reset(ResetKind::FunctionLevel, 0);
        driver.enable(32).unwrap();
        driver.create_queue_pair(1, 16, Some(1)).unwrap();
        prop_assert!(fixture.is_alive());
    }
}
