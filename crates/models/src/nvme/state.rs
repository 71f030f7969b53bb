// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controller's saved state: registers, queues with what waits in them,
//! features, events and counters. Namespaces go by identity: their contents
//! are on storage that both sides reach.
//!
//! A command is executed whole in a turn, so none is half done when the
//! controller stands still. What was submitted waits in the queue, in the
//! program's memory; what was completed and not posted is saved.

use device::Io;
use device::migration::LoadError;
use device::saved::{Reader, Writer};

use super::Controller;
use super::config::VECTORS;
use super::events::Events;
use super::features::Features;
use super::logs::Logs;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::DOORBELLS;
use super::spec::{Aqa, Cc, Csts};

/// Of the registers' layout below.
const VERSION: u32 = 1;

/// A checked state.
struct State {
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    mask: u32,
    doorbells: Vec<u32>,
    next_queue: u32,
    sqs: Vec<Option<SubmissionQueue>>,
    cqs: Vec<Option<CompletionQueue>>,
    features: Features,
    events: Events,
    logs: Logs,
}

impl Controller {
    pub(super) fn saved_identity(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(b"nvme");
        writer.u32(VERSION);
        writer.bytes(self.config.serial.as_bytes());
        writer.u16(self.config.controller_id);
        writer.u16(self.config.max_queue_pairs);
        for namespace in &self.namespaces {
            writer.u8(namespace.shift);
            writer.u64(namespace.blocks);
            writer.flag(namespace.read_only);
            writer.bytes(&namespace.ids.nguid);
        }
        writer.finish()
    }

    pub(super) fn saved_state(&self, io: &Io<'_>) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(VERSION);
        writer.u32(self.cc.0);
        writer.u32(self.csts.bits());
        writer.u32(self.aqa.0);
        writer.u64(self.asq);
        writer.u64(self.acq);
        writer.u32(self.mask);
        self.doorbells.iter().for_each(|value| writer.u32(*value));
        writer.u32(self.next_queue);
        for queue in &self.cqs {
            writer.flag(queue.is_some());
            if let Some(queue) = queue {
                queue.save(&mut writer);
            }
        }
        for queue in &self.sqs {
            writer.flag(queue.is_some());
            if let Some(queue) = queue {
                queue.save(&mut writer);
            }
        }
        self.features.save(io.now, &mut writer);
        self.events.save(&mut writer);
        self.logs.save(&mut writer);
        writer.finish()
    }

    pub(super) fn load_state(&mut self, io: &mut Io<'_>, bytes: &[u8]) -> Result<(), LoadError> {
        let state = self.parse(io, bytes)?;
        self.cc = state.cc;
        self.csts = state.csts;
        self.aqa = state.aqa;
        (self.asq, self.acq) = (state.asq, state.acq);
        self.mask = state.mask;
        self.doorbells = state.doorbells;
        self.next_queue = state.next_queue;
        self.page = 4096 << state.cc.mps().min(self.cap.max_page());
        (self.sqs, self.cqs) = (state.sqs, state.cqs);
        (self.features, self.events, self.logs) = (state.features, state.events, state.logs);
        self.list_queues();
        // Everything is looked at again, and vectors are signalled once more: a
        // message on the way may have been lost with the source. One too many
        // does no harm.
        let all = |count: usize| u128::MAX >> (128 - count.clamp(1, 128));
        (self.touched, self.waiting) = (all(self.cqs.len()), all(self.sqs.len()));
        self.probe = 0;
        self.arrived = true;
        Ok(())
    }

    fn parse(&self, io: &Io<'_>, bytes: &[u8]) -> Result<State, LoadError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u32()?;
        if version != VERSION {
            return Err(LoadError::Version(version));
        }
        let cc = Cc(reader.u32()? & Cc::MASK);
        let csts = Csts::from_bits(reader.u32()?).ok_or(LoadError::Corrupt("unknown status bits"))?;
        let aqa = Aqa(reader.u32()? & Aqa::MASK);
        let (asq, acq) = (reader.u64()? & !0xfff, reader.u64()? & !0xfff);
        let mask = reader.u32()?;
        let doorbells = (0..DOORBELLS).map(|_| reader.u32()).collect::<Result<Vec<u32>, LoadError>>()?;
        let next_queue = reader.u32()?;
        if next_queue > u32::from(self.queue_pairs()) + 1 {
            return Err(LoadError::Corrupt("a queue that cannot exist"));
        }
        let mut cqs = Vec::new();
        for id in 0..=self.queue_pairs() {
            let queue = if reader.flag()? { Some(CompletionQueue::load(id, VECTORS, &mut reader)?) } else { None };
            cqs.push(queue);
        }
        let mut sqs = Vec::new();
        for id in 0..=self.queue_pairs() {
            let queue = if reader.flag()? { Some(SubmissionQueue::load(id, &mut reader)?) } else { None };
            if let Some(queue) = &queue {
                let cq = cqs.get_mut(usize::from(queue.cq)).and_then(Option::as_mut);
                let cq = cq.ok_or(LoadError::Corrupt("a submission queue completes nowhere"))?;
                cq.users += u32::from(id != 0);
            }
            sqs.push(queue);
        }
        let ready = csts.contains(Csts::RDY);
        let has_admin = |there: Option<bool>| there.unwrap_or(false);
        if ready && !(has_admin(sqs.first().map(Option::is_some)) && has_admin(cqs.first().map(Option::is_some))) {
            return Err(LoadError::Corrupt("ready without admin queues"));
        }
        let features = Features::load(io.now, &mut reader)?;
        let events = Events::load(&mut reader)?;
        let logs = Logs::load(&mut reader)?;
        reader.finish()?;
        Ok(State { cc, csts, aqa, asq, acq, mask, doorbells, next_queue, sqs, cqs, features, events, logs })
    }

    /// After a load, when the controller runs: whoever has completions to look
    /// at is told.
    pub(super) fn announce(&mut self, io: &Io<'_>) {
        if !std::mem::take(&mut self.arrived) {
            return;
        }
        for queue in self.cqs.iter().flatten().filter(|queue| queue.used() > 0) {
            if let Some(vector) = queue.vector {
                io.interrupts.message(vector);
            }
        }
    }
}
