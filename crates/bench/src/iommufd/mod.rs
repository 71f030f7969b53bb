// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls on `/dev/iommu` through `vfuse run`: mapping, dirty bitmaps, and what
//! mappings take of the supervisor's memory.
//!
//! The floor of a dirty bitmap is a bare supervisor that copies 512 KiB to the
//! client and clears its own: what no answer can do without. Where some bits are
//! set and some are not, no answer can do without reading the client's, either,
//! which has a row of its own. The bits are real writes of an accelerator's;
//! after as many the floor's bitmap lies in no cache, either.

mod card;
pub(crate) mod client;

use std::cell::RefCell;

use anyhow::{Result, anyhow};

use crate::floor;
use crate::maps::resident;
use crate::process::{Client, under_vfuse_as};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;
use client::{ALL, FILL, FINE, LARGE, NONE, PAIR, SOME, WIDE};

const ROUNDS: usize = 201;
const PAIRS: u64 = 100;
const MILLION: u64 = 1_000_000;
/// Mappings of 16 GiB, to see more than a page of growth.
const LARGE_MAPS: u64 = 64;

/// A lab with an accelerator.
const DSA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs/dsa.toml");
/// A lab with the selftest's mock.
const SELFTEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs/selftest.toml");

type Asked = Result<RefCell<Client>>;

fn start(kind: &str, lab: Option<&str>) -> Asked {
    let options = lab.map(|lab| ["--lab", lab]);
    Ok(RefCell::new(Client::start(under_vfuse_as(kind, options.into_iter().flatten())?)?))
}

fn ask(client: &Asked, what: &str, count: u64) -> Result<f64> {
    client.as_ref().map_err(|error| anyhow!("{error:#}"))?.borrow_mut().ask(what, count)
}

/// Rows of iommufd.
pub(crate) fn rows(table: &mut Table) {
    let bare: Asked = floor::start(crate::client::IOMMUFD_FLOOR, false).map(RefCell::new);
    pairs(table, &bare);
    memory(table);
    bitmaps(table, &bare);
}

fn pairs(table: &mut Table, bare: &Asked) {
    let ours = start(crate::client::IOMMUFD, None);
    table.row("IOAS_MAP + IOAS_UNMAP / two bare, a readv each", Goal::AtMost(1.30, ""), || {
        Ok(Figures::times(in_turn(ROUNDS, || ask(&ours, PAIR, PAIRS), || ask(bare, PAIR, PAIRS))?))
    });
    // Linux writes both structures back, also to memory that may only be read.
    table.row("  the same / with the query and the write-backs, too", Goal::None, || {
        let thorough: Asked = floor::start(crate::client::IOMMUFD_FLOOR, true).map(RefCell::new);
        Ok(Figures::times(in_turn(ROUNDS, || ask(&ours, PAIR, PAIRS), || ask(&thorough, PAIR, PAIRS))?))
    });
}

fn memory(table: &mut Table) {
    let grown = |warm: (&str, u64), then: (&str, u64)| -> Result<f64> {
        let client = start(crate::client::IOMMUFD, None)?;
        let pid = client.borrow().pid();
        client.borrow_mut().ask(warm.0, warm.1)?;
        let before = resident(pid)?;
        client.borrow_mut().ask(then.0, then.1)?;
        Ok((resident(pid)? - before) / then.1 as f64)
    };
    let of = |text: &str| text.to_owned();
    table.row("resident memory, IOAS_MAP of 16 GiB in one call", Goal::AtMost(4096.0, " B"), || {
        let each = grown((PAIR, PAIRS), (LARGE, LARGE_MAPS))?;
        Ok(Figures { ours: format!("{each:.0} B"), other: of("growth of VmRSS, of 64"), figure: each })
    });
    table.row("resident memory an IOAS_MAP, of 1,000,000", Goal::AtMost(64.0, " B"), || {
        let each = grown((PAIR, PAIRS), (FILL, MILLION))?;
        let mib = format!("{:.1} MiB", each * MILLION as f64 / f64::from(1 << 20));
        Ok(Figures { ours: mib, other: of("growth of VmRSS"), figure: each })
    });
}

fn bitmaps(table: &mut Table, bare: &Asked) {
    let ours = start(crate::client::IOMMUFD, Some(DSA));
    let most = Goal::AtMost(2.0, "");
    let compare = |verb, floor: &Asked, of, rounds, batch| -> Result<Figures> {
        Ok(Figures::times(in_turn(rounds, || ask(&ours, verb, batch), || ask(floor, of, batch))?))
    };
    table.row("GET_DIRTY_BITMAP of 16 GiB, none / bare, 512 KiB", most, || compare(NONE, bare, NONE, 101, 10));
    table.row("GET_DIRTY_BITMAP of 16 GiB, 1% / bare, 512 KiB", most, || compare(SOME, bare, NONE, 31, 1));
    table.row("  the same / with the client's bits read, too", Goal::AtMost(1.2, ""), || {
        let thorough: Asked = floor::start(crate::client::IOMMUFD_FLOOR, true).map(RefCell::new);
        compare(SOME, &thorough, NONE, 31, 1)
    });
    table.row("GET_DIRTY_BITMAP of 16 GiB, all / bare, 512 KiB", most, || compare(ALL, bare, ALL, 7, 1));
    // Sixteen times as much is to cost sixteen times as much: the figure is
    // what it costs more than that.
    let linear = |client: &Asked, verb: &str, rounds| -> Result<Figures> {
        let (mut large, mut small) = (Vec::new(), Vec::new());
        for (gib, times) in [(1, &mut small), (16, &mut large)] {
            for _ in 0..rounds {
                times.push(ask(client, verb, gib)?);
            }
        }
        let [large, small] = [large, small].map(crate::timing::median);
        Ok(Figures::times((large, 16.0 * small)))
    };
    let most = Goal::AtMost(1.5, "");
    table.row("  log 4 KiB read by 8 KiB, 16 GiB / 16 of 1 GiB", most, || linear(&ours, WIDE, 5));
    let mock = start(crate::client::IOMMUFD_TEST, Some(SELFTEST));
    table.row("  log 1 MiB read by 4 KiB, 16 GiB / 16 of 1 GiB", most, || linear(&mock, FINE, 25));
}
