// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that are refused.

use models::dsa::Config;
use models::dsa::spec::{self, Descriptor, flag, opcode, wqcfg};
use models::testing::Access;

use crate::fixture::{BOTH, DATA, DEDICATED, OTHER, RECORD, fresh, moving, ready};

#[test]
fn operations_that_are_not_offered() {
    let mut f = ready(Access::Mapped);
    for operation in (0..=255).filter(|operation| !opcode::ALL.contains(operation)) {
        let descriptor = Descriptor { size: 8, source: DATA, destination: OTHER, ..Descriptor::new(operation, 0) };
        assert_eq!(f.execute(descriptor).status, 0x10, "{operation:#x}");
    }
}

#[test]
fn flags_that_an_operation_has_not() {
    let mut f = ready(Access::Mapped);
    for (operation, flags) in [
        (opcode::NO_OPERATION, flag::CACHE),
        (opcode::MOVE, flag::CHECK_RESULT),
        (opcode::MOVE, 1 << 6),
        (opcode::MOVE, flag::READ_SEED),
        (opcode::MOVE, flag::BLOCK_ON_FAULT),
        (opcode::CRC, 1 << 20),
    ] {
        let descriptor = Descriptor {
            size: 8,
            source: DATA,
            destination: OTHER,
            ..Descriptor::new(operation, flags | flag::CLASS_RECORD)
        };
        let record = f.execute(descriptor);
        assert_eq!((record.status, record.value), (0x11, flags.into()), "{operation:#x} {flags:#x}");
    }
    f.submit(0, 0, &Descriptor::new(opcode::NO_OPERATION, flag::REQUEST_RECORD));
    f.bench.run();
    assert_eq!(f.error() >> 8 & 0xff, 0x11, "a record without address");
    assert_eq!(f.load_long(spec::SWERROR + 8) >> 32, u64::from(flag::REQUEST_RECORD));
}

#[test]
fn reserved_fields() {
    let mut f = ready(Access::Mapped);
    let good = moving(DATA, OTHER, 8);
    let bad = [
        Descriptor { reserved: 1, ..good },
        Descriptor { pasid: 1 << 20, ..good },
        good.with(0, &[1]),
        good.with(23, &[1]),
    ];
    for descriptor in bad {
        assert_eq!(f.execute(descriptor).status, 0x12, "{descriptor:?}");
    }
    assert_eq!(f.execute(Descriptor { pasid: 0x800f_ffff, ..good }).status, 1, "a dedicated queue has its own PASID");
}

#[test]
fn lengths() {
    let mut f = fresh(Access::Mapped, Config::default());
    f.configure(0, 16, DEDICATED);
    f.store(f.wqcfg(0, wqcfg::LIMITS), 12 | 2 << 5);
    f.enable(0);
    for (size, status) in [(0, 0x13), (4097, 0x13), (4096, 1)] {
        assert_eq!(f.execute(moving(DATA, OTHER, size)).status, status, "{size}");
    }
    let batch = |size| Descriptor { source: 0, size, ..Descriptor::new(opcode::BATCH, 0) };
    assert_eq!((f.execute(batch(5)).status, f.execute(batch(4)).status), (0x14, 1));
}

/// A queue's own list of operations, which starts as all of the device's.
#[test]
fn operations_of_a_queue() {
    for access in BOTH {
        let mut f = fresh(access, Config { operations: true, ..Config::default() });
        f.configure(0, 16, DEDICATED);
        f.store(f.wqcfg(0, wqcfg::OPERATIONS), 1 << opcode::MOVE | 1 << opcode::BATCH | 1 << 0x18);
        f.bench.run();
        assert_eq!(f.load(f.wqcfg(0, wqcfg::OPERATIONS)), 0b1010, "only what there is");
        f.enable(0);
        assert_eq!(f.execute(moving(DATA, OTHER, 8)).status, 1);
        assert_eq!(f.execute(Descriptor::new(opcode::NO_OPERATION, 0)).status, 0x10);
    }
}

#[test]
fn records_that_cannot_be_written() {
    let mut f = ready(Access::Mapped);
    let with = |completion| {
        let operation = 3 << 24 | flag::RECORD | flag::REQUEST_RECORD;
        Descriptor { completion, operation, ..moving(DATA, OTHER, 1) }
    };
    f.memory.set(DATA, b"x");
    f.submit(0, 0, &with(RECORD + 16));
    f.bench.run();
    assert_eq!((f.error() >> 8 & 0xff, f.get(OTHER, 1)), (0x1b, vec![0]), "misaligned: nothing is done");
    f.store(spec::SWERROR, 3);
    f.submit(0, 0, &with(1 << 40));
    f.bench.run();
    assert_eq!((f.error() >> 8 & 0xff, f.error() >> 5 & 1), (0x1a, 1));
    assert_eq!(f.load_long(spec::SWERROR + 16), 1 << 40);
    assert_eq!(f.get(OTHER, 1), b"x", "that is found out when it is done");
}
