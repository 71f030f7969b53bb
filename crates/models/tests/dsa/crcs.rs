// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CRC-32C.

use models::dsa::spec::{Descriptor, flag, opcode};
use models::testing::Access;

use crate::fixture::{DATA, OTHER, noise, ready};

fn crc(size: u32, flags: u32) -> Descriptor {
    Descriptor { source: DATA, size, ..Descriptor::new(opcode::CRC, flags) }
}

#[test]
fn known_value() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"123456789");
    let record = f.execute(crc(9, 0));
    assert_eq!((record.status, record.done, record.value), (1, 9, 0xe306_9283));
    f.memory.set(OTHER, &[0; 9]);
    let copy = Descriptor { destination: OTHER, ..crc(9, 0) };
    let record = f.execute(Descriptor { operation: u32::from(opcode::COPY_CRC) << 24, ..copy });
    assert_eq!((record.value, f.get(OTHER, 9)), (0xe306_9283, b"123456789".to_vec()));
}

/// What one piece came to is the seed of the next one, as a number or in memory.
#[test]
fn seeds() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &noise(7, 200_000));
    for flags in [0, flag::RAW_CRC, flag::RAW_DATA, flag::RAW_CRC | flag::RAW_DATA] {
        let whole = f.execute(crc(200_000, flags)).value;
        let first = f.execute(crc(70_001, flags)).value as u32;
        let rest = Descriptor { source: DATA + 70_001, ..crc(129_999, flags) };
        assert_eq!(f.execute(rest.with(0, &first.to_le_bytes())).value, whole, "{flags:#x}");
        f.memory.set(OTHER, &first.to_le_bytes());
        let rest = Descriptor { operation: rest.operation | flag::READ_SEED, ..rest };
        assert_eq!(f.execute(rest.with(8, &OTHER.to_le_bytes())).value, whole, "{flags:#x}");
    }
}

/// Without inversion, the CRC of zeros with seed zero is zero; the bits of the
/// bytes count the other way round if the device is told so.
#[test]
fn raw() {
    let mut f = ready(Access::Mapped);
    assert_eq!(f.execute(crc(64, flag::RAW_CRC)).value, 0);
    f.memory.set(DATA, &[0x80]);
    let turned = f.execute(crc(1, flag::RAW_CRC | flag::RAW_DATA)).value;
    f.memory.set(DATA, &[0x01]);
    assert_eq!(f.execute(crc(1, flag::RAW_CRC)).value, turned);
    // The first bit of eight, divided by the polynomial.
    let step = |crc: u32| crc << 1 ^ if crc >> 31 != 0 { 0x1edc_6f41 } else { 0 };
    assert_eq!(turned, u64::from((0..8).fold(1 << 31, |crc, _| step(crc))));
}

#[test]
fn what_a_crc_cannot_have() {
    let mut f = ready(Access::Mapped);
    assert_eq!(f.execute(crc(8, flag::READ_SEED).with(8, &2_u64.to_le_bytes())).status, 0x1c);
    let over = Descriptor { destination: DATA + 4, ..crc(8, 0) };
    assert_eq!(f.execute(Descriptor { operation: u32::from(opcode::COPY_CRC) << 24, ..over }).status, 0x16);
}
