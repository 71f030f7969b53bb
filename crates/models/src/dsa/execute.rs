// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors, one after the other: from the queue to the completion record.

use std::sync::atomic::Ordering;

use device::migration::Activity;
use device::{Asked, Io, PageRequests, PageTicket};
use iommu::{Access, DmaFault, FaultReason, Session};
use vm_memory::Bytes as _;
use zerocopy::IntoBytes as _;

use super::Accelerator;
use super::breaks::{Breaks, misbehave};
use super::check::{Limits, check};
use super::moving::{Room, read};
use super::operate::{Outcome, step};
use super::queue::{Batch, Job, Queue, Run};
use super::registers::SoftwareError;
use super::spec::{
    COMPLETION_BYTES, Completion, DESCRIPTOR_BYTES, Descriptor, Status, WRITE_FAULT, field, flag, opcode, permission,
    wqcfg,
};

/// Descriptors of a batch read in one go.
pub(super) const FETCH: usize = 64;
/// Bytes of the longest of a batch's moves that is a quick one.
const QUICK: u64 = 4096;

/// What may be done in a turn.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) descriptors: u32,
    pub(super) bytes: u64,
}

impl Budget {
    pub(super) fn is_spent(&self) -> bool {
        self.descriptors == 0 || self.bytes == 0
    }

    fn take_descriptor(&mut self) {
        self.descriptors = self.descriptors.saturating_sub(1);
    }
}

/// What a queue's configuration says of its descriptors, read once a turn.
pub(super) struct Rules {
    queue: usize,
    pub(super) limits: Limits,
    pasid_enabled: bool,
    /// Descriptors may wait for pages.
    blocks: bool,
    breaks: Breaks,
    /// Permissions of the MSI-X vectors.
    permissions: Vec<u32>,
}

/// What is told when the DMA is over.
#[derive(Debug, Default)]
pub(super) struct News {
    interrupts: Vec<u16>,
    errors: Vec<SoftwareError>,
}

impl Rules {
    /// The PASID that a descriptor's DMA goes with.
    fn pasid_of(&self, descriptor: &Descriptor) -> Option<u32> {
        self.pasid_enabled.then_some(descriptor.pasid & 0xf_ffff)
    }

    /// Whether a descriptor may use its interrupt handle, which is the number
    /// of an MSI-X vector. Vector 0 is the device's own.
    fn may_interrupt(&self, descriptor: &Descriptor, pasid: Option<u32>) -> bool {
        let permission = match self.permissions.get(usize::from(descriptor.interrupt)) {
            Some(permission) if descriptor.interrupt != 0 => *permission,
            _ => return false,
        };
        let allowed = (permission & permission::PASID_ENABLE != 0).then(|| field(permission, permission::PASID));
        permission & permission::IGNORE != 0 || allowed == pasid
    }
}

impl Accelerator {
    /// What a queue takes.
    pub(super) fn limits(&self, queue: usize) -> Limits {
        let (mode, limits) = (self.wqcfg(queue, wqcfg::MODE), self.wqcfg(queue, wqcfg::LIMITS));
        let blocks = mode & wqcfg::BLOCK_ON_FAULT != 0;
        Limits {
            bytes: 1 << field(limits, wqcfg::MAX_TRANSFER),
            batch: 1 << field(limits, wqcfg::MAX_BATCH),
            operations: self.queue_operations(queue),
            withheld: if blocks { 0 } else { flag::BLOCK_ON_FAULT },
            in_batch: false,
        }
    }

    fn rules(&mut self, queue: usize) -> Rules {
        let mut permissions = std::mem::take(&mut self.room.permissions);
        permissions.clear();
        permissions.extend((0..self.config.vectors()).map(|vector| self.permission(vector)));
        let mode = self.wqcfg(queue, wqcfg::MODE);
        Rules {
            queue,
            limits: self.limits(queue),
            pasid_enabled: mode & wqcfg::PASID_ENABLE != 0,
            blocks: mode & wqcfg::BLOCK_ON_FAULT != 0,
            breaks: self.config.breaks,
            permissions,
        }
    }

    /// Does descriptors of one queue; whether there were any.
    pub(super) fn run_queue(&mut self, io: &Io<'_>, number: usize, budget: &mut Budget) -> bool {
        // While it drains only what has begun goes on.
        let begins = io.activity == Activity::Running;
        let idle = |queue: &Queue| queue.ready.is_empty() && (queue.waiting.is_empty() || !begins);
        if self.queues.get(number).is_none_or(idle) {
            return false;
        }
        let rules = self.rules(number);
        let mut news = News::default();
        let mut any = false;
        while !budget.is_spent() {
            let Some(queue) = self.queues.get_mut(number) else { break };
            let Some(mut job) = next_job(queue, begins, |_| true) else { break };
            let pasid = rules.pasid_of(&job.descriptor);
            let mut dma = match pasid {
                Some(pasid) => io.dma.session_pasid(pasid),
                None => io.dma.session(),
            };
            // As many as go with the same session.
            let stalled = loop {
                let mut work = Work {
                    dma: &mut dma,
                    page_requests: io.page_requests,
                    room: &mut self.room,
                    rules: &rules,
                    pasid,
                    news: &mut news,
                };
                match work.advance(&mut job, budget) {
                    Ok(()) => any = true,
                    Err(Pause::Spent) => {
                        any = true;
                        queue.ready.push_front(job);
                        break false;
                    }
                    Err(Pause::Blocked(ticket, otherwise)) => {
                        any = true;
                        job.otherwise = Some(otherwise);
                        queue.blocked.insert(ticket, job);
                    }
                    // Goes on when an answer has made room for a request.
                    Err(Pause::Full) => {
                        queue.ready.push_front(job);
                        break true;
                    }
                }
                if budget.is_spent() {
                    break false;
                }
                job = match next_job(queue, begins, |next| rules.pasid_of(next) == pasid) {
                    Some(next) => next,
                    None => break false,
                };
            };
            if stalled {
                break;
            }
        }
        self.room.permissions = rules.permissions;
        for error in &news.errors {
            self.software_error(io, error);
        }
        for vector in news.interrupts {
            self.message(io, vector);
        }
        any
    }
}

/// Takes the next job of a queue, if it is one of those that are wanted; with
/// `begins` perhaps a new one.
fn next_job(queue: &mut Queue, begins: bool, wanted: impl Fn(&Descriptor) -> bool) -> Option<Job> {
    if let Some(job) = queue.ready.front() {
        return if wanted(&job.descriptor) { queue.ready.pop_front() } else { None };
    }
    let next = queue.waiting.front().filter(|next| begins && wanted(next))?;
    if next.opcode() == opcode::DRAIN && queue.holds(next) {
        return None;
    }
    queue.waiting.pop_front().map(Job::new)
}

/// Why a descriptor does not go on.
enum Pause {
    /// The budget is spent.
    Spent,
    /// It has asked for a page; what it ends with if that does not come.
    Blocked(PageTicket, Outcome),
    /// It cannot ask for a page now.
    Full,
}

struct Work<'w, 's> {
    dma: &'w mut Session<'s>,
    page_requests: &'w PageRequests,
    room: &'w mut Room,
    rules: &'w Rules,
    pasid: Option<u32>,
    news: &'w mut News,
}

impl Work<'_, '_> {
    /// Goes on with a submitted descriptor to its end, if it can.
    fn advance(&mut self, job: &mut Job, budget: &mut Budget) -> Result<(), Pause> {
        let descriptor = job.descriptor;
        let refused = std::mem::take(&mut job.refused);
        let mut otherwise = job.otherwise.take().filter(|_| refused);
        let outcome = match (&job.run.ended, &mut job.batch) {
            (Some(ended), _) => *ended,
            (None, None) => self.single(&descriptor, &mut job.run, None, &mut otherwise, budget)?,
            (None, Some(batch)) => {
                if !std::mem::replace(&mut job.run.checked, true)
                    && let Err(outcome) = self.check(&descriptor, None)
                {
                    outcome
                } else {
                    self.batch(&descriptor, batch, &mut otherwise, budget)?
                }
            }
        };
        job.run.ended = Some(outcome);
        self.complete(&descriptor, &outcome, None, otherwise.is_some())
    }

    /// The outcome of an access, unless it is a fault that waits for a page.
    fn wait_for_page(&self, may_wait: bool, outcome: Outcome) -> Result<Outcome, Pause> {
        let Some(fault) = outcome.fault.filter(|fault| may_wait && fault.reason.is_recoverable()) else {
            return Ok(outcome);
        };
        match self.page_requests.ask(self.pasid, fault.access, fault.iova) {
            Asked::Sent(ticket) => {
                misbehave(self.rules.breaks, self.page_requests, self.pasid, &fault);
                Err(Pause::Blocked(ticket, outcome))
            }
            Asked::Full => Err(Pause::Full),
            Asked::Off => Ok(outcome),
        }
    }

    /// Checks a descriptor; the outcome of one that cannot be done.
    fn check(&mut self, descriptor: &Descriptor, batch: Option<u32>) -> Result<(), Outcome> {
        if descriptor.has(flag::RECORD) && !descriptor.completion.is_multiple_of(COMPLETION_BYTES as u64) {
            return Err(Outcome::plain(Status::RecordAlignment));
        }
        let limits = Limits { in_batch: batch.is_some(), ..self.rules.limits };
        if let Err(refused) = check(descriptor, &limits) {
            return Err(Outcome { value: refused.flags.into(), ..Outcome::plain(refused.status) });
        }
        if descriptor.has(flag::INTERRUPT) && !self.rules.may_interrupt(descriptor, self.pasid) {
            return Err(Outcome::plain(Status::Interrupt));
        }
        Ok(())
    }

    /// Goes on with a descriptor that is no batch. `otherwise`: what it ends
    /// with, as the page that it waited for does not come.
    fn single(
        &mut self,
        descriptor: &Descriptor,
        run: &mut Run,
        batch: Option<u32>,
        otherwise: &mut Option<Outcome>,
        budget: &mut Budget,
    ) -> Result<Outcome, Pause> {
        if let Some(outcome) = otherwise.take() {
            return Ok(outcome);
        }
        if !std::mem::replace(&mut run.checked, true) {
            tracing::trace!(target: "vfuse::dsa", queue = self.rules.queue, ?descriptor, "descriptor");
            budget.take_descriptor();
            if let Err(outcome) = self.check(descriptor, batch) {
                return Ok(outcome);
            }
        }
        loop {
            if let Some(outcome) = step(self.dma, self.room, descriptor, &mut run.progress, &mut budget.bytes) {
                return self.wait_for_page(descriptor.has(flag::BLOCK_ON_FAULT), outcome);
            }
            if budget.bytes == 0 {
                return Err(Pause::Spent);
            }
        }
    }

    /// Goes on with a batch.
    fn batch(
        &mut self,
        descriptor: &Descriptor,
        batch: &mut Batch,
        otherwise: &mut Option<Outcome>,
        budget: &mut Budget,
    ) -> Result<Outcome, Pause> {
        let traced = tracing::enabled!(target: "vfuse::dsa", tracing::Level::TRACE);
        loop {
            if !batch.run.checked && !traced {
                self.quick_moves(batch, budget);
            }
            let Some(next) = batch.fetched.get(batch.next).copied() else {
                if batch.read == descriptor.size {
                    (self.room.list, batch.next) = (std::mem::take(&mut batch.fetched), 0);
                    return Ok(batch.ended());
                }
                if let Some(outcome) = otherwise.take() {
                    return Ok(outcome);
                }
                if let Err(fault) = self.fetch(descriptor, batch) {
                    let outcome =
                        Outcome { fault: Some(fault), done: batch.done, ..Outcome::plain(Status::BatchPageFault) };
                    return self.wait_for_page(descriptor.has(flag::BLOCK_ON_FAULT), outcome);
                }
                continue;
            };
            if next.has(flag::FENCE) && batch.failed {
                return Ok(batch.ended());
            }
            if budget.is_spent() {
                return Err(Pause::Spent);
            }
            // PASID and privilege are those of the batch.
            let next = Descriptor { pasid: descriptor.pasid, ..next };
            let index = Some(batch.done);
            let outcome = match batch.run.ended {
                Some(ended) => ended,
                None => self.single(&next, &mut batch.run, index, otherwise, budget)?,
            };
            batch.run.ended = Some(outcome);
            self.complete(&next, &outcome, index, otherwise.take().is_some())?;
            batch.next += 1;
            batch.done += 1;
            batch.failed |= outcome.status != Status::Success;
            batch.run = Run::default();
        }
    }

    /// Does those of the next descriptors of a batch that are short moves of
    /// which nobody is told: there may be many, and little to each. Stops
    /// before the first that is not, or does not succeed.
    fn quick_moves(&mut self, batch: &mut Batch, budget: &mut Budget) {
        let blocks = flag::BLOCK_ON_FAULT & !self.rules.limits.withheld;
        let most = self.rules.limits.bytes.min(QUICK);
        if self.rules.limits.operations & 1 << opcode::MOVE == 0 {
            return;
        }
        let mut left = batch.fetched.get(batch.next..).unwrap_or_default();
        left = left.get(..budget.descriptors as usize).unwrap_or(left);
        let mut bytes = 0;
        let moves = left.iter().map_while(|next| {
            let size = u64::from(next.size);
            let plain = next.operation & !blocks == u32::from(opcode::MOVE) << 24;
            let quick = plain && size.wrapping_sub(1) < most && next.reserved == 0 && next.specific == [0; 24];
            (quick && bytes < budget.bytes).then(|| {
                bytes += size;
                (next.source, next.destination, next.size as usize)
            })
        });
        let done = self.dma.copy_all_direct(moves);
        let moved = left.iter().take(done).map(|next| u64::from(next.size)).sum();
        batch.next += done;
        batch.done += done as u32;
        budget.descriptors -= done as u32;
        budget.bytes = budget.bytes.saturating_sub(moved);
    }

    /// Reads more of a batch's list. What was read before a fault is done.
    fn fetch(&mut self, descriptor: &Descriptor, batch: &mut Batch) -> Result<(), DmaFault> {
        let count = FETCH.min((descriptor.size - batch.read) as usize);
        let at = descriptor.source.wrapping_add(u64::from(batch.read) * DESCRIPTOR_BYTES as u64);
        batch.next = 0;
        if batch.fetched.is_empty() {
            batch.fetched = std::mem::take(&mut self.room.list);
        }
        // What is there is read over.
        batch.fetched.resize(count, Descriptor::default());
        let reach = read(self.dma, at, batch.fetched.as_mut_slice().as_mut_bytes());
        let whole = reach.done / DESCRIPTOR_BYTES;
        batch.fetched.truncate(whole);
        batch.read += whole as u32;
        match reach.fault {
            Some(fault) if whole == 0 => Err(fault),
            _ => Ok(()),
        }
    }

    /// Writes the completion record, interrupts, reports an error of which
    /// there is no record. `refused`: the record's page does not come.
    fn complete(
        &mut self,
        descriptor: &Descriptor,
        outcome: &Outcome,
        batch: Option<u32>,
        refused: bool,
    ) -> Result<(), Pause> {
        if outcome.status == Status::Success && !descriptor.has(flag::REQUEST_RECORD | flag::INTERRUPT) {
            return Ok(());
        }
        let written = outcome.fault.is_some_and(|fault| fault.access == Access::Write);
        let status = outcome.status as u8 | if written { WRITE_FAULT } else { 0 };
        let failed = outcome.status != Status::Success;
        let address = outcome.fault.map_or(0, |fault| fault.iova);
        let flags = if outcome.status == Status::Flags { outcome.value as u32 } else { 0 };
        let error = SoftwareError {
            code: status,
            queue: Some(self.rules.queue),
            descriptor: Some(*descriptor),
            batch,
            flags,
            address,
        };
        let has_record = descriptor.has(flag::RECORD) && outcome.status != Status::RecordAlignment;
        if has_record && (failed || descriptor.has(flag::REQUEST_RECORD)) {
            let record = Completion {
                status,
                result: outcome.result,
                done: outcome.done,
                address,
                value: outcome.value,
                ..Completion::default()
            };
            if let Err(fault) = write_record(self.dma, descriptor.completion, &record) {
                let waits = self.rules.blocks && !refused;
                self.wait_for_page(waits, Outcome { fault: Some(fault), ..*outcome })?;
                let code = Status::RecordFault as u8 | WRITE_FAULT;
                self.news.errors.push(SoftwareError { code, address: fault.iova, flags: 0, ..error });
            }
        } else if failed && !has_record {
            self.news.errors.push(error);
        }
        if descriptor.has(flag::INTERRUPT) && self.rules.may_interrupt(descriptor, self.pasid) {
            self.news.interrupts.push(descriptor.interrupt);
        }
        Ok(())
    }
}

impl Batch {
    fn ended(&self) -> Outcome {
        let status = if self.failed { Status::BatchFailed } else { Status::Success };
        Outcome { done: self.done, ..Outcome::plain(status) }
    }
}

/// Stores a completion record so that the program sees all of it when it sees
/// the status.
fn write_record(dma: &mut Session<'_>, iova: u64, record: &Completion) -> Result<(), DmaFault> {
    let (first, rest) = record.as_bytes().split_at(8);
    let translation = dma.translate(iova, Access::Write)?;
    let gone = DmaFault { iova, access: Access::Write, reason: FaultReason::Memory };
    let (memory, offset) = (translation.memory, translation.offset);
    if translation.last - iova < COMPLETION_BYTES as u64 - 1 {
        // A mapping that ends within: no program maps so.
        dma.write(iova.wrapping_add(8), rest)?;
        return dma.write(iova, first);
    }
    match memory.slice(offset, COMPLETION_BYTES) {
        Some(slice) => {
            let word = first.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            slice.write_slice(rest, 8).map_err(|_| gone)?;
            slice.store(word.to_le(), 0, Ordering::Release).or_else(|_| slice.write_slice(first, 0)).map_err(|_| gone)
        }
        None => {
            let (mut first, mut rest) = (first.to_vec(), rest.to_vec());
            let parts = [(offset + 8, rest.as_mut_slice().into()), (offset, first.as_mut_slice().into())];
            memory.write_many(&parts).map_err(|_| gone)
        }
    }
}
