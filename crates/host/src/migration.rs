// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that migrate, for people and tools: what they are doing, and what
//! is to go wrong from now on.

use std::fmt::Write;

use pci::Address;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::lab::migration::{Failures, describe};

/// Failures that one device can have planned.
const MOST: usize = 64;

/// A device that migrates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationInfo {
    /// Address, `DDDD:BB:DD.F`.
    pub address: String,
    /// The state that GET reports; `None`: no program has it open.
    pub state: Option<String>,
    /// `saving` or `resuming`, while a stream is open.
    pub stream: Option<String>,
    /// Bytes that went through the stream so far.
    pub bytes: u64,
    /// It notes which pages it writes, by DMA logging.
    pub logging: bool,
    /// What is planned to go wrong, as `migration_fails` of a lab file says it.
    pub failures: Vec<String>,
}

/// Why nothing was planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPlanned {
    /// There is no such function.
    #[error("no function at {0}")]
    NoDevice(Address),
    /// The lab does not let it migrate.
    #[error("{0} does not migrate: it has no `migration` in the lab")]
    NotMigrating(Address),
    /// The text says no failure.
    #[error("{0}")]
    Text(String),
    /// There are too many already.
    #[error("{0} has {MOST} failures planned already")]
    TooMany(Address),
}

impl Host {
    /// Every device that migrates, in address order.
    #[must_use]
    pub fn migrations(&self) -> Vec<MigrationInfo> {
        let migrating =
            self.board.slots.iter().filter_map(|(address, slot)| Some((*address, slot.migration.as_ref()?)));
        let info = |(address, spec): (Address, &device::migration::Migration)| {
            let report = self.vfio.migration(address);
            let stream = report.and_then(|report| report.stream);
            MigrationInfo {
                address: address.to_string(),
                state: report.map(|report| report.state.to_owned()),
                stream: stream.map(|(what, _)| what.to_owned()),
                bytes: stream.map_or(0, |(_, bytes)| bytes),
                logging: report.is_some_and(|report| report.logging),
                failures: spec.failures.iter().map(describe).collect(),
            }
        };
        migrating.map(info).collect()
    }

    /// Has a device's migration go wrong from now on, also a stream that is
    /// open: `text` is as `migration_fails` of a lab file. Comes on top of what
    /// is planned already.
    pub fn fail_migration(&mut self, address: Address, text: &str) -> Result<(), NotPlanned> {
        let Failures(more) = text.parse().map_err(NotPlanned::Text)?;
        if more.is_empty() {
            return Err(NotPlanned::Text("nothing is to fail".to_owned()));
        }
        let failures = self.planned(address)?;
        if failures.len() + more.len() > MOST {
            return Err(NotPlanned::TooMany(address));
        }
        for failure in more {
            tracing::info!(name: "vfio.migration_fails", device = %address, failure = describe(&failure));
            failures.push(failure);
        }
        Ok(())
    }

    /// Nothing of a device's migration goes wrong any more.
    pub fn mend_migration(&mut self, address: Address) -> Result<(), NotPlanned> {
        self.planned(address)?.clear();
        tracing::info!(name: "vfio.migration_mended", device = %address);
        Ok(())
    }

    fn planned(&mut self, address: Address) -> Result<&mut Vec<device::migration::Failure>, NotPlanned> {
        let slot = self.board.slots.get_mut(&address).ok_or(NotPlanned::NoDevice(address))?;
        let spec = slot.migration.as_mut().ok_or(NotPlanned::NotMigrating(address))?;
        Ok(&mut spec.failures)
    }
}

/// Devices as a table for people.
#[must_use]
pub fn migration_table(devices: &[MigrationInfo]) -> String {
    let mut table = String::from("address       state         stream                 logging  fails\n");
    for device in devices {
        let state = device.state.as_deref().unwrap_or("closed");
        let stream = device.stream.as_ref().map_or("-".to_owned(), |stream| format!("{stream} {}", device.bytes));
        let logging = if device.logging { "on" } else { "-" };
        let fails = if device.failures.is_empty() { "-".to_owned() } else { device.failures.join("; ") };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{} {state:<13} {stream:<22} {logging:<8} {fails}", device.address);
    }
    table
}
