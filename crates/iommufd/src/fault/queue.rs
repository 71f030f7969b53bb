// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fault queue: groups of page requests that wait to be read, and those that
//! wait to be answered (FAULT-1.1 to 1.6).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use caller::{Caller, FileId, Readiness};
use iommu::{PageRequest, PageResponder, PageResponse, PageResponseCode};
use uapi::Errno;
use uapi::iommufd::FaultQueueAlloc;
use uapi::iommufd_events::{
    ANSWER_INVALID, ANSWER_SUCCESS, FAULT_LAST_PAGE, FAULT_PASID_VALID, FAULT_RESPONSE_NEEDS_PASID, PageAnswer,
    PageFault,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::dispatch::Request;
use crate::fault::inbox::Bell;
use crate::fault::names::{Meant, Name, Names};
use crate::fault::{FaultCookies, FaultReset, FaultTransport};
use crate::ids::{Kind, ObjectId};
use crate::{Call, Iommufd, Open};

const RECORD: u64 = size_of::<PageFault>() as u64;
const ANSWER: u64 = size_of::<PageAnswer>() as u64;

/// Makes a descriptor of one kind or the other.
type MakeFile = fn(&dyn Caller, FileId) -> Result<(i32, Arc<dyn Readiness>), Errno>;

/// A group of requests, complete, which is answered once.
#[derive(Debug)]
pub(crate) struct FaultGroup {
    /// The attachment that it came through.
    pub(crate) handle: u64,
    /// The device that attached, which records name.
    pub(crate) by: ObjectId,
    /// The device that asked.
    pub(crate) from: ObjectId,
    /// Oldest first, the last one last. Not empty.
    pub(crate) requests: Vec<PageRequest>,
    pub(crate) responder: Option<Arc<dyn PageResponder>>,
    /// Where it stands among the queue's deadlines.
    pub(crate) arrival: u64,
    /// The device was reset since: it is not outstanding there.
    pub(crate) forgotten: bool,
}

/// A device has its answer to so many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) device: ObjectId,
    pub(crate) requests: u32,
    /// The device had forgotten them.
    pub(crate) forgotten: bool,
}

impl FaultGroup {
    /// Answers the device.
    pub(crate) fn respond(self, code: PageResponseCode) -> Answered {
        let answered = self.answered();
        if let (Some(responder), Some(last)) = (self.responder, self.requests.last()) {
            tracing::debug!(target: "vfuse::iommufd", device = self.from.0, group = last.group, ?code, "page response");
            responder.respond(PageResponse::to(last, code));
        }
        answered
    }

    /// What is off the device's account with it.
    fn answered(&self) -> Answered {
        Answered { device: self.from, requests: self.requests.len() as u32, forgotten: self.forgotten }
    }
}

/// A fault queue.
#[derive(Debug)]
pub(crate) struct FaultQueue {
    bell: Arc<Bell>,
    /// Not read, in order of arrival.
    deliver: VecDeque<FaultGroup>,
    /// Read and not answered.
    names: Names,
    /// When groups are answered if nobody else does it, by arrival.
    deadlines: BTreeMap<u64, u64>,
    arrivals: u64,
}

impl FaultQueue {
    pub(crate) fn new(cookies: FaultCookies, transport: FaultTransport) -> FaultQueue {
        FaultQueue {
            bell: Arc::default(),
            deliver: VecDeque::new(),
            names: Names::new(cookies, transport),
            deadlines: BTreeMap::new(),
            arrivals: 0,
        }
    }

    /// What devices whose requests come here ring.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// A group has come. What was answered at once.
    pub(crate) fn push(&mut self, mut group: FaultGroup, deadline: Option<u64>) -> Vec<Answered> {
        self.arrivals += 1;
        group.arrival = self.arrivals;
        if let Some(deadline) = deadline {
            self.deadlines.insert(group.arrival, deadline);
        }
        self.deliver.push_back(group);
        self.settle(Vec::new())
    }

    /// What `poll` tells.
    pub(crate) fn show(&self) {
        self.bell.show(!self.deliver.is_empty() && self.names.has_room());
    }

    /// Answers groups INVALID, and with them those that can never be read
    /// (FAULT-5.10); who has been answered.
    fn settle(&mut self, gone: Vec<FaultGroup>) -> Vec<Answered> {
        self.over(gone).into_iter().map(|group| group.respond(PageResponseCode::Invalid)).collect()
    }

    /// Groups have left the queue, and with them go those that can never be
    /// read.
    fn over(&mut self, mut gone: Vec<FaultGroup>) -> Vec<FaultGroup> {
        if self.names.is_shut() {
            gone.extend(self.deliver.drain(..));
        }
        self.show();
        for group in &gone {
            self.deadlines.remove(&group.arrival);
        }
        gone
    }

    /// Takes groups out, read or not, oldest first of each.
    fn take_where(&mut self, over: impl Fn(&FaultGroup) -> bool) -> Vec<FaultGroup> {
        let (mut gone, keep): (Vec<_>, VecDeque<_>) = {
            let mut gone = Vec::new();
            let mut keep = VecDeque::new();
            for group in self.deliver.drain(..) {
                if over(&group) { gone.push(group) } else { keep.push_back(group) }
            }
            (gone, keep)
        };
        self.deliver = keep;
        gone.extend(self.names.take_where(over));
        gone
    }

    /// Answers the groups of an attachment, of which there are no more, INVALID
    /// (FAULT-3.1). Who has been answered.
    pub(crate) fn drop_handle(&mut self, handle: u64) -> Vec<Answered> {
        let gone = self.take_where(|group| group.handle == handle);
        self.settle(gone)
    }

    /// The queue is no more.
    pub(crate) fn drop_all(&mut self) -> Vec<Answered> {
        let gone = self.take_where(|_| true);
        self.settle(gone)
    }

    /// When the oldest group is over.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadlines.first_key_value().map(|(_, deadline)| *deadline)
    }

    /// Answers what has waited too long.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<Answered> {
        let over: Vec<u64> = self.deadlines.iter().take_while(|(_, at)| **at <= now).map(|(n, _)| *n).collect();
        let Some(last) = over.last().copied() else { return Vec::new() };
        tracing::debug!(target: "vfuse::iommufd", groups = over.len(), "page requests have waited too long");
        let gone = self.take_where(|group| group.arrival <= last);
        self.settle(gone)
    }

    /// A device was reset, and waits for nothing any more. Which of its groups
    /// are over by that.
    pub(crate) fn device_reset(&mut self, device: ObjectId, reset: FaultReset) -> Vec<Answered> {
        self.names.reset(device);
        let gone = match reset {
            FaultReset::Keep => Vec::new(),
            FaultReset::Answer => self.take_where(|group| group.from == device),
        };
        for group in self.deliver.iter_mut().chain(self.names.waiting()).filter(|group| group.from == device) {
            group.forgotten = true;
        }
        let (of_it, others): (Vec<_>, Vec<_>) = self.over(gone).into_iter().partition(|group| group.from == device);
        let mut answered: Vec<Answered> =
            others.into_iter().map(|group| group.respond(PageResponseCode::Invalid)).collect();
        answered.extend(of_it.into_iter().map(|group| group.answered()));
        answered
    }

    /// `read`: whole groups, as many as fit (FAULT-1.4).
    pub(crate) fn read(&mut self, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        if offset != 0 || !len.is_multiple_of(RECORD) {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        let result = self.read_groups(buf, len, caller, &mut done);
        self.show();
        if done == 0 { result.map(|()| 0) } else { Ok(done) }
    }

    fn read_groups(&mut self, buf: u64, len: u64, caller: &dyn Caller, done: &mut u64) -> Result<(), Errno> {
        while let Some(group) = self.deliver.front() {
            let bytes = group.requests.len() as u64 * RECORD;
            if *done >= len || bytes > len - *done {
                return if *done == 0 { Err(Errno::EINVAL) } else { Ok(()) };
            }
            // Without a name for it the queue is as good as empty.
            let Some(name) = self.names.propose(group) else { return Ok(()) };
            let records: Vec<PageFault> =
                group.requests.iter().map(|request| record(request, group.by, name)).collect();
            caller.write(buf.checked_add(*done).ok_or(Errno::EFAULT)?, records.as_bytes())?;
            if let Some(group) = self.deliver.pop_front() {
                self.names.insert(name, group);
            }
            *done += bytes;
        }
        Ok(())
    }

    /// `write`: answers, until one is wrong (FAULT-1.5). The bytes taken, and
    /// the devices that have their answers.
    fn write(
        &mut self,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
        answered: &mut Vec<Answered>,
    ) -> Result<u64, Errno> {
        if offset != 0 || !len.is_multiple_of(ANSWER) {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        while done < len {
            match self.answer(buf.checked_add(done).ok_or(Errno::EFAULT), caller) {
                Ok(who) => answered.extend(who),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += ANSWER;
        }
        Ok(done)
    }

    fn answer(&mut self, at: Result<u64, Errno>, caller: &dyn Caller) -> Result<Option<Answered>, Errno> {
        let mut answer = PageAnswer::new_zeroed();
        caller.read(at?, answer.as_mut_bytes())?;
        let code = match answer.code {
            ANSWER_SUCCESS => PageResponseCode::Success,
            ANSWER_INVALID => PageResponseCode::Invalid,
            _ => return Err(Errno::EINVAL),
        };
        let before = self.names.has_room();
        let meant = self.names.answer(answer.cookie, code == PageResponseCode::Success)?;
        if !before && !self.deliver.is_empty() {
            self.show();
        }
        match meant {
            Meant::Group(group) => {
                self.deadlines.remove(&group.arrival);
                Ok(Some(group.respond(code)))
            }
            Meant::Nothing => Ok(None),
        }
    }
}

fn record(request: &PageRequest, by: ObjectId, name: Name) -> PageFault {
    let mut flags = 0;
    if request.pasid.is_some() {
        flags |= FAULT_PASID_VALID;
    }
    if request.last {
        flags |= FAULT_LAST_PAGE;
    }
    if request.needs_pasid {
        flags |= FAULT_RESPONSE_NEEDS_PASID;
    }
    PageFault {
        flags,
        dev_id: by.0,
        pasid: request.pasid.unwrap_or(0),
        grpid: name.index,
        perm: request.perm,
        reserved: 0,
        addr: request.addr,
        length: 0,
        cookie: name.cookie,
    }
}

impl Iommufd {
    /// `IOMMU_FAULT_QUEUE_ALLOC` (FAULT-1.1): `EOPNOTSUPP`, `EMFILE`.
    pub(crate) fn fault_queue_alloc(
        &mut self,
        request: &Request,
        cmd: &mut FaultQueueAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let queue = FaultQueue::new(self.options.fault_cookies, self.options.fault_transport);
        let context = self.context_mut(request.context)?;
        let id = context.ids.add(Kind::Fault)?;
        let made = self.add_queue_file(
            request.context,
            id,
            call,
            |caller, file| caller.new_queue(file),
            |fd, readiness, caller| {
                queue.bell().set_readiness(readiness);
                (cmd.out_fault_id, cmd.out_fault_fd) = (id.0, fd.cast_unsigned());
                request.argument.respond(caller, cmd)
            },
        );
        let context = self.context_mut(request.context)?;
        match made {
            Ok(()) => drop(context.faults.insert(id, queue)),
            Err(_) => context.ids.remove(id),
        }
        made
    }

    /// A descriptor for an object, which it keeps busy, as it does the context.
    /// `then` sees its number; if it fails nothing is left behind.
    pub(crate) fn add_queue_file(
        &mut self,
        context: crate::ContextId,
        id: ObjectId,
        call: &mut Call<'_>,
        make: MakeFile,
        then: impl FnOnce(i32, Arc<dyn Readiness>, &dyn Caller) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let file = call.files.allocate();
        let (fd, readiness) = make(call.caller, file)?;
        then(fd, readiness, call.caller).inspect_err(|_| call.caller.close(fd))?;
        self.context_mut(context)?.ids.get(id);
        self.get_context(context);
        self.files.insert(file, Open::Object(context, id));
        Ok(())
    }

    /// `write` on a fault queue's file.
    pub(crate) fn answer_faults(
        &mut self,
        (context, queue): (crate::ContextId, ObjectId),
        (offset, buf, len): (u64, u64, u64),
        caller: &dyn Caller,
    ) -> Result<u64, Errno> {
        let context = self.context_mut(context)?;
        let queue = context.faults.get_mut(&queue).ok_or(Errno::EINVAL)?;
        let mut answered = Vec::new();
        let result = queue.write(offset, buf, len, caller, &mut answered);
        context.answered(&answered);
        result
    }
}
