// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moves, fills, dual casts, and what does nothing.

use models::dsa::spec::{Descriptor, flag, opcode};
use models::testing::{Access, TestMemory};

use crate::fixture::{BOTH, DATA, DEDICATED, MEMORY, OTHER, fresh_on, moving, noise, ready};

#[test]
fn moves_of_each_length() {
    for access in BOTH {
        let mut f = ready(access);
        let bytes = noise(1, 3 << 20);
        f.memory.set(DATA, &bytes);
        for size in [1, 7, 64, 4095, 4097, 1 << 20, (2 << 20) + 13] {
            f.memory.set(OTHER, &vec![0; size + 1]);
            let record = f.execute(moving(DATA, OTHER, size as u32));
            assert_eq!((record.status, record.done as usize, record.result), (1, size, 0));
            assert_eq!(f.get(OTHER, size), bytes[..size]);
            assert_eq!(f.get(OTHER + size as u64, 1), [0]);
        }
    }
}

/// Memory that is reached by copying only.
#[test]
fn moves_of_remote_memory() {
    let mut f = fresh_on(Access::Mapped, models::dsa::Config::default(), TestMemory::new(MEMORY, true));
    f.configure(0, 16, DEDICATED);
    f.enable(0);
    let bytes = noise(2, 300_000);
    f.memory.set(DATA, &bytes);
    assert_eq!(f.execute(moving(DATA, OTHER, 300_000)).status, 1);
    assert_eq!(f.get(OTHER, 300_000), bytes);
    let cast = Descriptor { operation: u32::from(opcode::DUAL_CAST) << 24, ..moving(DATA, OTHER, 200_000) };
    assert_eq!(f.execute(cast.with(0, &(OTHER + 0x10_0000).to_le_bytes())).status, 1);
    assert_eq!(f.get(OTHER + 0x10_0000, 200_000), bytes[..200_000]);
    f.memory.kill();
    f.submit(0, 0, &moving(DATA, OTHER, 64));
    f.bench.run();
    assert_eq!(f.error() >> 8 & 0xff, 3, "the memory is gone, and there is no record");
}

/// GENCAP offers copies between ranges that overlap.
#[test]
fn overlapping_moves() {
    let bytes = noise(3, 400_000);
    for distance in [1_u64, 64, 4096, 65_536, 199_999] {
        for down in [false, true] {
            let mut f = ready(Access::Mapped);
            f.memory.set(DATA, &bytes);
            let (from, to) = if down { (DATA, DATA + distance) } else { (DATA + distance, DATA) };
            let record = f.execute(moving(from, to, 200_000));
            assert_eq!((record.status, record.result, record.done), (1, u8::from(down), 200_000));
            let start = (from - DATA) as usize;
            assert_eq!(f.get(to, 200_000), bytes[start..start + 200_000], "{distance} {down}");
        }
    }
}

#[test]
fn fills() {
    for access in BOTH {
        let mut f = ready(access);
        let pattern = 0x0102_0304_0506_0708_u64;
        for size in [1, 8, 13, 65_536, 70_003] {
            f.memory.set(OTHER, &vec![0; size + 1]);
            let fill = Descriptor { source: pattern, destination: OTHER, size: size as u32, ..Descriptor::default() };
            let record = f.execute(Descriptor { operation: u32::from(opcode::FILL) << 24, ..fill });
            assert_eq!((record.status, record.done as usize), (1, size));
            let expected: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(size).chain([0]).collect();
            assert_eq!(f.get(OTHER, size + 1), expected);
        }
    }
}

#[test]
fn dual_casts() {
    let mut f = ready(Access::Mapped);
    let bytes = noise(4, 100_000);
    f.memory.set(DATA, &bytes);
    let second = OTHER + 0x10_0000;
    let cast = Descriptor { operation: u32::from(opcode::DUAL_CAST) << 24, ..moving(DATA, OTHER, 100_000) };
    assert_eq!(f.execute(cast.with(0, &second.to_le_bytes())).status, 1);
    assert_eq!((f.get(OTHER, 100_000), f.get(second, 100_000)), (bytes.clone(), bytes));
    assert_eq!(f.execute(cast.with(0, &(second + 64).to_le_bytes())).status, 0x17);
    assert_eq!(f.execute(cast.with(0, &(OTHER + 4096).to_le_bytes())).status, 0x16);
}

#[test]
fn what_does_nothing() {
    for access in BOTH {
        let mut f = ready(access);
        for operation in [opcode::NO_OPERATION, opcode::DRAIN] {
            let record = f.execute(Descriptor::new(operation, 0));
            assert_eq!((record.status, record.done), (1, 0));
        }
        let flush = Descriptor { destination: DATA, size: 5000, ..Descriptor::new(opcode::FLUSH, flag::CACHE) };
        assert_eq!(f.execute(flush).status, 1);
    }
}

/// Hints change nothing.
#[test]
fn hints() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"hints");
    let hints = flag::CACHE | flag::CLASS_1 | flag::CLASS_2 | flag::STRICT | flag::READBACK | flag::STEER | flag::FENCE;
    let record = f.execute(Descriptor { operation: 3 << 24 | hints, ..moving(DATA, OTHER, 5) });
    assert_eq!((record.status, f.get(OTHER, 5)), (1, b"hints".to_vec()));
}
