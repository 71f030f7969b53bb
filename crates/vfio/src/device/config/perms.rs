// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program may see and change of each capability: which bits are the
//! host's shadow ("virtual") and which the hardware's, and which of them can
//! be written (API-234 to API-267).

use pci::Function;

/// How accesses to a byte are treated besides its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A byte of no capability: straight to the hardware (API-245).
    Raw,
    /// A shown capability without a table: writes are dropped unseen.
    ReadOnly,
    /// Written straight to the hardware; the header reads from the shadow.
    Vendor,
    /// Bits decide, nothing else happens.
    Bits,
    /// The header: memory enable, INTx disable and BARs act.
    Header,
    /// Power management: the state acts.
    Power,
    /// Vital product data: the address acts.
    Vpd,
    /// PCI Express: function reset and read request size act.
    Express,
    /// Advanced features: function reset acts.
    AdvancedFeatures,
    /// MSI: the control word is adjusted.
    Msi,
}

/// Bits of one capability, by offset from its start.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) rule: Rule,
    /// Bits of the shadow.
    pub(super) virt: Vec<u8>,
    /// Bits that can be written.
    pub(super) write: Vec<u8>,
}

const ALL: u32 = u32::MAX;

impl Table {
    fn new(rule: Rule, len: usize) -> Table {
        // Whole dwords, so that a last short piece has bits as well.
        let len = len.next_multiple_of(4);
        Table { rule, virt: vec![0; len], write: vec![0; len] }
    }

    fn set(mut self, offset: usize, len: usize, virt: u32, write: u32) -> Table {
        for i in 0..len {
            if let (Some(v), Some(w)) = (self.virt.get_mut(offset + i), self.write.get_mut(offset + i)) {
                (*v, *w) = ((virt >> (8 * i)) as u8, (write >> (8 * i)) as u8);
            }
        }
        self
    }

    /// A standard capability, whose next pointer is always the shadow's so
    /// that capabilities can be hidden behind it.
    fn standard(rule: Rule, len: usize) -> Table {
        Table::new(rule, len).set(1, 1, ALL, 0)
    }

    /// An extended capability, whose first dword is the shadow's (API-264).
    fn extended(rule: Rule, len: usize) -> Table {
        Table::new(rule, len).set(0, 4, ALL, 0)
    }

    /// The header (API-234 to API-244).
    pub(super) fn header() -> Table {
        let table = Table::new(Rule::Header, 0x40)
            .set(0x00, 4, ALL, 0) // a VF's ids read FFFF in hardware
            .set(0x04, 2, 0x0400, ALL) // INTx disable is emulated
            .set(0x06, 2, 0x0010, 0) // capability list, which may be hidden whole
            .set(0x0c, 2, 0, ALL) // cache line size, latency timer
            .set(0x0f, 1, 0, ALL) // BIST
            .set(0x30, 4, ALL, ALL)
            .set(0x34, 1, ALL, 0)
            .set(0x3c, 1, ALL, ALL)
            .set(0x3d, 1, ALL, 0);
        (0x10..0x28).step_by(4).fold(table, |table, bar| table.set(bar, 4, ALL, ALL))
    }

    /// The table of a standard capability at `at`.
    pub(super) fn of(id: u8, function: &Function, at: u16) -> Table {
        match id {
            // PME is the host's; the state bits are written by a power change.
            0x01 => Table::standard(Rule::Power, 8).set(2, 2, 0xf800, 0).set(4, 2, 0x8100, !0x8103),
            0x03 => Table::standard(Rule::Vpd, 8).set(2, 2, ALL, ALL).set(4, 4, ALL, ALL),
            0x05 => Table::msi(function.read(at + 2, 2) as u16),
            0x07 => Table::standard(Rule::Bits, 24).set(2, 2, 0, ALL).set(8, 4, 0, ALL),
            0x09 => Table::standard(Rule::Vendor, 4).set(0, 1, ALL, 0),
            0x10 => Table::express(),
            0x13 => Table::standard(Rule::AdvancedFeatures, 6).set(4, 1, 1, 1),
            _ => Table::standard(Rule::ReadOnly, 4).set(0, 1, ALL, 0),
        }
    }

    /// Function reset, payload size and read request size are the shadow's;
    /// phantom functions and ARI forwarding are not the user's (API-255).
    fn express() -> Table {
        Table::standard(Rule::Express, 0x3c).set(0x08, 2, 0xf0e0, !0x0200).set(0x28, 2, 0, !0x0020)
    }

    /// API-252
    fn msi(control: u16) -> Table {
        let (wide, maskable) = (control & 0x80 != 0, control & 0x100 != 0);
        let data = if wide { 12 } else { 8 };
        let mut table = Table::standard(Rule::Msi, msi_length(control)).set(2, 1, ALL, ALL).set(4, 4, ALL, ALL);
        if wide {
            table = table.set(8, 4, ALL, ALL);
        }
        table = table.set(data, 2, ALL, ALL);
        if maskable {
            table = table.set(data + 4, 4, 0, ALL).set(data + 8, 4, 0, ALL);
        }
        table
    }

    /// The table of an extended capability.
    pub(super) fn of_extended(id: u16) -> Table {
        match id {
            // AER: the bits that were there when the rule was written (API-265).
            0x01 => {
                let (uncorrectable, correctable) = (0x03ff_f031, 0x0000_f1c1);
                Table::extended(Rule::Bits, 0x2c)
                    .set(0x04, 4, 0, uncorrectable)
                    .set(0x08, 4, 0, uncorrectable)
                    .set(0x0c, 4, 0, uncorrectable)
                    .set(0x10, 4, 0, correctable)
                    .set(0x14, 4, 0, correctable)
                    .set(0x18, 4, 0, 0x0140)
            }
            // Power budgeting: the data select register.
            0x04 => Table::extended(Rule::Bits, 16).set(4, 1, 0, ALL),
            0x0b | 0x23 => Table::extended(Rule::Vendor, 4),
            _ => Table::extended(Rule::ReadOnly, 4),
        }
    }
}

fn msi_length(control: u16) -> usize {
    10 + if control & 0x80 != 0 { 4 } else { 0 } + if control & 0x100 != 0 { 10 } else { 0 }
}

/// Bytes of a standard capability that a program is shown; 0 hides it
/// (API-246).
pub(super) fn length(id: u8, function: &Function, at: u16) -> usize {
    match id {
        0x01 | 0x03 => 8,
        0x02 | 0x11 => 12,
        0x05 => msi_length(function.read(at + 2, 2) as u16),
        0x07 => {
            // Version 1 and 2 have error correction registers.
            if function.read(at + 2, 2) & 0x3000 != 0 { 24 } else { 8 }
        }
        // HyperTransport: a type in the upper three bits makes it short.
        0x08 => 24 + if function.read(at + 3, 1) & 0xe0 == 0 { 4 } else { 0 },
        0x09 => function.read(at + 2, 1) as usize,
        0x10 => express_length(function.read(at + 2, 2) as u16),
        // SATA: registers inside the capability or in a BAR.
        0x12 => 8 + if function.read(at + 4, 1) & 0xf == 0xf { 8 } else { 0 },
        0x13 => 6,
        _ => 0,
    }
}

fn express_length(flags: u16) -> usize {
    let integrated = flags >> 4 & 0xf == 9;
    match (flags & 0xf, integrated) {
        (1, true) => 0x0c,
        (1, false) => 0x14,
        (_, true) => 0x2c,
        (_, false) => 0x3c,
    }
}

/// Bytes of an extended capability that a program is shown; 0 hides it
/// (API-260, API-261).
pub(super) fn extended_length(id: u16, function: &Function, at: u16) -> usize {
    let byte = |offset: u16| function.read(at + offset, 1) as usize;
    match id {
        0x01 => 0x2c,
        0x02 | 0x08 | 0x09 => virtual_channels(function, at),
        0x03 => 12,
        0x04 | 0x13 => 16,
        0x0b | 0x23 => (function.read(at + 4, 4) >> 20) as usize,
        0x0d => access_control(byte(4), byte(5)),
        0x0e | 0x0f | 0x18 => 8,
        0x10 => 0x40,
        0x12 => 48,
        0x15 => 4 + (byte(8) >> 5) * 8,
        0x16 => 16 + (byte(4) & 0x1f) + 1,
        0x17 => {
            let capability = function.read(at + 4, 4);
            // The steering table is in the capability only if it says so.
            if capability & 0x600 == 0x200 { 12 + (capability >> 16 & 0x7ff) as usize * 2 + 2 } else { 12 }
        }
        _ => 0,
    }
}

/// ACS with egress control has a vector of so many bits; 0 means 256.
fn access_control(capability: usize, bits: usize) -> usize {
    if capability & 0x20 == 0 {
        return 8;
    }
    8 + if bits == 0 { 256 } else { bits.next_multiple_of(32) } / 8
}

fn virtual_channels(function: &Function, at: u16) -> usize {
    let channels = function.read(at + 4, 4) as usize & 7;
    let arbitration = function.read(at + 8, 4);
    let phases = match arbitration {
        a if a & 8 != 0 => 128,
        a if a & 4 != 0 => 64,
        a if a & 2 != 0 => 32,
        _ => 0,
    };
    let len = 0x10 + (1 + channels) * 12;
    if phases == 0 { len } else { len.next_multiple_of(16) + phases / 2 }
}
