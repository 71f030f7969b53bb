// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that calls.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use device::Event;
use uapi::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::memory::{ClientMemory, MemFile, OpenFile};
use crate::{Area, Caller, Capability, ClientFile, FileId, Mm, Pinned, ProcessId, Readiness, UserId};

/// An eventfd that counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Reads and clears.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }

    /// Reads.
    pub fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Event for Counter {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What `poll` shows of a queue.
#[derive(Debug, Default)]
pub struct TestReadiness(AtomicBool);

impl TestReadiness {
    /// Whether there is something to read.
    pub fn is_readable(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Readiness for TestReadiness {
    fn set_readable(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }
}

/// A limit in bytes that can be changed at any time.
#[derive(Clone, Debug)]
pub struct Limit(Arc<AtomicU64>);

impl Limit {
    /// `setrlimit`
    pub fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// `getrlimit`
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Debug)]
enum Fd {
    File(FileId),
    Event(Arc<Counter>),
    Memory(Arc<MemFile>),
    DmaBuf(u64),
    Foreign,
}

/// Where [`Client::put`] puts arguments.
const ARGS: u64 = 0x1000_0000;
const ARGS_LEN: u64 = 1 << 20;

/// A program.
#[derive(Debug)]
pub struct Client {
    /// Its memory.
    pub memory: Arc<ClientMemory>,
    /// Its rights.
    pub capabilities: RefCell<Vec<Capability>>,
    /// `RLIMIT_MEMLOCK` in bytes.
    pub memlock: Limit,
    /// Its number.
    pub process: ProcessId,
    /// Its real user id; those that ran before keep theirs.
    pub user: Cell<UserId>,
    /// `(vaddr, len, write)` of every pin in a call.
    pub pins: RefCell<Vec<(u64, u64, bool)>>,
    /// Readiness of the queues that it was given.
    pub queues: RefCell<BTreeMap<FileId, Arc<TestReadiness>>>,
    /// Most descriptors.
    pub max_fds: Cell<usize>,
    /// Files of ours that are mapped.
    pub mapped: RefCell<BTreeSet<FileId>>,
    fds: RefCell<BTreeMap<i32, Fd>>,
    next_arg: Cell<u64>,
}

impl Client {
    /// A program with no capability and no limit on locked memory.
    #[must_use]
    pub fn new(process: u64) -> Client {
        let memory = ClientMemory::new(process);
        memory.map(ARGS, ARGS_LEN, true);
        Client {
            memory,
            capabilities: RefCell::default(),
            memlock: Limit(Arc::new(AtomicU64::new(u64::MAX))),
            process: ProcessId(process),
            user: Cell::new(UserId(1000)),
            pins: RefCell::default(),
            queues: RefCell::default(),
            max_fds: Cell::new(1024),
            mapped: RefCell::default(),
            fds: RefCell::default(),
            next_arg: Cell::new(ARGS),
        }
    }

    fn install(&self, fd: Fd) -> i32 {
        let mut fds = self.fds.borrow_mut();
        let number = (3..).find(|number| !fds.contains_key(number)).unwrap();
        fds.insert(number, fd);
        number
    }

    /// A descriptor for a file of the lab.
    pub fn fd(&self, file: FileId) -> i32 {
        self.install(Fd::File(file))
    }

    /// The descriptor `fd` for a file of the lab, as one that was passed.
    pub fn install_at(&self, fd: i32, file: FileId) {
        self.fds.borrow_mut().insert(fd, Fd::File(file));
    }

    /// A descriptor that is neither of the lab nor an eventfd.
    pub fn foreign_fd(&self) -> i32 {
        self.install(Fd::Foreign)
    }

    /// A descriptor for a file in memory.
    pub fn mem_fd(&self, file: &Arc<MemFile>) -> i32 {
        self.install(Fd::Memory(Arc::clone(file)))
    }

    /// A descriptor for a dma-buf of the real kernel's.
    pub fn dma_buf_fd(&self, bytes: u64) -> i32 {
        self.install(Fd::DmaBuf(bytes))
    }

    /// A fresh eventfd.
    pub fn eventfd(&self) -> (i32, Arc<Counter>) {
        let counter = Arc::<Counter>::default();
        (self.install(Fd::Event(Arc::clone(&counter))), counter)
    }

    /// The eventfd behind a descriptor, if it is one.
    pub fn counter(&self, fd: i32) -> Option<Arc<Counter>> {
        match self.fds.borrow().get(&fd)? {
            Fd::Event(counter) => Some(Arc::clone(counter)),
            _ => None,
        }
    }

    /// Whether a descriptor is open.
    pub fn is_open(&self, fd: i32) -> bool {
        self.fds.borrow().contains_key(&fd)
    }

    /// Room for `len` bytes of arguments, aligned to 64 and zeroed.
    pub fn room(&self, len: u64) -> u64 {
        let len = len.next_multiple_of(64);
        let at = if self.next_arg.get() + len > ARGS + ARGS_LEN { ARGS } else { self.next_arg.get() };
        self.next_arg.set(at + len);
        self.memory.store(at, &vec![0; len as usize]);
        at
    }

    /// Puts bytes somewhere.
    pub fn put_bytes(&self, bytes: &[u8]) -> u64 {
        let at = self.room(bytes.len() as u64);
        self.memory.store(at, bytes);
        at
    }

    /// Puts a structure somewhere.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, value: &T) -> u64 {
        self.put_bytes(value.as_bytes())
    }

    /// Puts a string and its NUL somewhere.
    pub fn put_str(&self, text: &str) -> u64 {
        self.put_bytes(&[text.as_bytes(), &[0]].concat())
    }

    /// What is there now.
    pub fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        self.memory.load(at, value.as_mut_bytes());
        value
    }

    /// The bytes that are there now.
    pub fn get_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.load(at, &mut bytes);
        bytes
    }
}

fn read(memory: &ClientMemory, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
    if !memory.check(addr, buf.len() as u64, false) {
        return Err(Errno::EFAULT);
    }
    memory.load(addr, buf);
    Ok(())
}

fn write(memory: &ClientMemory, addr: u64, buf: &[u8]) -> Result<(), Errno> {
    if !memory.check(addr, buf.len() as u64, true) {
        return Err(Errno::EFAULT);
    }
    memory.store(addr, buf);
    Ok(())
}

/// A client's memory, user and limit.
#[derive(Debug)]
struct ClientMm {
    memory: Arc<ClientMemory>,
    process: ProcessId,
    user: UserId,
    memlock: Limit,
}

impl Mm for ClientMm {
    fn process(&self) -> ProcessId {
        self.process
    }

    fn user(&self) -> UserId {
        self.user
    }

    fn memlock_limit(&self) -> u64 {
        self.memlock.get()
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        read(&self.memory, addr, buf)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        write(&self.memory, addr, buf)
    }

    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        self.memory.pin(vaddr, len, write, false)
    }

    fn area(&self, addr: u64) -> Result<Option<Area>, Errno> {
        self.memory.area(addr)
    }
}

impl Caller for Client {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        read(&self.memory, addr, buf)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        write(&self.memory, addr, buf)
    }

    fn event(&self, fd: i32) -> Result<Arc<dyn Event>, Errno> {
        match self.fds.borrow().get(&fd) {
            None => Err(Errno::EBADF),
            Some(Fd::Event(counter)) => Ok(Arc::clone(counter) as Arc<dyn Event>),
            Some(_) => Err(Errno::EINVAL),
        }
    }

    fn file(&self, fd: i32) -> Result<Option<FileId>, Errno> {
        match self.fds.borrow().get(&fd) {
            None => Err(Errno::EBADF),
            Some(Fd::File(file)) => Ok(Some(*file)),
            Some(_) => Ok(None),
        }
    }

    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno> {
        let pinned = self.memory.pin(vaddr, len, write, true)?;
        self.pins.borrow_mut().push((vaddr, len, write));
        Ok(pinned)
    }

    fn capable(&self, capability: Capability) -> bool {
        self.capabilities.borrow().contains(&capability)
    }

    fn memlock_limit(&self) -> u64 {
        self.memlock.get()
    }

    fn process(&self) -> ProcessId {
        self.process
    }

    fn mm(&self) -> Result<Arc<dyn Mm>, Errno> {
        Ok(Arc::new(ClientMm {
            memory: Arc::clone(&self.memory),
            process: self.process,
            user: self.user.get(),
            memlock: self.memlock.clone(),
        }))
    }

    fn client_file(&self, fd: i32) -> Result<Arc<dyn ClientFile>, Errno> {
        match self.fds.borrow().get(&fd) {
            None => Err(Errno::EBADF),
            Some(Fd::Memory(file)) => Ok(Arc::new(OpenFile::Memory(Arc::clone(file)))),
            Some(Fd::DmaBuf(bytes)) => Ok(Arc::new(OpenFile::DmaBuf(*bytes))),
            Some(_) => Ok(Arc::new(OpenFile::Other)),
        }
    }

    fn new_handle(&self, file: FileId) -> Result<i32, Errno> {
        if self.fds.borrow().len() >= self.max_fds.get() {
            return Err(Errno::EMFILE);
        }
        Ok(self.fd(file))
    }

    fn new_event(&self) -> Result<(i32, Arc<dyn Event>), Errno> {
        if self.fds.borrow().len() >= self.max_fds.get() {
            return Err(Errno::EMFILE);
        }
        let (fd, counter) = self.eventfd();
        Ok((fd, counter))
    }

    fn new_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        let fd = self.new_handle(file)?;
        let readiness = Arc::<TestReadiness>::default();
        self.queues.borrow_mut().insert(file, Arc::clone(&readiness));
        Ok((fd, readiness))
    }

    fn close(&self, fd: i32) {
        self.fds.borrow_mut().remove(&fd);
    }

    fn is_mapped(&self, file: FileId, _offset: u64, _len: u64) -> bool {
        self.mapped.borrow().contains(&file)
    }
}
