// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A fault queue: groups of page requests that wait to be read, and those that
//! wait to be answered (FAULT-1.1 to 1.6).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use caller::{Caller, FileId, Readiness};
use uapi::Errno;
use uapi::iommufd::FaultQueueAlloc;
use uapi::iommufd_events::{
    ANSWER_INVALID, ANSWER_SUCCESS, FAULT_LAST_PAGE, FAULT_PASID_VALID, FAULT_RESPONSE_NEEDS_PASID, PageAnswer,
    PageFault,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::dispatch::Request;
use crate::fault::{FaultCookies, PageRequest, PageResponder, PageResponse, PageResponseCode};
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
}

impl FaultGroup {
    /// Answers the device. Returns who it was.
    pub(crate) fn respond(self, code: PageResponseCode) -> ObjectId {
        if let (Some(responder), Some(last)) = (self.responder, self.requests.last()) {
            tracing::debug!(target: "vfuse::iommufd", device = self.from.0, group = last.group, ?code, "page response");
            responder.respond(PageResponse { pasid: last.pasid, group: last.group, code });
        }
        self.from
    }
}

/// A fault queue.
#[derive(Debug)]
pub(crate) struct FaultQueue {
    readiness: Option<Arc<dyn Readiness>>,
    /// Not read, in order of arrival.
    deliver: VecDeque<FaultGroup>,
    /// Read and not answered, by cookie.
    waiting: BTreeMap<u32, FaultGroup>,
    cookies: FaultCookies,
    last_cookie: u32,
}

impl FaultQueue {
    pub(crate) fn new(cookies: FaultCookies) -> FaultQueue {
        FaultQueue { readiness: None, deliver: VecDeque::new(), waiting: BTreeMap::new(), cookies, last_cookie: 0 }
    }

    /// A group has come.
    pub(crate) fn push(&mut self, group: FaultGroup) {
        self.deliver.push_back(group);
        self.show();
    }

    /// What `poll` tells.
    fn show(&self) {
        if let Some(readiness) = &self.readiness {
            readiness.set_readable(!self.deliver.is_empty());
        }
    }

    /// Answers the groups of an attachment, of which there are no more, INVALID
    /// (FAULT-3.1). The devices that had asked.
    pub(crate) fn drop_handle(&mut self, handle: u64) -> Vec<ObjectId> {
        let mut gone = Vec::new();
        let mut keep = VecDeque::new();
        for group in self.deliver.drain(..) {
            if group.handle == handle { gone.push(group) } else { keep.push_back(group) }
        }
        self.deliver = keep;
        let read: Vec<u32> =
            self.waiting.iter().filter(|(_, group)| group.handle == handle).map(|(cookie, _)| *cookie).collect();
        gone.extend(read.iter().filter_map(|cookie| self.waiting.remove(cookie)));
        self.show();
        gone.into_iter().map(|group| group.respond(PageResponseCode::Invalid)).collect()
    }

    /// The queue is no more.
    pub(crate) fn drop_all(&mut self) -> Vec<ObjectId> {
        let unread = self.deliver.drain(..);
        let read = std::mem::take(&mut self.waiting).into_values();
        unread.chain(read).map(|group| group.respond(PageResponseCode::Invalid)).collect()
    }

    /// A number that no unanswered group has.
    fn cookie(&mut self) -> Option<u32> {
        match self.cookies {
            FaultCookies::Monotonic => {
                let start = self.last_cookie;
                loop {
                    self.last_cookie = self.last_cookie.checked_add(1).unwrap_or(1);
                    if !self.waiting.contains_key(&self.last_cookie) {
                        return Some(self.last_cookie);
                    }
                    if self.last_cookie == start {
                        return None;
                    }
                }
            }
            FaultCookies::LowestFree => {
                let mut free = 1;
                for cookie in self.waiting.keys() {
                    if *cookie != free {
                        break;
                    }
                    free = free.checked_add(1)?;
                }
                Some(free)
            }
        }
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
            let cookie = self.cookie().ok_or(Errno::EBUSY)?;
            let Some(group) = self.deliver.front() else { return Ok(()) };
            let records: Vec<PageFault> =
                group.requests.iter().map(|request| record(request, group.by, cookie)).collect();
            caller.write(buf.checked_add(*done).ok_or(Errno::EFAULT)?, records.as_bytes())?;
            if let Some(group) = self.deliver.pop_front() {
                self.waiting.insert(cookie, group);
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
        answered: &mut Vec<ObjectId>,
    ) -> Result<u64, Errno> {
        if offset != 0 || !len.is_multiple_of(ANSWER) {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        while done < len {
            match self.answer(buf.checked_add(done).ok_or(Errno::EFAULT), caller) {
                Ok(device) => answered.push(device),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += ANSWER;
        }
        Ok(done)
    }

    fn answer(&mut self, at: Result<u64, Errno>, caller: &dyn Caller) -> Result<ObjectId, Errno> {
        let mut answer = PageAnswer::new_zeroed();
        caller.read(at?, answer.as_mut_bytes())?;
        let code = match answer.code {
            ANSWER_SUCCESS => PageResponseCode::Success,
            ANSWER_INVALID => PageResponseCode::Invalid,
            _ => return Err(Errno::EINVAL),
        };
        let group = self.waiting.remove(&answer.cookie).ok_or(Errno::EINVAL)?;
        Ok(group.respond(code))
    }
}

fn record(request: &PageRequest, by: ObjectId, cookie: u32) -> PageFault {
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
        grpid: request.group,
        perm: request.perm,
        reserved: 0,
        addr: request.addr,
        length: 0,
        cookie,
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
        let mut queue = FaultQueue::new(self.options.fault_cookies);
        let context = self.context_mut(request.context)?;
        let id = context.ids.add(Kind::Fault)?;
        let made = self.add_queue_file(
            request.context,
            id,
            call,
            |caller, file| caller.new_queue(file),
            |fd, readiness, caller| {
                queue.readiness = Some(readiness);
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
