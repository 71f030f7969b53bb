// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Delta records.

use models::dsa::spec::{Completion, Descriptor, flag, opcode};
use models::testing::Access;

use crate::fixture::{DATA, Fixture, OTHER, noise, ready};

const DELTA: u64 = 0x60_0000;

fn create(f: &mut Fixture, size: u32, room: u32, flags: u32, mask: u8) -> Completion {
    let create = Descriptor { source: DATA, destination: OTHER, size, ..Descriptor::new(opcode::CREATE_DELTA, flags) };
    f.execute(create.with(0, &DELTA.to_le_bytes()).with(8, &room.to_le_bytes()).with(16, &[mask]))
}

fn apply(f: &mut Fixture, size: u32, len: u32) -> Completion {
    let apply = Descriptor { source: DELTA, destination: DATA, size, ..Descriptor::new(opcode::APPLY_DELTA, 0) };
    f.execute(apply.with(0, &len.to_le_bytes()))
}

#[test]
fn a_delta_makes_the_first_the_second() {
    let mut f = ready(Access::Mapped);
    let (old, mut new) = (noise(6, 256 << 10), noise(6, 256 << 10));
    for at in [0, 1, 8, 65_535, 65_536, 131_072, (256 << 10) - 1] {
        new[at] ^= 1;
    }
    f.memory.set(DATA, &old);
    f.memory.set(OTHER, &new);
    let record = create(&mut f, 256 << 10, 1000, 0, 0);
    assert_eq!((record.status, record.result, record.value, record.done), (1, 1, 60, 256 << 10), "6 words differ");
    assert_eq!(f.get(DELTA, 10), [&[0, 0], &new[..8]].concat());
    let record = apply(&mut f, 256 << 10, 60);
    assert_eq!((record.status, f.get(DATA, 256 << 10) == new), (1, true));
    let record = create(&mut f, 256 << 10, 80, 0, 0);
    assert_eq!((record.status, record.result, record.value), (1, 0, 0), "the same");
}

#[test]
fn a_delta_that_is_too_long() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &[1; 800]);
    f.memory.set(OTHER, &[2; 800]);
    let record = create(&mut f, 800, 80, 0, 0);
    assert_eq!((record.status, record.result, record.value, record.done), (1, 2, 80, 64));
    let record = create(&mut f, 800, 80, flag::CHECK_RESULT, 1 << 2);
    assert_eq!(record.status, 1);
    let record = create(&mut f, 800, 80, flag::CHECK_RESULT, 0b11);
    assert_eq!(record.status, 2, "not one of the expected");
}

/// The longest range: offsets have 16 bits.
#[test]
fn the_longest_range() {
    let mut f = ready(Access::Mapped);
    f.memory.set(OTHER + (512 << 10) - 1, &[1]);
    let record = create(&mut f, 512 << 10, 80, 0, 0);
    assert_eq!((record.result, record.value), (1, 10));
    assert_eq!(f.get(DELTA, 2), [0xff, 0xff]);
    assert_eq!(apply(&mut f, 512 << 10, 10).status, 1);
    assert_eq!(f.get(DATA + (512 << 10) - 1, 1), [1]);
    assert_eq!(create(&mut f, (512 << 10) + 8, 80, 0, 0).status, 0x13);
}

#[test]
fn deltas_that_make_no_sense() {
    let mut f = ready(Access::Mapped);
    for (size, room, status) in [(801, 80, 0x13), (800, 70, 0x15), (800, 85, 0x15)] {
        assert_eq!(create(&mut f, size, room, 0, 0).status, status);
    }
    let entry = |offset: u16| [&offset.to_le_bytes()[..], &[9; 8]].concat();
    f.memory.set(DELTA, &[entry(1), entry(1)].concat());
    let record = apply(&mut f, 80, 20);
    assert_eq!((record.status, record.done), (7, 10), "offsets have to increase");
    assert_eq!(f.get(DATA + 8, 8), [9; 8], "the first one is done");
    f.memory.set(DELTA, &entry(10));
    assert_eq!(apply(&mut f, 80, 10).status, 8, "beyond the range");
    assert_eq!(apply(&mut f, 80, 15).status, 0x15);
    assert_eq!(apply(&mut f, 80, 110).status, 0x15, "longer than any for the range");
    assert_eq!(apply(&mut f, 80, 0).status, 1);
}
