// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors, one after the other: from the queue to the completion record.

use std::sync::atomic::{AtomicU64, Ordering};

use device::migration::Activity;
use device::{Asked, Io, PageRequests, PageTicket};
use iommu::{Access, DmaFault, FaultReason, Session};
use vm_memory::{Bytes as _, VolatileMemory as _};
use zerocopy::IntoBytes as _;

use super::Accelerator;
use super::breaks::{Breaks, misbehave};
use super::check::{Limits, check};
use super::moving::{Room, read};
use super::operate::{Outcome, step};
use super::queue::{Batch, Job, Queue, Run};
use super::registers::SoftwareError;
use super::spec::{
    COMPLETION_BYTES, Completion, DESCRIPTOR_BYTES, Descriptor, MSIX_PERM, Status, WRITE_FAULT, field, flag, opcode,
    permission, wqcfg,
};

/// Descriptors of a batch read in one go.
pub(super) const FETCH: usize = 64;
/// Bytes of the longest of a batch's moves that is a quick one.
const QUICK: u32 = 4096;

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
pub(super) struct Rules<'r> {
    queue: usize,
    pub(super) limits: Limits,
    pasid_enabled: bool,
    /// Descriptors may wait for pages.
    blocks: bool,
    breaks: Breaks,
    /// Registers with the permissions of the MSI-X vectors.
    permissions: &'r [u32],
}

/// What is told when the DMA is over.
#[derive(Debug, Default)]
pub(super) struct News {
    interrupts: Vec<u16>,
    errors: Vec<SoftwareError>,
}

impl Rules<'_> {
    /// The PASID that a descriptor's DMA goes with.
    fn pasid_of(&self, descriptor: &Descriptor) -> Option<u32> {
        self.pasid_enabled.then_some(descriptor.pasid & 0xf_ffff)
    }

    /// Whether a descriptor may use its interrupt handle, which is the number
    /// of an MSI-X vector. Vector 0 is the device's own.
    fn may_interrupt(&self, descriptor: &Descriptor, pasid: Option<u32>) -> bool {
        // A permission is the first of two words.
        let permission = match self.permissions.get(2 * usize::from(descriptor.interrupt)) {
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

    /// Whether a queue has something that can begin or go on. While the device
    /// drains only what has begun goes on.
    pub(super) fn has_work(&self, io: &Io<'_>, number: usize) -> bool {
        let begins = io.activity == Activity::Running;
        self.queues.get(number).is_some_and(|queue| !queue.ready.is_empty() || begins && !queue.waiting.is_empty())
    }

    /// Does descriptors of one queue; whether there were any.
    pub(super) fn run_queue(&mut self, io: &Io<'_>, number: usize, budget: &mut Budget) -> bool {
        let begins = io.activity == Activity::Running;
        let mode = self.wqcfg(number, wqcfg::MODE);
        let first = (MSIX_PERM / 4) as usize;
        let rules = Rules {
            queue: number,
            limits: self.limits(number),
            pasid_enabled: mode & wqcfg::PASID_ENABLE != 0,
            blocks: mode & wqcfg::BLOCK_ON_FAULT != 0,
            breaks: self.config.breaks,
            permissions: self.words.get(first..first + 2 * usize::from(self.config.vectors())).unwrap_or_default(),
        };
        let mut news = News::default();
        let mut any = false;
        while !budget.is_spent() {
            let Some(queue) = self.queues.get_mut(number) else { break };
            if !begin_next(queue, begins, |_| true) {
                break;
            }
            let pasid = queue.ready.front().and_then(|job| rules.pasid_of(&job.descriptor));
            let mut dma = match pasid {
                Some(pasid) => io.dma.session_pasid(pasid),
                None => io.dma.session(),
            };
            // As many as go with the same session.
            let stalled = loop {
                let Some(job) = queue.ready.front_mut() else { break false };
                let mut work = Work {
                    dma: &mut dma,
                    page_requests: io.page_requests,
                    room: &mut self.room,
                    rules: &rules,
                    pasid,
                    news: &mut news,
                };
                match work.advance(job, budget) {
                    Ok(()) => {
                        any = true;
                        queue.ready.pop_front();
                    }
                    Err(Pause::Spent) => {
                        any = true;
                        break false;
                    }
                    Err(Pause::Blocked(ticket, otherwise)) => {
                        any = true;
                        job.otherwise = Some(otherwise);
                        if let Some(job) = queue.ready.pop_front() {
                            queue.blocked.insert(ticket, job);
                        }
                    }
                    // Goes on when an answer has made room for a request.
                    Err(Pause::Full) => break true,
                }
                if budget.is_spent() || !begin_next(queue, begins, |next| rules.pasid_of(next) == pasid) {
                    break false;
                }
            };
            if stalled {
                break;
            }
        }
        for error in &news.errors {
            self.software_error(io, error);
        }
        for vector in news.interrupts {
            self.message(io, vector);
        }
        any
    }
}

/// Whether the next job of a queue is one of those that are wanted; it is the
/// first that is ready then. With `begins` it may be a new one.
fn begin_next(queue: &mut Queue, begins: bool, wanted: impl Fn(&Descriptor) -> bool) -> bool {
    if let Some(job) = queue.ready.front() {
        return wanted(&job.descriptor);
    }
    let Some(next) = queue.waiting.front().filter(|next| begins && wanted(next)) else { return false };
    if next.opcode() == opcode::DRAIN && queue.holds(next) {
        return false;
    }
    let job = Job::new(*next);
    queue.ready.push_back(job);
    queue.waiting.pop_front();
    true
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
    rules: &'w Rules<'w>,
    pasid: Option<u32>,
    news: &'w mut News,
}

impl Work<'_, '_> {
    /// Goes on with a submitted descriptor to its end, if it can.
    fn advance(&mut self, job: &mut Job, budget: &mut Budget) -> Result<(), Pause> {
        let Job { descriptor, run, batch, otherwise, refused } = job;
        let refused = std::mem::take(refused);
        let mut otherwise = otherwise.take().filter(|_| refused);
        let outcome = match (&run.ended, batch) {
            (Some(ended), _) => *ended,
            (None, None) => self.single(descriptor, run, None, &mut otherwise, budget)?,
            (None, Some(batch)) => {
                if !std::mem::replace(&mut run.checked, true)
                    && let Err(outcome) = self.check(descriptor, None)
                {
                    outcome
                } else {
                    self.batch(descriptor, batch, &mut otherwise, budget)?
                }
            }
        };
        run.ended = Some(outcome);
        self.complete(descriptor, &outcome, None, otherwise.is_some())
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
        let limits = &self.rules.limits;
        if limits.operations & 1 << opcode::MOVE == 0 {
            return;
        }
        let (blocks, longest) = (flag::BLOCK_ON_FAULT & !limits.withheld, limits.bytes.min(QUICK.into()) as u32);
        // No more than would be begun one by one.
        let most = u64::from(budget.descriptors).min(budget.bytes.div_ceil(QUICK.into()));
        let next = batch.fetched.get(batch.next..).unwrap_or_default();
        let next = next.get(..most as usize).unwrap_or(next);
        // Twice through them, each time with what fits into registers.
        let quick = |next: &&Descriptor| next.is_plain(opcode::MOVE, blocks) && next.size.wrapping_sub(1) < longest;
        let moves = next.get(..next.iter().take_while(quick).count()).unwrap_or_default();
        let place = |next: &Descriptor| (next.source, next.destination, next.size as usize);
        let done = self.dma.copy_all_direct(moves, place);
        let moved = moves.iter().take(done).map(|next| u64::from(next.size)).sum();
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
        let queue = Some(self.rules.queue);
        let error =
            |code, flags, address| SoftwareError { code, queue, descriptor: Some(*descriptor), batch, flags, address };
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
                self.news.errors.push(error(code, 0, fault.iova));
            }
        } else if failed && !has_record {
            let flags = if outcome.status == Status::Flags { outcome.value as u32 } else { 0 };
            self.news.errors.push(error(status, flags, address));
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
    let translation = dma.translate(iova, Access::Write)?;
    let gone = DmaFault { iova, access: Access::Write, reason: FaultReason::Memory };
    let (memory, offset) = (translation.memory, translation.offset);
    if translation.last - iova < COMPLETION_BYTES as u64 - 1 {
        // A mapping that ends within: no program maps so.
        let (first, rest) = record.as_bytes().split_at(8);
        dma.write(iova.wrapping_add(8), rest)?;
        return dma.write(iova, first);
    }
    match memory.slice(offset, COMPLETION_BYTES) {
        Some(slice) => {
            let words: [u64; COMPLETION_BYTES / 8] = zerocopy::transmute!(*record);
            for (word, order) in
                [(1, Ordering::Relaxed), (2, Ordering::Relaxed), (3, Ordering::Relaxed), (0, Ordering::Release)]
            {
                match slice.get_atomic_ref::<AtomicU64>(8 * word) {
                    Ok(place) => place.store(words[word], order),
                    // It lies across words: no program's memory does.
                    Err(_) => slice.write_slice(words[word].as_bytes(), 8 * word).map_err(|_| gone)?,
                }
            }
            Ok(())
        }
        None => {
            let (first, rest) = record.as_bytes().split_at(8);
            let (mut first, mut rest) = (first.to_vec(), rest.to_vec());
            let parts = [(offset + 8, rest.as_mut_slice().into()), (offset, first.as_mut_slice().into())];
            memory.write_many(&parts).map_err(|_| gone)
        }
    }
}
