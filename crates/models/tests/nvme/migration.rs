// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A controller is stopped, saved, and goes on as another one on the same
//! memory and disk.

use std::sync::Arc;

use device::migration::{Activity, LoadError};
use device::{Disk, Endpoint};
use models::nvme::spec::Feature;
use models::nvme::{Config, Controller, LbaSize};
use models::testing::{Access, Bench};

use crate::fixture::{Fixture, ready_with};

/// Another controller of the same kind, on the same disk.
fn twin(fixture: &Fixture, config: Config) -> Arc<Endpoint> {
    let namespaces = vec![fixture.disk.clone() as Arc<dyn Disk>];
    let controller = Controller::new(Config { lba_size: LbaSize::B512, namespaces, ..config });
    let access = if fixture.driver.machine.file.is_some() { Access::Mapped } else { Access::Trapped };
    let bench = Bench::new(Box::new(controller), access, fixture.driver.machine.memory.clone());
    Arc::clone(&bench.endpoint)
}

/// Moves the fixture's controller; the state.
fn take_over(fixture: &mut Fixture) -> Vec<u8> {
    let source = Arc::clone(&fixture.driver.machine.endpoint);
    source.set_activity(Activity::Stopped, 0);
    let state = source.save(0);
    let namespaces = vec![fixture.disk.clone() as Arc<dyn Disk>];
    let controller = Controller::new(Config { lba_size: LbaSize::B512, namespaces, ..Config::default() });
    let access = if fixture.driver.machine.file.is_some() { Access::Mapped } else { Access::Trapped };
    let target = Bench::new(Box::new(controller), access, fixture.driver.machine.memory.clone());
    assert_eq!(target.endpoint.identity(), source.identity());
    target.endpoint.set_activity(Activity::Stopped, 0);
    target.endpoint.load(&state, 0).unwrap();
    assert_eq!(target.endpoint.save(0), state, "it is the same");
    target.endpoint.set_activity(Activity::Running, 0);
    fixture.driver.machine = target;
    state
}

/// MIG-049: doorbells rung in RUNNING_P2P are kept, and what they tell of is
/// done once, where the controller then is.
#[test]
fn what_was_submitted_is_done_once() {
    for access in [Access::Mapped, Access::Trapped] {
        let mut fixture = ready_with(access);
        fixture.driver.set_feature(Feature::AsyncEvents, 0x1f).unwrap();
        let before = fixture.small_read();
        fixture.driver.submit(1, before).unwrap();
        let endpoint = Arc::clone(&fixture.driver.machine.endpoint);
        endpoint.set_activity(Activity::Quiesced, 0);
        for _ in 0..5 {
            let read = fixture.small_read();
            fixture.driver.submit(1, read).unwrap();
        }
        fixture.driver.machine.run();
        assert!(fixture.driver.reap(1).is_empty(), "nothing is started");
        take_over(&mut fixture);
        fixture.driver.machine.run();
        assert_eq!(fixture.driver.reap(1).len(), 6);
        fixture.driver.machine.run();
        assert!(fixture.driver.reap(1).is_empty(), "each once");
        let read = fixture.small_read();
        assert!(fixture.driver.execute(1, read).is_ok());
        assert_eq!(fixture.driver.feature(Feature::AsyncEvents), Ok(0x1f));
    }
}

/// Completions that nobody has looked at are told of again: the message may
/// have been lost on the way.
#[test]
fn completions_are_announced() {
    let mut fixture = ready_with(Access::Mapped);
    let read = fixture.small_read();
    fixture.driver.submit(1, read).unwrap();
    fixture.driver.machine.run();
    take_over(&mut fixture);
    assert_eq!(fixture.driver.machine.events[1].take(), 0);
    fixture.driver.machine.run();
    assert_eq!(fixture.driver.machine.events[1].take(), 1);
    assert_eq!(fixture.driver.reap(1).len(), 1);
}

/// Any bytes: taken over whole, or refused and nothing has changed; never a
/// panic, and a controller that can be used after a reset.
#[test]
fn any_bytes() {
    let mut fixture = ready_with(Access::Trapped);
    let read = fixture.small_read();
    fixture.driver.submit(1, read).unwrap();
    let state = take_over(&mut fixture);
    let target = twin(&fixture, Config::default());
    target.set_activity(Activity::Stopped, 0);
    let fresh = target.save(0);
    for end in 0..state.len() {
        assert!(target.load(&state[..end], 0).is_err(), "cut at {end}");
    }
    assert!(matches!(target.load(&[&state[..], &[0]].concat(), 0), Err(LoadError::Corrupt(_))));
    assert_eq!(target.save(0), fresh, "nothing has changed");
    for at in 0..state.len() {
        for bit in [0x01, 0x80] {
            let mut changed = state.clone();
            changed[at] ^= bit;
            if target.load(&changed, 0).is_ok() {
                target.set_activity(Activity::Running, 0);
                for _ in 0..3 {
                    let _ = target.turn(0);
                }
                target.reset(device::ResetKind::FunctionLevel, 0);
                target.set_activity(Activity::Stopped, 0);
            }
        }
    }
    assert_eq!(target.load(&state, 0), Ok(()));
}

/// What depends on the configuration is another identity.
#[test]
fn another_controller_is_another_identity() {
    let fixture = ready_with(Access::Trapped);
    let own = fixture.driver.machine.endpoint.identity();
    assert_eq!(twin(&fixture, Config::default()).identity(), own);
    for other in [
        Config { serial: "other".into(), ..Config::default() },
        Config { max_queue_pairs: 3, ..Config::default() },
        Config { controller_id: 7, ..Config::default() },
    ] {
        assert_ne!(twin(&fixture, other).identity(), own);
    }
}
