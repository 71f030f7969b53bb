// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous events.

use models::nvme::spec::{AdminOpcode, AsyncEvent, Command, Completion, Feature, LogPage, Status, doorbell};
use models::testing::Access;
use models::testing::nvme::{Machine, command};

use crate::fixture::{Fixture, ready, ready_with};

fn request(fixture: &mut Fixture) -> u16 {
    fixture.driver.submit(0, command(AdminOpcode::AsyncEventRequest)).unwrap()
}

fn completions(fixture: &mut Fixture) -> Vec<Completion> {
    for _ in 0..3000 {
        fixture.driver.machine.turn();
    }
    fixture.driver.reap(0)
}

fn event(fixture: &mut Fixture) -> Option<u32> {
    let completions = completions(fixture);
    assert!(completions.len() <= 1);
    completions.first().map(|completion| {
        assert_eq!(completion.status(), Status::SUCCESS);
        completion.dw0.get()
    })
}

/// Reads a log page; its completion and the event that it sets free are left to
/// the caller.
fn read_log(fixture: &mut Fixture, page: LogPage, retain: bool) {
    let iova = fixture.driver.alloc(4096).unwrap();
    let value = u32::from(page.raw()) | u32::from(retain) << 15 | 15 << 16;
    let get = Command { cdw10: value.into(), prp1: iova.into(), ..command(AdminOpcode::GetLogPage) };
    fixture.driver.submit(0, get).unwrap();
    fixture.driver.machine.run();
}

#[test]
fn more_requests_than_the_limit_are_refused() {
    let mut fixture = ready();
    for _ in 0..4 {
        request(&mut fixture);
    }
    assert!(completions(&mut fixture).is_empty());
    let fifth = request(&mut fixture);
    let refused = completions(&mut fixture);
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].cid.get(), refused[0].status()), (fifth, Status::AER_LIMIT_EXCEEDED));
}

#[test]
fn doorbells_of_no_queue_are_reported() {
    for access in [Access::Mapped, Access::Trapped] {
        for offset in [doorbell::submission(2), doorbell::completion(2), doorbell::completion(64), 0x1ffc] {
            let mut fixture = ready_with(access);
            let cid = request(&mut fixture);
            assert_eq!(event(&mut fixture), None);
            fixture.driver.machine.store(offset, 1);
            let seen = completions(&mut fixture);
            assert_eq!(seen.len(), 1, "{offset:#x} {access:?}");
            assert_eq!(seen[0].cid.get(), cid);
            assert_eq!(seen[0].dw0.get(), AsyncEvent::INVALID_DOORBELL_REGISTER.dword());
            assert_eq!(fixture.driver.machine.load(offset), 0);
            assert!(fixture.is_alive());
        }
    }
}

#[test]
fn doorbell_values_out_of_range_and_overruns_are_reported() {
    for access in [Access::Mapped, Access::Trapped] {
        for (offset, value) in [
            (doorbell::submission(1), 32),
            (doorbell::submission(1), 0xffff_ffff),
            (doorbell::submission(0), 32),
            (doorbell::completion(1), 1),
            (doorbell::completion(1), 32),
        ] {
            let mut fixture = ready_with(access);
            request(&mut fixture);
            fixture.driver.machine.run();
            fixture.driver.machine.store(offset, value);
            // A wrong head is looked at no later than in the rotation.
            assert_eq!(event(&mut fixture), Some(AsyncEvent::INVALID_DOORBELL_VALUE.dword()), "{offset:#x} {value:#x}");
        }
    }
}

#[test]
fn a_tail_that_overruns_the_queue_is_not_taken() {
    let mut fixture = ready();
    // Completions are not consumed, so the controller stops after 31 commands.
    let read = fixture.small_read();
    for _ in 0..31 {
        fixture.driver.submit(1, read).unwrap();
    }
    fixture.driver.machine.run();
    fixture.driver.machine.store(doorbell::submission(1), 5);
    fixture.driver.machine.run();
    // Now 31 - 0 + 5 commands wait; 28 more make an overrun.
    request(&mut fixture);
    fixture.driver.machine.store(doorbell::submission(1), 4);
    fixture.driver.machine.run();
    assert_eq!(event(&mut fixture), Some(AsyncEvent::INVALID_DOORBELL_VALUE.dword()));
}

#[test]
fn a_type_is_masked_until_its_log_is_read() {
    let mut fixture = ready();
    request(&mut fixture);
    request(&mut fixture);
    fixture.driver.machine.store(doorbell::submission(1), 99);
    assert!(event(&mut fixture).is_some());
    fixture.driver.machine.store(doorbell::submission(1), 98);
    assert_eq!(event(&mut fixture), None, "masked");
    read_log(&mut fixture, LogPage::Error, true);
    assert_eq!(completions(&mut fixture).len(), 1, "retained: the log command only");
    read_log(&mut fixture, LogPage::Smart, false);
    assert_eq!(completions(&mut fixture).len(), 1, "another log: the log command only");
    read_log(&mut fixture, LogPage::Error, false);
    let seen = completions(&mut fixture);
    assert_eq!(seen.len(), 2, "the log command and the event");
    assert!(seen.iter().any(|c| c.dw0.get() == AsyncEvent::INVALID_DOORBELL_VALUE.dword()));
}

#[test]
fn an_event_waits_for_a_request() {
    let mut fixture = ready();
    fixture.driver.machine.store(doorbell::submission(1), 99);
    assert_eq!(event(&mut fixture), None);
    request(&mut fixture);
    assert_eq!(event(&mut fixture), Some(AsyncEvent::INVALID_DOORBELL_VALUE.dword()));
}

#[test]
fn the_temperature_is_reported_if_asked_for() {
    let mut fixture = ready();
    request(&mut fixture);
    fixture.driver.set_feature(Feature::TemperatureThreshold, 300).unwrap();
    assert_eq!(event(&mut fixture), None, "not asked for");
    fixture.driver.set_feature(Feature::TemperatureThreshold, 343).unwrap();
    fixture.driver.set_feature(Feature::AsyncEvents, 2).unwrap();
    let set = Command { cdw10: 4.into(), cdw11: 300.into(), ..command(AdminOpcode::SetFeatures) };
    fixture.driver.submit(0, set).unwrap();
    let seen = completions(&mut fixture);
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().any(|c| c.dw0.get() == AsyncEvent::TEMPERATURE.dword()));
}
