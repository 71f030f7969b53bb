// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page faults: what was done before one, and where it was.

use iommu::{Mapping, Prot};
use models::dsa::spec::{Descriptor, opcode};
use models::testing::Access;

use crate::fixture::{DATA, Fixture, MEMORY, OTHER, moving, noise, ready};

const END: u64 = MEMORY as u64;
/// A page that may be read only.
const READ_ONLY: u64 = 1 << 32;

fn with_read_only() -> Fixture {
    let f = ready(Access::Mapped);
    let memory = f.memory.clone();
    let mapping = Mapping { first: READ_ONLY, last: READ_ONLY + 0xfff, prot: Prot::READ, memory, offset: DATA, tag: 0 };
    f.bench.space.map(mapping).unwrap();
    f
}

/// Status, bytes done and address.
#[track_caller]
fn fault(f: &mut Fixture, descriptor: Descriptor) -> (u8, u32, u64) {
    let record = f.execute(descriptor);
    (record.status, record.done, record.address)
}

#[test]
fn of_a_move() {
    let mut f = with_read_only();
    f.memory.set(DATA, &noise(9, 0x4000));
    assert_eq!(fault(&mut f, moving(1 << 40, OTHER, 64)), (3, 0, 1 << 40));
    assert_eq!(fault(&mut f, moving(DATA, 1 << 40, 64)), (0x83, 0, 1 << 40), "a write");
    assert_eq!(fault(&mut f, moving(DATA, READ_ONLY, 64)), (0x83, 0, READ_ONLY));
    assert_eq!(fault(&mut f, moving(END - 0x3000, OTHER, 0x8000)), (3, 0x3000, END));
    assert_eq!(fault(&mut f, moving(DATA, END - 0x2000, 0x4000)), (0x83, 0x2000, END));
    assert_eq!(f.get(END - 0x2000, 0x2000), noise(9, 0x2000), "what was before it");
    assert_eq!(fault(&mut f, moving(END - 0x1000, END - 0x2000, 0x8000)), (3, 0x1000, END), "the first of two");
    assert_eq!(fault(&mut f, moving(u64::MAX - 7, OTHER, 64)), (3, 0, u64::MAX - 7));
}

/// One that goes downwards counts from the end.
#[test]
fn of_a_move_downwards() {
    let mut f = ready(Access::Mapped);
    let bytes = noise(10, 0x6000);
    f.memory.set(END - 0x6000, &bytes);
    let record = f.execute(moving(END - 0x6000, END - 0x5f00, 0x6000));
    assert_eq!((record.status, record.done, record.result), (0x83, 0, 1));
    assert_eq!(f.get(END - 0x6000, 0x6000), bytes, "nothing was moved");

    let (hole, behind) = (1 << 33, (1 << 33) + 0x1000);
    let memory = f.memory.clone();
    let prot = Prot::READ | Prot::WRITE;
    f.bench.space.map(Mapping { first: behind, last: behind + 0x2fff, prot, memory, offset: DATA, tag: 0 }).unwrap();
    let mut all = noise(11, 0x2000);
    f.memory.set(DATA, &all);
    let record = f.execute(moving(hole, hole + 0x100, 0x2f00));
    assert_eq!((record.status, record.done, record.result, record.address & !0xfff), (3, 0x1f00, 1, hole));
    all.copy_within(0..0x1f00, 0x100);
    assert_eq!(f.get(DATA + 0x100, 0x1f00), all[0x100..]);
}

#[test]
fn of_other_operations() {
    let mut f = with_read_only();
    let of = |operation, source, destination, size| Descriptor {
        source,
        destination,
        size,
        ..Descriptor::new(operation, 0)
    };
    assert_eq!(fault(&mut f, of(opcode::FILL, 0, END - 4096, 70_000)), (0x83, 4096, END));
    assert_eq!(fault(&mut f, of(opcode::COMPARE, END - 4096, DATA, 8192)).0, 3);
    assert_eq!(fault(&mut f, of(opcode::COMPARE, DATA, 1 << 40, 8192)), (3, 0, 1 << 40));
    assert_eq!(fault(&mut f, of(opcode::COMPARE_PATTERN, 1 << 40, 0, 8)), (3, 0, 1 << 40));
    assert_eq!(fault(&mut f, of(opcode::CRC, END - 100, 0, 200)), (3, 100, END));
    assert_eq!(fault(&mut f, of(opcode::COPY_CRC, DATA, END - 100, 200)), (0x83, 100, END));
    assert_eq!(fault(&mut f, of(opcode::FLUSH, 0, END - 100, 200)), (3, 100, END));
    let cast = of(opcode::DUAL_CAST, DATA, OTHER, 0x2000).with(0, &(END - 0x1000).to_le_bytes());
    assert_eq!(fault(&mut f, cast), (0x83, 0x1000, END));
    let create = of(opcode::CREATE_DELTA, DATA, OTHER, 64).with(8, &80_u32.to_le_bytes());
    f.memory.set(OTHER, &[1]);
    assert_eq!(fault(&mut f, create.with(0, &READ_ONLY.to_le_bytes())), (0x83, 0, READ_ONLY));
    let seed = of(opcode::CRC, DATA, 0, 8).with(8, &(1_u64 << 40).to_le_bytes());
    let seed = Descriptor { operation: seed.operation | models::dsa::spec::flag::READ_SEED, ..seed };
    assert_eq!(fault(&mut f, seed), (3, 0, 1 << 40));
    let apply = of(opcode::APPLY_DELTA, 1 << 40, DATA, 64).with(0, &10_u32.to_le_bytes());
    assert_eq!(fault(&mut f, apply), (3, 0, 1 << 40));
    assert_eq!(f.error(), 0);
}

/// Nothing is done while the device may not do DMA, and everything afterwards.
#[test]
fn bus_mastering_off() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"held");
    f.bench.endpoint.requester.set_bus_master(false);
    f.submit(0, 0, &moving(DATA, OTHER, 4));
    assert!(matches!(f.bench.turn(), device::Turn::Until(1_000_000)));
    assert_eq!(f.get(OTHER, 4), [0; 4]);
    f.bench.endpoint.requester.set_bus_master(true);
    f.bench.run();
    assert_eq!((f.get(OTHER, 4), f.error()), (b"held".to_vec(), 0));
}
