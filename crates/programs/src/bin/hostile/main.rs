// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that means harm, for the stress tests: many threads race on the
//! same descriptors with any request and any pointer; or one that wants more
//! than there is.
//!
//! `hostile vfio|iommufd MILLISECONDS SEED exit|kill` prints what it did and
//! exits, or is killed by itself in the middle of it. `hostile greedy COUNT`
//! makes as many of everything and prints how far it came.

mod common;
mod greedy;
mod iommufd;
mod memory;
mod vfio;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{env, process, thread};

use common::Attack;
use memory::{Rng, call};

const THREADS: u64 = 16;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let word = |n: usize| arguments.get(n).map(String::as_str).unwrap_or_default();
    let number = |n: usize| word(n).parse::<u64>().unwrap_or(1);
    let (milliseconds, seed) = (number(1), number(2));
    let attack: Box<dyn Attack> = match word(0) {
        "vfio" => Box::new(vfio::Vfio::new()),
        "iommufd" => Box::new(iommufd::Iommufd::new()),
        "greedy" => return greedy::run(number(1)),
        other => panic!("hostile to what? {other:?}"),
    };
    run(&*attack, Duration::from_millis(milliseconds), seed, word(3) == "kill");
}

/// Threads that race for so long; then all end, or are killed.
fn run(attack: &dyn Attack, time: Duration, seed: u64, killed: bool) {
    let shared = attack.shared();
    attack.handshake(&mut Rng(seed | 1));
    let started = Instant::now();
    thread::scope(|scope| {
        for n in 0..THREADS {
            scope.spawn(move || {
                let mut rng = Rng((seed * 1000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                while !shared.stop.load(Ordering::Relaxed) {
                    common::step(attack, &mut rng);
                }
            });
        }
        while started.elapsed() < time {
            thread::sleep(Duration::from_millis(10));
        }
        if killed {
            println!("killed after {} calls", shared.calls.load(Ordering::Relaxed));
            call(libc::SYS_kill, [u64::from(process::id()), libc::SIGKILL as u64, 0, 0, 0, 0]);
        }
        shared.stop.store(true, Ordering::Relaxed);
    });
    println!("ended after {} calls", shared.calls.load(Ordering::Relaxed));
}
