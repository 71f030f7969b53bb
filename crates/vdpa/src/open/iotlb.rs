// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UPDATE and INVALIDATE: records, pins, accounts, and what reaches the parent
//! (VDPA-7.8 to VDPA-7.23).

use std::sync::Arc;

use caller::{Accounts, FilePart, Mm, Pinned};
use iommu::{Memory, MemoryFault};
use uapi::Errno;
use uapi::vhost::{IotlbMsg, iotlb};

use vm_memory::VolatileSlice;

use super::{Cx, Owner, PAGE};
use crate::device::VdpaDevice;
use crate::iotlb::Record;
use crate::parent::{Driver, Identity, Mapping};

impl VdpaDevice {
    /// Adds what an UPDATE asks for, all or nothing.
    pub(super) fn update(&mut self, asid: u32, message: &IotlbMsg, cx: &mut Cx<'_>) -> Result<(), Errno> {
        let IotlbMsg { iova, size, .. } = *message;
        let (first, end) = self.driver.spec.iova;
        // VDPA-7.8
        let last = size.checked_sub(1).and_then(|length| iova.checked_add(length)).ok_or(Errno::EINVAL)?;
        if iova < first || last > end {
            return Err(Errno::EINVAL);
        }
        let open = self.opened()?;
        let Owner { mm, .. } = open.owner.clone().ok_or(Errno::EPERM)?;
        // VDPA-7.9
        if open.spaces.get(&asid).and_then(|space| space.first_overlap(iova, last)).is_some() {
            return Err(Errno::EEXIST);
        }
        if self.driver.spec.use_va {
            self.map_areas(asid, message, &*mm, cx.accounts)
        } else {
            self.map_pages(asid, message, &*mm, cx)
        }
    }

    /// PA mode: whole pages, pinned (VDPA-7.15 to VDPA-7.18). One record: what
    /// runs physical memory comes in is unknown to programs (VDPA-7.11).
    fn map_pages(&mut self, asid: u32, message: &IotlbMsg, mm: &dyn Mm, cx: &Cx<'_>) -> Result<(), Errno> {
        let IotlbMsg { iova, size, uaddr, perm, .. } = *message;
        let within = iova % PAGE;
        let pages = size.checked_add(within).ok_or(Errno::EINVAL)?.div_ceil(PAGE);
        let process = mm.process();
        cx.accounts.try_pin(cx.caller, process, pages)?;
        let (first, start) = (iova - within, uaddr - uaddr % PAGE);
        // 2^64 at most: the range has been checked.
        let last = first.wrapping_add(pages.wrapping_mul(PAGE)).wrapping_sub(1);
        let bytes = pages.checked_mul(PAGE).ok_or(Errno::EFAULT);
        let pinned = bytes.and_then(|bytes| mm.pin(start, bytes, perm & iotlb::WO != 0));
        let added = pinned.and_then(|Pinned { memory, offset }| {
            self.add_record(asid, first, Record { last, perm, memory, offset, pages })
        });
        if added.is_err() {
            cx.accounts.unpin(process, pages);
        }
        added
    }

    /// VA mode: what is a shared file is mapped, all else skipped (VDPA-7.19,
    /// VDPA-7.20). A device keeps the file, as VDUSE's do.
    fn map_areas(&mut self, asid: u32, message: &IotlbMsg, mm: &dyn Mm, accounts: &Accounts) -> Result<(), Errno> {
        let IotlbMsg { iova, size, uaddr, perm, .. } = *message;
        let mut done = 0;
        let result = loop {
            if done == size {
                break Ok(());
            }
            let (at, left) = (uaddr.wrapping_add(done), size - done);
            let (area, part) = match mm.area_with_file(at, left, perm & iotlb::WO != 0) {
                Ok(Some(found)) => found,
                Ok(None) => break Err(Errno::EINVAL),
                Err(errno) => break Err(errno),
            };
            // A hole counts as part of the next mapping.
            let run = left.min(area.end - at);
            if area.shared_file {
                let hole = area.start.saturating_sub(at).min(run);
                let first = iova + done;
                let record = Record { last: first + (run - 1), ..file_record(part, hole, perm) };
                if let Err(errno) = self.add_record(asid, first, record) {
                    break Err(errno);
                }
            }
            done += run;
        };
        if result.is_err() && done > 0 {
            // What this message has added, and no more: Linux removes everything
            // if it added nothing at address 0 (VDPA-7.21).
            self.invalidate(asid, iova, done, accounts);
        }
        result
    }

    /// A record, and the parent told of it: its errno takes the record back.
    fn add_record(&mut self, asid: u32, first: u64, record: Record) -> Result<(), Errno> {
        let limit = self.driver.spec.max_entries;
        let open = self.opened()?;
        let in_batch = open.batch.is_some();
        let space = open.spaces.get_mut(&asid).ok_or(Errno::EINVAL)?;
        space.insert(first, record.clone(), limit)?;
        let told = match self.driver.spec.mapping {
            Mapping::Platform | Mapping::DmaMap => self.driver.tables.added(&self.driver.spec, asid, first, &record),
            Mapping::SetMap if in_batch => Ok(()),
            Mapping::SetMap => self.hand_over(asid),
        };
        if told.is_err()
            && let Some(space) = self.opened()?.spaces.get_mut(&asid)
        {
            space.remove(first);
        }
        told
    }

    /// `set_map` with all records of an address space.
    pub(super) fn hand_over(&mut self, asid: u32) -> Result<(), Errno> {
        let open = self.open.as_mut().ok_or(Errno::EBADF)?;
        let space = open.spaces.get_mut(&asid).ok_or(Errno::EINVAL)?;
        let Driver { spec, tables, endpoint, .. } = &mut self.driver;
        tables.set_map(spec, asid, space, endpoint)
    }

    /// Removes every record that the range touches, whole (VDPA-7.10).
    pub(super) fn invalidate(&mut self, asid: u32, iova: u64, size: u64, accounts: &Accounts) {
        let last = iova.wrapping_add(size).wrapping_sub(1);
        self.remove_records(asid, iova, last, accounts);
        let in_batch = self.open.as_ref().is_some_and(|open| open.batch.is_some());
        if self.driver.spec.mapping == Mapping::SetMap && !in_batch {
            // VDPA-7.23: the result is ignored.
            if let Err(inner) = self.hand_over(asid) {
                tracing::warn!(target: "vfuse::vdpa", device = self.name, asid, %inner, "the parent refuses its maps");
            }
        }
    }

    /// Removes records without a word to a set_map parent.
    pub(super) fn remove_records(&mut self, asid: u32, start: u64, last: u64, accounts: &Accounts) {
        let Some(open) = &mut self.open else { return };
        let owner = open.owner();
        let Some(space) = open.spaces.get_mut(&asid) else { return };
        let (mut gone, mut pages) = (None, 0);
        while let Some(first) = space.first_overlap(start, last)
            && let Some(record) = space.remove(first)
        {
            let (from, _) = gone.unwrap_or((first, 0));
            gone = Some((from, record.last));
            pages += record.pages;
        }
        // They come in ascending order, and between them there is nothing.
        if let Some((from, to)) = gone.filter(|_| self.driver.spec.mapping != Mapping::SetMap) {
            self.driver.tables.removed(&self.driver.spec, asid, from, to);
        }
        if let Some(owner) = owner.filter(|_| pages > 0) {
            accounts.unpin(owner, pages);
        }
    }
}

/// A part of a shared file, `hole` bytes before it not there. Nobody looks at
/// the program's rights: what it may not do itself shows when the device tries.
fn file_record(part: Option<FilePart>, hole: u64, perm: u8) -> Record {
    let (pinned, perm) = match part {
        Some(FilePart { pinned, writable: true }) => (pinned, perm),
        Some(FilePart { pinned, writable: false }) => (pinned, perm & !iotlb::WO),
        None => (Pinned { memory: Arc::new(Identity::default()), offset: 0 }, perm),
    };
    let Pinned { memory, offset } = pinned;
    let (memory, offset) = match hole {
        0 => (memory, offset),
        _ => (Arc::new(AfterHole { hole, memory, start: offset }) as _, 0),
    };
    Record { last: 0, perm, memory, offset, pages: 0 }
}

/// Memory with nothing before it.
#[derive(Debug)]
struct AfterHole {
    hole: u64,
    memory: Arc<dyn Memory>,
    start: u64,
}

impl AfterHole {
    fn offset(&self, offset: u64) -> Option<u64> {
        self.start.checked_add(offset.checked_sub(self.hole)?)
    }
}

impl Memory for AfterHole {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.memory.slice(self.offset(offset)?, len)
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.memory.read(self.offset(offset).ok_or(MemoryFault)?, to)
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.memory.write(self.offset(offset).ok_or(MemoryFault)?, from)
    }
}
