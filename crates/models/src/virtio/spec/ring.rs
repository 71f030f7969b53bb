// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Layouts of the split (2.7) and the packed (2.8) virtqueue. All fields are
//! little endian.

/// Size in bytes of a descriptor, split or packed.
pub const DESC: usize = 16;

/// Flags of a descriptor.
pub mod desc {
    /// The chain goes on: at `next`, or in the next slot of a packed ring.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer; otherwise it reads it.
    pub const WRITE: u16 = 2;
    /// The buffer holds a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed: the driver's wrap counter when the slot was made available.
    pub const AVAIL: u16 = 1 << 7;
    /// Packed: the device's wrap counter when the slot was used.
    pub const USED: u16 = 1 << 15;
}

/// Split: `flags` of the available ring: no interrupts, please.
pub const NO_INTERRUPT: u16 = 1;
/// Split: `flags` of the used ring: no kicks, please.
pub const NO_NOTIFY: u16 = 1;

/// Packed: `flags` of an event suppression structure.
pub mod event {
    /// Events wanted.
    pub const ENABLE: u16 = 0;
    /// No events.
    pub const DISABLE: u16 = 1;
    /// An event when the slot named is reached.
    pub const DESC: u16 = 2;
}

/// A descriptor of a split ring, or of a table of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Where the buffer lies.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// [`desc`] flags.
    pub flags: u16,
    /// Next descriptor of the chain. In memory of a packed ring this field
    /// holds the flags, and the one before it the buffer's id.
    pub next: u16,
}

impl Desc {
    /// From memory, as two words.
    #[inline]
    #[must_use]
    pub fn from_words([addr, rest]: [u64; 2]) -> Desc {
        let rest = u64::from_le(rest);
        let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
        Desc { addr: u64::from_le(addr), len, flags, next }
    }

    /// From a packed ring or a table of one: the descriptor and its id.
    #[inline]
    #[must_use]
    pub fn from_packed_words(words: [u64; 2]) -> (Desc, u16) {
        let Desc { addr, len, flags: id, next: flags } = Desc::from_words(words);
        (Desc { addr, len, flags, next: 0 }, id)
    }

    /// To memory, as two words.
    #[must_use]
    pub fn to_words(self) -> [u64; 2] {
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        [self.addr.to_le(), rest.to_le()]
    }
}

/// Whether an index in `old .. new` is the one before which an event was asked
/// for (2.7.10).
#[inline]
#[must_use]
pub fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
