// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Batches.

use models::dsa::spec::{Descriptor, flag, opcode};
use models::testing::{Access, TestMemory};
use zerocopy::IntoBytes as _;

use crate::fixture::{BOTH, DATA, DEDICATED, LIST, MEMORY, OTHER, fresh_on, moving, noise, ready};

/// A batch's descriptors have their records where DPDK has them: over the
/// descriptors themselves.
fn recorded(n: u64, descriptor: Descriptor) -> Descriptor {
    let operation = descriptor.operation | flag::RECORD;
    Descriptor { operation, completion: LIST + 64 * n, ..descriptor }
}

#[test]
fn a_batch_is_done_in_order() {
    for access in BOTH {
        for count in [2, 32, 64, 65, 500, 1024] {
            let mut f = ready(access);
            f.memory.set(DATA, &noise(8, 64));
            // Each copies what the one before it has written.
            let hops = |n: u64| if n == 0 { DATA } else { OTHER + 64 * (n - 1) };
            let list: Vec<_> = (0..count).map(|n| recorded(n, moving(hops(n), OTHER + 64 * n, 64))).collect();
            let record = f.execute_batch(&list);
            assert_eq!((record.status, u64::from(record.done)), (1, count));
            assert_eq!(f.get(hops(count), 64), noise(8, 64));
            assert_eq!(f.get(LIST, 64), list[0].as_bytes(), "nobody asked for its record");
        }
    }
}

#[test]
fn a_batch_in_remote_memory() {
    let mut f = fresh_on(Access::Trapped, models::dsa::Config::default(), TestMemory::new(MEMORY, true));
    f.configure(0, 16, DEDICATED);
    f.enable(0);
    f.memory.set(DATA, &noise(8, 6400));
    let list: Vec<_> = (0..100).map(|n| moving(DATA + 64 * n, OTHER + 64 * n, 64)).collect();
    assert_eq!(f.execute_batch(&list).status, 1);
    assert_eq!(f.get(OTHER, 6400), noise(8, 6400));
}

/// DPDK tells which one has failed by the records.
#[test]
fn a_failure_does_not_stop_a_batch() {
    for access in BOTH {
        let mut f = ready(access);
        f.memory.set(DATA, b"x");
        let mut list: Vec<_> = (0..8).map(|n| recorded(n, moving(DATA, OTHER + n, 1))).collect();
        list[3].source = 1 << 40;
        let record = f.execute_batch(&list);
        assert_eq!((record.status, record.done), (5, 8));
        assert_eq!(f.get(OTHER, 8), b"xxx\0xxxx");
        assert_eq!((f.record(LIST + 64 * 3).status, f.record(LIST + 64 * 3).address), (3, 1 << 40));
        assert_eq!(f.error(), 0, "a record tells of it");
    }
}

#[test]
fn a_fence_stops_a_batch_that_has_failed() {
    for access in BOTH {
        let mut f = ready(access);
        f.memory.set(DATA, b"x");
        let mut list: Vec<_> = (0..8).map(|n| recorded(n, moving(DATA, OTHER + n, 1))).collect();
        list[2].operation |= flag::FENCE;
        list[3].source = 1 << 40;
        list[6].operation |= flag::FENCE;
        let record = f.execute_batch(&list);
        assert_eq!((record.status, record.done), (5, 6));
        assert_eq!(f.get(OTHER, 8), b"xxx\0xx\0\0");
    }
}

/// A comparison whose result is not the expected one is not a success.
#[test]
fn a_fence_as_a_condition() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"x");
    let compare = Descriptor::new(opcode::COMPARE, flag::CHECK_RESULT | flag::RECORD);
    let compare = recorded(0, Descriptor { source: DATA, destination: OTHER, size: 1, ..compare });
    let mut copy = recorded(1, moving(DATA, OTHER, 1));
    copy.operation |= flag::FENCE;
    let record = f.execute_batch(&[compare, copy]);
    assert_eq!((record.status, record.done, f.get(OTHER, 1)), (5, 1, vec![0]));
    let differ = compare.with(0, &[1]);
    let record = f.execute_batch(&[differ, copy]);
    assert_eq!((record.status, record.done, f.get(OTHER, 1)), (1, 2, vec![b'x']));
}

#[test]
fn what_a_batch_cannot_be() {
    let mut f = ready(Access::Mapped);
    let batch = |source, size| Descriptor { source, size, ..Descriptor::new(opcode::BATCH, 0) };
    for size in [0, 1, 1025, u32::MAX] {
        assert_eq!(f.execute(batch(LIST, size)).status, 0x14, "{size}");
    }
    assert_eq!(f.execute(batch(LIST + 32, 2)).status, 0x18);
    let inner = recorded(1, batch(DATA, 2));
    let drain = recorded(2, Descriptor::new(opcode::DRAIN, 0));
    let record = f.execute_batch(&[Descriptor::default(), inner, drain]);
    assert_eq!((record.status, record.done), (5, 3));
    assert_eq!((f.record(LIST + 64).status, f.record(LIST + 128).status), (0x10, 0x10));
}

/// The list goes over the end of what is mapped.
#[test]
fn a_list_that_cannot_be_read() {
    let mut f = ready(Access::Mapped);
    f.memory.set(DATA, b"x");
    let end = MEMORY as u64;
    let list = [moving(DATA, OTHER, 1), moving(DATA, OTHER + 1, 1)];
    f.memory.set(end - 128, list.as_bytes());
    let batch = Descriptor { source: end - 128, size: 5, ..Descriptor::new(opcode::BATCH, 0) };
    let record = f.execute(batch);
    assert_eq!((record.status, record.done, record.address), (6, 2, end));
    assert_eq!(f.get(OTHER, 2), b"xx", "what could be read was done");
}

/// An error in a batch that no record tells of.
#[test]
fn errors_without_a_record() {
    let mut f = ready(Access::Mapped);
    let record = f.execute_batch(&[moving(DATA, OTHER, 1), moving(1 << 40, OTHER, 1)]);
    assert_eq!(record.status, 5);
    let error = f.error();
    assert_eq!((error & 0x3f, error >> 8 & 0xff, error >> 32 & 0xff), (0x1d, 3, 3));
    assert_eq!(f.load_long(models::dsa::spec::SWERROR + 8) & 0xffff, 1, "its index");
    assert_eq!(f.load_long(models::dsa::spec::SWERROR + 16), 1 << 40);
}
