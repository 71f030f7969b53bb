// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The accelerator's saved state: what a program has set of the registers,
//! commands that wait, and every descriptor that was submitted and has no
//! completion record yet, with how far it is.
//!
//! A descriptor that waits for a page goes as one that can go on: the page
//! request stays with the source, and who still misses the page asks anew. So
//! each descriptor ends once, on the side that runs.

use device::Io;
use device::migration::LoadError;
use device::saved::{Reader, Writer};
use iommu::{Access, DmaFault, FaultReason};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::Accelerator;
use super::check::{Limits, check};
use super::command::{Pending, Then, Wait};
use super::execute::FETCH;
use super::operate::{Outcome, Progress};
use super::portal::Filling;
use super::queue::{Answer, Batch, Job, Queue, Run};
use super::registers::queue_mask;
use super::spec::{
    CMDSTS, DELTA_BYTES, DESCRIPTOR_BYTES, Descriptor, GENCFG, GENCFG_MASK, GENCTRL, GENSTS, GROUP_BYTES, GRPCFG,
    INTCAUSE, MSIX_PERM, SWERROR, State, Status, cause, command, genctrl, opcode, permission, wqcfg,
};

/// Of the layout below.
const VERSION: u32 = 1;

const STATUSES: [Status; 20] = [
    Status::Success,
    Status::FalsePredicate,
    Status::PageFault,
    Status::BatchFailed,
    Status::BatchPageFault,
    Status::DeltaOrder,
    Status::DeltaOffset,
    Status::Opcode,
    Status::Flags,
    Status::Reserved,
    Status::Size,
    Status::Count,
    Status::DeltaSize,
    Status::Overlap,
    Status::DualCast,
    Status::ListAlignment,
    Status::Interrupt,
    Status::RecordFault,
    Status::RecordAlignment,
    Status::Alignment,
];

impl Accelerator {
    pub(super) fn saved_identity(&self) -> Vec<u8> {
        let config = &self.config;
        let mut writer = Writer::new();
        writer.bytes(b"dsa");
        writer.u32(VERSION);
        [config.queues, config.engines, config.max_transfer, config.max_batch].iter().for_each(|n| writer.u8(*n));
        writer.u16(config.entries);
        writer.flag(config.operations);
        writer.flag(config.handles);
        writer.finish()
    }

    /// Words that a program sets, or that tell it something, and their bits. A
    /// queue's occupancy and state follow from the queue.
    fn saved_words(&self) -> impl Iterator<Item = (u64, u32)> + use<> {
        let config = self.config;
        let single = [
            (GENCFG, GENCFG_MASK),
            (GENCTRL, genctrl::MASK),
            (GENSTS, 0xf),
            (INTCAUSE, cause::ERROR | cause::COMMAND),
            (CMDSTS, command::ACTIVE | 0xff_ffff),
        ];
        let errors = (SWERROR..SWERROR + 32).step_by(4).map(|offset| (offset, u32::MAX));
        let groups = (GRPCFG..GRPCFG + u64::from(config.engines) * GROUP_BYTES).step_by(4);
        let groups = groups.map(move |offset| (offset, config.group_mask(offset)));
        let vectors = MSIX_PERM..MSIX_PERM + 8 * u64::from(config.vectors());
        let permissions = vectors.step_by(8).map(|offset| (offset, permission::MASK));
        let words = 0..(config.queue_bytes() / 4) as usize;
        let queues = (0..usize::from(config.queues))
            .flat_map(move |queue| words.clone().map(move |word| (config.queue_word(queue, word), queue_mask(word))));
        single.into_iter().chain(errors).chain(groups).chain(permissions).chain(queues).filter(|(_, mask)| *mask != 0)
    }

    pub(super) fn saved_state(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(VERSION);
        self.saved_words().for_each(|(offset, mask)| writer.u32(self.word(offset) & mask));
        writer.flag(self.pending.is_some());
        if let Some(pending) = &self.pending {
            pending.save(&mut writer);
        }
        writer.u64(self.filling.place);
        writer.bytes(&self.filling.bytes);
        writer.u32(self.next as u32);
        writer.u32(self.signalled);
        self.queues.iter().for_each(|queue| queue.save(&mut writer));
        writer.finish()
    }

    pub(super) fn load_state(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let loaded = self.parse(bytes)?;
        *self = Accelerator { room: std::mem::take(&mut self.room), ..loaded };
        Ok(())
    }

    /// An accelerator of this configuration with the state.
    fn parse(&self, bytes: &[u8]) -> Result<Accelerator, LoadError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u32()?;
        if version != VERSION {
            return Err(LoadError::Version(version));
        }
        let mut loaded = Accelerator::new(self.config);
        for (offset, mask) in self.saved_words() {
            let value = reader.u32()?;
            if value & !mask != 0 {
                return Err(LoadError::Corrupt("a register has bits that cannot be set"));
            }
            loaded.put(offset, value);
        }
        loaded.pending = if reader.flag()? { Some(Pending::load(&mut reader)?) } else { None };
        let place = reader.u64()?;
        let bytes = reader.bytes(DESCRIPTOR_BYTES)?.try_into().map_err(|_| LoadError::Truncated)?;
        if !place.is_multiple_of(DESCRIPTOR_BYTES as u64) || place >= self.config.portal_bytes() {
            return Err(LoadError::Corrupt("a portal that does not exist"));
        }
        loaded.filling = Filling { place, bytes };
        loaded.next = reader.u32()? as usize;
        loaded.signalled = reader.u32()?;
        if loaded.next >= self.queues.len() || u64::from(loaded.signalled) >> self.config.vectors() != 0 {
            return Err(LoadError::Corrupt("a queue or vector that does not exist"));
        }
        for number in 0..self.queues.len() {
            let queue = loaded.load_queue(number, &mut reader)?;
            let state = queue.occupancy() as u32 | if queue.enabled { wqcfg::ENABLED } else { 0 };
            loaded.put(self.config.queue_word(number, wqcfg::STATE), state);
            if let Some(to) = loaded.queues.get_mut(number) {
                *to = queue;
            }
        }
        reader.finish()?;
        loaded.check_state()?;
        loaded.serve();
        loaded.arrived = true;
        Ok(loaded)
    }

    fn put(&mut self, offset: u64, value: u32) {
        if let Some(word) = self.words.get_mut((offset / 4) as usize) {
            *word = value;
        }
    }

    fn load_queue(&self, number: usize, reader: &mut Reader<'_>) -> Result<Queue, LoadError> {
        let mut queue = Queue { enabled: reader.flag()?, ..Queue::default() };
        queue.answer = match reader.u8()? {
            0 => Answer::Accepted,
            1 => Answer::Retry,
            2 => Answer::Dropped,
            _ => return Err(LoadError::Corrupt("an answer that no portal gives")),
        };
        queue.next = reader.count(super::spec::PAGE as usize / DESCRIPTOR_BYTES - 1)?;
        if queue.enabled {
            queue.size = self.check_queue(number).map_err(|_| LoadError::Corrupt("a queue that cannot be enabled"))?;
        }
        let limits = self.limits(number);
        for _ in 0..reader.count(queue.size)? {
            queue.ready.push_back(Job::load(&limits, reader)?);
        }
        for _ in 0..reader.count(queue.size - queue.ready.len())? {
            queue.waiting.push_back(descriptor(reader)?);
        }
        Ok(queue)
    }

    /// What must fit together.
    fn check_state(&self) -> Result<(), LoadError> {
        let state = self.word(GENSTS) & 3;
        if state > State::Draining as u32 {
            return Err(LoadError::Corrupt("a state that does not exist"));
        }
        if state != State::Disabled as u32 && self.check_device().is_err() {
            return Err(LoadError::Corrupt("a device that cannot be enabled"));
        }
        if state == State::Disabled as u32 && self.queues.iter().any(|queue| queue.enabled) {
            return Err(LoadError::Corrupt("an enabled queue of a disabled device"));
        }
        let disables = self.pending.is_some_and(|pending| pending.then == Then::DisableDevice);
        let active = self.word(CMDSTS) & command::ACTIVE != 0;
        if disables != (state == State::Draining as u32) || active != self.pending.is_some() {
            return Err(LoadError::Corrupt("a command that nobody has given"));
        }
        Ok(())
    }

    /// After a load, when the device runs: a message on the way may have been
    /// lost with the source. One too many does no harm.
    pub(super) fn announce(&mut self, io: &Io<'_>) {
        if std::mem::take(&mut self.arrived) {
            let signalled = self.signalled;
            (0..self.config.vectors()).filter(|n| signalled & 1 << n != 0).for_each(|n| io.interrupts.message(n));
        }
    }
}

impl Pending {
    fn save(&self, writer: &mut Writer) {
        let (kind, operand) = match self.wait {
            Wait::Queues(queues) => (0, queues),
            Wait::Pasid(pasid) => (1, pasid),
        };
        writer.u8(kind);
        writer.u32(operand);
        writer.u8(self.then as u8);
        writer.flag(self.interrupt);
    }

    fn load(reader: &mut Reader<'_>) -> Result<Pending, LoadError> {
        let wrong = LoadError::Corrupt("a command that waits for nothing");
        let wait = match (reader.u8()?, reader.u32()?) {
            (0, queues) => Wait::Queues(queues),
            (1, pasid) if pasid < 1 << 20 => Wait::Pasid(pasid),
            _ => return Err(wrong),
        };
        let then = match (reader.u8()?, wait) {
            (0, _) => Then::Nothing,
            (1, Wait::Queues(_)) => Then::DisableQueues,
            (2, Wait::Queues(u32::MAX)) => Then::DisableDevice,
            _ => return Err(wrong),
        };
        Ok(Pending { wait, then, interrupt: reader.flag()? })
    }
}

impl Queue {
    /// What has begun and waits for a page, then what has begun, then the rest.
    fn save(&self, writer: &mut Writer) {
        writer.flag(self.enabled);
        writer.u8(self.answer as u8);
        writer.u32(self.next as u32);
        writer.u32((self.blocked.len() + self.ready.len()) as u32);
        self.blocked.values().for_each(|job| job.save(false, writer));
        self.ready.iter().for_each(|job| job.save(job.refused, writer));
        writer.u32(self.waiting.len() as u32);
        self.waiting.iter().for_each(|descriptor| writer.bytes(descriptor.as_bytes()));
    }
}

impl Job {
    fn save(&self, refused: bool, writer: &mut Writer) {
        writer.bytes(self.descriptor.as_bytes());
        self.run.save(writer);
        if let Some(batch) = &self.batch {
            let fetched = batch.fetched.get(batch.next..).unwrap_or_default();
            writer.u32(batch.done);
            writer.flag(batch.failed);
            writer.u32(fetched.len() as u32);
            fetched.iter().for_each(|descriptor| writer.bytes(descriptor.as_bytes()));
            batch.run.save(writer);
        }
        let otherwise = self.otherwise.filter(|_| refused);
        writer.flag(otherwise.is_some());
        if let Some(outcome) = otherwise {
            outcome.save(writer);
        }
    }

    fn load(limits: &Limits, reader: &mut Reader<'_>) -> Result<Job, LoadError> {
        let mut job = Job::new(descriptor(reader)?);
        job.run = Run::load(&job.descriptor, limits, reader)?;
        if let Some(batch) = &mut job.batch {
            *batch = Batch { done: reader.u32()?, failed: reader.flag()?, ..Batch::default() };
            for _ in 0..reader.count(FETCH)? {
                batch.fetched.push(descriptor(reader)?);
            }
            let read = u64::from(batch.done) + batch.fetched.len() as u64;
            if read > u64::from(job.descriptor.size) || read > 0 && !job.run.checked {
                return Err(LoadError::Corrupt("a batch has done more than it has"));
            }
            batch.read = read as u32;
            let next = batch.fetched.first().copied().unwrap_or_default();
            let next = Descriptor { pasid: job.descriptor.pasid, ..next };
            batch.run = Run::load(&next, &Limits { in_batch: true, ..*limits }, reader)?;
            if batch.run.checked && batch.fetched.is_empty() {
                return Err(LoadError::Corrupt("a batch has begun what is not there"));
            }
        }
        if reader.flag()? {
            (job.otherwise, job.refused) = (Some(Outcome::load(reader)?), true);
        }
        Ok(job)
    }
}

impl Run {
    fn save(&self, writer: &mut Writer) {
        match (&self.ended, self.checked) {
            (Some(outcome), _) => {
                writer.u8(2);
                outcome.save(writer);
            }
            (None, true) => {
                writer.u8(1);
                writer.u64(self.progress.done);
                writer.u32(self.progress.record);
                writer.option(self.progress.crc.map(u64::from));
                writer.u32(self.progress.offset);
            }
            (None, false) => writer.u8(0),
        }
    }

    /// How far `descriptor` is; of one that is under way all must hold that was
    /// found when it began.
    fn load(descriptor: &Descriptor, limits: &Limits, reader: &mut Reader<'_>) -> Result<Run, LoadError> {
        let wrong = LoadError::Corrupt("a descriptor is where it cannot be");
        match reader.u8()? {
            0 => Ok(Run::default()),
            1 => {
                let (done, record) = (reader.u64()?, reader.u32()?);
                let crc = match reader.option()? {
                    Some(crc) => Some(u32::try_from(crc).map_err(|_| wrong)?),
                    None => None,
                };
                let progress = Progress { done, record, crc, offset: reader.u32()? };
                if check(descriptor, limits).is_err() || !fits(&progress, descriptor) {
                    return Err(wrong);
                }
                Ok(Run { progress, checked: true, ended: None })
            }
            2 => Ok(Run { progress: Progress::default(), checked: true, ended: Some(Outcome::load(reader)?) }),
            _ => Err(wrong),
        }
    }
}

/// Whether a descriptor that makes sense can have come so far, and not further.
fn fits(progress: &Progress, descriptor: &Descriptor) -> bool {
    let record = u64::from(progress.record);
    let entries = record.is_multiple_of(DELTA_BYTES as u64);
    match descriptor.opcode() {
        opcode::NO_OPERATION | opcode::DRAIN | opcode::BATCH => *progress == Progress::default(),
        opcode::APPLY_DELTA => entries && progress.record <= descriptor.word() && progress.done == record,
        opcode::CREATE_DELTA => {
            let size = u64::from(descriptor.size);
            entries
                && progress.record <= descriptor.max_delta()
                && progress.done.is_multiple_of(8)
                && progress.done < size
        }
        _ => progress.done < u64::from(descriptor.size),
    }
}

impl Outcome {
    fn save(&self, writer: &mut Writer) {
        writer.u8(self.status as u8);
        writer.u8(self.result);
        writer.u32(self.done);
        writer.u64(self.value);
        writer.flag(self.fault.is_some());
        if let Some(fault) = &self.fault {
            writer.u64(fault.iova);
            writer.flag(fault.access == Access::Write);
        }
    }

    /// The reason of a fault is of no account once it has been met.
    fn load(reader: &mut Reader<'_>) -> Result<Outcome, LoadError> {
        let number = reader.u8()?;
        let status = STATUSES.into_iter().find(|status| *status as u8 == number);
        let status = status.ok_or(LoadError::Corrupt("a status that does not exist"))?;
        let (result, done, value) = (reader.u8()?, reader.u32()?, reader.u64()?);
        let fault = match reader.flag()? {
            false => None,
            true => {
                let iova = reader.u64()?;
                let access = if reader.flag()? { Access::Write } else { Access::Read };
                Some(DmaFault { iova, access, reason: FaultReason::NotMapped })
            }
        };
        Ok(Outcome { status, result, done, fault, value })
    }
}

fn descriptor(reader: &mut Reader<'_>) -> Result<Descriptor, LoadError> {
    Descriptor::read_from_bytes(reader.bytes(DESCRIPTOR_BYTES)?).map_err(|_| LoadError::Truncated)
}
