// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! First-stage tables of Intel VT-d: those of x86-64 with four or five levels,
//! pages of 4 KiB, 2 MiB and 1 GiB.
//!
//! Every request counts as one of a user: an entry without the U/S flag is not
//! for devices. XD does not matter, since nothing is executed. The accessed and
//! dirty flags are set as the processor sets them, by an exchange that fails if
//! the program changed the entry meanwhile. That takes memory that can be
//! addressed directly; where it can only be copied, setting a flag might undo
//! what the program writes at the same time, so the flags stay as they are.

use crate::{Access, FaultReason, Prot, Stage1, Stage1Page, Tables};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In an entry of level 2 or 3: a page. Reserved above.
const PAGE_SIZE: u64 = 1 << 7;
const EXTENDED_ACCESSED: u64 = 1 << 10;
/// Where a table or a page lies.
const ADDRESS: u64 = (1 << 52) - (1 << 12);

const MOST_LEVELS: usize = 5;
/// Walks that are begun because the program changed an entry meanwhile. One
/// that never leaves off gets a fault.
const TRIES: usize = 64;

/// A first-stage table.
#[derive(Clone, Copy, Debug)]
pub struct VtdStage1 {
    root: u64,
    levels: usize,
    extended_accessed: bool,
}

impl VtdStage1 {
    /// The table at address `root` of the space, for addresses of so many bits:
    /// 48 or 57, else there is no such table. `extended_accessed` (EAFE): each
    /// entry used is marked for devices, too.
    #[must_use]
    pub fn new(root: u64, address_width: u32, extended_accessed: bool) -> Option<VtdStage1> {
        let levels = match address_width {
            48 => 4,
            57 => 5,
            _ => return None,
        };
        Some(VtdStage1 { root: root & ADDRESS, levels, extended_accessed })
    }

    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - shift(self.levels + 1);
        ((address << unused).cast_signed() >> unused).cast_unsigned() == address
    }

    /// The flags to set in an entry that is used.
    fn used(&self, dirty: bool) -> u64 {
        ACCESSED | if self.extended_accessed { EXTENDED_ACCESSED } else { 0 } | if dirty { DIRTY } else { 0 }
    }

    /// A walk; nothing if the program changed an entry meanwhile.
    fn try_walk(
        &self,
        address: u64,
        access: Access,
        tables: &mut dyn Tables,
    ) -> Result<Option<Stage1Page>, FaultReason> {
        let mut path = [(0, 0); MOST_LEVELS];
        let mut table = self.root;
        let mut writable = true;
        for level in (1..=self.levels).rev() {
            let at = table | (address >> shift(level) & 511) << 3;
            let entry = tables.read(at)?;
            if entry & PRESENT == 0 {
                return Err(FaultReason::Stage1NotPresent);
            }
            if entry & reserved(level, entry) != 0 {
                return Err(FaultReason::Stage1Invalid);
            }
            if entry & USER == 0 {
                return Err(FaultReason::Stage1Permission);
            }
            writable &= entry & WRITABLE != 0;
            path[level - 1] = (at, entry);
            table = entry & ADDRESS;
            if level > 1 && entry & PAGE_SIZE == 0 {
                continue;
            }
            let write = access == Access::Write;
            if write && !writable {
                return Err(FaultReason::Stage1Permission);
            }
            for (above, (at, entry)) in path[level - 1..self.levels].iter().enumerate().rev() {
                let set = entry | self.used(above == 0 && write);
                if set != *entry && !tables.update(*at, *entry, set)? {
                    return Ok(None);
                }
            }
            // A write to a page that is not dirty yet asks again.
            let may_write = writable && (write || entry & DIRTY != 0);
            let within = (1 << shift(level)) - 1;
            return Ok(Some(Stage1Page {
                first: address & !within,
                last: address | within,
                output: table & !within,
                prot: if may_write { Prot::READ | Prot::WRITE } else { Prot::READ },
            }));
        }
        Err(FaultReason::Stage1Invalid)
    }
}

impl Stage1 for VtdStage1 {
    fn walk(&self, address: u64, access: Access, tables: &mut dyn Tables) -> Result<Stage1Page, FaultReason> {
        if !self.is_canonical(address) {
            return Err(FaultReason::Stage1Invalid);
        }
        for _ in 0..TRIES {
            if let Some(page) = self.try_walk(address, access, tables)? {
                return Ok(page);
            }
        }
        Err(FaultReason::Stage1Invalid)
    }
}

/// Lowest bit of an address that a level tells apart; the lowest level is 1.
fn shift(level: usize) -> usize {
    3 + 9 * level
}

/// Bits of an entry that must be 0.
fn reserved(level: usize, entry: u64) -> u64 {
    match level {
        1 => 0,
        // Below the address of a large page, but for PAT (bit 12).
        2 | 3 if entry & PAGE_SIZE != 0 => (1 << shift(level)) - (1 << 13),
        2 | 3 => 0,
        _ => PAGE_SIZE,
    }
}
