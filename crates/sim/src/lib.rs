// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The simulation: a lab, its programs and its devices, driven by one seed on
//! one thread in virtual time.
//!
//! Programs drive containers and groups, devices' own nodes and `/dev/iommu`.
//! [`run`] does random steps and checks the laws after each: no device touches
//! what is not mapped for it, no program reaches another's memory, each command
//! completes exactly once or is lost by a reset, also when
//! the device is moved meanwhile, interrupts and completions add
//! up, data read is data written, and nothing is left or paid for after the last
//! close. [`paging`] is the same for page requests. A seed that breaks a law is
//! replayed and shrunk to the steps that matter.
#![forbid(unsafe_code)]

mod client;
mod driver;
mod iommufd;
mod migration;
mod op;
mod oracle;
pub mod paging;
mod platform;
mod shrink;
mod spaces;
mod world;

use op::Op;
use world::{Broken, World};

pub use client::{BASE, Client, Fd, SIZE};
pub use platform::{SimPlatform, SimStorage};
pub use world::Tally;

/// Steps of a seed.
pub const STEPS: usize = 300;

/// A seed that broke a law.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The law, and how it was broken.
    pub law: String,
    /// The steps that matter, the last one breaks the law.
    pub steps: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.law)?;
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {n:3} {step}")?;
        }
        write!(f, "replay it with: make sim SEED={}", self.seed)
    }
}

impl std::error::Error for Failure {}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Tally, Box<Failure>> {
    run_steps(seed, Op::random, play)
}

/// What came of steps: what happened, or which broke a law, and which law.
type Played<T> = Result<T, (usize, Broken)>;

/// Runs one seed's steps. If they break a law, they are shrunk.
fn run_steps<T, S: Clone + std::fmt::Debug>(
    seed: u64,
    random: fn(&mut fastrand::Rng) -> S,
    play: fn(u64, &[S]) -> Played<T>,
) -> Result<T, Box<Failure>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let steps: Vec<S> = (0..STEPS).map(|_| random(&mut rng)).collect();
    play(seed, &steps).map_err(|(_, Broken(law))| {
        let steps = shrink::shrink(&steps, |steps| play(seed, steps).err().map(|(at, _)| at));
        let law = play(seed, &steps).err().map_or(law, |(_, Broken(law))| law);
        Box::new(Failure { seed, law, steps: steps.iter().map(|op| format!("{op:?}")).collect() })
    })
}

/// Plays steps; the index of the one that broke a law (the number of steps, if
/// it was the end).
fn play(seed: u64, steps: &[Op]) -> Played<Tally> {
    let mut world = World::new(seed).map_err(|broken| (0, broken))?;
    for (n, op) in steps.iter().enumerate() {
        world.step(op).map_err(|broken| (n, broken))?;
    }
    world.finish().map_err(|broken| (steps.len(), broken))?;
    Ok(world.tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_break_no_law_and_replay_alike() {
        let mut tally = Tally::default();
        for seed in 0..200 {
            tally += run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        }
        // Laws that nothing put to the test would say little.
        assert!(tally.starts > 100 && tally.completions > 1000 && tally.touches > 10_000, "{tally:?}");
        assert!(tally.bound_starts > 50 && tally.bound_maps > 500, "{tally:?}");
        assert!(tally.errors > 100 && tally.moves > 100, "{tally:?}");
        assert_eq!(run(7).ok(), run(7).ok());
    }

    #[test]
    fn an_access_without_a_mapping_is_caught() {
        let caught = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new(seed).unwrap();
            (0..STEPS).any(|_| {
                world.deceive();
                world.step(&Op::random(&mut rng)).is_err()
            })
        };
        assert!((0..20).filter(|seed| caught(*seed)).count() > 10);
    }
}
