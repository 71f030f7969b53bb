// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver reads and sets before it uses the device.

use device::ResetKind;
use models::dsa::spec::{self, command, genctrl, opcode, wqcfg};
use models::dsa::{Accelerator, Config};
use models::testing::Access;

use crate::fixture::{BOTH, DEDICATED, fresh, moving, ready};

/// What Linux's `idxd`, DPDK and the selftests take apart.
#[test]
fn capabilities() {
    for access in BOTH {
        let f = fresh(access, Config::default());
        assert_eq!(f.load(spec::VERSION), 0x100);
        let general = f.load_long(spec::GENCAP);
        assert_eq!((general >> 16 & 0x1f, general >> 21 & 0xf), (31, 10), "2 GiB, 1024 descriptors");
        assert_eq!((general >> 13 & 3, general >> 25 & 0x3f), (0, 0), "no event log, no interrupt message storage");
        let queues = f.load_long(spec::WQCAP);
        assert_eq!((queues & 0xffff, queues >> 16 & 0xff, queues >> 24 & 0xf), (128, 8, 0));
        assert_eq!((queues >> 48 & 3, queues >> 54 & 1), (3, 0), "shared and dedicated, all operations");
        assert_eq!((f.load_long(spec::GRPCAP) & 0xff, f.load_long(spec::ENGCAP) & 0xff), (4, 4));
        let operations = f.load_long(spec::OPCAP);
        for operation in 0..64 {
            assert_eq!(operations >> operation & 1 != 0, opcode::ALL.contains(&operation), "{operation:#x}");
        }
        assert_eq!(f.load_long(spec::OPCAP + 8), 0);
        assert_eq!(f.load_long(spec::OFFSETS), 0x0006_0008_0004);
        assert_eq!(f.load(spec::CMDCAP), 0x1ffe, "no interrupt handles to ask for");
        assert_eq!((f.load(spec::GENSTS), f.load(spec::CMDSTS), f.error()), (0b1100, 0, 0));
    }
}

#[test]
fn sizes_of_a_lab() {
    let config = Config {
        queues: 3,
        entries: 20,
        engines: 2,
        max_transfer: 20,
        max_batch: 5,
        operations: true,
        handles: true,
        ..Config::default()
    };
    let f = fresh(Access::Mapped, config);
    let general = f.load_long(spec::GENCAP);
    assert_eq!((general >> 16 & 0x1f, general >> 21 & 0xf), (20, 5));
    let queues = f.load_long(spec::WQCAP);
    assert_eq!((queues & 0xffff, queues >> 16 & 0xff, queues >> 24 & 0xf, queues >> 54 & 1), (20, 3, 1, 1));
    assert_eq!(f.load(spec::CMDCAP), 0x7ffe);
    let spec = f.bench.endpoint.spec();
    assert_eq!(spec.msix.as_ref().unwrap().vectors, 4);
    assert_eq!(spec.bars[2].as_ref().unwrap().size, 0x1_0000);
    assert_eq!(spec.check(), Ok(()));
    let all = f.load_long(spec::OPCAP);
    assert_eq!(f.load_long(f.wqcfg(2, wqcfg::OPERATIONS)), all, "a queue takes every operation");
}

/// What no hardware has is brought into the limits.
#[test]
fn impossible_sizes() {
    let config = Config { queues: 0, entries: 0, engines: 99, max_transfer: 99, max_batch: 0, ..Config::default() };
    let f = fresh(Access::Trapped, config);
    assert_eq!(f.load_long(spec::WQCAP) & 0xff_ffff, 0x1_0001);
    assert_eq!((f.load_long(spec::ENGCAP), f.load_long(spec::GENCAP) >> 16 & 0x1ff), (8, 31 | 1 << 5));
    assert_eq!(f.bench.endpoint.spec().check(), Ok(()));
}

#[test]
fn only_what_can_be_set_is() {
    for access in BOTH {
        let f = fresh(access, Config::default());
        for (offset, reads) in [
            (spec::GENCFG, spec::GENCFG_MASK),
            (spec::GENCTRL, genctrl::MASK),
            (spec::GRPCFG, 0xff),
            (spec::GRPCFG + 8, 0),
            (spec::GRPCFG + spec::GROUP_ENGINES, 0xf),
            (f.wqcfg(7, wqcfg::SIZE), 0xffff),
            (f.wqcfg(7, wqcfg::MODE), 0x3fff_ffff),
            (f.wqcfg(7, wqcfg::STATE), 0),
            (spec::MSIX_PERM + 8, 0xffff_f00c),
        ] {
            f.store(offset, u32::MAX);
            f.bench.run();
            assert_eq!(f.load(offset), reads, "{offset:#x} {access:?}");
        }
    }
    let f = fresh(Access::Trapped, Config::default());
    for offset in [spec::GENCAP, spec::WQCAP, spec::CMDSTS, spec::GENSTS, 0x1000, 0xfff8] {
        let before = f.load(offset);
        f.store(offset, u32::MAX);
        assert_eq!(f.load(offset), before, "{offset:#x}");
    }
}

/// The selftests read capabilities with loads of 8 bytes; DPDK some with less.
#[test]
fn accesses_of_each_width() {
    let f = fresh(Access::Trapped, Config::default());
    let read = |offset, len: usize| {
        let mut bytes = vec![0; len];
        f.bench.endpoint.read(0, offset, &mut bytes, 0);
        bytes
    };
    assert_eq!(read(spec::WQCAP, 8), f.load_long(spec::WQCAP).to_le_bytes());
    assert_eq!(read(spec::WQCAP + 2, 1), [8]);
    assert_eq!(read(spec::VERSION, 2), [0, 1]);
    let word = f.wqcfg(1, wqcfg::SIZE);
    f.bench.endpoint.write(0, word, &0x0010_0000_0005_u64.to_le_bytes(), 0);
    assert_eq!((f.load(word), f.load(word + 4)), (5, 0x10));
    f.bench.endpoint.write(0, word + 1, &[2], 0);
    assert_eq!(f.load(word), 0x205, "the rest of the word stays");
}

#[test]
fn configuration_is_fixed_while_in_use() {
    for access in BOTH {
        let f = ready(access);
        for (offset, reads) in [
            (f.wqcfg(0, wqcfg::MODE), DEDICATED),
            (f.wqcfg(1, wqcfg::SIZE), 0),
            (spec::GRPCFG, 1),
            (spec::MSIX_PERM, 0),
        ] {
            f.store(offset, 0x1c);
            (0..100).for_each(|_| assert_ne!(f.bench.turn(), device::Turn::Busy));
            assert_eq!(f.load(offset), reads, "{offset:#x}");
        }
        f.store(f.wqcfg(1, wqcfg::MODE), DEDICATED);
        (0..100).for_each(|_| assert_ne!(f.bench.turn(), device::Turn::Busy));
        assert_eq!(f.load(f.wqcfg(1, wqcfg::MODE)), DEDICATED, "a queue that is not enabled can be configured");
    }
}

#[test]
fn resets_say_what_they_were() {
    for access in BOTH {
        for (kind, number) in [
            (ResetKind::FunctionLevel, 1),
            (ResetKind::Bus, 2),
            (ResetKind::PowerManagement, 2),
            (ResetKind::PowerOn, 3),
        ] {
            let mut f = ready(access);
            f.submit(0, 0, &moving(0, 64, 64));
            f.bench.endpoint.reset(kind, 0);
            assert_eq!(f.load(spec::GENSTS), number << 2);
            for offset in [f.wqcfg(0, wqcfg::SIZE), f.wqcfg(0, wqcfg::STATE), spec::GRPCFG, spec::CMDSTS] {
                assert_eq!(f.load(offset), 0, "{offset:#x}");
            }
            f.bench.run();
            f.configure(0, 16, DEDICATED);
            f.enable(0);
            assert_eq!(f.execute(moving(0x10_0000, 0x20_0000, 64)).status, 1, "usable after {kind:?}");
        }
        let mut f = ready(access);
        assert_eq!(f.command(command::RESET_DEVICE, 0), 0);
        assert_eq!((f.load(spec::GENSTS), f.load(spec::GRPCFG), f.load(f.wqcfg(0, 0))), (0, 0, 0));
    }
}

#[test]
fn vectors_are_masked() {
    let f = fresh(Access::Mapped, Config::default());
    assert_eq!(f.load(u64::from(spec::MSIX_TABLE) + 12), 1);
    assert!(format!("{:?}", Accelerator::default()).contains("Accelerator"));
}
