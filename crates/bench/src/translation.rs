// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translation on the DMA path: the rows of `vfuse-iommu`'s own bench that
//! have goals.

use std::hint::black_box;
use std::time::Instant;

use crate::table::{Figures, Goal, Table};
use crate::timing::median;

#[path = "../../iommu/benches/measure/mod.rs"]
#[allow(dead_code)] // the rest of its rows have no goals
pub(crate) mod measure;

/// Rows of translation.
pub(crate) fn rows(table: &mut Table) {
    table.row("translation, same page / a bare one-entry cache", Goal::AtMost(2.0, ""), || {
        let row = measure::same_page();
        Ok(Figures::times((row.ours, row.peer)))
    });
    table.row("translation, random of 1,000,000 maps / BTreeMap", Goal::AtMost(0.4, ""), || {
        let row = measure::random("random_1m", 1_000_000);
        Ok(Figures::times((row.ours, row.peer)))
    });
    // The time that the threads were running: whether they stand in each
    // other's way, on a machine that has other work too.
    table.row("two DMA threads / one, running time", Goal::AtLeast(1.8, "×"), || {
        let row = measure::two_threads("running", true);
        let clock = measure::threads();
        Ok(Figures {
            ours: format!("{:.0}/µs", row.ours),
            other: format!("{:.0}/µs; clock {:.2}×, bare {:.2}×", row.peer, clock.ours / clock.peer, bare_scaling()),
            figure: row.ours / row.peer,
        })
    });
}

/// What two threads that share nothing do more than one by the clock: what
/// the machine has to give.
fn bare_scaling() -> f64 {
    let work = || {
        let start = Instant::now();
        (0..20_000_000u64).for_each(|n| {
            black_box(n);
        });
        start.elapsed().as_nanos() as f64
    };
    let mut ratios = Vec::new();
    for _ in 0..15 {
        let one = work();
        let two = std::thread::scope(|scope| {
            let other = scope.spawn(work);
            work().max(other.join().unwrap_or(f64::NAN))
        });
        ratios.push(2.0 * one / two);
    }
    median(ratios)
}
