// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two tables one after the other: the program's own (stage 1), whose addresses
//! are those of a space.
//!
//! A translation is made once and remembered by the place as any other; how
//! many tables it took makes no difference then. Whoever changes the program's
//! table says so, and that is a fence.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use crate::port::Port;
use crate::ports::Ports;
use crate::sync::{Mutex, lock};
use crate::{Access, FaultReason, Prot};

/// A table in the program's memory that the program fills as it likes.
pub trait Stage1: Send + Sync + Debug {
    /// Where `address` leads, for an access of this kind. The rights are those
    /// that may be remembered: an access without them asks again.
    fn walk(&self, address: u64, access: Access, tables: &mut dyn Tables) -> Result<Stage1Page, FaultReason>;
}

/// Where a part of a program's table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Page {
    /// First address for which this holds.
    pub first: u64,
    /// Last address, inclusive.
    pub last: u64,
    /// Address in the space of the byte at `first`.
    pub output: u64,
    /// What may be remembered of the rights.
    pub prot: Prot,
}

/// The memory in which a program's tables lie, by address in the space.
pub trait Tables {
    /// The entry of 8 bytes at `address`, which is a multiple of 8, read at once.
    fn read(&mut self, address: u64) -> Result<u64, FaultReason>;

    /// Replaces the entry at once if it still is `old`. Whether it was. Where
    /// the memory allows no such thing nothing happens, and it is said to be done.
    fn update(&mut self, address: u64, old: u64, new: u64) -> Result<bool, FaultReason>;
}

/// A program's table in use.
pub struct Nested {
    table: Box<dyn Stage1>,
    ports: Mutex<Ports>,
}

impl Debug for Nested {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nested").field(&self.table).finish()
    }
}

impl Nested {
    /// Uses a table.
    #[must_use]
    pub fn new(table: impl Stage1 + 'static) -> Arc<Nested> {
        Arc::new(Nested { table: Box::new(table), ports: Mutex::default() })
    }

    /// The table has changed for `first..=last`. On return no session uses what
    /// was there, and later ones walk the table anew. All is invalidated by
    /// `0..=u64::MAX`.
    ///
    /// Must not be called by a thread that has a session open.
    pub fn invalidate(&self, first: u64, last: u64) {
        for port in lock(&self.ports).iter() {
            port.invalidate(first, last);
        }
    }

    pub(crate) fn walk(
        &self,
        address: u64,
        access: Access,
        tables: &mut dyn Tables,
    ) -> Result<Stage1Page, FaultReason> {
        self.table.walk(address, access, tables)
    }

    pub(crate) fn add_port(&self, port: &Arc<Port>) {
        lock(&self.ports).add(port);
    }

    pub(crate) fn remove_port(&self, port: &Arc<Port>) {
        lock(&self.ports).remove(port);
    }
}
