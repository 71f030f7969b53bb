// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lab says of an accelerator.

use super::breaks::Breaks;
use super::spec::{DESCRIPTOR_BYTES, PAGE};

/// Most work queues of an accelerator.
pub const MAX_QUEUES: u8 = 16;
/// Most groups and engines.
pub const MAX_ENGINES: u8 = 8;
/// Most descriptors that all work queues together can hold.
pub const MAX_ENTRIES: u16 = 4096;
/// log2 of the most bytes of an operation: 2 GiB.
pub const MAX_TRANSFER: u8 = 31;
/// log2 of the most descriptors of a batch.
pub const MAX_BATCH: u8 = 15;

/// Size of an accelerator. The default is the one of a Sapphire Rapids CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Work queues, 1 to [`MAX_QUEUES`].
    pub queues: u8,
    /// Descriptors that all work queues together hold, 1 to [`MAX_ENTRIES`].
    pub entries: u16,
    /// Groups, and as many engines, 1 to [`MAX_ENGINES`].
    pub engines: u8,
    /// log2 of the longest operation in bytes, up to [`MAX_TRANSFER`].
    pub max_transfer: u8,
    /// log2 of the longest batch in descriptors, 1 to [`MAX_BATCH`].
    pub max_batch: u8,
    /// Each queue's configuration says which operations it takes; it is 64
    /// bytes long then, else 32.
    pub operations: bool,
    /// A driver has to ask for interrupt handles.
    pub handles: bool,
    /// Rules of page requests that it breaks.
    pub breaks: Breaks,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            queues: 8,
            entries: 128,
            engines: 4,
            max_transfer: MAX_TRANSFER,
            max_batch: 10,
            operations: false,
            handles: false,
            breaks: Breaks::empty(),
        }
    }
}

impl Config {
    /// The same within the limits.
    #[must_use]
    pub(super) fn clamped(self) -> Config {
        Config {
            queues: self.queues.clamp(1, MAX_QUEUES),
            entries: self.entries.clamp(1, MAX_ENTRIES),
            engines: self.engines.clamp(1, MAX_ENGINES),
            max_transfer: self.max_transfer.min(MAX_TRANSFER),
            max_batch: self.max_batch.clamp(1, MAX_BATCH),
            ..self
        }
    }

    /// Bytes of the BAR with the portals: four pages a queue.
    pub(super) fn portal_bytes(&self) -> u64 {
        (u64::from(self.queues) * 4 * PAGE).next_power_of_two()
    }

    /// MSI-X vectors: one for the device, one for each queue.
    pub(super) fn vectors(&self) -> u16 {
        u16::from(self.queues) + 1
    }
}

const _: () = assert!(PAGE.is_multiple_of(DESCRIPTOR_BYTES as u64));
