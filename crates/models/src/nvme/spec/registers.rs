// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Controller registers (3.1) and doorbells.

use bitflags::bitflags;

codes! {
    /// Offsets of the registers in BAR 0, as 32-bit words.
    Register: u32 {
        /// Controller Capabilities, low word.
        CapLow = 0x00,
        /// Controller Capabilities, high word.
        CapHigh = 0x04,
        /// Version.
        Vs = 0x08,
        /// Interrupt Mask Set.
        Intms = 0x0c,
        /// Interrupt Mask Clear.
        Intmc = 0x10,
        /// Controller Configuration.
        Cc = 0x14,
        /// Controller Status.
        Csts = 0x1c,
        /// NVM Subsystem Reset.
        Nssr = 0x20,
        /// Admin Queue Attributes.
        Aqa = 0x24,
        /// Admin Submission Queue base, low word.
        AsqLow = 0x28,
        /// Admin Submission Queue base, high word.
        AsqHigh = 0x2c,
        /// Admin Completion Queue base, low word.
        AcqLow = 0x30,
        /// Admin Completion Queue base, high word.
        AcqHigh = 0x34,
    }
}

/// Where the doorbells are (3.1.19, 3.1.20), with a stride of four bytes.
pub mod doorbell {
    /// Offset of the first one.
    pub const BASE: u64 = 0x1000;

    /// Offset of the tail doorbell of submission queue `id`.
    #[must_use]
    pub const fn submission(id: u16) -> u64 {
        BASE + 8 * id as u64
    }

    /// Offset of the head doorbell of completion queue `id`.
    #[must_use]
    pub const fn completion(id: u16) -> u64 {
        BASE + 8 * id as u64 + 4
    }
}

/// Controller Capabilities (3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// A controller with queues of up to `entries` entries, physically
    /// contiguous; ready within `timeout` × 500 ms; pages of 4 KiB up to
    /// `4096 << max_page`; the NVM command set; a doorbell stride of 4 bytes.
    #[must_use]
    pub const fn new(entries: u16, timeout: u8, max_page: u8) -> Cap {
        let mqes = entries as u64 - 1;
        Cap(mqes | 1 << 16 | (timeout as u64) << 24 | 1 << 37 | (max_page as u64 & 0xf) << 52)
    }

    /// Largest number of entries of a queue.
    #[must_use]
    pub const fn max_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// Largest memory page size as a power of two above 4 KiB (MPSMAX).
    #[must_use]
    pub const fn max_page(self) -> u8 {
        (self.0 >> 52 & 0xf) as u8
    }
}

/// Controller Configuration (3.1.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Bits that are not reserved.
    pub const MASK: u32 = 0x00ff_fff1;
    /// Enabled, 4 KiB pages, 64-byte submission and 16-byte completion entries.
    pub const ENABLED: Cc = Cc(1 | 6 << 16 | 4 << 20);

    /// Enable.
    #[must_use]
    pub const fn enable(self) -> bool {
        self.0 & 1 != 0
    }

    /// I/O Command Set Selected.
    #[must_use]
    pub const fn css(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// Memory Page Size: pages are `4096 << mps`.
    #[must_use]
    pub const fn mps(self) -> u8 {
        (self.0 >> 7 & 0xf) as u8
    }

    /// Arbitration Mechanism Selected.
    #[must_use]
    pub const fn ams(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// Shutdown Notification.
    #[must_use]
    pub const fn shutdown(self) -> Shutdown {
        match self.0 >> 14 & 3 {
            0 => Shutdown::None,
            1 => Shutdown::Normal,
            2 => Shutdown::Abrupt,
            _ => Shutdown::Reserved,
        }
    }

    /// I/O Submission Queue Entry Size, a power of two.
    #[must_use]
    pub const fn iosqes(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }

    /// I/O Completion Queue Entry Size, a power of two.
    #[must_use]
    pub const fn iocqes(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }
}

/// What CC.SHN says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// No notification.
    None,
    /// Normal shutdown.
    Normal,
    /// Abrupt shutdown.
    Abrupt,
    /// Reserved value.
    Reserved,
}

bitflags! {
    /// Controller Status (3.1.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Csts: u32 {
        /// Ready.
        const RDY = 1;
        /// Controller Fatal Status.
        const CFS = 1 << 1;
        /// Shutdown processing occurring (SHST 01b).
        const SHUTTING_DOWN = 1 << 2;
        /// Shutdown processing complete (SHST 10b).
        const SHUT_DOWN = 1 << 3;
    }
}

/// Admin Queue Attributes (3.1.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aqa(pub u32);

impl Aqa {
    /// Bits that are not reserved.
    pub const MASK: u32 = 0x0fff_0fff;

    /// Attributes for queues of that many entries, 2 to 4096.
    #[must_use]
    pub const fn new(submission: u16, completion: u16) -> Aqa {
        Aqa((submission as u32).saturating_sub(1) | (completion as u32).saturating_sub(1) << 16)
    }

    /// Entries of the admin submission queue.
    #[must_use]
    pub const fn submission_entries(self) -> u32 {
        (self.0 & 0xfff) + 1
    }

    /// Entries of the admin completion queue.
    #[must_use]
    pub const fn completion_entries(self) -> u32 {
        (self.0 >> 16 & 0xfff) + 1
    }
}
