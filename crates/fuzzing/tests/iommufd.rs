// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random sequences of iommufd calls beside the model (IOMMUFD-3 to
//! IOMMUFD-7, IOMMUFD-12, IOMMUFD-13). A failure names the seed.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::panic;

/// Random sequences on HWPTs, devices, queues and vIOMMUs beside the model
/// (IOMMUFD-2, IOMMUFD-8, IOMMUFD-9, IOMMUFD-11). A failure names the seed.
#[test]
fn objects_hold_each_other_as_the_model_says() {
    let (first, runs) = match std::env::var("HWPT_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (0, 300),
    };
    for seed in first..first + runs {
        let mut rng = fastrand::Rng::with_seed(seed);
        // An IOAS and mocks of each kind to begin with; what makes objects comes often.
        let mut input = vec![0, 0, 1, 0, 2, 1, 0, 0, 3, 0];
        let usual = [1, 3, 5, 5, 5, 5, 6, 6, 7, 7, 11, 12, 18, 18, 19, 20, 21];
        for _ in 0..rng.usize(10..80) {
            input.push(if rng.bool() { usual[rng.usize(..usual.len())] } else { rng.u8(..24) });
            input.extend((0..rng.usize(3..7)).map(|_| if rng.bool() { rng.u8(..8) } else { rng.u8(..) }));
        }
        if let Err(cause) = panic::catch_unwind(|| fuzzing::run("hwpt", &input)) {
            eprintln!("HWPT_SEED={seed}");
            panic::resume_unwind(cause);
        }
    }
}

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
