// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The admin command set (5).

use device::Io;

use super::Controller;
use super::config::VECTORS;
use super::error::Error;
use super::io::MAX_TRANSFER;
use super::prp;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::spec::{ALL_NAMESPACES, AdminOpcode, Command, LogPage, Status, doorbell};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It completes with this dword 0.
    Complete(u32),
    /// It completes later.
    Outstanding,
}

impl Controller {
    pub(super) fn admin_command(&mut self, io: &mut Io<'_>, command: &Command) -> Result<Outcome, Error> {
        let opcode = AdminOpcode::from_raw(command.opcode).ok_or(Status::INVALID_OPCODE)?;
        if command.is_fused() || command.uses_sgl() {
            return Err(Status::INVALID_FIELD.into());
        }
        let mut dword = 0;
        match opcode {
            AdminOpcode::DeleteSubmissionQueue => self.delete_submission_queue(command)?,
            AdminOpcode::CreateSubmissionQueue => self.create_submission_queue(io, command)?,
            AdminOpcode::GetLogPage => self.get_log_page(io, command)?,
            AdminOpcode::DeleteCompletionQueue => self.delete_completion_queue(command)?,
            AdminOpcode::CreateCompletionQueue => self.create_completion_queue(io, command)?,
            AdminOpcode::Identify => self.identify(io, command)?,
            AdminOpcode::Abort => dword = self.abort(command)?,
            AdminOpcode::SetFeatures => dword = self.set_features(io, command)?,
            AdminOpcode::GetFeatures => dword = self.get_features(io, command)?,
            AdminOpcode::AsyncEventRequest => {
                if !self.events.request(command.cid.get()) {
                    return Err(Status::AER_LIMIT_EXCEEDED.into());
                }
                return Ok(Outcome::Outstanding);
            }
            AdminOpcode::KeepAlive => self.features.restart_keep_alive(io.now),
            AdminOpcode::FormatNvm => self.format(command)?,
        }
        Ok(Outcome::Complete(dword))
    }

    /// Create I/O Completion Queue (5.3).
    fn create_completion_queue(&mut self, io: &mut Io<'_>, command: &Command) -> Result<(), Error> {
        let id = command.cdw10.get() as u16;
        let slot = match self.cqs.get(usize::from(id)) {
            Some(None) if id != 0 => usize::from(id),
            _ => return Err(Status::INVALID_QUEUE_ID.into()),
        };
        let entries = self.queue_size(command, self.cc.iocqes() == 4)?;
        let vector = (command.cdw11.get() >> 16) as u16;
        if vector >= VECTORS {
            return Err(Status::INVALID_INTERRUPT_VECTOR.into());
        }
        let base = self.queue_base(command)?;
        let interrupts = command.cdw11.get() & 2 != 0;
        let queue = CompletionQueue::new(id, base, entries, interrupts.then_some(vector));
        if let Some(place) = self.cqs.get_mut(slot) {
            *place = Some(queue);
        }
        self.clear_doorbell(io, doorbell::completion(id));
        self.list_queues();
        Ok(())
    }

    /// Create I/O Submission Queue (5.4).
    fn create_submission_queue(&mut self, io: &mut Io<'_>, command: &Command) -> Result<(), Error> {
        let id = command.cdw10.get() as u16;
        let slot = match self.sqs.get(usize::from(id)) {
            Some(None) if id != 0 => usize::from(id),
            _ => return Err(Status::INVALID_QUEUE_ID.into()),
        };
        let cq_id = (command.cdw11.get() >> 16) as u16;
        if cq_id == 0 || usize::from(cq_id) >= self.cqs.len() {
            return Err(Status::INVALID_QUEUE_ID.into());
        }
        if self.cq(cq_id).is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID.into());
        }
        let entries = self.queue_size(command, self.cc.iosqes() == 6)?;
        let base = self.queue_base(command)?;
        if let Some(place) = self.sqs.get_mut(slot) {
            *place = Some(SubmissionQueue::new(id, cq_id, base, entries));
        }
        if let Some(cq) = self.cq(cq_id) {
            cq.users += 1;
        }
        self.clear_doorbell(io, doorbell::submission(id));
        self.list_queues();
        Ok(())
    }

    /// Entries of a queue to be created. The entry size in CC must have been
    /// set before.
    fn queue_size(&self, command: &Command, entry_size_is_set: bool) -> Result<u32, Status> {
        let zero_based = command.cdw10.get() >> 16;
        if zero_based == 0 || zero_based >= self.cap.max_entries() || !entry_size_is_set {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        Ok(zero_based + 1)
    }

    /// Address of a queue to be created: contiguous (CAP.CQR), on a page.
    fn queue_base(&self, command: &Command) -> Result<u64, Status> {
        if command.cdw11.get() & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let base = command.prp1.get();
        if !base.is_multiple_of(self.page) { Err(Status::INVALID_PRP_OFFSET) } else { Ok(base) }
    }

    /// Delete I/O Submission Queue (5.6). Commands not taken yet are completed
    /// implicitly.
    fn delete_submission_queue(&mut self, command: &Command) -> Result<(), Error> {
        let id = command.cdw10.get() as u16;
        let queue = match self.sqs.get_mut(usize::from(id)) {
            Some(place) if id != 0 => place.take(),
            _ => None,
        };
        let queue = queue.ok_or(Status::INVALID_QUEUE_ID)?;
        if let Some(cq) = self.cq(queue.cq) {
            cq.users -= 1;
            cq.forget(id);
        }
        self.list_queues();
        Ok(())
    }

    /// Delete I/O Completion Queue (5.5).
    fn delete_completion_queue(&mut self, command: &Command) -> Result<(), Error> {
        let id = command.cdw10.get() as u16;
        match self.cqs.get_mut(usize::from(id)) {
            Some(place @ Some(_)) if id != 0 => {
                if place.as_ref().is_some_and(|queue| queue.users > 0) {
                    return Err(Status::INVALID_QUEUE_DELETION.into());
                }
                *place = None;
                self.list_queues();
                Ok(())
            }
            _ => Err(Status::INVALID_QUEUE_ID.into()),
        }
    }

    /// Abort (5.1). Bit 0 of the result says that nothing was aborted: apart
    /// from event requests, a command has completed when another can name it.
    fn abort(&mut self, command: &Command) -> Result<u32, Error> {
        let sq = command.cdw10.get() as u16;
        let cid = (command.cdw10.get() >> 16) as u16;
        if !matches!(self.sqs.get(usize::from(sq)), Some(Some(_))) {
            return Err(Status::INVALID_FIELD.into());
        }
        if sq != 0 || !self.events.abort(cid) {
            return Ok(1);
        }
        self.complete(0, cid, 0, Status::ABORT_REQUESTED, false);
        Ok(0)
    }

    /// Get Log Page (5.14).
    fn get_log_page(&mut self, io: &mut Io<'_>, command: &Command) -> Result<(), Error> {
        let (low, high) = (command.cdw10.get(), command.cdw11.get());
        let page = LogPage::from_raw(low as u8).ok_or(Status::INVALID_LOG_PAGE)?;
        let len = (u64::from(low >> 16 | (high & 0xffff) << 16) + 1) * 4;
        let offset = u64::from(command.cdw12.get()) | u64::from(command.cdw13.get()) << 32;
        if len > MAX_TRANSFER || offset % 4 != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        // LPA says that no page is kept by namespace.
        let nsid = command.nsid.get();
        if page == LogPage::Smart && nsid != 0 && nsid != ALL_NAMESPACES {
            self.namespace(nsid)?;
            return Err(Status::INVALID_FIELD.into());
        }
        let log = self.log_page(page, io.now);
        let from = usize::try_from(offset).ok().filter(|from| *from <= log.len()).ok_or(Status::INVALID_FIELD)?;
        let mut data = log.get(from..).unwrap_or_default().to_vec();
        data.resize(len as usize, 0);
        prp::send(&mut io.dma.session(), command, &data, self.page, &mut self.runs)?;
        let retain_event = low >> 15 & 1 != 0;
        if !retain_event {
            self.events.unmask(page);
            self.report_events();
        }
        Ok(())
    }

    /// Format NVM (5.23): there is one format; what is left to do is erasing.
    fn format(&mut self, command: &Command) -> Result<(), Error> {
        let nsid = command.nsid.get();
        if nsid != ALL_NAMESPACES {
            self.namespace(nsid)?;
        }
        let value = command.cdw10.get();
        let (format, metadata_and_protection, erase) = (value & 0xf, value >> 4 & 0x1f, value >> 9 & 7);
        if format != 0 {
            return Err(Status::INVALID_FORMAT.into());
        }
        // Bit 4 says where metadata lie, of which there are none.
        if metadata_and_protection & !1 != 0 || erase > 1 {
            return Err(Status::INVALID_FIELD.into());
        }
        let chosen = |id: &usize| nsid == ALL_NAMESPACES || nsid as usize == *id;
        let namespaces = || (1..).zip(&self.namespaces).filter(|(id, _)| chosen(id)).map(|(_, namespace)| namespace);
        namespaces().try_for_each(|namespace| namespace.check_writable())?;
        for namespace in namespaces() {
            namespace.disk.discard(0, namespace.blocks << namespace.shift).map_err(Error::Write)?;
        }
        Ok(())
    }
}
