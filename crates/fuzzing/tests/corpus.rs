// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The short run: every file of the corpus, and mutations of them that are the
//! same each time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, panic};

use fuzzing::Target;

/// Inputs of a target, mutated ones included.
const RUNS: usize = 300;

fn corpus(target: &Target) -> BTreeMap<PathBuf, Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let files = entries.map(|entry| entry.expect("a directory can be read").path());
    files.map(|path| (path.clone(), fs::read(path).expect("a corpus has files only"))).collect()
}

/// One to four small changes, as libFuzzer makes them.
fn mutate(rng: &mut fastrand::Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..=input.len());
        match (rng.u8(..7), input.get_mut(at)) {
            (0, Some(byte)) => *byte = rng.u8(..),
            (1, Some(byte)) => *byte ^= 1 << rng.u8(..8),
            (2, Some(byte)) => *byte = [0, 1, 0x7f, 0x80, 0xff][rng.usize(..5)],
            (3, Some(_)) => drop(input.remove(at)),
            (4, _) => input.insert(at, rng.u8(..)),
            (5, _) => input.truncate(at),
            _ => {
                let from = rng.usize(..=other.len());
                let to = rng.usize(from..=other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
}

fn run(target: &Target, what: &str, input: &[u8]) {
    if let Err(cause) = panic::catch_unwind(|| (target.run)(input)) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("target {}, {what}, {} bytes: {hex}", target.name, input.len());
        panic::resume_unwind(cause);
    }
}

fn short_run(name: &str) {
    let target = fuzzing::target(name).expect("the macro names targets");
    let files = corpus(target);
    for (path, input) in &files {
        run(target, &path.display().to_string(), input);
    }
    let inputs: Vec<&Vec<u8>> = files.values().collect();
    let mut rng = fastrand::Rng::with_seed(7);
    for n in files.len()..RUNS {
        let mut input = inputs[rng.usize(..inputs.len())].clone();
        let other = inputs[rng.usize(..inputs.len())];
        mutate(&mut rng, &mut input, other);
        run(target, &format!("mutation {n}"), &input);
    }
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            short_run(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_run_and_its_seeds_in_the_corpus() {
            assert_eq!(fuzzing::TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
            for target in fuzzing::TARGETS {
                let files = corpus(&target);
                for (name, bytes) in (target.seeds)() {
                    let file = files.iter().find(|(path, _)| path.ends_with(name));
                    let same = file.is_some_and(|(_, written)| *written == bytes);
                    assert!(same, "fuzz/corpus/{}/{name} is old: cargo run -p vfuse-fuzzing --bin seeds", target.name);
                }
            }
        }
    };
}
targets!(
    container, device, regions, iommufd, faults, hwpt, nvme, ioat, dsa, lab, sysfs, fabric, intercept, aer, virtio,
    vdpa, streams
);
