// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab for this crate's tests: a program with memory full of holes, a
//! platform that only counts, and a board with dummy devices.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ::device::{
    Board, Device, DeviceFile, DeviceFiles, Driver, Endpoint, Event, Io, NoDeviceFile, RegionLayout, ResetKind, Slot,
    Turn, Window,
};
use caller::{
    Caller, Capability, FileId, FileIds, Parking, Pinned, Platform, ProcessId, Reply, WatchId, is_user_range,
};
use iommu::{Memory, MemoryFault};
use iommufd::Iommufd;
use pci::{Address, FabricBuilder, FunctionSpec};
use uapi::Errno;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::group::{GET_DEVICE_FD, SET_CONTAINER};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Context, Options, Vfio};

const PAGE: u64 = 4096;

/// A program's memory: areas with rights, pages of zeros until written.
#[derive(Debug, Default)]
pub(crate) struct ClientMemory {
    areas: Mutex<BTreeMap<u64, (u64, bool)>>,
    pages: Mutex<BTreeMap<u64, Box<[u8; PAGE as usize]>>>,
}

impl ClientMemory {
    /// Maps `len` bytes at `addr`, which are multiples of 4096.
    pub(crate) fn map(&self, addr: u64, len: u64, writable: bool) {
        assert!(addr.is_multiple_of(PAGE) && len.is_multiple_of(PAGE));
        self.areas.lock().unwrap().insert(addr, (len, writable));
    }

    /// Whether the program could do this access.
    pub(crate) fn check(&self, addr: u64, len: u64, write: bool) -> bool {
        let areas = self.areas.lock().unwrap();
        let Some(end) = addr.checked_add(len) else { return false };
        let mut at = addr;
        while at < end {
            match areas.range(..=at).next_back() {
                Some((start, (len, writable))) if at - start < *len && (*writable || !write) => at = start + len,
                _ => return false,
            }
        }
        is_user_range(addr, len)
    }

    fn pieces(addr: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
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

    fn load(&self, addr: u64, buf: &mut [u8]) {
        let pages = self.pages.lock().unwrap();
        for (page, within, part) in Self::pieces(addr, buf.len()) {
            let part = &mut buf[part];
            match pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => part.fill(0),
            }
        }
    }

    fn store(&self, addr: u64, buf: &[u8]) {
        let mut pages = self.pages.lock().unwrap();
        for (page, within, part) in Self::pieces(addr, buf.len()) {
            let part = &buf[part];
            let bytes = pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            bytes[within..within + part.len()].copy_from_slice(part);
        }
    }
}

impl Memory for ClientMemory {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let mut bytes = vec![0; to.len()];
        self.load(offset, &mut bytes);
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let mut bytes = vec![0; from.len()];
        from.copy_to(&mut bytes[..]);
        self.store(offset, &bytes);
        Ok(())
    }
}

/// An eventfd that counts.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Reads and clears.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Event for Counter {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Fd {
    File(FileId),
    Event(Arc<Counter>),
    Foreign,
}

/// Where [`Client::put`] puts arguments.
const ARGS: u64 = 0x1000_0000;
const ARGS_LEN: u64 = 1 << 20;

/// A program.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) memory: Arc<ClientMemory>,
    pub(crate) capabilities: RefCell<Vec<Capability>>,
    pub(crate) memlock: Cell<u64>,
    pub(crate) process: ProcessId,
    /// `(vaddr, len, write)` of every pin.
    pub(crate) pins: RefCell<Vec<(u64, u64, bool)>>,
    fds: RefCell<BTreeMap<i32, Fd>>,
    next_arg: Cell<u64>,
}

impl Client {
    /// A program with no capability and no limit on locked memory.
    pub(crate) fn new(process: u64) -> Client {
        let memory = Arc::<ClientMemory>::default();
        memory.map(ARGS, ARGS_LEN, true);
        Client {
            memory,
            capabilities: RefCell::default(),
            memlock: Cell::new(u64::MAX),
            process: ProcessId(process),
            pins: RefCell::default(),
            fds: RefCell::default(),
            next_arg: Cell::new(ARGS),
        }
    }

    fn install(&self, fd: Fd) -> i32 {
        let mut fds = self.fds.borrow_mut();
        let number = 3 + fds.len() as i32;
        fds.insert(number, fd);
        number
    }

    /// A descriptor for a file of the lab.
    pub(crate) fn fd(&self, file: FileId) -> i32 {
        self.install(Fd::File(file))
    }

    /// A descriptor that is neither of the lab nor an eventfd.
    pub(crate) fn foreign_fd(&self) -> i32 {
        self.install(Fd::Foreign)
    }

    /// A fresh eventfd.
    pub(crate) fn eventfd(&self) -> (i32, Arc<Counter>) {
        let counter = Arc::<Counter>::default();
        (self.install(Fd::Event(Arc::clone(&counter))), counter)
    }

    /// Room for `len` bytes of arguments, aligned to 64 and zeroed.
    pub(crate) fn room(&self, len: u64) -> u64 {
        let len = len.next_multiple_of(64);
        let at = if self.next_arg.get() + len > ARGS + ARGS_LEN { ARGS } else { self.next_arg.get() };
        self.next_arg.set(at + len);
        self.memory.store(at, &vec![0; len as usize]);
        at
    }

    /// Puts bytes somewhere.
    pub(crate) fn put_bytes(&self, bytes: &[u8]) -> u64 {
        let at = self.room(bytes.len() as u64);
        self.memory.store(at, bytes);
        at
    }

    /// Puts a structure somewhere.
    pub(crate) fn put<T: IntoBytes + Immutable + ?Sized>(&self, value: &T) -> u64 {
        self.put_bytes(value.as_bytes())
    }

    /// Puts a string and its NUL somewhere.
    pub(crate) fn put_str(&self, text: &str) -> u64 {
        self.put_bytes(&[text.as_bytes(), &[0]].concat())
    }

    /// What is there now.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        self.memory.load(at, value.as_mut_bytes());
        value
    }

    /// The bytes that are there now.
    pub(crate) fn get_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.load(at, &mut bytes);
        bytes
    }
}

impl Caller for Client {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno> {
        if !self.memory.check(addr, buf.len() as u64, false) {
            return Err(Errno::EFAULT);
        }
        self.memory.load(addr, buf);
        Ok(())
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno> {
        if !self.memory.check(addr, buf.len() as u64, true) {
            return Err(Errno::EFAULT);
        }
        self.memory.store(addr, buf);
        Ok(())
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
        if !self.memory.check(vaddr, len, write) {
            return Err(Errno::EFAULT);
        }
        self.pins.borrow_mut().push((vaddr, len, write));
        Ok(Pinned { memory: Arc::clone(&self.memory) as Arc<dyn Memory>, offset: vaddr })
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

    fn mm(&self) -> Result<Arc<dyn caller::Mm>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn client_file(&self, _fd: i32) -> Result<Arc<dyn caller::ClientFile>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn new_handle(&self, _file: FileId) -> Result<i32, Errno> {
        Err(Errno::ENOSYS)
    }

    fn new_queue(&self, _file: FileId) -> Result<(i32, Arc<dyn caller::Readiness>), Errno> {
        Err(Errno::ENOSYS)
    }

    fn close(&self, _fd: i32) {}

    fn is_mapped(&self, _file: FileId, _offset: u64, _len: u64) -> bool {
        false
    }
}

/// Pages of a dummy device's BAR.
#[derive(Debug)]
struct Pages(MmapRegion);

impl Window for Pages {
    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// A device file of the test platform.
#[derive(Debug)]
pub(crate) struct TestFile {
    /// What it was made for.
    pub(crate) layout: RegionLayout,
    /// What [`DeviceFile::set_accessible`] said last.
    pub(crate) accessible: AtomicBool,
    windows: [Option<Arc<Pages>>; 6],
}

impl DeviceFile for TestFile {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        let pages = self.windows.get(bar)?.as_ref()?;
        Some(Arc::clone(pages) as Arc<dyn Window>)
    }

    fn set_accessible(&self, on: bool) {
        self.accessible.store(on, Ordering::Relaxed);
    }
}

/// A machine whose clock stands unless it is set.
#[derive(Debug, Default)]
pub(crate) struct TestPlatform {
    /// The time in nanoseconds.
    pub(crate) now: AtomicU64,
    /// Events that are watched.
    pub(crate) watches: Mutex<BTreeMap<WatchId, Arc<dyn Event>>>,
    /// Device files made so far.
    pub(crate) made: Mutex<Vec<Arc<TestFile>>>,
    random: AtomicU64,
}

impl Platform for TestPlatform {
    fn watch(&self, id: WatchId, event: &Arc<dyn Event>) {
        self.watches.lock().unwrap().insert(id, Arc::clone(event));
    }

    fn unwatch(&self, id: WatchId) {
        self.watches.lock().unwrap().remove(&id);
    }

    fn random(&self) -> [u8; 16] {
        let n = self.random.fetch_add(1, Ordering::Relaxed) + 1;
        let mut bytes = [0xa5; 16];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn device_files(&self) -> &dyn DeviceFiles {
        self
    }
}

impl DeviceFiles for TestPlatform {
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
        let pages = |len: u64| {
            let len = usize::try_from(len).map_err(|_| NoDeviceFile)?;
            (len > 0).then(|| MmapRegion::new(len).map(|r| Arc::new(Pages(r))).map_err(|_| NoDeviceFile)).transpose()
        };
        let mut windows: [Option<Arc<Pages>>; 6] = Default::default();
        for (window, len) in windows.iter_mut().zip(layout.mmap) {
            *window = pages(len)?;
        }
        let file = Arc::new(TestFile { layout: layout.clone(), accessible: AtomicBool::new(true), windows });
        self.made.lock().unwrap().push(Arc::clone(&file));
        Ok(file)
    }
}

/// What a dummy device was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A trapped load of so many bytes.
    Read(usize, u64, usize),
    /// A trapped store.
    Write(usize, u64, Vec<u8>),
    /// Windows appeared.
    Publish,
    /// A reset.
    Reset(ResetKind),
}

/// A device whose BARs are plain memory.
pub(crate) struct Dummy {
    spec: FunctionSpec,
    bytes: BTreeMap<(usize, u64), u8>,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Dummy {
    /// The device, and what it will be asked to do.
    pub(crate) fn new(spec: FunctionSpec) -> (Dummy, Arc<Mutex<Vec<Asked>>>) {
        let log = Arc::<Mutex<Vec<Asked>>>::default();
        (Dummy { spec, bytes: BTreeMap::new(), log: Arc::clone(&log) }, log)
    }

    fn say(&self, asked: Asked) {
        self.log.lock().unwrap().push(asked);
    }
}

impl Device for Dummy {
    fn function(&self) -> FunctionSpec {
        self.spec.clone()
    }

    fn read(&mut self, _io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            *byte = self.bytes.get(&(bar, at)).copied().unwrap_or(0);
        }
        self.say(Asked::Read(bar, offset, data.len()));
    }

    fn write(&mut self, _io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        self.bytes.extend((offset..).zip(data).map(|(at, byte)| ((bar, at), *byte)));
        self.say(Asked::Write(bar, offset, data.to_vec()));
    }

    fn publish(&mut self, _io: &mut Io<'_>) {
        self.say(Asked::Publish);
    }

    fn turn(&mut self, _io: &mut Io<'_>) -> Turn {
        Turn::Idle
    }

    fn reset(&mut self, _io: &mut Io<'_>, kind: ResetKind) {
        self.bytes.clear();
        self.say(Asked::Reset(kind));
    }
}

/// The subsystem, what is plugged in, and one program.
pub(crate) struct Lab {
    pub(crate) vfio: Vfio,
    pub(crate) board: Board,
    pub(crate) iommufd: Iommufd,
    pub(crate) files: FileIds,
    pub(crate) parking: Parking,
    pub(crate) platform: Arc<TestPlatform>,
    pub(crate) client: Client,
}

impl Lab {
    /// Nothing plugged in.
    pub(crate) fn new(options: Options) -> Lab {
        let platform = Arc::<TestPlatform>::default();
        let vfio = Vfio::new(Arc::clone(&platform) as Arc<dyn Platform>, options);
        let accounts = vfio.accounts().clone();
        Lab {
            vfio,
            board: Board::default(),
            iommufd: Iommufd::new(Arc::clone(&platform) as Arc<dyn Platform>, iommufd::Options::default(), accounts),
            files: FileIds::default(),
            parking: Parking::default(),
            platform,
            client: Client::new(1),
        }
    }

    /// A lab with group 7, which is 0000:01:00.0, bound to vfio-pci.
    pub(crate) fn with_group() -> Lab {
        let mut lab = Lab::new(Options::default());
        lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
        lab
    }

    /// Plugs a dummy device in and puts it into a group, whatever the fabric
    /// thinks of that.
    pub(crate) fn add(&mut self, group: u32, address: &str, driver: Option<Driver>) -> Arc<Endpoint> {
        let (endpoint, address) = self.plug(address, driver);
        self.vfio.table.add_member(group, address);
        endpoint
    }

    fn plug(&mut self, address: &str, driver: Option<Driver>) -> (Arc<Endpoint>, Address) {
        let spec = FunctionSpec { vendor: 0x1234, device: 0x5678, ..FunctionSpec::default() };
        let address: Address = address.parse().unwrap();
        let endpoint = Endpoint::new(Box::new(Dummy::new(spec).0));
        let slot = Slot { endpoint: Some(Arc::clone(&endpoint)), driver, ..Slot::default() };
        self.board.slots.insert(address, slot);
        (endpoint, address)
    }

    /// The functions of a fabric, all endpoints dummies without driver.
    pub(crate) fn with_fabric(builder: &FabricBuilder, options: Options) -> Lab {
        let mut lab = Lab::new(options);
        lab.board.fabric = builder.build().unwrap();
        for (address, function) in lab.board.fabric.functions() {
            let slot = if lab.board.fabric.is_bridge(address) {
                Slot { driver: Some(Driver::Pcieport), ..Slot::default() }
            } else {
                let (dummy, _) = Dummy::new(function.spec().clone());
                Slot { endpoint: Some(Endpoint::new(Box::new(dummy))), ..Slot::default() }
            };
            lab.board.slots.insert(address, slot);
        }
        lab
    }

    /// The group of a function.
    pub(crate) fn group_of(&self, address: &str) -> u32 {
        self.board.fabric.group(address.parse().unwrap()).unwrap()
    }

    /// Plugs a dummy device in that has no IOMMU, bound to vfio-pci.
    pub(crate) fn add_noiommu(&mut self, group: u32, address: &str) -> Arc<Endpoint> {
        let (endpoint, address) = self.plug(address, Some(Driver::VfioPci));
        self.vfio.add_noiommu_group(group, vec![address]);
        endpoint
    }

    /// Binds a function to another driver.
    pub(crate) fn bind(&mut self, address: &str, driver: Option<Driver>) {
        let address: Address = address.parse().unwrap();
        self.board.slots.get_mut(&address).unwrap().driver = driver;
    }

    /// The device at an address.
    pub(crate) fn endpoint(&self, address: &str) -> Arc<Endpoint> {
        Arc::clone(self.board.endpoint(address.parse().unwrap()).unwrap())
    }

    /// What a call needs, with another program.
    pub(crate) fn split<'a>(&'a mut self, client: &'a Client) -> (&'a mut Vfio, Context<'a>) {
        let Lab { vfio, board, iommufd, files, parking, .. } = self;
        (vfio, Context { caller: client, board, iommufd, files, parking })
    }

    /// What a call needs.
    pub(crate) fn parts(&mut self) -> (&mut Vfio, Context<'_>) {
        let Lab { vfio, board, iommufd, files, parking, client, .. } = self;
        (vfio, Context { caller: client, board, iommufd, files, parking })
    }

    /// Opens `/dev/vfio/vfio`.
    pub(crate) fn open_container(&mut self) -> FileId {
        let file = self.files.allocate();
        self.vfio.open_container(file);
        file
    }

    /// Opens `/dev/vfio/N`.
    pub(crate) fn open_group(&mut self, group: u32) -> Result<FileId, Errno> {
        let file = self.files.allocate();
        let (vfio, mut cx) = self.parts();
        vfio.open_group(file, group, &mut cx).map(|()| file)
    }

    /// `ioctl` whose answer is a number.
    pub(crate) fn ioctl(&mut self, file: FileId, request: u32, arg: u64) -> Result<u64, Errno> {
        let (vfio, mut cx) = self.parts();
        match vfio.ioctl(file, request, arg, &mut cx)? {
            Reply::Value(value) => Ok(value),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// `ioctl` of another program.
    pub(crate) fn ioctl_as(&mut self, client: &Client, file: FileId, request: u32, arg: u64) -> Result<Reply, Errno> {
        let (vfio, mut cx) = self.split(client);
        vfio.ioctl(file, request, arg, &mut cx)
    }

    /// SET_CONTAINER.
    pub(crate) fn set_container(&mut self, group: FileId, container: FileId) -> Result<u64, Errno> {
        let fd = self.client.fd(container);
        let arg = self.client.put(&fd);
        self.ioctl(group, SET_CONTAINER, arg)
    }

    /// GET_DEVICE_FD.
    pub(crate) fn get_device_fd(&mut self, group: FileId, name: &str) -> Result<FileId, Errno> {
        let arg = self.client.put_str(name);
        let (vfio, mut cx) = self.parts();
        match vfio.ioctl(group, GET_DEVICE_FD, arg, &mut cx)? {
            Reply::NewFile(file) => Ok(file),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// A container with one group in it and an IOMMU type set.
    pub(crate) fn container_with(&mut self, group: u32, number: u64) -> (FileId, FileId) {
        let container = self.open_container();
        let group = self.open_group(group).unwrap();
        self.set_container(group, container).unwrap();
        self.ioctl(container, SET_IOMMU, number).unwrap();
        (container, group)
    }

    /// Closes a file.
    pub(crate) fn release(&mut self, file: FileId) {
        self.vfio.release(file, &mut self.board);
    }
}
