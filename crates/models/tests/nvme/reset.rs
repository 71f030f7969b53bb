// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets, shutdown, and queues that cannot be reached.

use device::{ResetKind, Turn};
use models::nvme::spec::{AdminOpcode, Command, Csts, Register, doorbell};
use models::testing::Access;
use models::testing::nvme::{Machine, command};

use crate::fixture::{Fixture, MEMORY, ready, ready_with};

const BOTH: [Access; 2] = [Access::Mapped, Access::Trapped];

/// Puts reads into queue 1 and rings; the controller has not looked yet.
fn busy(fixture: &mut Fixture) {
    let read = fixture.small_read();
    for _ in 0..20 {
        fixture.driver.put(1, read).unwrap();
    }
    fixture.driver.ring(1);
    for event in &fixture.driver.machine.events {
        event.take();
    }
    fixture.disk.take_calls();
}

fn is_silent(fixture: &mut Fixture) -> bool {
    fixture.driver.machine.run();
    let events: u64 = fixture.driver.machine.events.iter().map(|event| event.take()).sum();
    events == 0 && fixture.disk.take_calls().reads == 0 && fixture.driver.peek(1).is_none()
}

#[test]
fn a_controller_reset_drops_what_was_submitted() {
    for access in BOTH {
        let mut fixture = ready_with(access);
        fixture.driver.submit(0, command(AdminOpcode::AsyncEventRequest)).unwrap();
        fixture.driver.machine.run();
        busy(&mut fixture);
        let (asq, aqa) = (fixture.driver.register(Register::AsqLow), fixture.driver.register(Register::Aqa));
        fixture.driver.set_register(Register::Cc, 0);
        assert!(is_silent(&mut fixture), "{access:?}");
        assert_eq!(fixture.driver.status(), Csts::empty());
        assert_eq!(fixture.driver.register(Register::AsqLow), asq, "admin queue registers stay");
        assert_eq!(fixture.driver.register(Register::Aqa), aqa);
        for id in 0..=64 {
            assert_eq!(fixture.driver.machine.load(doorbell::submission(id)), 0);
            assert_eq!(fixture.driver.machine.load(doorbell::completion(id)), 0);
        }
        fixture.driver.enable(32).unwrap();
        assert!(fixture.driver.reap(0).is_empty(), "the event request is gone");
        fixture.driver.create_queue_pair(1, 32, Some(1)).unwrap();
        assert!(fixture.is_alive());
    }
}

#[test]
fn a_function_reset_leaves_nothing() {
    for access in BOTH {
        for kind in [ResetKind::FunctionLevel, ResetKind::PowerOn, ResetKind::PowerManagement, ResetKind::Bus] {
            let mut fixture = ready_with(access);
            fixture.driver.set_register(Register::Intms, 5);
            busy(&mut fixture);
            fixture.driver.machine.endpoint.reset(kind, 0);
            assert!(is_silent(&mut fixture), "{kind:?} {access:?}");
            for register in [
                Register::Cc,
                Register::Csts,
                Register::Aqa,
                Register::AsqLow,
                Register::AsqHigh,
                Register::AcqLow,
                Register::AcqHigh,
                Register::Intms,
                Register::Intmc,
            ] {
                assert_eq!(fixture.driver.register(register), 0, "{register:?} {kind:?}");
            }
            fixture.driver.enable(32).unwrap();
            fixture.driver.create_queue_pair(1, 32, Some(1)).unwrap();
            assert!(fixture.is_alive());
        }
    }
}

#[test]
fn the_pin_goes_with_a_reset() {
    let mut fixture = ready();
    busy(&mut fixture);
    fixture.driver.machine.run();
    assert!(fixture.driver.machine.endpoint.interrupts.pin());
    fixture.driver.machine.endpoint.reset(ResetKind::FunctionLevel, 0);
    assert!(!fixture.driver.machine.endpoint.interrupts.pin());
}

#[test]
fn a_shutdown_makes_durable_and_ends_with_a_reset() {
    for (access, notification) in [(Access::Mapped, 1), (Access::Trapped, 1), (Access::Mapped, 2)] {
        let mut fixture = ready_with(access);
        fixture.disk.take_calls();
        let cc = fixture.driver.register(Register::Cc);
        fixture.driver.set_register(Register::Cc, cc | notification << 14);
        fixture.driver.wait(Csts::SHUT_DOWN, true).unwrap();
        assert_eq!(fixture.disk.take_calls().flushes, 1);
        busy(&mut fixture);
        assert!(is_silent(&mut fixture), "no command is executed after a shutdown");
        fixture.driver.enable(32).unwrap();
        assert_eq!(fixture.driver.status(), Csts::RDY);
        fixture.driver.create_queue_pair(1, 32, Some(1)).unwrap();
        assert!(fixture.is_alive());
    }
}

#[test]
fn a_shutdown_of_a_disabled_controller_completes_too() {
    let mut fixture = ready();
    fixture.driver.disable().unwrap();
    fixture.driver.shut_down().unwrap();
    assert_eq!(fixture.driver.status(), Csts::SHUT_DOWN);
    fixture.driver.enable(32).unwrap();
    assert_eq!(fixture.driver.status(), Csts::RDY);
}

#[test]
fn queues_that_cannot_be_reached_are_fatal() {
    for (opcode, register) in [("submission", Register::AsqLow), ("completion", Register::AcqLow)] {
        let mut fixture = ready();
        fixture.driver.disable().unwrap();
        let right = fixture.driver.register(register);
        fixture.driver.set_register(register, MEMORY as u32);
        let cc = fixture.driver.register(Register::Cc);
        fixture.driver.set_register(Register::Cc, cc | 1);
        fixture.driver.wait(Csts::RDY, true).unwrap();
        fixture.driver.machine.store(doorbell::submission(0), 1);
        fixture.driver.machine.run();
        assert_eq!(fixture.driver.status(), Csts::RDY | Csts::CFS, "{opcode}");
        assert_eq!(fixture.driver.machine.turn(), Turn::Idle);
        fixture.driver.set_register(register, right);
        fixture.driver.enable(32).unwrap();
        assert_eq!(fixture.driver.status(), Csts::RDY);
    }
}

#[test]
fn with_bus_mastering_off_the_queue_waits() {
    for access in BOTH {
        let mut fixture = ready_with(access);
        busy(&mut fixture);
        let requester = fixture.driver.machine.endpoint.requester.clone();
        requester.set_bus_master(false);
        assert!(is_silent(&mut fixture));
        assert!(matches!(fixture.driver.machine.turn(), Turn::Until(_)));
        assert_eq!(fixture.driver.status(), Csts::RDY, "{access:?}");
        requester.set_bus_master(true);
        fixture.driver.machine.run();
        assert_eq!(fixture.driver.reap(1).len(), 20);
    }
}

#[test]
fn a_completion_waits_for_bus_mastering_too() {
    let mut fixture = ready();
    // A register access raises an event while bus mastering is off.
    fixture.driver.submit(0, command(AdminOpcode::AsyncEventRequest)).unwrap();
    fixture.driver.machine.run();
    let requester = fixture.driver.machine.endpoint.requester.clone();
    requester.set_bus_master(false);
    fixture.driver.machine.store(doorbell::submission(1), 77);
    fixture.driver.machine.run();
    assert_eq!(fixture.driver.status(), Csts::RDY);
    assert!(fixture.driver.peek(0).is_none());
    requester.set_bus_master(true);
    fixture.driver.machine.run();
    assert!(fixture.driver.peek(0).is_some());
}

#[test]
fn a_reset_in_the_middle_of_a_batch() {
    for turns in 0..4 {
        let mut fixture = ready();
        let iova = fixture.driver.alloc(2 << 20).unwrap();
        let read = fixture.driver.transfer(models::nvme::spec::NvmOpcode::Read, 0, 4096, 512, iova).unwrap();
        for _ in 0..5 {
            fixture.driver.put(1, read).unwrap();
        }
        fixture.driver.ring(1);
        for _ in 0..turns {
            fixture.driver.machine.turn();
        }
        fixture.driver.set_register(Register::Cc, 0);
        fixture.driver.machine.turn();
        assert_eq!(fixture.driver.status(), Csts::empty());
        fixture.disk.take_calls();
        fixture.driver.machine.run();
        assert_eq!(fixture.disk.take_calls().reads, 0);
        let mut done = 0;
        while fixture.driver.peek(1).is_some() {
            done += 1;
        }
        assert_eq!(done, turns, "a command a turn");
    }
}

#[test]
fn power_cycles_without_shutdown_are_unsafe() {
    let mut fixture = ready();
    fixture.driver.machine.endpoint.reset(ResetKind::PowerOn, 0);
    fixture.driver.enable(32).unwrap();
    fixture.driver.shut_down().unwrap();
    fixture.driver.machine.endpoint.reset(ResetKind::PowerOn, 0);
    fixture.driver.enable(32).unwrap();
    let iova = fixture.driver.alloc(4096).unwrap();
    let get = Command { cdw10: (2 | 127 << 16).into(), prp1: iova.into(), ..command(AdminOpcode::GetLogPage) };
    fixture.driver.admin(get).unwrap();
    assert_eq!((fixture.bytes(iova + 112, 1), fixture.bytes(iova + 144, 1)), (vec![3], vec![1]));
}
