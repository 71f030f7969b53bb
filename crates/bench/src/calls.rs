// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls through `vfuse run`, beside the same calls that a bare supervisor
//! answers at once.

use std::cell::RefCell;

use anyhow::{Result, anyhow};

use crate::client::{CHECK, CONFIG, FLOOR, PAIR, REGION, VERSION};
use crate::floor;
use crate::process::{Client, under_vfuse};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 301;
/// A batch is shorter than the time that the machine lets a program run.
const CALLS: u64 = 200;

/// Rows of calls.
pub(crate) fn rows(table: &mut Table) {
    let clients = start();
    let most = |ratio| Goal::AtMost(ratio, "");
    for (what, goal, verb) in [
        ("VFIO ioctl (CHECK_EXTENSION) / bare notified ioctl", most(1.15), CHECK),
        ("  GET_API_VERSION, descriptor always looked up", Goal::None, VERSION),
        ("  DEVICE_GET_REGION_INFO / bare + readv + writev", most(1.15), REGION),
        ("4-byte config read / bare + process_vm_writev", most(1.15), CONFIG),
        ("MAP_DMA + UNMAP_DMA / two bare, a readv each", most(1.30), PAIR),
    ] {
        table.row(what, goal, || {
            let (ours, bare) = clients.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            let ask = |client: &RefCell<Client>| client.borrow_mut().ask(verb, CALLS);
            Ok(Figures::times(in_turn(ROUNDS, || ask(ours), || ask(bare))?))
        });
    }
    table.row("  the same / with the query and the write-back, too", Goal::None, || {
        let (ours, _) = clients.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let thorough = RefCell::new(floor::start(FLOOR, true)?);
        let ask = |client: &RefCell<Client>| client.borrow_mut().ask(PAIR, CALLS);
        Ok(Figures::times(in_turn(ROUNDS, || ask(ours), || ask(&thorough))?))
    });
}

fn start() -> Result<(RefCell<Client>, RefCell<Client>)> {
    Ok((RefCell::new(Client::start(under_vfuse([])?)?), RefCell::new(floor::start(FLOOR, false)?)))
}
