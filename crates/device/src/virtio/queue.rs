// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver sets of a queue, and its position.

/// Position of a queue: where the device goes on.
///
/// A device has nothing in flight when a queue stops, so both halves of a
/// packed position it gives are the same. One that a program set may have any
/// value; where a program set only the first half, the second is to be taken
/// from it (DPDK does, VNET-3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Split ring: the next available index.
    Split {
        /// Free-running, as in the ring.
        avail: u16,
    },
    /// Packed ring.
    Packed {
        /// Next available descriptor, 15 bits.
        avail: u16,
        /// Its wrap counter.
        avail_wrap: bool,
        /// Next descriptor to use, 15 bits.
        used: u16,
        /// Its wrap counter.
        used_wrap: bool,
    },
}

impl QueueState {
    /// Where a queue begins that nobody gave a position.
    #[must_use]
    pub fn initial(packed: bool) -> QueueState {
        QueueState::from_word(if packed { 0x8000_8000 } else { 0 }, packed)
    }

    /// The number that programs know (VDPA-6.3): of a packed ring bits 0-14
    /// available index, 15 its wrap counter, 16-30 used index, 31 its wrap
    /// counter; of a split one the available index.
    #[must_use]
    pub fn from_word(word: u32, packed: bool) -> QueueState {
        match packed {
            false => QueueState::Split { avail: word as u16 },
            true => QueueState::Packed {
                avail: word as u16 & 0x7fff,
                avail_wrap: word & 1 << 15 != 0,
                used: (word >> 16) as u16 & 0x7fff,
                used_wrap: word & 1 << 31 != 0,
            },
        }
    }

    /// See [`from_word`](Self::from_word).
    #[must_use]
    pub fn word(self) -> u32 {
        match self {
            QueueState::Split { avail } => u32::from(avail),
            QueueState::Packed { avail, avail_wrap, used, used_wrap } => {
                let half = |index: u16, wrap: bool| u32::from(index & 0x7fff) | u32::from(wrap) << 15;
                half(avail, avail_wrap) | half(used, used_wrap) << 16
            }
        }
    }
}

/// What a driver has set of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Size in descriptors: a power of two, at most the maximum.
    pub size: u16,
    /// IOVA of the descriptors (of a packed ring: of the ring). 0 is an
    /// address like any other (VNET-6.4).
    pub descriptors: u64,
    /// IOVA of the driver's area: available ring, driver event suppression.
    pub driver: u64,
    /// IOVA of the device's area: used ring, device event suppression.
    pub device: u64,
    /// Where it goes on; packed exactly if RING_PACKED is among the driver's
    /// features.
    pub state: QueueState,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VDPA-6.3
    #[test]
    fn positions_are_numbers() {
        for word in [0, 0x8000, 0x8000_8000, 0xffff_ffff, 0x7fff_8001] {
            assert_eq!(QueueState::from_word(word, true).word(), word);
        }
        assert_eq!(QueueState::from_word(0x0007_0003, false).word(), 3);
        let Some(QueueState::Packed { avail, avail_wrap, used, used_wrap }) =
            Some(QueueState::from_word(0x8005_0003, true))
        else {
            panic!("packed")
        };
        assert_eq!((avail, avail_wrap, used, used_wrap), (3, false, 5, true));
        assert_eq!(QueueState::initial(true).word(), 0x8000_8000);
    }
}
