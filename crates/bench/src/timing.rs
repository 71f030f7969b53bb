// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Medians, and two things measured in turn.

use std::time::Instant;

use anyhow::Result;

/// The middle value; NaN of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Medians of two measurements that take turns.
pub(crate) fn in_turn(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64>,
    mut other: impl FnMut() -> Result<f64>,
) -> Result<(f64, f64)> {
    let (mut a, mut b) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        a.push(ours()?);
        b.push(other()?);
    }
    Ok((median(a), median(b)))
}

/// Nanoseconds a call, of `calls` calls.
pub(crate) fn each(calls: u64, mut call: impl FnMut(u64) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for number in 0..calls {
        call(number)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / calls as f64)
}
