// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queues of vIOMMUs (IOMMUFD-11.9 to 11.11).

use std::collections::VecDeque;
use std::sync::Arc;

use caller::{Caller, Readiness};
use uapi::Errno;
use uapi::iommufd::VeventqAlloc;
use uapi::iommufd_events::{VEVENT_LOST_EVENTS, VeventHeader};
use uapi::iommufd_hw::NONE;
use zerocopy::IntoBytes;

use crate::context::Context;
use crate::dispatch::Request;
use crate::ids::{Kind, ObjectId};
use crate::{Call, Iommufd};

/// Deepest queue.
const DEEPEST: u32 = 1 << 19;
/// Sequence numbers wrap behind this.
const SEQUENCE: u32 = i32::MAX.cast_unsigned();
const HEADER: u64 = size_of::<VeventHeader>() as u64;

/// An entry of a queue.
#[derive(Debug)]
struct Entry {
    sequence: u32,
    /// `None`: events were lost here.
    data: Option<Box<[u8]>>,
}

/// An event queue.
#[derive(Debug)]
pub(crate) struct Veventq {
    viommu: ObjectId,
    kind: u32,
    depth: u32,
    entries: VecDeque<Entry>,
    /// Entries that are events.
    events: u32,
    sequence: u32,
    readiness: Option<Arc<dyn Readiness>>,
}

impl Veventq {
    fn new(viommu: ObjectId, kind: u32, depth: u32) -> Veventq {
        Veventq { viommu, kind, depth, entries: VecDeque::new(), events: 0, sequence: 0, readiness: None }
    }

    /// An event has happened. If the queue is full, only that it was lost stays.
    fn push(&mut self, data: &[u8]) {
        let fits = self.events < self.depth;
        // What says that events were lost is the last entry, and goes when another comes.
        if self.entries.back().is_some_and(|last| last.data.is_none()) {
            self.entries.pop_back();
        }
        self.events += u32::from(fits);
        self.entries.push_back(Entry { sequence: self.sequence, data: fits.then(|| data.into()) });
        self.sequence = (self.sequence + 1) & SEQUENCE;
        self.show();
    }

    fn show(&self) {
        if let Some(readiness) = &self.readiness {
            readiness.set_readable(!self.entries.is_empty());
        }
    }

    /// `read`.
    pub(crate) fn read(&mut self, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        if offset != 0 {
            return Err(Errno::ESPIPE);
        }
        if len < HEADER {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        let result = self.read_entries(buf, len, caller, &mut done);
        self.show();
        if done == 0 { result.map(|()| 0) } else { Ok(done) }
    }

    fn read_entries(&mut self, buf: u64, len: u64, caller: &dyn Caller, done: &mut u64) -> Result<(), Errno> {
        while let Some(entry) = self.entries.front() {
            if len - *done < HEADER {
                return Ok(());
            }
            let data = entry.data.as_deref().unwrap_or_default();
            let bytes = HEADER + data.len() as u64;
            if bytes > len - *done {
                return if *done == 0 { Err(Errno::EINVAL) } else { Ok(()) };
            }
            let flags = if entry.data.is_none() { VEVENT_LOST_EVENTS } else { 0 };
            let header = VeventHeader { flags, sequence: entry.sequence };
            let whole = [header.as_bytes(), data].concat();
            caller.write(buf.checked_add(*done).ok_or(Errno::EFAULT)?, &whole)?;
            self.events -= u32::from(entry.data.is_some());
            self.entries.pop_front();
            *done += bytes;
        }
        Ok(())
    }
}

impl Iommufd {
    /// `IOMMU_VEVENTQ_ALLOC` (IOMMUFD-11.9).
    pub(crate) fn veventq_alloc(
        &mut self,
        request: &Request,
        cmd: &mut VeventqAlloc,
        call: &mut Call<'_>,
    ) -> Result<(), Errno> {
        if cmd.flags != 0 || cmd.reserved != 0 || cmd.kind == NONE {
            return Err(Errno::EOPNOTSUPP);
        }
        if cmd.veventq_depth == 0 || cmd.veventq_depth > DEEPEST {
            return Err(Errno::EINVAL);
        }
        let context = self.context_mut(request.context)?;
        let viommu = context.ids.expect(cmd.viommu_id, Kind::Viommu)?;
        if context.veventq(viommu, cmd.kind).is_some() {
            return Err(Errno::EEXIST);
        }
        let mut queue = Veventq::new(viommu, cmd.kind, cmd.veventq_depth);
        let id = context.ids.add(Kind::Veventq)?;
        let made = self.add_queue_file(
            request.context,
            id,
            call,
            |caller, file| caller.new_event_queue(file),
            |fd, readiness, caller| {
                queue.readiness = Some(readiness);
                (cmd.out_veventq_id, cmd.out_veventq_fd) = (id.0, fd.cast_unsigned());
                request.argument.respond(caller, cmd)
            },
        );
        let context = self.context_mut(request.context)?;
        match made {
            Ok(()) => {
                context.ids.get(viommu);
                context.veventqs.insert(id, queue);
            }
            Err(_) => context.ids.remove(id),
        }
        made
    }
}

impl Context {
    fn veventq(&mut self, viommu: ObjectId, kind: u32) -> Option<&mut Veventq> {
        self.veventqs.values_mut().find(|queue| queue.viommu == viommu && queue.kind == kind)
    }

    /// An event of a vIOMMU: `EOPNOTSUPP` if there is no queue for its type.
    pub(crate) fn report_vevent(&mut self, viommu: ObjectId, kind: u32, data: &[u8]) -> Result<(), Errno> {
        self.veventq(viommu, kind).ok_or(Errno::EOPNOTSUPP)?.push(data);
        Ok(())
    }

    /// Takes an event queue apart that nobody uses.
    pub(crate) fn destroy_veventq(&mut self, id: ObjectId) {
        if let Some(queue) = self.veventqs.remove(&id) {
            self.ids.put(queue.viommu);
        }
        self.ids.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags and sequence of each entry.
    fn entries(queue: &Veventq) -> Vec<(bool, u32)> {
        queue.entries.iter().map(|entry| (entry.data.is_none(), entry.sequence)).collect()
    }

    /// IOMMUFD-11.11
    #[test]
    fn a_full_queue_tells_that_events_were_lost() {
        let mut queue = Veventq::new(ObjectId(1), 1, 2);
        for _ in 0..2 {
            queue.push(&[0; 4]);
        }
        assert_eq!(entries(&queue), [(false, 0), (false, 1)]);
        for _ in 0..2 {
            queue.push(&[0; 4]);
        }
        assert_eq!(entries(&queue), [(false, 0), (false, 1), (true, 3)], "one header, with the latest number");
        queue.entries.pop_front();
        queue.events -= 1;
        queue.push(&[0; 4]);
        assert_eq!(entries(&queue), [(false, 1), (false, 4)], "the header goes, the gap tells");
        queue.sequence = SEQUENCE;
        queue.entries.clear();
        queue.events = 0;
        queue.push(&[0; 4]);
        queue.push(&[0; 4]);
        assert_eq!(entries(&queue), [(false, SEQUENCE), (false, 0)], "numbers wrap");
    }
}
