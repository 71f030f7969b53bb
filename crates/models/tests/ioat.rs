// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An I/OAT engine is stopped, saved, and goes on as another one on the same
//! memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use device::ResetKind;
use device::migration::{Activity, LoadError};
use models::ioat::Engine;
use models::ioat::spec::{self, Descriptor, State, ctl};
use models::testing::{Access, Bench, TestMemory};
use zerocopy::IntoBytes as _;

const CHAIN: u64 = 0x1000;
const STATUS: u64 = 0x800;
const DATA: u64 = 0x10_0000;
const OTHER: u64 = 0x20_0000;

fn engine(access: Access, memory: &Arc<TestMemory>) -> Bench {
    Bench::new(Box::new(Engine::new()), access, Arc::clone(memory))
}

/// A chain of `count` moves of 8 bytes, of which the n-th counts the n-th word.
fn chain(memory: &TestMemory, count: u64) {
    for n in 0..count {
        let descriptor = Descriptor {
            size: 8,
            control: ctl::COMPLETION | ctl::INTERRUPT,
            source: DATA + 8 * n,
            destination: OTHER + 8 * n,
            next: CHAIN + 64 * (n + 1),
            ..Descriptor::default()
        };
        memory.set(CHAIN + 64 * n, descriptor.as_bytes());
        memory.set(DATA + 8 * n, &(n + 1).to_le_bytes());
    }
}

fn start(bench: &Bench, count: u32) {
    let store = |offset: usize, value: u32| bench.store_bar(0, offset as u64, value);
    store(spec::CHANCMP, STATUS as u32);
    store(spec::CHAINADDR, CHAIN as u32);
    // The command is 0 and the count stands beside it.
    store(spec::CHANCMD, count << 16);
}

fn take_over(source: &mut Bench, access: Access) -> Bench {
    source.endpoint.set_activity(Activity::Stopped, 0);
    let state = source.endpoint.save(0);
    let target = engine(access, &source.memory);
    assert_eq!(target.endpoint.identity(), source.endpoint.identity());
    target.endpoint.set_activity(Activity::Stopped, 0);
    target.endpoint.load(&state, 0).unwrap();
    assert_eq!(target.endpoint.save(0), state, "it is the same");
    target.endpoint.set_activity(Activity::Running, 0);
    std::mem::replace(source, target)
}

fn moved(memory: &TestMemory, count: u64) -> Vec<u64> {
    let words = (0..count).map(|n| {
        let mut word = [0; 8];
        memory.get(OTHER + 8 * n, &mut word);
        u64::from_le_bytes(word)
    });
    words.collect()
}

/// MIG-049: the rest of a chain, and what is asked for in RUNNING_P2P, is done
/// once, where the engine then is.
#[test]
fn the_rest_of_a_chain() {
    for access in [Access::Mapped, Access::Trapped] {
        let memory = TestMemory::new(4 << 20, false);
        let mut bench = engine(access, &memory);
        chain(&memory, 200);
        start(&bench, 100);
        bench.turn();
        bench.endpoint.set_activity(Activity::Quiesced, 0);
        let so_far = moved(&memory, 200);
        start(&bench, 200);
        bench.run();
        assert_eq!(moved(&memory, 200), so_far, "nothing is started");
        assert!(so_far.contains(&1) && so_far.contains(&0), "it is halfway: {so_far:?}");
        let source = take_over(&mut bench, access);
        // What was done is not done again.
        memory.set(DATA, &[0xff; 8]);
        source.run();
        assert_eq!(moved(&memory, 200), so_far, "the source has stopped");
        bench.events[0].take();
        bench.run();
        assert_eq!(moved(&memory, 200), (1..=200).collect::<Vec<_>>());
        let left = so_far.iter().filter(|word| **word == 0).count() as u64;
        assert_eq!(bench.events[0].take(), left + 1, "one may have been lost on the way");
        let mut status = [0; 8];
        memory.get(STATUS, &mut status);
        assert_eq!(u64::from_le_bytes(status), (CHAIN + 64 * 199) | State::Done as u64);
    }
}

/// Any bytes: taken over whole, or refused and nothing has changed; never a
/// panic, and an engine that can be used after a reset.
#[test]
fn any_bytes() {
    let memory = TestMemory::new(4 << 20, false);
    let bench = engine(Access::Trapped, &memory);
    chain(&memory, 200);
    start(&bench, 150);
    bench.endpoint.set_activity(Activity::Stopped, 0);
    let state = bench.endpoint.save(0);
    let target = engine(Access::Trapped, &memory);
    let endpoint = &target.endpoint;
    endpoint.set_activity(Activity::Stopped, 0);
    let empty = endpoint.save(0);
    for end in 0..state.len() {
        assert!(endpoint.load(&state[..end], 0).is_err(), "cut at {end}");
    }
    assert!(matches!(endpoint.load(&[&state[..], &[0]].concat(), 0), Err(LoadError::Corrupt(_))));
    assert_eq!(endpoint.save(0), empty, "nothing has changed");
    for at in 0..state.len() {
        for value in [state[at] ^ 1, state[at] ^ 0x80, 0, 0xff] {
            let mut changed = state.clone();
            changed[at] = value;
            if endpoint.load(&changed, 0).is_ok() {
                assert_eq!(endpoint.save(0), changed, "byte {at}");
                endpoint.set_activity(Activity::Running, 0);
                for _ in 0..4 {
                    let _ = target.turn();
                }
                endpoint.reset(ResetKind::FunctionLevel, 0);
                endpoint.set_activity(Activity::Stopped, 0);
            }
        }
    }
    assert_eq!(endpoint.load(&state, 0), Ok(()));
}
