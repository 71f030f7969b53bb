// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work queues and what is under way.

use std::collections::VecDeque;

use super::operate::Progress;
use super::spec::{Descriptor, opcode};

/// A work queue, its configuration apart.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Descriptors are taken and done.
    pub(super) enabled: bool,
    /// Entries, while it is enabled.
    pub(super) size: usize,
    /// What was submitted and has not begun, oldest first.
    pub(super) waiting: VecDeque<Descriptor>,
    /// What has begun.
    pub(super) active: Option<Job>,
    /// What became of the last submission.
    pub(super) answer: Answer,
    /// The place in the mapped portal where the next store is expected.
    pub(super) next: usize,
}

/// What became of a submission; a load from the portal gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// It is in the queue.
    #[default]
    Accepted = 0,
    /// The shared queue has no room: try again.
    Retry = 1,
    /// The dedicated queue had no room: the descriptor is gone.
    Dropped = 2,
}

/// A submitted descriptor that has begun.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) descriptor: Descriptor,
    pub(super) progress: Progress,
    /// It was found to make sense.
    pub(super) checked: bool,
    /// What a batch has come to.
    pub(super) batch: Option<Batch>,
}

/// A batch under way.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Descriptors read of the list so far.
    pub(super) read: u32,
    /// Descriptors done.
    pub(super) done: u32,
    /// One of them was not a success.
    pub(super) failed: bool,
    /// Descriptors read and not done.
    pub(super) fetched: VecDeque<Descriptor>,
    /// How far the first of those is.
    pub(super) progress: Progress,
    /// It was found to make sense.
    pub(super) checked: bool,
}

impl Job {
    pub(super) fn new(descriptor: Descriptor) -> Job {
        let batch = (descriptor.opcode() == opcode::BATCH).then(Batch::default);
        Job { descriptor, progress: Progress::default(), checked: false, batch }
    }
}

impl Queue {
    /// Descriptors in it.
    pub(super) fn occupancy(&self) -> usize {
        self.waiting.len() + usize::from(self.active.is_some())
    }

    /// Drops everything.
    pub(super) fn abort(&mut self) {
        self.waiting.clear();
        self.active = None;
    }

    /// PASIDs of what is in it.
    pub(super) fn pasids(&self) -> impl Iterator<Item = u32> {
        let active = self.active.iter().map(|job| &job.descriptor);
        active.chain(&self.waiting).map(|descriptor| descriptor.pasid & 0xf_ffff)
    }
}
