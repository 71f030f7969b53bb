// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How descriptors come in.

use models::dsa::Config;
use models::dsa::spec::{self, Descriptor, Refusal, command, wqcfg};
use models::testing::Access;

use crate::fixture::{BOTH, DATA, DEDICATED, Fixture, OTHER, SHARED, fresh, moving, ready};

/// Copies of one byte each to places that follow one another.
fn bytes(count: u64) -> impl Iterator<Item = Descriptor> {
    (0..count).map(|n| moving(DATA + n, OTHER + n, 1))
}

fn copied(f: &Fixture, count: u64) -> bool {
    f.get(OTHER, count as usize) == f.get(DATA, count as usize) && f.get(OTHER + count, 1) == [0]
}

/// Every place of every page of a queue takes descriptors.
#[test]
fn each_place() {
    for access in BOTH {
        let mut f = ready(access);
        f.memory.set(DATA, &[1; 256]);
        for (n, descriptor) in (0..).zip(bytes(256)) {
            f.store_at(n * 64, &descriptor);
            (0..32).for_each(|_| {
                f.bench.turn();
            });
        }
        assert!(copied(&f, 256), "{access:?}");
        assert_eq!(f.command(command::DRAIN_ALL, 0), 0);
    }
}

/// A trapped store is a submission at once: however many go to the same place,
/// none is lost as long as the queue has room. Linux's selftest stores 32.
#[test]
fn one_place_trapped() {
    let mut f = fresh(Access::Trapped, Config::default());
    f.configure(0, 32, DEDICATED);
    f.enable(0);
    f.memory.set(DATA, &[1; 33]);
    for descriptor in bytes(32) {
        f.store_at(0, &descriptor);
    }
    assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)) & 0xffff, 32);
    f.store_at(0, &moving(DATA, OTHER + 40, 1));
    f.bench.run();
    assert!(copied(&f, 32));
    assert_eq!(f.get(OTHER + 40, 1), [0], "the queue was full");
    assert_eq!(f.error() >> 8 & 0xff, Refusal::Full as u64);
    assert_eq!(f.answer(0, 0), 2);
}

/// A mapped page takes as many as it has places, in the order in which a
/// driver goes round, and keeps them while the queue is full.
#[test]
fn a_round_mapped() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &[1; 64]);
    for round in 0..3 {
        f.memory.set(OTHER, &[0; 65]);
        for descriptor in bytes(64) {
            f.submit(0, 0, &descriptor);
        }
        f.bench.run();
        assert!(copied(&f, 64), "{round}");
    }
    assert_eq!(f.error(), 0);
}

/// The order of those in the queue is the order in which they were stored.
#[test]
fn in_order() {
    for access in BOTH {
        let f = ready(access);
        f.memory.set(DATA, &[5]);
        for start in [0, 60] {
            f.memory.set(OTHER, &[0; 16]);
            for n in 0..16 {
                let from = if n == 0 { DATA } else { OTHER + n - 1 };
                f.store_at((start + n) % 64 * 64, &moving(from, OTHER + n, 1));
            }
            if access == Access::Mapped && start == 60 {
                // Where the driver left off.
                assert_eq!(f.get(OTHER, 1), [0]);
            }
            f.bench.run();
            if start == 0 || access == Access::Trapped {
                assert_eq!(f.get(OTHER, 16), [5; 16]);
            }
        }
    }
}

/// Descriptors that only look like nothing are nothing.
#[test]
fn nothing_is_nothing() {
    let mut f = ready(Access::Mapped);
    f.submit(0, 0, &Descriptor { source: 5, ..Descriptor::default() });
    assert_ne!(f.bench.turn(), device::Turn::Busy);
    let mut f = ready(Access::Trapped);
    f.submit(0, 0, &Descriptor::default());
    f.bench.run();
    assert_eq!(f.error(), 0);
}

/// Shared queues tell: ENQCMD's retry. A limited portal may fill the queue up
/// to its threshold only, which is 2 here.
#[test]
fn retry() {
    let mut f = fresh(Access::Trapped, Config::default());
    f.configure(0, 4, SHARED);
    f.enable(0);
    let answers = |f: &Fixture, portal: u64| {
        let descriptor = Descriptor::new(0, 8);
        f.store_at(portal * 0x1000, &descriptor);
        f.answer(0, 0)
    };
    assert_eq!((0..3).map(|_| answers(&f, 1)).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!((0..3).map(|_| answers(&f, 0)).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(f.error(), 0, "a retry is no error");
    f.bench.run();
    assert_eq!(answers(&f, 1), 0);
    assert_eq!(f.command(command::DISABLE_QUEUE, 1), 0);
    assert_eq!(answers(&f, 0), 1, "not enabled");
}

/// The same through a mapped page: the answer stands where the second eight
/// bytes were, and is there when the first eight are zero.
#[test]
fn retry_mapped() {
    let mut f = fresh(Access::Mapped, Config::default());
    f.configure(0, 1, SHARED);
    f.enable(0);
    f.bench.endpoint.requester.set_bus_master(false);
    f.store_at(0, &Descriptor::new(0, 8));
    f.store_at(64, &Descriptor { completion: 0xffff_0000, ..Descriptor::new(0, 8) });
    f.bench.turn();
    assert_eq!((f.answer(0, 0), f.answer(0, 1)), (0, 1));
    assert_eq!(f.bench.load_bar(2, 64), 0);
}

/// Half a store is no submission.
#[test]
fn pieces() {
    let f = ready(Access::Trapped);
    let write = |at, bytes: &[u8]| f.bench.endpoint.write(2, at, bytes, 0);
    (0..7).for_each(|n| write(8 * n, &[0xff; 8]));
    write(64 + 56, &[0; 8]);
    f.bench.run();
    assert_eq!(f.error(), 0, "what lay in another place is forgotten");
    (0..64).for_each(|n| write(n, &[0xff]));
    f.bench.run();
    assert_eq!(f.error() >> 8 & 0xff, 0x1b);
}

/// What was stored to a queue that is then disabled is gone.
#[test]
fn disabling_forgets() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &[1]);
    assert_eq!(f.command(command::DISABLE_QUEUE, 1), 0);
    f.store_at(0, &moving(DATA, OTHER, 1));
    f.bench.run();
    assert_eq!(f.get(OTHER, 1), [0], "not enabled");
    assert_eq!(f.command(command::RESET_DEVICE, 0), 0);
    f.configure(0, 16, DEDICATED);
    f.enable(0);
    f.bench.run();
    assert_eq!(f.load(f.wqcfg(0, wqcfg::STATE)), wqcfg::ENABLED);
}

/// What was stored before the pages go is taken.
#[test]
fn pages_that_go() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &[1; 4]);
    for (n, descriptor) in (0..).zip(bytes(4)) {
        f.submit(0, n, &descriptor);
    }
    f.store(spec::GENCTRL, 1);
    f.bench.endpoint.set_memory(false, 0);
    f.bench.endpoint.set_memory(true, 0);
    f.bench.run();
    assert!(copied(&f, 4));
    assert_eq!(f.load(spec::GENCTRL), 1);
}

/// While the device does not answer the program sees ones, which are no
/// descriptors afterwards.
#[test]
fn ones_are_no_descriptors() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, &[1]);
    f.bench.endpoint.set_responding(false, 0);
    assert_eq!(f.bench.load_bar(2, 0), u32::MAX);
    f.bench.endpoint.set_responding(true, 0);
    f.submit(0, 0, &moving(DATA, OTHER, 1));
    f.bench.run();
    assert_eq!((f.error(), f.get(OTHER, 1)), (0, vec![1]));
}
