// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `make sim SEEDS=N`: runs seeds 0 to N-1; `make sim SEED=S`: runs one.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (what, number) = (arguments.next(), arguments.next().and_then(|n| n.parse::<u64>().ok()));
    let seeds = match (what.as_deref(), number) {
        (Some("--seeds"), Some(n)) => 0..n,
        (Some("--seed"), Some(n)) => n..n.saturating_add(1),
        _ => {
            eprintln!("usage: sim --seeds COUNT | --seed SEED");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let (mut tally, mut paging) = (sim::Tally::default(), sim::paging::Tally::default());
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let done = sim::run(seed).map(|done| tally += done);
        if let Err(failure) = done.and_then(|()| sim::paging::run(seed).map(|done| paging += done)) {
            println!("{failure}");
            return ExitCode::FAILURE;
        }
    }
    let rate = tally.steps as f64 / start.elapsed().as_secs_f64();
    println!("{count} seeds, {} steps, no law broken; {rate:.0} steps a second", tally.steps);
    println!(
        "{} devices opened, {} drivers started, {} mappings, {} commands completed, {} accesses to memory judged",
        tally.opens, tally.starts, tally.maps, tally.completions, tally.touches
    );
    println!(
        "{} page requests, {} answered by programs, {} by the host, {} forgotten in resets, {} answers refused",
        paging.asked, paging.answered, paging.by_host, paging.forgotten, paging.refused
    );
    ExitCode::SUCCESS
}
