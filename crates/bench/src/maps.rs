// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What many live mappings cost: the pair of map and unmap among them, and
//! memory.

use std::cell::RefCell;

use anyhow::{Context, Result, anyhow};

use crate::client::{FILL, PAIR};
use crate::process::{Client, under_vfuse};
use crate::table::{Figures, Goal, Table};
use crate::timing::in_turn;

const ROUNDS: usize = 201;
const PAIRS: u64 = 100;
const MILLION: u64 = 1_000_000;

/// A lab whose containers take a million mappings.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../labs/many-mappings.toml");

/// Rows of many mappings.
pub(crate) fn rows(table: &mut Table) {
    let few = filled(&[], 1000).map(|(client, _)| client);
    let pair = |client: &RefCell<Client>| client.borrow_mut().ask(PAIR, PAIRS);
    let compare = |many: &Result<RefCell<Client>>| {
        let (many, few) = (client(many)?, client(&few)?);
        Ok(Figures::times(in_turn(ROUNDS, || pair(many), || pair(few))?))
    };
    table.row("MAP_DMA + UNMAP_DMA, 65,000 live maps / 1,000", Goal::AtMost(1.5, ""), || {
        compare(&filled(&[], 65_000).map(|(client, _)| client))
    });
    let million = filled(&["--lab", LAB], MILLION);
    let (million, grown) = match million {
        Ok((client, grown)) => (Ok(client), Ok(grown)),
        Err(error) => (Err(anyhow!("{error:#}")), Err(error)),
    };
    table.row("MAP_DMA + UNMAP_DMA, 1,000,000 live maps / 1,000", Goal::AtMost(1.5, ""), || compare(&million));
    table.row("resident memory a live map, of 1,000,000", Goal::AtMost(64.0, " B"), || {
        let grown = grown?;
        let mib = format!("{:.1} MiB", grown / f64::from(1 << 20));
        Ok(Figures { ours: mib, other: "growth of VmRSS".into(), figure: grown / MILLION as f64 })
    });
}

fn client(client: &Result<RefCell<Client>>) -> Result<&RefCell<Client>> {
    client.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// A client with `maps` mappings, and by how many bytes they made vfuse grow.
fn filled(options: &[&str], maps: u64) -> Result<(RefCell<Client>, f64)> {
    let mut client = Client::start(under_vfuse(options.iter().copied())?)?;
    let before = resident(client.pid())?;
    client.ask(FILL, maps).with_context(|| format!("{maps} mappings, which need root or ulimit -l unlimited"))?;
    let grown = resident(client.pid())? - before;
    Ok((RefCell::new(client), grown))
}

/// `VmRSS` in bytes.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}
