// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes out of a list of steps what it does not need to fail.

/// The shortest list found that still fails. `fails` gives the index of the
/// step at which a list fails.
pub(crate) fn shrink<T: Clone>(steps: &[T], mut fails: impl FnMut(&[T]) -> Option<usize>) -> Vec<T> {
    let mut best = steps.to_vec();
    if let Some(at) = fails(&best) {
        best.truncate(at + 1);
    }
    let mut chunk = best.len() / 2;
    while chunk > 0 {
        let mut start = 0;
        while start < best.len() {
            let mut tried = best.clone();
            tried.drain(start..(start + chunk).min(tried.len()));
            match fails(&tried) {
                Some(at) => {
                    tried.truncate(at + 1);
                    best = tried;
                }
                None => start += chunk,
            }
        }
        chunk /= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;

    #[test]
    fn only_what_matters_is_left() {
        let turn = |device| Op::Turn { device };
        let steps: Vec<Op> = (0..50).map(turn).collect();
        let fails = |steps: &[Op]| {
            let first = steps.iter().position(|s| *s == turn(7))?;
            steps.iter().skip(first).position(|s| *s == turn(31)).map(|n| first + n)
        };
        assert_eq!(shrink(&steps, fails), [turn(7), turn(31)]);
    }
}
