// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which memory a range of a program's addresses is.
//!
//! Linux pins the pages of a range for a device; a [`Pinner`] finds out what
//! they belong to. Shared mappings of files in memory become [`FileMemory`]
//! (`file`): the device reads and writes the very pages. A mapped BAR is what
//! its device answers to others. All else is reached through the [`Process`]. One system call for the usual range, however many
//! mappings there are.
//!
//! The rights are those that pinning asks for: to write, the program must be
//! able to write there; to read, to read there.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use caller::{Area, ClientFile, FilePart, Pinned};
use iommu::{Memory, MemoryFault, PageId};
use rustix::fs::{FileType, Stat};
use uapi::Errno;
use vm_memory::VolatileSlice;

use crate::client_file::OpenFile;
use crate::file::{self, FileMemory, Files};
use crate::process::Process;
use crate::vma::Vma;

/// Most parts of one range that are kept apart.
const MAX_PARTS: usize = 1024;
/// Parts shorter than this on average are not worth it.
const MIN_PART: u64 = 64 << 10;

/// Finds the memory behind ranges; one for a lab.
#[derive(Debug, Default)]
pub struct Pinner {
    files: Arc<Files>,
    /// Files that programs have given, by device and inode: one descriptor for
    /// each, however often it is given.
    given: Mutex<HashMap<(u64, u64), Weak<OpenFile>>>,
}

/// What a part of a range is.
enum Kind {
    Process,
    File(Arc<FileMemory>, u64),
    /// A device's BAR.
    Peer(Arc<dyn Memory>, u64),
}

impl Pinner {
    /// A pinner that knows no file yet.
    #[must_use]
    pub fn new() -> Pinner {
        Pinner::default()
    }

    /// What [`caller::Caller::client_file`] gives for a duplicate of the
    /// program's descriptor: the same for descriptors of one file.
    #[must_use]
    pub fn file(&self, fd: OwnedFd) -> Arc<dyn ClientFile> {
        // Others than regular files cannot be pinned, and can share an inode.
        let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let key = rustix::fs::fstat(&fd).ok().filter(regular).map(|stat| (stat.st_dev, stat.st_ino));
        let Some(key) = key else { return Arc::new(OpenFile::new(fd, Arc::clone(&self.files))) };
        let mut given = self.given.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(file) = given.get(&key).and_then(Weak::upgrade) {
            return file;
        }
        given.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(OpenFile::new(fd, Arc::clone(&self.files)));
        given.insert(key, Arc::downgrade(&file));
        file
    }

    /// What [`caller::Caller::pin`] asks for: `EFAULT` if a part of the range
    /// is not mapped, or without the right, or a BAR that cannot be touched now.
    pub fn pin(&self, process: &Arc<Process>, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        self.find(process, vaddr, len, write, true)
    }

    /// What [`caller::Mm::pin`] asks for: the same of ordinary memory only.
    /// `EFAULT` also for a device's registers, which have no pages to pin;
    /// type1 takes them, iommufd does not.
    pub fn pin_pages(&self, process: &Arc<Process>, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        self.find(process, vaddr, len, write, false)
    }

    /// What [`caller::Mm::area_with_file`] asks for.
    pub(crate) fn area(
        &self,
        process: &Arc<Process>,
        addr: u64,
        len: u64,
        write: bool,
    ) -> Result<Option<(Area, Option<FilePart>)>, Errno> {
        let Some(vma) = process.vma_from(addr)? else { return Ok(None) };
        let area = vma.area();
        let Some((start, len)) = area.file_range(addr, len) else { return Ok(Some((area, None))) };
        let find = |write| Ok(whole(process, self.kind(process, &vma, start..start + len, write, false)?, start));
        let (pinned, writable) = match find(write) {
            Err(Errno::EFAULT) if write => (find(false)?, false),
            pinned => (pinned?, write),
        };
        Ok(Some((area, Some(FilePart { pinned, writable }))))
    }

    /// What a range in a mapping is: `EFAULT` as in [`pin`](Self::pin).
    fn kind(
        &self,
        process: &Arc<Process>,
        vma: &Vma,
        range: Range<u64>,
        write: bool,
        devices: bool,
    ) -> Result<Kind, Errno> {
        if !(if write { vma.write } else { vma.read }) {
            return Err(Errno::EFAULT);
        }
        let (offset, len) = (vma.offset + (range.start - vma.start), range.end - range.start);
        let device = if vma.shared { file::device(vma) } else { None };
        let peer = match device {
            Some(_) if !devices => return Err(Errno::EFAULT),
            Some(device) => device.peer(offset, len)?,
            None => None,
        };
        if let Some(Pinned { memory, offset }) = peer {
            return Ok(Kind::Peer(memory, offset));
        }
        let memory = match vma.shared && vma.inode != 0 {
            true => self.files.memory(process, vma, offset, len, write)?,
            false => None,
        };
        Ok(memory.map_or(Kind::Process, |memory| {
            let offset = memory.offset_of(offset);
            Kind::File(memory, offset)
        }))
    }

    fn find(&self, process: &Arc<Process>, vaddr: u64, len: u64, write: bool, devices: bool) -> Result<Pinned, Errno> {
        let end = vaddr.checked_add(len).ok_or(Errno::EFAULT)?;
        let mut parts: Vec<Part> = Vec::new();
        let mut too_many = false;
        let mut at = vaddr;
        while at < end {
            let vma = process.vma(at)?.ok_or(Errno::EFAULT)?;
            let stop = vma.end.min(end);
            let kind = self.kind(process, &vma, at..stop, write, devices)?;
            if at == vaddr && stop == end {
                return Ok(whole(process, kind, vaddr));
            }
            if !too_many {
                add(&mut parts, process, kind, vaddr, at, stop);
                too_many = parts.len() > MAX_PARTS;
            }
            at = stop;
        }
        let apart = !too_many && len / MIN_PART >= parts.len() as u64;
        match parts.pop() {
            Some(only) if parts.is_empty() => Ok(Pinned { memory: only.memory, offset: only.offset }),
            Some(last) if apart => {
                parts.push(last);
                Ok(Pinned { memory: Arc::new(Composite { parts: parts.into() }), offset: 0 })
            }
            _ => Ok(Pinned { memory: Arc::clone(process) as Arc<dyn Memory>, offset: vaddr }),
        }
    }
}

fn whole(process: &Arc<Process>, kind: Kind, vaddr: u64) -> Pinned {
    match kind {
        Kind::Process => Pinned { memory: Arc::clone(process) as Arc<dyn Memory>, offset: vaddr },
        Kind::File(memory, offset) => Pinned { memory, offset },
        Kind::Peer(memory, offset) => Pinned { memory, offset },
    }
}

/// Adds `at..stop`, to the last part where it goes on.
fn add(parts: &mut Vec<Part>, process: &Arc<Process>, kind: Kind, vaddr: u64, at: u64, stop: u64) {
    let Pinned { memory, offset } = whole(process, kind, at);
    let (first, end) = (at - vaddr, stop - vaddr);
    if let Some(last) = parts.last_mut() {
        let goes_on = offset.checked_sub(last.offset) == Some(first - last.first);
        if goes_on && std::ptr::addr_eq(Arc::as_ptr(&last.memory), Arc::as_ptr(&memory)) {
            last.end = end;
            return;
        }
    }
    parts.push(Part { first, end, memory, offset });
}

/// A part of a range: `first..end` counted from its start.
#[derive(Debug)]
struct Part {
    first: u64,
    end: u64,
    memory: Arc<dyn Memory>,
    /// Offset in `memory` of the byte at `first`.
    offset: u64,
}

/// A range over several mappings of a program, as one memory. Offsets count
/// from its start.
#[derive(Debug)]
struct Composite {
    parts: Box<[Part]>,
}

impl Composite {
    fn part(&self, offset: u64) -> Option<&Part> {
        let at = self.parts.partition_point(|part| part.end <= offset);
        self.parts.get(at).filter(|part| part.first <= offset)
    }

    fn each(
        &self,
        offset: u64,
        own: &VolatileSlice<'_>,
        copy: impl Fn(&dyn Memory, u64, &VolatileSlice<'_>) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let mut done = 0;
        while done < own.len() {
            let at = offset.checked_add(done as u64).ok_or(MemoryFault)?;
            let part = self.part(at).ok_or(MemoryFault)?;
            let run = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(own.len() - done);
            let slice = own.subslice(done, run).map_err(|_| MemoryFault)?;
            copy(&*part.memory, part.offset + (at - part.first), &slice)?;
            done += run;
        }
        Ok(())
    }
}

impl Memory for Composite {
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let part = self.part(offset)?;
        if offset.checked_add(len as u64)? > part.end {
            return None;
        }
        part.memory.slice(part.offset + (offset - part.first), len)
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.each(offset, to, |memory, at, slice| memory.read(at, slice))
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.each(offset, from, |memory, at, slice| memory.write(at, slice))
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        let part = self.part(offset)?;
        part.memory.identity(part.offset + (offset - part.first))
    }
}
