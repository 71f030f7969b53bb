// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab with two hostile programs, and the laws that hold whatever they do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use caller::{FileId, Platform, Reply, WatchId};
use device::{DeviceFiles, Event};
use host::tree::Node;
use host::{FileKind, Host, Lab};
use iommu::FaultReason;
use models::testing::CountedEvent;
use pci::Address;
use sim::{BASE, Client, Fd, SIZE, SimPlatform, SimStorage};
use uapi::Errno;
use uapi::vfio::{container, device as dev, group, type1};

use crate::wire::{Number, wire};

/// Where arguments lie, with room for the longest.
pub(crate) const ARGUMENT: u64 = BASE + 0x100;
/// Where bitmaps and buffers lie.
pub(crate) const BUFFER: u64 = BASE + 0x8000;
/// Bytes behind an argument that are watched for stray writes.
const WATCHED: usize = 1024;

wire! {
    /// Where a program says that its structure is.
    enum Pointer {
        /// Where it really is.
        Good {},
        /// That many bytes before the end of its memory.
        End { bytes: u8 },
        /// That many bytes below its memory.
        Below { bytes: u8 },
        /// Somewhere.
        Wild { at: Number },
    }
}

/// The simulated machine, and which eventfds it was asked to watch.
#[derive(Debug)]
pub(crate) struct Machine {
    sim: Arc<SimPlatform>,
    watched: Mutex<BTreeMap<WatchId, Arc<dyn Event>>>,
}

impl Machine {
    fn watched(&self) -> Vec<WatchId> {
        self.watched.lock().unwrap_or_else(|e| e.into_inner()).keys().copied().collect()
    }
}

impl Platform for Machine {
    fn watch(&self, id: WatchId, event: &Arc<dyn Event>) {
        let old = self.watched.lock().unwrap_or_else(|e| e.into_inner()).insert(id, Arc::clone(event));
        assert!(old.is_none(), "{id:?} is watched twice");
    }

    fn listen(&self, id: WatchId, event: &Arc<dyn Event>, signalled: Arc<dyn Fn() + Send + Sync>) {
        self.sim.listen(id, event, signalled);
    }

    fn unwatch(&self, id: WatchId) {
        self.watched.lock().unwrap_or_else(|e| e.into_inner()).remove(&id);
    }

    fn random(&self) -> [u8; 16] {
        self.sim.random()
    }

    fn now(&self) -> u64 {
        self.sim.now()
    }

    fn device_files(&self) -> &dyn DeviceFiles {
        self.sim.device_files()
    }
}

pub(crate) struct World {
    pub(crate) host: Host,
    machine: Arc<Machine>,
    clients: [Client; 2],
    who: usize,
    events: Vec<Arc<CountedEvent>>,
    pub(crate) devices: Vec<Address>,
}

impl World {
    pub(crate) fn new(lab: &str) -> World {
        let lab = Lab::parse("lab", lab).unwrap_or_else(|e| panic!("{e}"));
        let machine = Arc::new(Machine { sim: SimPlatform::new(1), watched: Mutex::default() });
        let host = Host::new(lab, Arc::clone(&machine) as _, Box::new(SimStorage)).unwrap_or_else(|e| panic!("{e}"));
        let devices = host.board().slots.iter().filter(|(_, s)| s.endpoint.is_some()).map(|(a, _)| *a).collect();
        let clients = [Client::new(1), Client::new(2)];
        World { host, machine, clients, who: 0, events: Vec::new(), devices }
    }

    /// The program that does what comes next.
    pub(crate) fn switch(&mut self, who: u8) {
        self.who = usize::from(who) % self.clients.len();
    }

    pub(crate) fn client(&self) -> &Client {
        &self.clients[self.who]
    }

    pub(crate) fn device(&self, n: u8) -> Address {
        self.devices[usize::from(n) % self.devices.len()]
    }

    // Files.

    pub(crate) fn open(&mut self, node: Node) -> Option<i32> {
        let file = self.host.open(node, &self.clients[self.who]).ok()?;
        Some(self.client().install(Fd::File(file)))
    }

    pub(crate) fn open_group(&mut self, device: u8) -> Option<i32> {
        let number = self.host.board().fabric.group(self.device(device))?;
        self.open(Node::VfioGroup(number))
    }

    /// Everything up to an open device: its descriptor and the container's.
    pub(crate) fn open_device(&mut self, device: u8, iommu: u64) -> Option<(i32, i32)> {
        let group = self.open_group(device)?;
        let container = self.open(Node::VfioContainer)?;
        self.put(ARGUMENT, &container.to_le_bytes());
        self.ioctl(group, group::SET_CONTAINER, ARGUMENT).ok()?;
        self.ioctl(container, container::SET_IOMMU, iommu).ok()?;
        let name = format!("{}\0", self.device(device));
        self.put(ARGUMENT, name.as_bytes());
        let fd = self.ioctl(group, group::GET_DEVICE_FD, ARGUMENT).ok()?;
        Some((i32::try_from(fd).ok()?, container))
    }

    pub(crate) fn event(&mut self) -> i32 {
        let event = Arc::<CountedEvent>::default();
        self.events.push(Arc::clone(&event));
        self.client().install(Fd::Event(event))
    }

    /// One of the program's descriptors, or one that is not open.
    pub(crate) fn fd(&self, n: u8) -> i32 {
        let open = self.client().open();
        match usize::from(n).checked_rem(open.len()) {
            Some(at) if n < 250 => open[at],
            _ => i32::from(n) - 251,
        }
    }

    /// One of the program's descriptors of a kind.
    pub(crate) fn of_kind(&self, kind: FileKind, n: u8) -> Option<i32> {
        let is = |fd: &i32| self.client().file_id(*fd).and_then(|file| self.host.kind(file)) == Some(kind);
        let fds: Vec<i32> = self.client().open().into_iter().filter(is).collect();
        fds.get(usize::from(n).checked_rem(fds.len())?).copied()
    }

    pub(crate) fn close(&mut self, fd: i32) {
        if let Some(Fd::File(file)) = self.client().remove(fd) {
            self.drop_file(file);
        }
    }

    /// A second descriptor of the same file, for the other program.
    pub(crate) fn pass(&mut self, fd: i32) {
        if let Some(file) = self.client().file_id(fd) {
            self.clients[1 - self.who].install(Fd::File(file));
        }
    }

    fn drop_file(&mut self, file: FileId) {
        let held = |client: &Client| client.open().into_iter().any(|fd| client.file_id(fd) == Some(file));
        if !self.clients.iter().any(held) {
            self.host.release(file);
            assert_eq!(self.host.kind(file), None, "a file is gone with its last descriptor");
        }
    }

    // Calls.

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.client().set(at, bytes);
    }

    /// Lays a structure where the program says that it is, as far as there is memory.
    pub(crate) fn place(&self, pointer: &Pointer, bytes: &[u8]) -> u64 {
        let at = match pointer {
            Pointer::Good {} => ARGUMENT,
            Pointer::End { bytes } => BASE + SIZE - u64::from(*bytes),
            Pointer::Below { bytes } => BASE - u64::from(*bytes),
            Pointer::Wild { at } => at.value(),
        };
        for (n, byte) in (0..).zip(bytes) {
            self.put(at.wrapping_add(n), &[*byte]);
        }
        at
    }

    /// `ioctl` with a structure; nothing behind its `argsz` may change.
    pub(crate) fn call(&mut self, fd: i32, request: u32, pointer: &Pointer, bytes: &[u8]) -> Result<u64, Errno> {
        let at = self.place(pointer, bytes);
        let watched = self.is_bounded(fd, request);
        let mut before = vec![0; WATCHED];
        self.client().get(at, &mut before);
        let result = self.ioctl(fd, request, at);
        if watched {
            let mut after = vec![0; WATCHED];
            self.client().get(at, &mut after);
            let argsz = bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
            let end = (argsz as usize).min(WATCHED);
            assert_eq!(before[end..], after[end..], "request {request:#x} wrote beyond argsz {argsz}");
        }
        result
    }

    /// Whether the request writes nowhere but to its structure.
    fn is_bounded(&self, fd: i32, request: u32) -> bool {
        match self.client().file_id(fd).and_then(|file| self.host.kind(file)) {
            Some(FileKind::VfioContainer) => request == type1::GET_INFO,
            _ => true,
        }
    }

    pub(crate) fn ioctl(&mut self, fd: i32, request: u32, arg: u64) -> Result<u64, Errno> {
        let file = self.client().file_id(fd).ok_or(Errno::EBADF)?;
        match self.host.ioctl(file, request, arg, &self.clients[self.who])? {
            Reply::Value(value) => Ok(value),
            Reply::NewFile(new) => {
                assert_eq!(self.host.kind(new), Some(FileKind::VfioDevice));
                Ok(self.client().install(Fd::File(new)) as u64)
            }
            Reply::Parked(ticket) => panic!("{ticket:?}: no such call waits"),
        }
    }

    /// `pread`; the bytes behind what was read stay.
    pub(crate) fn read(&mut self, fd: i32, offset: u64, buffer: u64, len: u64) -> Result<u64, Errno> {
        let file = self.client().file_id(fd).ok_or(Errno::EBADF)?;
        let result = self.host.read(file, offset, buffer, len, &self.clients[self.who]).map(value);
        assert!(result.is_ok_and(|done| done <= len) || result.is_err(), "{result:?} of {len}");
        result
    }

    pub(crate) fn write(&mut self, fd: i32, offset: u64, buffer: u64, len: u64) -> Result<u64, Errno> {
        let file = self.client().file_id(fd).ok_or(Errno::EBADF)?;
        let result = self.host.write(file, offset, buffer, len, &self.clients[self.who]).map(value);
        assert!(result.is_ok_and(|done| done <= len) || result.is_err(), "{result:?} of {len}");
        result
    }

    pub(crate) fn mmap(&self, fd: i32, offset: u64, len: u64, shared: bool) {
        let Some(file) = self.client().file_id(fd) else { return };
        let allowed = self.host.mmap(file, offset, len, shared, false).is_ok();
        // API-228
        assert!(!allowed || shared && self.host.kind(file) == Some(FileKind::VfioDevice));
    }

    /// The file offset of a region, as the device says.
    pub(crate) fn region(&mut self, fd: i32, index: u32) -> Option<u64> {
        let mut info = [0_u8; 32];
        info[0] = 32;
        info[8..12].copy_from_slice(&index.to_le_bytes());
        self.put(ARGUMENT, &info);
        self.ioctl(fd, dev::GET_REGION_INFO, ARGUMENT).ok()?;
        self.client().get(ARGUMENT, &mut info);
        Some(u64::from_le_bytes(*info[24..].first_chunk()?))
    }

    // What happens besides.

    pub(crate) fn turn(&self, device: u8) {
        if let Some(endpoint) = self.host.board().endpoint(self.device(device)) {
            endpoint.turn(self.machine.now());
        }
    }

    pub(crate) fn advance(&self, us: u16) {
        self.machine.sim.advance(u64::from(us) * 1000);
    }

    /// Somebody signals an eventfd that is watched, or was once.
    pub(crate) fn fire(&mut self, n: u8) {
        let watched = self.machine.watched();
        let id = match usize::from(n).checked_rem(watched.len()) {
            Some(at) if n < 250 => watched[at],
            _ => WatchId(n.into()),
        };
        self.host.event_fired(id);
    }

    /// The device interrupts.
    pub(crate) fn interrupt(&self, device: u8, vector: u16, level: bool) {
        if let Some(endpoint) = self.host.board().endpoint(self.device(device)) {
            endpoint.interrupts.message(vector);
            endpoint.interrupts.set_pin(level);
        }
    }

    /// Closes everything: nothing may be left.
    pub(crate) fn finish(mut self) {
        for who in 0..2 {
            self.switch(who);
            for fd in self.client().open() {
                self.close(fd);
            }
        }
        assert_eq!(self.host.open_files(), 0, "files are open after the last close");
        assert_eq!(self.machine.watched(), [], "eventfds are watched after the last close");
        for event in &self.events {
            assert_eq!(Arc::strong_count(event), 1, "an eventfd is held after the last close");
        }
        for (address, slot) in &self.host.board().slots {
            assert!(!self.host.is_open(*address), "{address} is open after the last close");
            let Some(endpoint) = &slot.endpoint else { continue };
            endpoint.turn(self.machine.now());
            let command = self.host.board().fabric.function(*address).map_or(0, pci::Function::command);
            assert_eq!(command & 4, 0, "{address} may master the bus after the last close");
            let fault = |endpoint: &device::Endpoint| endpoint.requester.session().read(0, &mut [0]).err();
            assert_eq!(fault(endpoint).map(|f| f.reason), Some(FaultReason::BusMasterOff), "{address}");
            endpoint.requester.set_bus_master(true);
            assert_eq!(fault(endpoint).map(|f| f.reason), Some(FaultReason::Blocked), "{address} is still attached");
        }
    }
}

/// The number in an answer of `pread` or `pwrite`.
fn value(reply: Reply) -> u64 {
    match reply {
        Reply::Value(value) => value,
        other => panic!("{other:?}"),
    }
}
