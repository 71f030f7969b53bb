// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queues: wrap-around, full queues, many queues, fairness, interrupts.

use std::collections::BTreeSet;

use device::Turn;
use models::nvme::LbaSize;
use models::nvme::spec::{AdminOpcode, Command, NvmOpcode, Register, doorbell};
use models::testing::nvme::{Machine, blocks_command};
use models::testing::{Access, CountedEvent, TestMemory};

use crate::fixture::{MEMORY, fixture, fixture_on, ready, ready_with};

#[test]
fn queues_wrap_around_at_every_depth() {
    for access in [Access::Mapped, Access::Trapped] {
        for remote in [false, true] {
            let mut fixture = fixture_on(access, LbaSize::B512, TestMemory::new(MEMORY, remote));
            fixture.driver.enable(2).unwrap();
            fixture.driver.create_queue_pair(1, 7, Some(1)).unwrap();
            let flush = blocks_command(NvmOpcode::Flush, 1, 0, 1);
            let mut expected = BTreeSet::new();
            for round in 0..40 {
                for _ in 0..round % 7 {
                    assert!(expected.insert(fixture.driver.put(1, flush).unwrap()));
                }
                fixture.driver.ring(1);
                fixture.driver.machine.run();
                for completion in fixture.driver.reap(1) {
                    assert!(completion.status().is_success());
                    assert!(expected.remove(&completion.cid.get()), "completed once");
                }
                assert!(expected.is_empty(), "round {round}");
            }
        }
    }
}

#[test]
fn the_largest_queue_runs_full() {
    let mut fixture = fixture(Access::Mapped, LbaSize::B4096);
    fixture.driver.enable(4096).unwrap();
    fixture.driver.create_queue_pair(64, 4096, Some(64)).unwrap();
    let flush = blocks_command(NvmOpcode::Flush, 1, 0, 1);
    for _ in 0..3 {
        for _ in 0..4095 {
            fixture.driver.put(64, flush).unwrap();
        }
        assert!(fixture.driver.put(64, flush).is_err());
        fixture.driver.ring(64);
        fixture.driver.machine.run();
        assert_eq!(fixture.driver.reap(64).len(), 4095);
    }
}

#[test]
fn a_full_completion_queue_holds_commands_back() {
    let mut fixture = ready();
    // Queue 2 has 32 entries for commands, but 4 for completions.
    let driver = &mut fixture.driver;
    let (sq, cq) = (driver.queue_memory(32).unwrap(), driver.queue_memory(4).unwrap());
    for (opcode, entries, other, base) in
        [(AdminOpcode::CreateCompletionQueue, 4, 0, cq.cq), (AdminOpcode::CreateSubmissionQueue, 32, 2 << 16, sq.sq)]
    {
        let create = Command {
            opcode: opcode.raw(),
            cdw10: (2 | (entries - 1) << 16).into(),
            cdw11: (1 | other).into(),
            prp1: base.into(),
            ..Command::default()
        };
        driver.admin(create).unwrap();
    }
    for i in 0..20_u16 {
        let flush = Command { cid: i.into(), ..blocks_command(NvmOpcode::Flush, 1, 0, 1) };
        driver.machine.set(sq.sq + 64 * u64::from(i), zerocopy::IntoBytes::as_bytes(&flush));
    }
    fixture.disk.take_calls();
    driver.machine.store(doorbell::submission(2), 20);
    let mut seen = 0;
    for head in (0..).map(|n| n % 4) {
        driver.machine.run();
        assert_eq!(driver.machine.turn(), Turn::Idle);
        // As many as fit, not one more.
        let done = fixture.disk.take_calls().flushes;
        assert!(done <= if head == 0 && seen == 0 { 3 } else { 1 }, "{done}");
        seen += done;
        if seen == 20 && done == 0 {
            break;
        }
        driver.machine.store(doorbell::completion(2), (head + 1) % 4);
    }
    assert_eq!(seen, 20);
}

#[test]
fn several_submission_queues_share_a_completion_queue() {
    let mut fixture = ready();
    let sq = fixture.driver.queue_memory(8).unwrap();
    let create = Command {
        opcode: AdminOpcode::CreateSubmissionQueue.raw(),
        cdw10: (2 | 7 << 16).into(),
        cdw11: (1 | 1 << 16).into(),
        prp1: sq.sq.into(),
        ..Command::default()
    };
    fixture.driver.admin(create).unwrap();
    let flush = Command { cid: 0x7777.into(), ..blocks_command(NvmOpcode::Flush, 1, 0, 1) };
    fixture.driver.machine.set(sq.sq, zerocopy::IntoBytes::as_bytes(&flush));
    fixture.driver.machine.store(doorbell::submission(2), 1);
    let cid = fixture.driver.submit(1, flush).unwrap();
    fixture.driver.machine.run();
    let seen: Vec<_> = fixture.driver.reap(1).iter().map(|c| (c.sq_id.get(), c.cid.get(), c.sq_head.get())).collect();
    assert_eq!(seen, [(1, cid, 1), (2, 0x7777, 1)]);
}

#[test]
fn all_queue_pairs_work_and_none_starves() {
    let mut fixture = fixture(Access::Mapped, LbaSize::B512);
    fixture.driver.enable(32).unwrap();
    for id in 1..=64 {
        fixture.driver.create_queue_pair(id, 64, Some(id)).unwrap();
    }
    let flush = blocks_command(NvmOpcode::Flush, 1, 0, 1);
    for id in 1..=64 {
        for _ in 0..63 {
            fixture.driver.put(id, flush).unwrap();
        }
        fixture.driver.ring(id);
    }
    // 64 commands a turn, 32 a queue: after 32 turns each has had one burst.
    for _ in 0..32 {
        assert_eq!(fixture.driver.machine.turn(), Turn::Busy);
    }
    for id in 1..=64 {
        assert_eq!(fixture.driver.reap(id).len(), 32, "queue {id}");
    }
    fixture.driver.machine.run();
    for id in 1..=64 {
        assert_eq!(fixture.driver.reap(id).len(), 31, "queue {id}");
    }
}

#[test]
fn a_turn_is_bounded_in_bytes() {
    let mut fixture = ready();
    let iova = fixture.driver.alloc(2 << 20).unwrap();
    let read = fixture.driver.transfer(NvmOpcode::Read, 0, 4096, 512, iova).unwrap();
    for _ in 0..4 {
        fixture.driver.put(1, read).unwrap();
    }
    fixture.driver.ring(1);
    for _ in 0..4 {
        assert_eq!(fixture.driver.machine.turn(), Turn::Busy);
        assert_eq!(fixture.driver.reap(1).len(), 1);
    }
    assert_eq!(fixture.driver.machine.turn(), Turn::Idle);
}

#[test]
fn a_queue_deleted_while_busy_completes_what_it_took_and_drops_the_rest() {
    let mut fixture = ready();
    let read = fixture.small_read();
    // 62 commands for a completion queue of 31 places: the second half waits.
    for _ in 0..31 {
        fixture.driver.put(1, read).unwrap();
    }
    fixture.driver.ring(1);
    fixture.driver.machine.run();
    let mut first = Vec::new();
    while let Some(completion) = fixture.driver.peek(1) {
        first.push(completion);
    }
    assert_eq!(first.len(), 31);
    for _ in 0..31 {
        fixture.driver.put(1, read).unwrap();
    }
    fixture.driver.ring(1);
    fixture.driver.machine.run();
    assert!(fixture.driver.peek(1).is_none(), "no place");
    fixture.driver.delete_queue_pair(1).unwrap();
    fixture.driver.create_queue_pair(1, 32, Some(1)).unwrap();
    fixture.driver.machine.run();
    assert!(fixture.driver.reap(1).is_empty(), "nothing of the old queue comes to the new one");
    assert!(fixture.is_alive());
}

#[test]
fn one_interrupt_a_batch_to_the_vector_of_the_queue() {
    let mut fixture = ready();
    let events = |fixture: &crate::fixture::Fixture| -> Vec<(usize, u64)> {
        let counts = fixture.driver.machine.events.iter().map(|event| event.take()).enumerate();
        counts.filter(|(_, count)| *count > 0).collect()
    };
    events(&fixture);
    let read = fixture.small_read();
    for _ in 0..16 {
        fixture.driver.put(1, read).unwrap();
    }
    fixture.driver.ring(1);
    fixture.driver.machine.run();
    assert_eq!(events(&fixture), [(1, 1)]);
    assert_eq!(fixture.driver.reap(1).len(), 16);
    fixture.driver.machine.run();
    assert_eq!(events(&fixture), []);
    // Without interrupts there are none.
    fixture.driver.delete_queue_pair(1).unwrap();
    fixture.driver.create_queue_pair(1, 32, None).unwrap();
    events(&fixture);
    assert!(fixture.is_alive());
    assert_eq!(events(&fixture), []);
}

#[test]
fn the_pin_follows_the_queues_and_the_mask() {
    for access in [Access::Mapped, Access::Trapped] {
        let mut fixture = ready_with(access);
        let interrupts = |fixture: &crate::fixture::Fixture| fixture.driver.machine.endpoint.interrupts.pin();
        let event = std::sync::Arc::<CountedEvent>::default();
        fixture.driver.machine.run();
        fixture.driver.machine.endpoint.interrupts.disable();
        fixture.driver.machine.endpoint.interrupts.enable_intx(Some(event.clone()));
        assert!(!interrupts(&fixture));
        let read = fixture.small_read();
        fixture.driver.submit(1, read).unwrap();
        fixture.driver.submit(1, read).unwrap();
        fixture.driver.machine.run();
        assert!(interrupts(&fixture), "{access:?}");
        assert_eq!(event.take(), 1);

        fixture.driver.set_register(Register::Intms, 1);
        fixture.driver.machine.run();
        assert!(!interrupts(&fixture), "masked");
        assert_eq!(fixture.driver.register(Register::Intms), 1);
        fixture.driver.set_register(Register::Intmc, 1);
        fixture.driver.machine.run();
        assert!(interrupts(&fixture), "unmasked");
        assert_eq!(fixture.driver.register(Register::Intms), 0);

        assert!(fixture.driver.peek(1).is_some());
        fixture.driver.release(1);
        fixture.driver.machine.run();
        assert!(interrupts(&fixture), "one completion is left");
        assert!(fixture.driver.peek(1).is_some());
        fixture.driver.release(1);
        fixture.driver.machine.run();
        assert!(!interrupts(&fixture), "all consumed");
    }
}
