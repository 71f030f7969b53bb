// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-vdpa through `vfuse run`: messages, a reset with much memory mapped,
//! packets and blocks.
//!
//! The floor of a message is a trapped `write` that a bare supervisor reads and
//! answers. No message can cost less, in a batch or not: each is a call of its
//! own. A reset is beside one of a device with nothing mapped. Packets and
//! blocks are beside what the same programs do without a lab.

pub(crate) mod client;
mod disk;
mod packets;

use std::cell::RefCell;

use anyhow::{Result, anyhow};

use crate::floor;
use crate::process::{Client, under_vfuse_as};
use crate::table::{Figures, Goal, Table};
use crate::timing::{in_turn, median};
use client::{BATCH, FILL, PAIR, RESTART, RESTART_ANEW};

const ROUNDS: usize = 201;
const CALLS: u64 = 200;
/// Messages of a batch.
const MESSAGES: u64 = 1000;

const DEVICE: &str = "blk,size=1M,max_iotlb_entries=2000000";

type Asked = Result<RefCell<Client>>;

fn start() -> Asked {
    Ok(RefCell::new(Client::start(under_vfuse_as(crate::client::VDPA, ["--vdpa", DEVICE])?)?))
}

fn ask(client: &Asked, what: &str, count: u64) -> Result<f64> {
    client.as_ref().map_err(|error| anyhow!("{error:#}"))?.borrow_mut().ask(what, count)
}

/// Rows of vhost-vdpa.
pub(crate) fn rows(table: &mut Table) {
    messages(table);
    resets(table);
    packets::rows(table);
    disk::rows(table);
}

fn messages(table: &mut Table) {
    let bare: Asked = floor::start(crate::client::VDPA_FLOOR, false).map(RefCell::new);
    let ours = start();
    table.row("vdpa UPDATE + INVALIDATE / two bare writes, a readv each", Goal::AtMost(1.30, ""), || {
        Ok(Figures::times(in_turn(ROUNDS, || ask(&ours, PAIR, CALLS), || ask(&bare, PAIR, CALLS))?))
    });
    // A pair of the floor is two messages.
    table.row("  a message of a batch of 1,000 / the same two writes", Goal::AtMost(0.5, ""), || {
        Ok(Figures::times(in_turn(ROUNDS / 4, || ask(&ours, BATCH, MESSAGES), || ask(&bare, PAIR, MESSAGES / 2))?))
    });
    table.row("  the same / one bare write", Goal::None, || {
        Ok(Figures::times(in_turn(
            ROUNDS / 4,
            || ask(&ours, BATCH, MESSAGES),
            || Ok(ask(&bare, PAIR, MESSAGES / 2)? / 2.0),
        )?))
    });
}

fn resets(table: &mut Table) {
    let empty = start();
    for (maps, name, rounds) in [(1, "1 map", 51), (1000, "1,000 maps", 51), (1_000_000, "1,000,000 maps", 21)] {
        let ours = start().and_then(|client| {
            client.borrow_mut().ask(FILL, maps)?;
            Ok(client)
        });
        let what = format!("vdpa reset + restart, 64 GiB as {name} / nothing mapped");
        let mut kept = f64::NAN;
        table.row(&what, Goal::AtMost(1.5, ""), || {
            let figures = in_turn(rounds, || ask(&ours, RESTART, 10), || ask(&empty, RESTART, 10))?;
            kept = figures.0;
            Ok(Figures::times(figures))
        });
        table.row("  not persisted (unmap all, map all) / persisted", Goal::None, || {
            let rounds = if maps > 1000 { 1 } else { 11 };
            let anew = (0..rounds).map(|_| ask(&ours, RESTART_ANEW, 1)).collect::<Result<Vec<_>>>()?;
            Ok(Figures::times((median(anew), kept)))
        });
    }
}
