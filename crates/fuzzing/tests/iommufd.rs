// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random sequences of iommufd calls beside the model (IOMMUFD-3 to
//! IOMMUFD-7, IOMMUFD-12, IOMMUFD-13). A failure names the seed.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::panic;

#[test]
fn random_calls_do_what_the_model_does() {
    let (first, runs) = match std::env::var("IOMMUFD_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (0, 1500),
    };
    for seed in first..first + runs {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut input = vec![rng.u8(..)];
        // Two IOASes to begin with; tags of few kinds come often.
        input.extend([0, 0]);
        let usual = [2, 2, 2, 3, 4, 4, 5, 5, 11, 13, 14, 16, 17];
        for _ in 0..rng.usize(10..120) {
            input.push(if rng.bool() { usual[rng.usize(..usual.len())] } else { rng.u8(..27) });
            input.extend((0..rng.usize(4..9)).map(|_| if rng.bool() { rng.u8(..8) } else { rng.u8(..) }));
        }
        if let Err(cause) = panic::catch_unwind(|| fuzzing::run("iommufd", &input)) {
            eprintln!("IOMMUFD_SEED={seed}");
            panic::resume_unwind(cause);
        }
    }
}
