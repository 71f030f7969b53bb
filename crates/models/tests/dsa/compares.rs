// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Comparisons.

use models::dsa::spec::{Descriptor, flag, opcode};
use models::testing::Access;

use crate::fixture::{DATA, OTHER, moving, noise, ready};

#[test]
fn compares() {
    let mut f = ready(Access::Mapped);
    let bytes = noise(5, 200_000);
    f.memory.set(DATA, &bytes);
    f.memory.set(OTHER, &bytes);
    let compare = Descriptor { operation: u32::from(opcode::COMPARE) << 24, ..moving(DATA, OTHER, 200_000) };
    let record = f.execute(compare);
    assert_eq!((record.status, record.result, record.done), (1, 0, 200_000));
    for at in [0_u32, 1, 65_535, 65_536, 199_999] {
        f.memory.set(OTHER + u64::from(at), &[!bytes[at as usize]]);
        let record = f.execute(compare);
        assert_eq!((record.status, record.result, record.done), (1, 1, at), "where they differ first");
        f.memory.set(OTHER + u64::from(at), &[bytes[at as usize]]);
    }
}

#[test]
fn compares_with_a_pattern() {
    let mut f = ready(Access::Mapped);
    let pattern = 0x1122_3344_5566_7788_u64;
    let bytes: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(70_001).collect();
    f.memory.set(DATA, &bytes);
    let compare = Descriptor { operation: u32::from(opcode::COMPARE_PATTERN) << 24, ..moving(DATA, pattern, 70_001) };
    assert_eq!(f.execute(compare).result, 0);
    f.memory.set(DATA + 65_540, &[0]);
    let record = f.execute(compare);
    assert_eq!((record.result, record.done), (1, 65_540));
}

#[test]
fn expected_results() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"same");
    f.memory.set(OTHER, b"same");
    for (text, expected, status) in [(b"same", 0, 1), (b"same", 1, 2), (b"sane", 1, 1), (b"sane", 0, 2)] {
        f.memory.set(OTHER, text);
        let compare = Descriptor::new(opcode::COMPARE, flag::CHECK_RESULT).with(0, &[expected]);
        let record = f.execute(Descriptor { source: DATA, destination: OTHER, size: 4, ..compare });
        assert_eq!(record.status, status, "{expected}");
    }
}
