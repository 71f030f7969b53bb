// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program's memory and files in memory.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iommu::{Memory, MemoryFault, PageId};
use uapi::Errno;
use vm_memory::VolatileSlice;

use super::TestFile;
use crate::{ClientFile, Pinned, is_user_range};

const PAGE: u64 = 4096;

/// Pages of zeros until written.
#[derive(Debug, Default)]
struct Pages(Mutex<BTreeMap<u64, Box<[u8; PAGE as usize]>>>);

/// A range in parts that end where pages do: page, offset in it, part.
fn pieces(addr: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = addr + done as u64;
        let within = (at % PAGE) as usize;
        let n = (len - done).min(PAGE as usize - within);
        let piece = (at / PAGE, within, done..done + n);
        done += n;
        (n > 0).then_some(piece)
    })
}

impl Pages {
    fn load(&self, addr: u64, buf: &mut [u8]) {
        let pages = self.0.lock().unwrap();
        for (page, within, part) in pieces(addr, buf.len()) {
            let part = &mut buf[part];
            match pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => part.fill(0),
            }
        }
    }

    fn store(&self, addr: u64, buf: &[u8]) {
        let mut pages = self.0.lock().unwrap();
        for (page, within, part) in pieces(addr, buf.len()) {
            let part = &buf[part];
            let bytes = pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            bytes[within..within + part.len()].copy_from_slice(part);
        }
    }
}

/// A file in memory, such as a memfd.
#[derive(Debug)]
pub struct MemFile {
    object: u128,
    size: AtomicU64,
    pages: Pages,
}

impl MemFile {
    /// `number` tells it from other files.
    #[must_use]
    pub fn new(number: u32, size: u64) -> Arc<MemFile> {
        Arc::new(MemFile { object: 1 << 64 | u128::from(number), size: AtomicU64::new(size), pages: Pages::default() })
    }

    /// `ftruncate`
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// What is there.
    #[must_use]
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pages.load(offset, &mut bytes);
        bytes
    }
}

impl Memory for MemFile {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        to.copy_from(&self.bytes(offset, to.len()));
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes[..]);
        self.pages.store(offset, &bytes);
        Ok(())
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        Some(PageId { object: self.object, offset })
    }
}

/// A file as memory for devices; one that is not in memory cannot be pinned.
#[derive(Debug)]
pub(super) enum OpenFile {
    Memory(Arc<MemFile>),
    DmaBuf(u64),
    Other,
}

impl ClientFile for OpenFile {
    fn pin(&self, start: u64, len: u64) -> Result<Pinned, Errno> {
        match self {
            OpenFile::Memory(file) => match start.checked_add(len) {
                Some(end) if end <= file.size.load(Ordering::Relaxed) => {
                    Ok(Pinned { memory: Arc::clone(file) as Arc<dyn Memory>, offset: start })
                }
                _ => Err(Errno::EINVAL),
            },
            OpenFile::DmaBuf(_) | OpenFile::Other => Err(Errno::EINVAL),
        }
    }

    fn foreign_dma_buf(&self) -> Option<u64> {
        if let OpenFile::DmaBuf(bytes) = self { Some(*bytes) } else { None }
    }
}

/// What is mapped at an address.
#[derive(Clone, Debug)]
struct Area {
    len: u64,
    writable: bool,
    /// A shared mapping of a file, from an offset on.
    file: Option<(Arc<MemFile>, u64)>,
    /// A device's BAR, from an offset on.
    bar: Option<(Arc<TestFile>, usize, u64)>,
}

/// A program's memory: areas with rights, pages of zeros until written.
#[derive(Debug, Default)]
pub struct ClientMemory {
    process: u64,
    ended: AtomicBool,
    areas: Mutex<BTreeMap<u64, Area>>,
    pages: Pages,
}

impl ClientMemory {
    pub(super) fn new(process: u64) -> Arc<ClientMemory> {
        Arc::new(ClientMemory { process, ..ClientMemory::default() })
    }

    /// Maps `len` bytes at `addr`, which are multiples of 4096.
    pub fn map(&self, addr: u64, len: u64, writable: bool) {
        self.add(addr, Area { len, writable, file: None, bar: None });
    }

    /// Maps a file, shared, from `offset` on.
    pub fn map_file(&self, addr: u64, len: u64, writable: bool, file: &Arc<MemFile>, offset: u64) {
        self.add(addr, Area { len, writable, file: Some((Arc::clone(file), offset)), bar: None });
    }

    /// Maps a BAR of a device, from `offset` on. Only pins know it: it is not
    /// for loads and stores.
    pub fn map_bar(&self, addr: u64, len: u64, file: &Arc<TestFile>, bar: usize, offset: u64) {
        self.add(addr, Area { len, writable: true, file: None, bar: Some((Arc::clone(file), bar, offset)) });
    }

    fn add(&self, addr: u64, area: Area) {
        assert!(addr.is_multiple_of(PAGE) && area.len.is_multiple_of(PAGE));
        self.areas.lock().unwrap().insert(addr, area);
    }

    /// Takes away what was mapped at `addr`.
    pub fn unmap(&self, addr: u64) {
        self.areas.lock().unwrap().remove(&addr);
    }

    /// The program ends, or executes another.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the program could do this access.
    pub fn check(&self, addr: u64, len: u64, write: bool) -> bool {
        let areas = self.areas.lock().unwrap();
        let Some(end) = addr.checked_add(len) else { return false };
        let mut at = addr;
        while at < end {
            match areas.range(..=at).next_back() {
                Some((start, area)) if at - start < area.len && (area.writable || !write) => at = start + area.len,
                _ => return false,
            }
        }
        is_user_range(addr, len) && !self.ended.load(Ordering::Relaxed)
    }

    /// `EFAULT`
    pub(super) fn area(&self, addr: u64) -> Result<Option<crate::Area>, Errno> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(Errno::EFAULT);
        }
        let areas = self.areas.lock().unwrap();
        let found = areas.iter().find(|(start, area)| *start + area.len > addr);
        Ok(found.map(|(start, area)| crate::Area {
            start: *start,
            end: start + area.len,
            shared_file: area.file.is_some() && area.bar.is_none(),
        }))
    }

    /// The file behind an address, and where in it.
    fn file_at(&self, addr: u64) -> Option<(Arc<MemFile>, u64)> {
        let areas = self.areas.lock().unwrap();
        let (start, area) = areas.range(..=addr).next_back().filter(|(start, area)| addr - *start < area.len)?;
        let (file, offset) = area.file.clone()?;
        Some((file, offset + (addr - start)))
    }

    /// What is there, whatever the rights.
    pub fn load(&self, addr: u64, buf: &mut [u8]) {
        for (page, within, part) in pieces(addr, buf.len()) {
            let at = page * PAGE + within as u64;
            match self.file_at(at) {
                Some((file, offset)) => file.pages.load(offset, &mut buf[part]),
                None => self.pages.load(at, &mut buf[part]),
            }
        }
    }

    /// Writes there, whatever the rights.
    pub fn store(&self, addr: u64, buf: &[u8]) {
        for (page, within, part) in pieces(addr, buf.len()) {
            let at = page * PAGE + within as u64;
            match self.file_at(at) {
                Some((file, offset)) => file.pages.store(offset, &buf[part]),
                None => self.pages.store(at, &buf[part]),
            }
        }
    }

    /// `EFAULT`; a range of one shared mapping is that file's, one in a mapped
    /// BAR is the device's where `devices` are allowed.
    pub(super) fn pin(self: &Arc<Self>, vaddr: u64, len: u64, write: bool, devices: bool) -> Result<Pinned, Errno> {
        if !self.check(vaddr, len, write) {
            return Err(Errno::EFAULT);
        }
        let areas = self.areas.lock().unwrap();
        let area = areas.range(..=vaddr).next_back();
        if let Some((start, Area { len: whole, bar: Some((file, bar, offset)), .. })) = area {
            let within = vaddr - start;
            let reachable = devices && file.accessible.load(Ordering::Relaxed) && within + len <= *whole;
            let memory = file.peer(*bar).filter(|_| reachable).ok_or(Errno::EFAULT)?;
            return Ok(Pinned { memory, offset: offset + within });
        }
        drop(areas);
        if let Some((file, offset)) = self.file_at(vaddr)
            && let Some((other, end)) = self.file_at(vaddr + (len - 1))
            && Arc::ptr_eq(&file, &other)
            && end - offset == len - 1
        {
            return Ok(Pinned { memory: file, offset });
        }
        Ok(Pinned { memory: Arc::clone(self) as Arc<dyn Memory>, offset: vaddr })
    }
}

impl Memory for ClientMemory {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(MemoryFault);
        }
        let mut bytes = vec![0; to.len()];
        self.load(offset, &mut bytes);
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(MemoryFault);
        }
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes[..]);
        self.store(offset, &bytes);
        Ok(())
    }

    fn identity(&self, offset: u64) -> Option<PageId> {
        match self.file_at(offset) {
            Some((file, offset)) => file.identity(offset),
            None => Some(PageId { object: u128::from(self.process), offset }),
        }
    }
}
