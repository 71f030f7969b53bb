// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who owns each byte of configuration space, found by walking the chains as
//! the hardware shows them, and the shadow that a program sees instead.

use pci::Function;

use super::perms::{Rule, Table, extended_length, length};

/// A byte's owner id if it belongs to no capability.
const UNASSIGNED: u8 = 0xff;
/// End of the header.
const HEADER: usize = 0x40;
/// Start of the extended space.
const EXTENDED: usize = 0x100;

/// What an access to one byte needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) rule: Rule,
    /// The capability's id; pieces end where it changes (API-226).
    pub(super) owner: u8,
    /// Bits of the shadow.
    pub(super) virt: u8,
    /// Bits that can be written.
    pub(super) write: u8,
    /// First byte of the capability.
    pub(super) start: u16,
}

/// The owner map and the shadow.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) cells: Box<[Cell]>,
    pub(super) shadow: Box<[u8]>,
}

struct Builder<'a> {
    function: &'a Function,
    owners: Vec<u8>,
    shadow: Vec<u8>,
    tables: Vec<(usize, Table)>,
}

impl Map {
    /// Walks the chains.
    pub(super) fn new(function: &Function) -> Map {
        let size = usize::from(function.size());
        let mut builder =
            Builder { function, owners: vec![UNASSIGNED; size], shadow: vec![0; size], tables: Vec::new() };
        builder.fill(0, HEADER, 0);
        builder.tables.push((0, Table::header()));
        builder.standard();
        if builder.has_extended() {
            builder.extended();
        }
        builder.finish()
    }
}

impl Builder<'_> {
    /// Gives bytes to an owner and copies them to the shadow.
    fn fill(&mut self, at: usize, len: usize, owner: u8) {
        for byte in at..(at + len).min(self.owners.len()) {
            self.owners[byte] = owner;
            self.shadow[byte] = self.function.read(byte as u16, 1) as u8;
        }
    }

    fn standard(&mut self) {
        if self.function.read(pci::cap::STATUS, 2) & 0x10 == 0 {
            return;
        }
        let mut at = self.function.read(0x34, 1) as usize;
        // Where the shadow's pointer to the next shown capability is.
        let mut previous = 0x34;
        let mut shown = 0;
        // No chain of dwords in the first 256 bytes is longer; loops end.
        for _ in 0..(EXTENDED - HEADER) / 4 {
            if at == 0 {
                break;
            }
            let id = self.function.read(at as u16, 1) as u8;
            let next = self.function.read(at as u16 + 1, 1) as usize;
            let len = length(id, self.function, at as u16);
            if len == 0 {
                self.shadow[previous] = next as u8;
                at = next;
                continue;
            }
            self.fill(at, len.min(EXTENDED - at), id);
            if id == 0x01 {
                self.hide_pme(at);
            }
            self.tables.push((at, Table::of(id, self.function, at as u16)));
            previous = at + 1;
            at = next;
            shown += 1;
        }
        if shown == 0 {
            self.shadow[6] &= !0x10;
        }
    }

    /// No PME reaches the program: its bits read 0 (API-248).
    fn hide_pme(&mut self, at: usize) {
        for (offset, mask) in [(3, 0xf8), (4 + 1, 0x81)] {
            if let Some(byte) = self.shadow.get_mut(at + offset) {
                *byte &= !mask;
            }
        }
    }

    /// API-259
    fn has_extended(&self) -> bool {
        let shown = |id| self.owners[HEADER..EXTENDED.min(self.owners.len())].contains(&id);
        let pci_x_2 = || {
            self.function.capability(0x07).is_some_and(|at| self.function.read(at + 2, 2) & 0x3000 != 0) && shown(0x07)
        };
        self.owners.len() > EXTENDED && (shown(0x10) || pci_x_2()) && self.function.read(EXTENDED as u16, 4) != 0
    }

    fn extended(&mut self) {
        let mut at = EXTENDED;
        let mut previous = None;
        let mut shown = 0;
        for _ in 0..(self.owners.len() - EXTENDED) / 4 {
            if at < EXTENDED || at + 4 > self.owners.len() {
                break;
            }
            let header = self.function.read(at as u16, 4);
            let (id, next) = (header as u16, (header >> 20 & 0xffc) as usize);
            let len = extended_length(id, self.function, at as u16);
            match (len, previous) {
                // Skipped by the one before it (API-263).
                (0, Some(previous)) => {
                    let kept = self.shadow_dword(previous) & !(0xffc << 20);
                    self.set_shadow_dword(previous, kept | (next as u32) << 20);
                    at = next;
                    continue;
                }
                // The first one anchors the chain (API-262).
                (0, None) => {
                    self.fill(at, 4, id as u8);
                    self.set_shadow_dword(at, header & 0xffc << 20);
                    self.tables.push((at, Table::of_extended(0)));
                }
                _ => {
                    self.fill(at, len, id as u8);
                    self.tables.push((at, Table::of_extended(id)));
                    shown += 1;
                }
            }
            previous = Some(at);
            at = next;
        }
        if shown == 0 {
            self.set_shadow_dword(EXTENDED, 0);
        }
    }

    fn shadow_dword(&self, at: usize) -> u32 {
        self.shadow.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }

    fn set_shadow_dword(&mut self, at: usize, value: u32) {
        if let Some(bytes) = self.shadow.get_mut(at..).and_then(|b| b.first_chunk_mut()) {
            *bytes = value.to_le_bytes();
        }
    }

    fn finish(self) -> Map {
        let mut cells: Vec<Cell> = Vec::with_capacity(self.owners.len());
        for (at, owner) in self.owners.iter().enumerate() {
            // A capability starts where its id does: two of one id side by
            // side count as one, as in Linux.
            let base = if at >= EXTENDED { EXTENDED } else { HEADER };
            let start = match cells.last() {
                _ if at < HEADER => 0,
                Some(before) if at > base && before.owner == *owner && *owner != UNASSIGNED => {
                    usize::from(before.start)
                }
                _ => at,
            };
            let raw = Cell { rule: Rule::Raw, owner: *owner, virt: 0, write: 0xff, start: start as u16 };
            let table = self.tables.iter().rev().find(|(place, _)| *place == start).map(|(_, table)| table);
            cells.push(match table {
                Some(table) if *owner != UNASSIGNED => {
                    let bits = |bits: &[u8]| bits.get(at - start).copied().unwrap_or(0);
                    Cell { rule: table.rule, virt: bits(&table.virt), write: bits(&table.write), ..raw }
                }
                // A piece that another capability has overwritten the start of.
                None if *owner != UNASSIGNED => Cell { rule: Rule::ReadOnly, write: 0, ..raw },
                _ => raw,
            });
        }
        Map { cells: cells.into(), shadow: self.shadow.into() }
    }
}
