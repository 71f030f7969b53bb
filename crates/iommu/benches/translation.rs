// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What mapping, unmapping and translation cost, each beside a peer that runs
//! in the same process: rows of `name,ours,peer` (ns unless the name says
//! otherwise), medians over many runs.

#[path = "measure/mod.rs"]
mod measure;

fn main() {
    println!("name,ours,peer");
    for row in measure::all() {
        println!("{row}");
    }
}
