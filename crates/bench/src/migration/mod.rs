// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration: the stream of a device's state, its states, the log of
//! what it writes, and how long a guest stands still.

pub(crate) mod client;
mod downtime;
mod writes;

use std::cell::RefCell;

use anyhow::{Result, anyhow};

use crate::floor;
use crate::process::{Client, own, under_vfuse_as};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;
use client::{ARC, COPY, FLOOR, GIVE, LOAD, LOGGED, SAVE, STATE, STOP, TAKE};

const ROUNDS: usize = 201;
const CALLS: u64 = 200;
/// Each moves a GiB.
const STREAMS: usize = 7;

/// A device with so much state.
const DEVICE: [&str; 2] = ["--device", "nvme,addr=01:00.0,migration=pre-copy-p2p,state_size=1G"];
/// One whose writes are logged.
const LOGS: [&str; 2] = ["--device", "dsa,addr=01:00.0,queues=2,entries=32,engines=2,migration=p2p"];

type Asked = Result<RefCell<Client>>;

fn ask(client: &Asked, what: &str, count: u64) -> Result<f64> {
    client.as_ref().map_err(|error| anyhow!("{error:#}"))?.borrow_mut().ask(what, count)
}

/// Rows of migration.
pub(crate) fn rows(table: &mut Table) {
    streams(table);
    states(table);
    reports(table);
    table.row("NVMe 4 KiB reads QD32, DMA logged / not logged", Goal::AtMost(1.05, ""), writes::cost);
    downtime::rows(table);
}

fn streams(table: &mut Table) {
    let ours: Asked = under_vfuse_as(client::STREAMS, DEVICE).and_then(Client::start).map(RefCell::new);
    let bare: Asked = own(client::PIPES).and_then(Client::start).map(RefCell::new);
    for (what, goal, verb, other) in [
        ("saving 1 GiB, 1 MiB a read / a pipe of as much", Goal::AtLeast(0.9, ""), SAVE, TAKE),
        ("  the same / memcpy", Goal::None, SAVE, COPY),
        ("loading 1 GiB, 1 MiB a write / a pipe of as much", Goal::AtLeast(0.9, ""), LOAD, GIVE),
        ("  the same / memcpy", Goal::None, LOAD, COPY),
    ] {
        table.row(what, goal, || {
            let (ours, other) = in_turn(STREAMS, || ask(&ours, verb, 1), || ask(&bare, other, 1))?;
            let rate = |ns: f64| format!("{:.1} GB/s", STATE as f64 / ns);
            Ok(Figures { ours: rate(ours), other: rate(other), figure: other / ours })
        });
    }
}

fn states(table: &mut Table) {
    let ours: Asked = under_vfuse_as(client::STREAMS, DEVICE).and_then(Client::start).map(RefCell::new);
    let bare: Asked = floor::start(FLOOR, false).map(RefCell::new);
    for (what, goal, verb, other) in [
        ("RUNNING to RUNNING_P2P / bare + readv + writev", Goal::AtMost(1.3, ""), ARC, ARC),
        ("  RUNNING_P2P to STOP and back, each / the same", Goal::None, STOP, ARC),
    ] {
        table.row(what, goal, || {
            Ok(Figures::times(in_turn(ROUNDS, || ask(&ours, verb, CALLS), || ask(&bare, other, CALLS))?))
        });
    }
}

fn reports(table: &mut Table) {
    let ours: Asked = under_vfuse_as(crate::client::LOGGING, LOGS).and_then(Client::start).map(RefCell::new);
    let bare: Asked = floor::start(crate::client::IOMMUFD_FLOOR, false).map(RefCell::new);
    let thorough: Asked = floor::start(crate::client::IOMMUFD_FLOOR, true).map(RefCell::new);
    for (share, verb, rounds, batch) in
        [("none", LOGGED[0], 101, 10), ("1%", LOGGED[1], 31, 1), ("all", LOGGED[2], 7, 1)]
    {
        for (floor, goal, what) in [
            (&bare, Goal::AtMost(2.0, ""), format!("DMA_LOGGING_REPORT of 16 GiB, {share} / bare, 512 KiB")),
            (&thorough, Goal::None, "  the same / read and written back".to_owned()),
        ] {
            table.row(&what, goal, || {
                Ok(Figures::times(in_turn(rounds, || ask(&ours, verb, batch), || ask(floor, LOGGED[0], batch))?))
            });
        }
    }
}
