// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A simulated program: memory, descriptors, and a journal of what devices did
//! to its memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use caller::{Area, Caller, Capability, ClientFile, FileId, Mm, Pinned, ProcessId, Readiness, UserId};
use device::Event;
use iommu::{Memory, MemoryFault};
use models::testing::CountedEvent;
use uapi::Errno;
use vm_memory::VolatileSlice;

/// Virtual address of the first byte of every program's memory.
pub const BASE: u64 = 0x10_0000;
/// Bytes of every program's memory.
pub const SIZE: u64 = 1 << 20;
/// Bytes that a program may lock.
const LOCKED: u64 = 2 * SIZE;

/// What a device did to a program's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) vaddr: Range<u64>,
    pub(crate) write: bool,
}

/// A program's memory. Devices reach it by copying only, so that each access
/// is seen.
#[derive(Debug)]
pub(crate) struct SimMemory {
    bytes: Mutex<Vec<u8>>,
    touched: Mutex<Vec<Touch>>,
}

impl SimMemory {
    fn new() -> Arc<SimMemory> {
        Arc::new(SimMemory { bytes: Mutex::new(vec![0; SIZE as usize]), touched: Mutex::default() })
    }

    /// The journal since the last call.
    pub(crate) fn take_touched(&self) -> Vec<Touch> {
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn range(vaddr: u64, len: usize) -> Option<Range<usize>> {
        let start = vaddr.checked_sub(BASE)?;
        let end = start.checked_add(len as u64).filter(|end| *end <= SIZE)?;
        Some(start as usize..end as usize)
    }

    fn load(&self, vaddr: u64, to: &mut [u8]) -> Option<()> {
        let range = SimMemory::range(vaddr, to.len())?;
        to.copy_from_slice(self.bytes.lock().unwrap_or_else(|e| e.into_inner()).get(range)?);
        Some(())
    }

    fn store(&self, vaddr: u64, from: &[u8]) -> Option<()> {
        let range = SimMemory::range(vaddr, from.len())?;
        self.bytes.lock().unwrap_or_else(|e| e.into_inner()).get_mut(range)?.copy_from_slice(from);
        Some(())
    }

    fn touch(&self, vaddr: u64, len: usize, write: bool) {
        let touch = Touch { vaddr: vaddr..vaddr.saturating_add(len as u64), write };
        self.touched.lock().unwrap_or_else(|e| e.into_inner()).push(touch);
    }
}

impl Memory for SimMemory {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.touch(offset, to.len(), false);
        let mut bytes = vec![0; to.len()];
        self.load(offset, &mut bytes).ok_or(MemoryFault)?;
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.touch(offset, from.len(), true);
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes);
        self.store(offset, &bytes).ok_or(MemoryFault)
    }
}

/// An open descriptor.
#[derive(Clone, Debug)]
pub enum Fd {
    /// One of the lab's files.
    File(FileId),
    /// An eventfd.
    Event(Arc<CountedEvent>),
}

/// A program.
#[derive(Debug)]
pub struct Client {
    pub(crate) memory: Arc<SimMemory>,
    process: ProcessId,
    fds: RefCell<BTreeMap<i32, Fd>>,
    /// It has every capability; else none.
    pub privileged: bool,
}

impl Client {
    /// A program that has nothing open.
    pub fn new(process: u64) -> Client {
        Client { memory: SimMemory::new(), process: ProcessId(process), fds: RefCell::default(), privileged: false }
    }

    /// Opens the lowest free descriptor.
    pub fn install(&self, fd: Fd) -> i32 {
        let mut fds = self.fds.borrow_mut();
        let number = (3..).find(|n| !fds.contains_key(n)).unwrap_or(i32::MAX);
        fds.insert(number, fd);
        number
    }

    /// Closes a descriptor.
    pub fn remove(&self, fd: i32) -> Option<Fd> {
        self.fds.borrow_mut().remove(&fd)
    }

    /// Descriptors that are open.
    pub fn open(&self) -> Vec<i32> {
        self.fds.borrow().keys().copied().collect()
    }

    /// The lab's file that a descriptor is.
    pub fn file_id(&self, fd: i32) -> Option<FileId> {
        match self.fds.borrow().get(&fd) {
            Some(Fd::File(file)) => Some(*file),
            _ => None,
        }
    }

    /// The program's own load; not in the journal.
    pub fn get(&self, vaddr: u64, to: &mut [u8]) {
        let _ = self.memory.load(vaddr, to);
    }

    /// The program's own store.
    pub fn set(&self, vaddr: u64, from: &[u8]) {
        let _ = self.memory.store(vaddr, from);
    }
}

/// A program's memory as the core holds on to it.
#[derive(Debug)]
struct SimMm {
    memory: Arc<SimMemory>,
    process: ProcessId,
}

impl SimMm {
    fn pin(memory: &Arc<SimMemory>, vaddr: u64, len: u64) -> Result<Pinned, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::EFAULT)?;
        SimMemory::range(vaddr, len).ok_or(Errno::EFAULT)?;
        Ok(Pinned { memory: Arc::clone(memory) as Arc<dyn Memory>, offset: vaddr })
    }
}

impl Mm for SimMm {
    fn process(&self) -> ProcessId {
        self.process
    }

    fn user(&self) -> UserId {
        UserId(1000)
    }

    fn memlock_limit(&self) -> u64 {
        LOCKED
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.memory.load(addr, buf).ok_or(Errno::EFAULT)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        self.memory.store(addr, buf).ok_or(Errno::EFAULT)
    }

    fn pin(&self, vaddr: u64, len: u64, _write: bool) -> Result<Pinned, Errno> {
        SimMm::pin(&self.memory, vaddr, len)
    }

    fn area(&self, addr: u64) -> Result<Option<Area>, Errno> {
        let end = BASE + SIZE;
        Ok((addr < end).then_some(Area { start: BASE, end, shared_file: false }))
    }
}

/// A file without memory for devices.
#[derive(Debug)]
struct NoMemory;

impl ClientFile for NoMemory {
    fn pin(&self, _start: u64, _len: u64) -> Result<Pinned, Errno> {
        Err(Errno::EINVAL)
    }
}

/// Nobody polls.
#[derive(Debug)]
struct Unwatched;

impl Readiness for Unwatched {
    fn set_readable(&self, _on: bool) {}
}

impl Caller for Client {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.memory.load(addr, buf).ok_or(Errno::EFAULT)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        self.memory.store(addr, buf).ok_or(Errno::EFAULT)
    }

    fn event(&self, fd: i32) -> Result<Arc<dyn Event>, Errno> {
        match self.fds.borrow().get(&fd) {
            None => Err(Errno::EBADF),
            Some(Fd::Event(event)) => Ok(Arc::clone(event) as Arc<dyn Event>),
            Some(Fd::File(_)) => Err(Errno::EINVAL),
        }
    }

    fn file(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        match self.fds.borrow().get(&fd) {
            None => Err(Errno::EBADF),
            Some(Fd::File(file)) => Ok(Some(*file)),
            Some(Fd::Event(_)) => Ok(None),
        }
    }

    fn pin(&self, vaddr: u64, len: u64, _write: bool) -> Result<Pinned, Errno> {
        SimMm::pin(&self.memory, vaddr, len)
    }

    fn capable(&self, _capability: Capability) -> bool {
        self.privileged
    }

    fn memlock_limit(&self) -> u64 {
        LOCKED
    }

    fn process(&self) -> ProcessId {
        self.process
    }

    fn mm(&self) -> Result<Arc<dyn Mm>, Errno> {
        Ok(Arc::new(SimMm { memory: Arc::clone(&self.memory), process: self.process }))
    }

    fn client_file(&self, fd: i32) -> Result<Arc<dyn ClientFile>, Errno> {
        if self.fds.borrow().contains_key(&fd) { Ok(Arc::new(NoMemory)) } else { Err(Errno::EBADF) }
    }

    fn new_handle(&self, file: FileId) -> Result<i32, Errno> {
        Ok(self.install(Fd::File(file)))
    }

    fn new_event(&self) -> Result<(i32, Arc<dyn Event>), Errno> {
        let event = Arc::<CountedEvent>::default();
        Ok((self.install(Fd::Event(Arc::clone(&event))), event))
    }

    fn new_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        Ok((self.install(Fd::File(file)), Arc::new(Unwatched)))
    }

    fn close(&self, fd: i32) {
        self.remove(fd);
    }

    fn is_mapped(&self, _file: FileId, _offset: u64, _len: u64) -> bool {
        false
    }
}
