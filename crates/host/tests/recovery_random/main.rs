// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random errors (also links that fail, devices that hang and devices that are
//! pulled out), containment, resets of every kind, opens by group and by
//! device node, with claims of reset ownership and without, closes, unbinds and
//! deaths, with every recovery extension on and with none, over quick and slow
//! devices: after any sequence no function is left blocked, no access waits,
//! every count of an eventfd is explained, ownership rules hold, and
//! configuration space is what Linux would have restored.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod game;
mod laws;
mod owners;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeMap;

use game::{Game, Rng};

/// What the first test comes across, lest all pass because nothing happens.
const WHAT_COUNTS: [&str; 10] = [
    "a bind",
    "a bind refused",
    "a claim",
    "a claim refused",
    "a claim keeps a group's user off",
    "a hot reset by a claim",
    "a hot reset of all that is owned",
    "a hot reset refused",
    "a device gone from its slot",
    "a device gone from a port without slot",
];

/// One lab after the other: with containment and a hot-plug slot, or without.
fn play(names: &str, slow: bool, seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u32> {
    let mut seen = BTreeMap::<_, u32>::new();
    for seed in seeds {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut game = Game::new(names, slow, seed);
        for _ in 0..3 {
            for _ in 0..25 {
                game.step(&mut rng);
            }
            game.quiesce();
        }
        game.seen.iter().for_each(|(what, times)| *seen.entry(*what).or_default() += times);
    }
    seen
}

#[test]
fn as_linux_does() {
    let seen = play("", false, 0..60);
    for what in WHAT_COUNTS {
        assert!(seen.contains_key(what), "never {what}: {seen:?}");
    }
}

#[test]
fn with_everything_on() {
    play("non-fatal passive-reset block user-reset", false, 100..160);
}

#[test]
fn devices_that_are_given_up() {
    play("non-fatal block disconnect", false, 300..340);
    play("passive-reset block", true, 340..380);
}

#[test]
fn over_slow_devices_as_linux_does() {
    play("", true, 400..440);
}

#[test]
fn over_slow_devices() {
    play("non-fatal passive-reset block user-reset", true, 200..260);
}
