// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of iommufd-api.md and iommufd-selftest.md, one file a topic.

mod access;
mod accounting;
mod change_process;
mod compat;
mod copy;
mod envelope;
mod locate;
mod map;
mod map_file;
mod objects;
mod option;
mod ranges;
mod unmap;

use crate::testing::Lab;

const PAGE: u64 = 4096;
/// 64 pages of the program's that can be written; nothing is behind them.
const RAM: u64 = 0x4000_0000;
const RAM_PAGES: u64 = 64;
/// 16 pages that can be read.
const ROM: u64 = 0x5000_0000;
/// Where the program has nothing.
const NOTHING: u64 = 0x6000_0000;

const FIXED: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;
const RW: u32 = READ | WRITE;

/// A lab with memory and an IOAS.
fn lab() -> (Lab, u32) {
    let mut lab = Lab::new();
    give_memory(&lab);
    let ioas = lab.ioas();
    (lab, ioas)
}

fn give_memory(lab: &Lab) {
    lab.client.memory.map(RAM, RAM_PAGES * PAGE, true);
    lab.client.memory.map(ROM, 16 * PAGE, false);
}
