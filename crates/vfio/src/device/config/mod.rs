// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space as a program sees it (vfio-api.md, section 11).
//!
//! For each byte a map says which capability owns it; each bit of it is
//! *virtual*, kept in a shadow, or the hardware's, and can be written or not.
//! The map is made once, at open, so that a read costs no search.

mod map;
mod perms;
mod write;

use pci::{Function, PortType};

use map::{Cell, Map};
use perms::Rule;

/// The shadow of one open device.
#[derive(Debug)]
pub(super) struct Config {
    map: Map,
    /// The hardware's BARs and ROM BAR as they were at open, for a reset that
    /// the host did not see (API-238).
    physical_bars: [u32; 7],
    /// Mask and type bits of each BAR that has an address.
    bars: [Option<(u64, u32)>; 6],
    /// Mask of the ROM BAR; 0 if there is none.
    rom: u32,
    /// Memory enable does not exist in hardware: memory always decodes
    /// (API-217).
    pub(super) no_command_memory: bool,
}

const COMMAND: usize = pci::cap::COMMAND as usize;
/// Offsets of the six BARs and the ROM BAR.
const BARS: [u16; 7] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30];

impl Config {
    /// The shadow at open. `sizes` are those of the BARs that have an address,
    /// of the others 0; `hide_pin`: the interrupt pin is not shown (API-178).
    pub(super) fn new(function: &Function, sizes: [u64; 6], hide_pin: bool) -> Config {
        let no_command_memory = function.write_masks(pci::cap::COMMAND).0 & 2 == 0;
        let bars = std::array::from_fn(|index| {
            let bar = function.spec().bars[index].as_ref()?;
            let mask = !sizes[index].checked_sub(1)?;
            Some((mask, bar.type_bits()))
        });
        let rom = match function.spec().rom_size() {
            0 => 0,
            size => !(size as u32).wrapping_sub(1) | 1,
        };
        let map = Map::new(function);
        let physical_bars = BARS.map(|at| function.read(at, 4));
        let mut config = Config { map, physical_bars, bars, rom, no_command_memory };
        if function.spec().port_type == PortType::VirtualFunction {
            config.set_shadow(0x00, 2, u32::from(function.spec().vendor));
            config.set_shadow(0x02, 2, u32::from(function.spec().device));
            config.set_shadow(0x3d, 1, 0);
        }
        if hide_pin {
            config.set_shadow(0x3d, 1, 0);
        }
        if no_command_memory {
            config.set_shadow(COMMAND, 2, config.command() | u32::from(pci::cap::COMMAND_MEMORY));
        }
        config.fix_bars();
        config
    }

    /// Bytes of the region.
    pub(super) fn size(&self) -> u64 {
        self.map.shadow.len() as u64
    }

    /// How many of the `left` bytes at `pos` make one access: aligned, inside
    /// one dword and one capability (API-226). `pos` is inside the region.
    #[inline]
    pub(super) fn piece(&self, pos: usize, left: usize) -> usize {
        let cells = &self.map.cells;
        let owner = |at: usize| cells.get(at).map(|c: &Cell| c.owner);
        let mut len = 1;
        while !(pos + len).is_multiple_of(4) && owner(pos + len) == owner(pos) {
            len += 1;
        }
        match len.min(left) {
            4 if pos.is_multiple_of(4) => 4,
            2.. if pos.is_multiple_of(2) => 2,
            _ => 1,
        }
    }

    /// Reads a piece.
    #[inline]
    pub(super) fn read(&self, function: &Function, pos: usize, len: usize) -> u32 {
        let mut virt = 0;
        for (i, cell) in self.map.cells.iter().skip(pos).take(len).enumerate() {
            virt |= u32::from(cell.virt) << (8 * i);
        }
        let all = u32::MAX >> (32 - 8 * len);
        let shadow = self.shadow(pos, len);
        if virt == all {
            return shadow;
        }
        let mut value = function.read(pos as u16, len as u8) & !virt | shadow & virt;
        // A VF has no memory enable bit; the shadow's is shown (API-237).
        if pos == COMMAND && self.no_command_memory {
            value |= self.command() & u32::from(pci::cap::COMMAND_MEMORY);
        }
        value
    }

    /// Whether a write to the byte is looked at at all.
    pub(super) fn is_writable(&self, pos: usize) -> bool {
        self.rule(pos) != Rule::ReadOnly
    }

    /// The rule of a byte.
    fn rule(&self, pos: usize) -> Rule {
        self.map.cells.get(pos).map_or(Rule::ReadOnly, |cell| cell.rule)
    }

    fn shadow(&self, pos: usize, len: usize) -> u32 {
        let bytes = self.map.shadow.get(pos..pos + len).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn set_shadow(&mut self, pos: usize, len: usize, value: u32) {
        for (i, byte) in self.map.shadow.iter_mut().skip(pos).take(len).enumerate() {
            *byte = (value >> (8 * i)) as u8;
        }
    }

    fn command(&self) -> u32 {
        self.shadow(COMMAND, 2)
    }

    /// The program has memory enabled.
    pub(super) fn memory(&self) -> bool {
        self.no_command_memory || self.command() & u32::from(pci::cap::COMMAND_MEMORY) != 0
    }

    /// The command bits of decoding as the program has them.
    pub(super) fn decoding(&self) -> u16 {
        self.command() as u16 & (pci::cap::COMMAND_MEMORY | pci::cap::COMMAND_IO)
    }

    /// The program's INTx disable bit.
    pub(super) fn intx_disabled(&self) -> bool {
        self.command() & u32::from(pci::cap::COMMAND_INTX_DISABLE) != 0
    }

    /// The interrupt pin shown.
    pub(super) fn pin(&self) -> u8 {
        self.shadow(0x3d, 1) as u8
    }

    /// Makes the shadow's BARs what hardware of their size would keep
    /// (API-241 to API-243).
    fn fix_bars(&mut self) {
        let mut upper = None;
        for (bar, at) in self.bars.into_iter().zip(BARS.map(usize::from)) {
            let stored = self.shadow(at, 4);
            let value = match (bar, upper.take()) {
                (_, Some(mask)) => stored & mask,
                (None, None) => 0,
                (Some((mask, kind)), None) => {
                    // Bits 2:1 of a memory BAR: 64 bits wide.
                    upper = (kind & 7 == 4).then_some((mask >> 32) as u32);
                    stored & mask as u32 | kind
                }
            };
            self.set_shadow(at, 4, value);
        }
        self.set_shadow(0x30, 4, self.shadow(0x30, 4) & self.rom);
    }

    /// Whether the hardware's BARs are no longer those of open (API-238).
    pub(super) fn bars_lost(&self, function: &Function) -> bool {
        let pairs = self.physical_bars.iter().zip(BARS).take(6);
        pairs.into_iter().any(|(bar, at)| *bar != 0 && function.read(at, 4) != *bar)
    }

    /// The hardware's BARs as they were at open, by offset.
    pub(super) fn physical_bars(&self) -> impl Iterator<Item = (u16, u32)> + use<> {
        BARS.into_iter().zip(self.physical_bars)
    }
}
