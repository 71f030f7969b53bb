// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Get and Set Features, keep alive.

use models::nvme::spec::{AdminOpcode, Command, Csts, Feature, Register, Status};
use models::testing::nvme::command;

use crate::fixture::{Fixture, ready};

const GET: AdminOpcode = AdminOpcode::GetFeatures;
const SET: AdminOpcode = AdminOpcode::SetFeatures;

fn get(fixture: &mut Fixture, cdw10: u32, cdw11: u32) -> u32 {
    let get = Command { cdw10: cdw10.into(), cdw11: cdw11.into(), nsid: 1.into(), ..command(GET) };
    fixture.driver.admin(get).unwrap()
}

#[test]
fn what_is_set_is_in_force_until_a_reset() {
    let mut fixture = ready();
    for (feature, default, set, then) in [
        (Feature::Arbitration, 7, 0x0102_0304, 0x0102_0304),
        (Feature::PowerManagement, 0, 0, 0),
        (Feature::TemperatureThreshold, 343, 350, 350),
        (Feature::ErrorRecovery, 0, 0x1234, 0x1234),
        (Feature::VolatileWriteCache, 1, 0, 0),
        (Feature::InterruptCoalescing, 0, 0x0102, 0x0102),
        (Feature::WriteAtomicity, 0, 1, 1),
        (Feature::AsyncEvents, 0, 0xffff_ffff, 0x1ff),
        (Feature::KeepAliveTimer, 0, 1, 1000),
    ] {
        let id = u32::from(feature.raw());
        assert_eq!(get(&mut fixture, id, 0), default, "{feature:?}");
        let nsid = if feature == Feature::ErrorRecovery { 1 } else { 0 };
        let change = Command { cdw10: id.into(), cdw11: set.into(), nsid: nsid.into(), ..command(SET) };
        assert_eq!(fixture.status(0, change), Status::SUCCESS, "{feature:?}");
        assert_eq!(get(&mut fixture, id, 0), then, "{feature:?}");
        assert_eq!(get(&mut fixture, id | 1 << 8, 0), default, "default of {feature:?}");
        assert_eq!(get(&mut fixture, id | 2 << 8, 0), default, "saved {feature:?}");
        assert_eq!(get(&mut fixture, id | 3 << 8, 0) & 5, 4, "capabilities of {feature:?}");
    }
    fixture.driver.enable(32).unwrap();
    assert_eq!(get(&mut fixture, Feature::InterruptCoalescing.raw().into(), 0), 0);
}

#[test]
fn wrong_features_are_refused() {
    let mut fixture = ready();
    for id in (0..=0xff).filter(|id| Feature::from_raw(*id).is_none()) {
        assert_eq!(fixture.admin(GET, id.into(), 0), Status::INVALID_FIELD, "get {id:#x}");
        assert_eq!(fixture.admin(SET, id.into(), 0), Status::INVALID_FIELD, "set {id:#x}");
    }
    for select in 4..8 {
        assert_eq!(fixture.admin(GET, 1 | select << 8, 0), Status::INVALID_FIELD);
    }
    assert_eq!(fixture.admin(SET, 1 | 1 << 31, 0), Status::FEATURE_NOT_SAVEABLE);
    assert_eq!(fixture.admin(SET, 2, 1), Status::INVALID_FIELD, "power state 1");
    let on_namespace = |nsid: u32| Command { cdw10: 1.into(), nsid: nsid.into(), ..command(SET) };
    assert_eq!(fixture.status(0, on_namespace(1)), Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    assert_eq!(fixture.status(0, on_namespace(2)), Status::INVALID_NAMESPACE);
    assert_eq!(fixture.status(0, on_namespace(u32::MAX)), Status::SUCCESS);
    assert_eq!(fixture.admin(GET, 5, 0), Status::INVALID_NAMESPACE, "error recovery of namespace 0");
    for selector in [1 << 16, 2 << 20] {
        assert_eq!(fixture.admin(SET, 4, selector), Status::INVALID_FIELD, "temperature {selector:#x}");
        assert_eq!(fixture.admin(GET, 4, selector), Status::INVALID_FIELD, "temperature {selector:#x}");
    }
    assert_eq!(fixture.admin(GET, 9, 65), Status::INVALID_FIELD, "vector 65");
}

#[test]
fn the_number_of_queues_is_fixed_once_there_are_some() {
    let mut fixture = ready();
    assert_eq!(fixture.admin(SET, 7, 0), Status::COMMAND_SEQUENCE_ERROR);
    assert_eq!(get(&mut fixture, 7, 0), 63 | 63 << 16);
    fixture.driver.enable(32).unwrap();
    for wrong in [0xffff, 0xffff_0000] {
        assert_eq!(fixture.admin(SET, 7, wrong), Status::INVALID_FIELD);
    }
    assert_eq!(fixture.driver.set_feature(Feature::NumberOfQueues, 0x00ff_0000).unwrap(), 63 | 63 << 16);
}

#[test]
fn interrupt_vectors_keep_their_coalescing_bit() {
    let mut fixture = ready();
    assert_eq!(fixture.admin(SET, 9, 64 | 1 << 16), Status::SUCCESS);
    assert_eq!(get(&mut fixture, 9, 64), 64 | 1 << 16);
    assert_eq!(get(&mut fixture, 9, 63), 63);
    assert_eq!(fixture.admin(SET, 9, 64), Status::SUCCESS);
    assert_eq!(get(&mut fixture, 9, 64), 64);
}

#[test]
fn the_timestamp_runs() {
    let mut fixture = ready();
    let page = fixture.driver.alloc(4096).unwrap();
    let time = |fixture: &mut Fixture| {
        let get = Command { cdw10: 14.into(), prp1: page.into(), ..command(GET) };
        assert_eq!(fixture.status(0, get), Status::SUCCESS);
        u64::from_le_bytes(fixture.bytes(page, 8).try_into().unwrap())
    };
    fixture.driver.machine.now = 5_000_000;
    assert_eq!(time(&mut fixture), 5, "since the reset");
    fixture.driver.machine.memory.set(page, &0x0123_4567_89ab_u64.to_le_bytes());
    let set = Command { cdw10: 14.into(), prp1: page.into(), ..command(SET) };
    assert_eq!(fixture.status(0, set), Status::SUCCESS);
    fixture.driver.machine.now += 7_000_000;
    assert_eq!(time(&mut fixture), 0x0123_4567_89b2 | 2 << 48, "set by the host");
}

#[test]
fn the_controller_fails_when_no_keep_alive_comes() {
    let mut fixture = ready();
    fixture.driver.set_feature(Feature::KeepAliveTimer, 2000).unwrap();
    for _ in 0..3 {
        fixture.driver.machine.now += 1_999_000_000;
        assert_eq!(fixture.admin(AdminOpcode::KeepAlive, 0, 0), Status::SUCCESS);
    }
    let deadline = fixture.driver.machine.now + 2_000_000_000;
    fixture.driver.machine.run();
    assert_eq!(fixture.driver.machine.turn(), device::Turn::Until(deadline));
    fixture.driver.machine.now = deadline;
    fixture.driver.machine.run();
    assert_eq!(fixture.driver.register(Register::Csts), (Csts::RDY | Csts::CFS).bits());
    fixture.driver.enable(32).unwrap();
}

#[test]
fn without_write_cache_each_write_is_durable() {
    let mut fixture = ready();
    fixture.driver.set_feature(Feature::VolatileWriteCache, 0).unwrap();
    assert_eq!(fixture.disk.take_calls().flushes, 1, "what was written before");
    let write = Command { opcode: 1, ..fixture.small_read() };
    assert_eq!(fixture.status(1, write), Status::SUCCESS);
    assert_eq!(fixture.disk.take_calls().flushes, 1);
    // As QEMU does it, with its namespace.
    let on = Command { cdw10: 6.into(), cdw11: 1.into(), nsid: 1.into(), ..command(SET) };
    assert_eq!(fixture.status(0, on), Status::SUCCESS);
    assert_eq!(fixture.status(1, write), Status::SUCCESS);
    assert_eq!(fixture.disk.take_calls().flushes, 0);
}
