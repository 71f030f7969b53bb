// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libFuzzer runs the target `streams`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::run("streams", data));
