// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests in the simulation (FAULT-2 to FAULT-5): two programs, a device
//! and two parts of another, who ask, answer well, badly, late, twice or never,
//! come and go.
//!
//! The laws: each request has exactly one answer, unless its device was reset;
//! a program's answer reaches only what it has read under that cookie, with
//! its code; nobody gets an answer by the doing of another program; the host
//! answers INVALID, and only when it has reason to; nothing is left.

mod op;
mod world;

use op::Op;
use world::World;

use crate::{Failure, Played, run_steps};

/// How much really happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that devices made.
    pub asked: usize,
    /// Those that a program's answer completed.
    pub answered: usize,
    /// Those that the host answered.
    pub by_host: usize,
    /// Those that a reset made the device forget.
    pub forgotten: usize,
    /// Answers of programs that were not accepted.
    pub refused: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.asked += other.asked;
        self.answered += other.answered;
        self.by_host += other.by_host;
        self.forgotten += other.forgotten;
        self.refused += other.refused;
    }
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Tally, Box<Failure>> {
    run_steps(seed, Op::random, play)
}

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
    use crate::STEPS;

    /// FAULT-3.1, FAULT-5.9
    #[test]
    fn seeds_break_no_law_and_replay_alike() {
        let mut tally = Tally::default();
        for seed in 0..60 {
            tally += run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        }
        assert!(tally.asked > 2000 && tally.answered > 200 && tally.by_host > 500, "{tally:?}");
        assert!(tally.forgotten > 100 && tally.refused > 300, "{tally:?}");
        assert_eq!(run(7).ok(), run(7).ok());
    }

    /// The laws see an answer that goes astray.
    #[test]
    fn an_answer_to_another_is_caught() {
        let caught = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut world = World::new(seed).unwrap();
            (0..STEPS).any(|_| {
                world.mix_up();
                world.step(&Op::random(&mut rng)).is_err()
            })
        };
        assert!((0..20).filter(|seed| caught(*seed)).count() > 10);
    }
}
