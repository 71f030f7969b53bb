// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libFuzzer runs the target `hwpt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::run("hwpt", data));
