// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work queues and what is under way.

use std::collections::{BTreeMap, VecDeque};

use device::PageTicket;
use iommu::PageResponseCode;

use super::operate::{Outcome, Progress};
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
    /// What has begun and can go on, oldest first.
    pub(super) ready: VecDeque<Job>,
    /// What has begun and waits for a page.
    pub(super) blocked: BTreeMap<PageTicket, Job>,
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
    pub(super) run: Run,
    /// What a batch has come to.
    pub(super) batch: Option<Batch>,
    /// What it ends with if the page that it waits for does not come.
    pub(super) otherwise: Option<Outcome>,
    /// That page does not come.
    pub(super) refused: bool,
}

/// How far one descriptor is.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) progress: Progress,
    /// It was found to make sense.
    pub(super) checked: bool,
    /// It is done but for its completion record.
    pub(super) ended: Option<Outcome>,
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
    /// Descriptors read of the list last.
    pub(super) fetched: Vec<Descriptor>,
    /// The first of those that is not done.
    pub(super) next: usize,
    /// How far that one is.
    pub(super) run: Run,
}

impl Job {
    pub(super) fn new(descriptor: Descriptor) -> Job {
        let batch = (descriptor.opcode() == opcode::BATCH).then(Batch::default);
        Job { descriptor, run: Run::default(), batch, otherwise: None, refused: false }
    }
}

impl Queue {
    /// Descriptors in it.
    pub(super) fn occupancy(&self) -> usize {
        self.waiting.len() + self.ready.len() + self.blocked.len()
    }

    /// Drops everything.
    pub(super) fn abort(&mut self) {
        self.waiting.clear();
        self.ready.clear();
        self.blocked.clear();
    }

    /// Drops what goes with a PASID.
    pub(super) fn abort_pasid(&mut self, pasid: u32) {
        self.waiting.retain(|descriptor| descriptor.pasid & 0xf_ffff != pasid);
        self.ready.retain(|job| job.descriptor.pasid & 0xf_ffff != pasid);
        self.blocked.retain(|_, job| job.descriptor.pasid & 0xf_ffff != pasid);
    }

    /// The answer to a page request; whether it was one of this queue's.
    pub(super) fn answered(&mut self, ticket: PageTicket, code: PageResponseCode) -> bool {
        let Some(mut job) = self.blocked.remove(&ticket) else { return false };
        job.refused = code != PageResponseCode::Success;
        self.ready.push_back(job);
        true
    }

    /// Whether something with the PASID of a drain came before it and is not
    /// done.
    pub(super) fn holds(&self, drain: &Descriptor) -> bool {
        let mut begun = self.ready.iter().chain(self.blocked.values());
        begun.any(|job| (job.descriptor.pasid ^ drain.pasid) & 0xf_ffff == 0)
    }

    /// PASIDs of what is in it.
    pub(super) fn pasids(&self) -> impl Iterator<Item = u32> {
        let begun = self.ready.iter().chain(self.blocked.values()).map(|job| &job.descriptor);
        begun.chain(&self.waiting).map(|descriptor| descriptor.pasid & 0xf_ffff)
    }
}
