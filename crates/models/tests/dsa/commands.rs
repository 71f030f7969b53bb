// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands and their errors.

use models::dsa::Config;
use models::dsa::spec::{self, Descriptor, command, opcode, wqcfg};
use models::testing::Access;

use crate::fixture::{BOTH, DATA, DEDICATED, OTHER, SHARED, fresh, moving, ready};

/// `enum idxd_cmdsts_err` of Linux, for enabling the device.
#[test]
fn enabling_the_device() {
    for access in BOTH {
        let mut f = fresh(access, Config::default());
        let group = |n: u64| spec::GRPCFG + n * spec::GROUP_BYTES;
        f.bench.endpoint.requester.set_bus_master(false);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x12);
        f.bench.endpoint.requester.set_bus_master(true);
        f.configure(0, 129, DEDICATED);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x14, "more entries than there are");
        f.configure(0, 128, DEDICATED);
        f.store(group(1), 1);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x15, "a queue in two groups");
        f.store(group(1), 2);
        f.store(group(1) + spec::GROUP_ENGINES, 1);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x16, "an engine in two groups");
        f.store(group(1) + spec::GROUP_ENGINES, 0);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x17, "a group without engines");
        f.store(group(1), 0);
        f.store(group(0), 0);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x18, "a queue without group");
        f.store(group(0), 1);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0);
        assert_eq!(f.load(spec::GENSTS) & 3, 1);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0x10);
        assert_eq!(f.command(command::DISABLE_DEVICE, 0), 0);
        assert_eq!(f.load(spec::GENSTS) & 3, 0);
        assert_eq!(f.command(command::DISABLE_DEVICE, 0), 0x31);
    }
}

#[test]
fn enabling_a_queue() {
    for access in BOTH {
        let mut f = fresh(access, Config { max_batch: 9, max_transfer: 30, ..Config::default() });
        assert_eq!(f.command(command::ENABLE_QUEUE, 0), 0x20);
        f.configure(0, 16, DEDICATED);
        assert_eq!(f.command(command::ENABLE_DEVICE, 0), 0);
        assert_eq!(f.command(command::ENABLE_QUEUE, 8), 0x02);
        assert_eq!(f.command(command::ENABLE_QUEUE, 1), 0x22, "no entries");
        let [mode, limits] = [wqcfg::MODE, wqcfg::LIMITS].map(|word| f.wqcfg(0, word));
        for (offset, value, error) in [
            (mode, wqcfg::DEDICATED, 0x23),
            (mode, 1 << 4, 0x26),
            (mode, DEDICATED, 0x27),
            (limits, 31 | 9 << 5, 0x28),
            (limits, 30 | 9 << 5, 0),
        ] {
            f.store(offset, value);
            assert_eq!(f.command(command::ENABLE_QUEUE, 0), error, "{offset:#x} {value:#x}");
        }
        assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)), wqcfg::ENABLED);
        assert_eq!(f.command(command::ENABLE_QUEUE, 0), 0x21);
    }
}

#[test]
fn commands_for_queues_name_them_by_bits() {
    for access in BOTH {
        let mut f = fresh(access, Config::default());
        for number in [command::DISABLE_QUEUE, command::DRAIN_QUEUE, command::ABORT_QUEUE, command::RESET_QUEUE] {
            assert_eq!(f.command(number, 1), 0x32, "the device is not enabled");
        }
        f.configure(2, 16, DEDICATED);
        f.configure(5, 16, SHARED);
        f.enable(2);
        f.enable(5);
        for operand in [0, 1 << 8, 1 << 16 | 1] {
            assert_eq!(f.command(command::DISABLE_QUEUE, operand), 0x02, "{operand:#x}");
        }
        let state = |f: &crate::fixture::Fixture, queue| f.load(f.wqcfg(queue, wqcfg::STATE)) >> 30;
        assert_eq!(f.command(command::DISABLE_QUEUE, 1 << 2), 0);
        assert_eq!((state(&f, 2), state(&f, 5)), (0, 1));
        assert_eq!(f.load(f.wqcfg(2, wqcfg::SIZE)), 16, "it can be enabled again");
        f.enable(2);
        assert_eq!(f.command(command::RESET_QUEUE, 1 << 2 | 1 << 5), 0);
        assert_eq!((state(&f, 2), state(&f, 5)), (0, 0));
        assert_eq!(f.load(f.wqcfg(5, wqcfg::SIZE)), 0);
    }
}

/// A long move is under way: a drain has to wait, an abort drops it.
#[test]
fn draining_and_aborting() {
    for access in BOTH {
        let mut f = ready(access);
        let long = moving(DATA, OTHER, 3 << 20);
        f.memory.set(DATA, &[7; 16]);
        f.submit(0, 0, &long);
        f.bench.turn();
        f.store(spec::CMD, command::DRAIN_ALL << 20);
        f.bench.turn();
        assert_eq!(f.load(spec::CMDSTS), command::ACTIVE);
        assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)), wqcfg::ENABLED | 1, "occupancy");
        f.store(spec::CMD, command::ABORT_ALL << 20);
        f.bench.run();
        assert_eq!(f.load(spec::CMDSTS), 0);
        assert_eq!(f.get(OTHER, 16), [7; 16], "a command while one is under way is none");

        f.submit(0, 0, &long);
        f.bench.turn();
        assert_eq!(f.command(command::ABORT_QUEUE, 1), 0);
        assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)), wqcfg::ENABLED);
        f.submit(0, 0, &long);
        assert_eq!(f.command(command::DISABLE_DEVICE, 0), 0, "drains");
        assert_eq!(f.get(OTHER + (3 << 20) - 16, 16), f.get(DATA + (3 << 20) - 16, 16));
        assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)), 0);
    }
}

#[test]
fn draining_a_pasid() {
    let mut f = ready(Access::Trapped);
    let one = Descriptor { pasid: 1, ..moving(DATA, OTHER, 3 << 20) };
    f.submit(0, 0, &one);
    f.submit(0, 0, &Descriptor { pasid: 2, ..one });
    assert_eq!(f.command(command::ABORT_PASID, 1), 0);
    assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)) & 0xffff, 1);
    assert_eq!(f.command(command::DRAIN_PASID, 1), 0);
    f.store(spec::CMD, command::DRAIN_PASID << 20 | 2);
    assert_eq!(f.load(spec::CMDSTS), command::ACTIVE);
    f.bench.run();
    assert_eq!(f.load(spec::CMDSTS), 0);
}

#[test]
fn what_is_no_command() {
    for access in BOTH {
        let mut f = ready(access);
        for number in [0x1f, 0x10, command::REQUEST_HANDLE] {
            assert_eq!(f.command(number, 1), 1, "{number}");
        }
    }
}

#[test]
fn interrupt_handles() {
    for access in BOTH {
        let mut f = fresh(access, Config { handles: true, ..Config::default() });
        assert_eq!(f.command(command::REQUEST_HANDLE, 3), 0);
        assert_eq!(f.load(spec::CMDSTS), 3 << 8);
        for operand in [0, 9, command::IMS | 1] {
            assert_eq!(f.command(command::REQUEST_HANDLE, operand), 0x41, "{operand:#x}");
        }
        assert_eq!(f.command(command::RELEASE_HANDLE, 3), 0);
    }
}

#[test]
fn a_disabled_queue_takes_nothing() {
    let mut f = ready(Access::Trapped);
    f.store(f.wqcfg(1, wqcfg::MODE), DEDICATED);
    f.submit(1, 0, &Descriptor::new(opcode::MOVE, 0));
    assert_eq!(f.error() & 0xff, 0x0d, "valid, with descriptor and queue");
    assert_eq!((f.error() >> 8 & 0xff, f.error() >> 16 & 0xff, f.error() >> 32 & 0xff), (0x50, 1, 3));
    f.submit(1, 0, &Descriptor::new(opcode::MOVE, 0));
    assert_eq!(f.error() & 3, 3, "and there was another");
    f.store(spec::SWERROR, 2);
    assert_eq!(f.error() & 3, 1);
    f.store(spec::SWERROR, 1);
    assert_eq!(f.error(), 0);
}
